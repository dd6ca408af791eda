// What makes a model's numbers valid, and what a token costs.
#include "model/config.h"

#include "core/error.h"

namespace {

double layer_weights(const ModelConfig& config) {
    double weights = 0;
    const auto linears = linear_dims(config);
    for (size_t i = 0; i + 1 < linears.size(); ++i) weights += double(linears[i].out) * double(linears[i].in);
    return weights;
}

// Within a percent, in double: no size that a file claims overflows here.
double approximate_params(const ModelConfig& config) {
    const double positions = config.position == Position::learned ? double(config.max_position) : 0;
    const double heads = config.tied_head ? 1 : 2;
    return double(config.channels) * (heads * double(config.vocab_size) + positions) +
           double(config.num_layers) * layer_weights(config);
}

}  // namespace

void check_config(const ModelConfig& config, const std::string& where) {
    const auto require = [&](bool ok, const char* what, const std::string& expected, const Piece& actual) {
        if (!ok) fail_input({.what = what, .where = where, .expected = expected, .actual = actual.text});
    };
    const auto positive = [&](const char* what, int64_t value, int64_t max) {
        require(value >= 1 && value <= max, what, cat({"1 to ", max}), value);
    };
    constexpr int64_t kMaxId = (int64_t{1} << 31) - 1;  // ids and positions are int32
    constexpr int64_t kMaxDim = int64_t{1} << 24;
    positive("vocabulary size", config.vocab_size, kMaxId);
    positive("number of positions", config.max_position, kMaxId);
    positive("channels", config.channels, kMaxDim);
    positive("number of layers", config.num_layers, kMaxLayers);
    positive("number of heads", config.num_heads, kMaxDim);
    positive("number of key-value heads", config.num_kv_heads, config.num_heads);
    positive("MLP width", config.mlp_dim, kMaxDim);
    require(config.num_heads % config.num_kv_heads == 0, "number of heads",
            cat({"a multiple of the ", config.num_kv_heads, " key-value heads"}), config.num_heads);
    require(config.head_dim >= 8 && config.head_dim <= 256 && config.head_dim % 8 == 0, "head dimension",
            "a multiple of 8 from 8 to 256", config.head_dim);
    require(config.norm_eps > 0 && config.norm_eps < 1, "norm epsilon", "between 0 and 1",
            double(config.norm_eps));
    require(config.init_std >= 0 && config.init_std <= 1, "initializer range", "0 to 1", config.init_std);
    require(config.rope_theta >= 1, "rope_theta", "at least 1", config.rope_theta);
    require(config.bos_token < config.vocab_size, "beginning-of-text token", "less than the vocabulary size",
            config.bos_token);
    require(config.eos_token < config.vocab_size, "end-of-text token", "less than the vocabulary size",
            config.eos_token);
    for (const int64_t id : config.eos_list)
        require(id >= 0 && id < config.vocab_size, "end-of-text token", "less than the vocabulary size", id);
    require(config.eos_list.empty() || config.eos_list.front() == config.eos_token, "end-of-text token",
            "the first of its list", config.eos_token);

    // What the family's Hugging Face code computes; anything else could be trained but never loaded
    // elsewhere.
    const auto as_in_family = [&](bool ok, const char* what) {
        if (!ok)
            fail_input(
                {.what = cat({"a ", config.family, " model cannot have this: ", what}), .where = where});
    };
    const bool gpt2 = config.family == "gpt2", llama = config.family == "llama";
    const bool qwen2 = config.family == "qwen2", qwen3 = config.family == "qwen3";
    require(gpt2 || llama || qwen2 || qwen3, "model family is not supported", "gpt2, llama, qwen2 or qwen3",
            config.family);
    as_in_family(config.norm == (gpt2 ? Norm::layernorm : Norm::rmsnorm), "the other kind of norm");
    as_in_family(config.position == (gpt2 ? Position::learned : Position::rope),
                 "the other kind of positions");
    as_in_family((config.mlp == Mlp::swiglu) == !gpt2, "the other kind of MLP");
    as_in_family(config.qk_norm == qwen3, "QK-norm where it has none, or none where it has");
    as_in_family(gpt2 || (qwen2 ? config.qkv_bias && !config.out_bias : config.qkv_bias == config.out_bias),
                 "these attention biases");
    as_in_family(!gpt2 || (config.qkv_bias && config.out_bias && config.mlp_bias),
                 "a linear layer without bias");
    as_in_family(gpt2 || llama || !config.mlp_bias, "MLP biases");
    as_in_family(!gpt2 || config.num_kv_heads == config.num_heads, "fewer key-value heads than heads");
    as_in_family(!gpt2 || config.head_dim * config.num_heads == config.channels,
                 "heads x head_dim unlike channels");
    as_in_family(!llama || config.channels % config.num_heads == 0, "channels that heads do not divide");
    require(config.windows.empty() || int64_t(config.windows.size()) == config.num_layers,
            "number of windows", cat({config.num_layers, " (one per layer) or none"}),
            int64_t(config.windows.size()));
    // Sizes in bytes of all that is made from a model (16 bytes a parameter, a step's moments) stay far
    // within 64 bits.
    constexpr double kMaxParams = 0x1p44;
    const double num_params = approximate_params(config);
    require(num_params <= kMaxParams, "number of parameters", cat({"at most ", kMaxParams}), num_params);
    int64_t window = 0;
    for (const int64_t w : config.windows) {
        require(w >= 0 && w <= kMaxId, "sliding window", "0 or more", w);
        as_in_family(w == 0 || ((qwen2 || qwen3) && (window == 0 || w == window)),
                     "sliding windows (Qwen2 and Qwen3 may have one size)");
        if (w > 0) window = w;
    }
}

std::array<LinearDims, 5> linear_dims(const ModelConfig& c) {
    return {{{c.qkv_dim(), c.channels, c.qkv_bias},
             {c.channels, c.attention_dim(), c.out_bias},
             {c.mlp == Mlp::swiglu ? 2 * c.mlp_dim : c.mlp_dim, c.channels, c.mlp_bias},
             {c.channels, c.mlp_dim, c.mlp_bias},
             {c.vocab_size, c.channels, false}}};
}

double flops_per_token(const ModelConfig& config, int64_t seq_len) {
    const double head = double(config.channels) * double(config.vocab_size);
    return 6 * (double(config.num_layers) * layer_weights(config) + head) +
           6 * double(config.num_layers) * double(config.attention_dim()) * double(seq_len);
}
