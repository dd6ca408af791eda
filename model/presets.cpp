// Models by name, for --init: the published shapes of each family, the demo's, and tiny ones for tests.
#include <utility>

#include "core/error.h"
#include "core/flags.h"  // nearest_name
#include "model/config.h"

namespace {
ModelConfig gpt2(int64_t num_layers, int64_t num_heads, int64_t channels) {
    ModelConfig config;
    config.family = "gpt2";
    config.vocab_size = 50257;
    config.max_position = 1024;
    config.channels = channels;
    config.num_layers = num_layers;
    config.num_heads = config.num_kv_heads = num_heads;
    config.head_dim = channels / num_heads;
    config.mlp_dim = 4 * channels;
    config.norm = Norm::layernorm;
    config.position = Position::learned;
    config.mlp = Mlp::gelu;
    config.qkv_bias = config.out_bias = config.mlp_bias = true;
    config.tied_head = true;
    config.bos_token = config.eos_token = 50256;
    return config;
}

struct LlamaSize {
    int64_t num_layers, num_heads, num_kv_heads, head_dim, channels, mlp_dim;
};
ModelConfig llama(const LlamaSize& size, int64_t vocab_size, int64_t max_position) {
    ModelConfig config;
    config.vocab_size = vocab_size;
    config.max_position = max_position;
    config.channels = size.channels;
    config.num_layers = size.num_layers;
    config.num_heads = size.num_heads;
    config.num_kv_heads = size.num_kv_heads;
    config.head_dim = size.head_dim;
    config.mlp_dim = size.mlp_dim;
    return config;
}

ModelConfig llama_160m() {
    ModelConfig config = llama({12, 12, 12, 64, 768, 3072}, 32000, 2048);
    config.norm_eps = 1e-6f;
    config.bos_token = 1;
    config.eos_token = 2;
    return config;
}

// Llama 3.1 and 3.2: their positions are stretched by different factors.
ModelConfig llama3(const LlamaSize& size, double rope_factor, bool tied_head) {
    ModelConfig config = llama(size, 128256, 131072);
    config.rope_theta = 500000;
    config.rope_scaling.type = "llama3";
    config.rope_scaling.factor = rope_factor;
    config.rope_scaling.original_max_position = 8192;
    config.tied_head = tied_head;
    config.bos_token = 128000;
    config.eos_token = 128001;
    if (tied_head) config.eos_list = {128001, 128008, 128009};
    return config;
}

ModelConfig qwen2(const LlamaSize& size, int64_t vocab_size, int64_t max_position, bool tied_head) {
    ModelConfig config = llama(size, vocab_size, max_position);
    config.family = "qwen2";
    config.norm_eps = 1e-6f;
    config.qkv_bias = true;
    config.tied_head = tied_head;
    return config;
}
// Qwen2.5; the two largest have a few rows more in their embedding.
ModelConfig qwen25(const LlamaSize& size, int64_t vocab_size, int64_t max_position, bool tied_head) {
    ModelConfig config = qwen2(size, vocab_size, max_position, tied_head);
    config.rope_theta = 1000000;
    config.bos_token = config.eos_token = 151643;
    return config;
}

ModelConfig qwen3(const LlamaSize& size, int64_t vocab_size, int64_t max_position) {
    ModelConfig config = llama(size, vocab_size, max_position);
    config.family = "qwen3";
    config.norm_eps = 1e-6f;
    config.qk_norm = true;
    config.tied_head = true;
    return config;
}

ModelConfig qwen3_600m() {
    ModelConfig config = qwen3({28, 16, 8, 128, 1024, 3072}, 151936, 40960);
    config.rope_theta = 1000000;
    config.bos_token = 151643;
    config.eos_token = 151643;
    return config;
}

constexpr LlamaSize kTiny = {2, 4, 2, 16, 64, 176};
constexpr int64_t kTinyVocab = 512, kTinyPositions = 256;

ModelConfig tiny_gpt2() {
    ModelConfig config = gpt2(2, 4, 64);
    config.vocab_size = kTinyVocab;
    config.max_position = kTinyPositions;
    config.bos_token = config.eos_token = 0;
    return config;
}

struct Preset {
    const char* name;
    ModelConfig config;
};
const std::vector<Preset>& presets() {
    static const std::vector<Preset> all = {
        {"gpt2-124m", gpt2(12, 12, 768)},
        {"gpt2-355m", gpt2(24, 16, 1024)},
        {"gpt2-774m", gpt2(36, 20, 1280)},
        {"gpt2-1558m", gpt2(48, 25, 1600)},
        {"llama-160m", llama_160m()},
        {"llama-1b", llama3({16, 32, 8, 64, 2048, 8192}, 32, true)},
        {"llama-3b", llama3({28, 24, 8, 128, 3072, 8192}, 32, true)},
        {"llama-8b", llama3({32, 32, 8, 128, 4096, 14336}, 8, false)},
        {"qwen2.5-0.5b", qwen25({24, 14, 2, 64, 896, 4864}, 151936, 32768, true)},
        {"qwen2.5-1.5b", qwen25({28, 12, 2, 128, 1536, 8960}, 151936, 131072, true)},
        {"qwen2.5-3b", qwen25({36, 16, 2, 128, 2048, 11008}, 151936, 32768, true)},
        {"qwen2.5-7b", qwen25({28, 28, 4, 128, 3584, 18944}, 152064, 131072, false)},
        {"qwen3-0.6b", qwen3_600m()},
        // 3.1M parameters: the largest that sees two million tokens in three minutes on two cores. At equal
        // compute it and its shallower kin beat wider ones; QK-norm keeps the high learning rate of so short
        // a run stable.
        {"demo", qwen3({6, 3, 1, 64, 192, 512}, 4096, 512)},
        {"tiny-gpt2", tiny_gpt2()},
        {"tiny-llama", llama(kTiny, kTinyVocab, kTinyPositions)},
        {"tiny-qwen2", qwen2(kTiny, kTinyVocab, kTinyPositions, true)},
        {"tiny-qwen3", qwen3(kTiny, kTinyVocab, kTinyPositions)},
    };
    return all;
}
}  // namespace

ModelConfig config_preset(const std::string& name) {
    std::string names;
    for (const Preset& preset : presets()) {
        if (name == preset.name) return preset.config;
        names += cat({names.empty() ? "" : ", ", preset.name});
    }
    const std::string near = nearest_name(name, config_preset_names());
    fail_input({.what = "unknown model preset",
                .expected = names,
                .actual = name,
                .hint = near.empty() ? "give one of these, or a model's directory, such as RUN/step_N"
                                     : cat({"did you mean ", near, "?"})});
}

std::vector<std::string> config_preset_names() {
    std::vector<std::string> names;
    for (const Preset& preset : presets()) names.push_back(preset.name);
    return names;
}
