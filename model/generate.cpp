// The decoder: the layer's pieces over a few new tokens, with keys and values kept. And the sampling loop.
#include "model/generate.h"

#include <algorithm>
#include <numeric>

#include "core/device.h"
#include "core/error.h"
#include "kernels/embedding.h"
#include "kernels/kv_cache.h"
#include "model/layer.h"

namespace {
// Prompts go through in pieces: rows enough to make the products efficient, few enough for the cache.
constexpr int64_t kChunkTokens = 128;
// Random numbers of sampling, apart from those of initialisation and rounding.
constexpr uint64_t kSamplingStream = uint64_t{1} << 40;
}  // namespace

struct Decoder::State {
    ModelConfig config;
    DType dtype;
    int64_t max_tokens, length = 0;
    std::vector<LayerTensors> layers;
    Tensor wte, wpe, final_norm_w, final_norm_b, head;
    Buffer memory;
    // What a chunk of n tokens needs, and the cache behind it.
    struct Places {
        Tensor rope, logits, last_hidden, mean, rstd;  // [maxT,D], [1,V], [1,C], [1], [1]
        std::vector<Tensor> k_cache, v_cache;          // L x [maxT,KD]
        Tensor tokens, positions, stream;              // [n], [n], [n,C]
        LayerActivations layer;
    } places;

    State(const ModelConfig& c, const ParamTable& table, Tensor params, int64_t max)
        : config(c), dtype(params.dtype), max_tokens(max) {
        const auto slot = [&](Slot s) { return table.slot(params, s); };
        wte = slot(Slot::wte), wpe = slot(Slot::wpe);
        final_norm_w = slot(Slot::final_norm_w), final_norm_b = slot(Slot::final_norm_b);
        head = slot(config.tied_head ? Slot::wte : Slot::head_w);
        for (int64_t l = 0; l < c.num_layers; ++l) layers.push_back(layer_tensors(table, params, l));
        memory = Buffer(bytes(config, dtype, max_tokens), params.device);
        view_for(1);
        if (config.position == Position::rope) {
            Buffer host(places.rope.bytes());
            const Tensor table_on_host = host.tensor(DType::f32).view(max_tokens, config.head_dim);
            rope_table(table_on_host, c.rope_theta, c.rope_scaling, c.max_position, max_tokens);
            copy_tensor(places.rope, table_on_host);
        }
    }

    static Places layout(Arena& arena, const ModelConfig& config, DType dtype, int64_t max_tokens,
                         int64_t n) {
        Places p;  // what does not depend on n comes first and stays where it is
        if (config.position == Position::rope) p.rope = arena.take(DType::f32, max_tokens, config.head_dim);
        p.logits = arena.take(DType::f32, 1, config.vocab_size);
        p.last_hidden = arena.take(dtype, 1, config.channels);
        p.mean = arena.take(DType::f32, 1);
        p.rstd = arena.take(DType::f32, 1);
        for (int64_t l = 0; l < config.num_layers; ++l) {
            p.k_cache.push_back(arena.take(dtype, max_tokens, config.num_kv_heads * config.head_dim));
            p.v_cache.push_back(arena.take(dtype, max_tokens, config.num_kv_heads * config.head_dim));
        }
        p.tokens = arena.take(DType::i32, n);
        p.positions = arena.take(DType::i32, n);
        p.stream = arena.take(dtype, n, config.channels);
        p.layer = layout_layer(arena, config, dtype, n, false);
        return p;
    }
    static int64_t bytes(const ModelConfig& config, DType dtype, int64_t max_tokens) {
        Arena measure;
        layout(measure, config, dtype, max_tokens, std::min(kChunkTokens, max_tokens));
        return measure.bytes();
    }
    void view_for(int64_t n) {
        if (!places.tokens.absent() && places.tokens.dims[0] == n) return;
        Arena arena(memory);
        places = layout(arena, config, dtype, max_tokens, n);
    }

    void run_chunk(const int32_t* tokens, int64_t n) {
        view_for(n);
        std::vector<int32_t> positions(static_cast<size_t>(n));
        std::iota(positions.begin(), positions.end(), static_cast<int32_t>(length));
        copy_tensor(places.tokens, tensor_of(tokens, n));
        copy_tensor(places.positions, tensor_of(positions.data(), n));
        const LayerRun run{.config = config, .rope = places.rope, .positions = places.positions};
        const LayerActivations& a = places.layer;
        embedding_forward(places.stream, wte, wpe, places.tokens, places.positions);
        for (int64_t l = 0; l < config.num_layers; ++l) {
            const LayerTensors& p = layers[static_cast<size_t>(l)];
            project_qkv(run, p, a, places.stream);
            kv_cache_append(places.k_cache[l], places.v_cache[l], a.qkv, length);
            attention_cached(a.attention, a.qkv, places.k_cache[l], places.v_cache[l], length,
                             attention_shape(config, l));
            project_attention(run, p, a, places.stream);
            mlp_hidden(run, p, a);
            mlp_output(run, p, a, places.stream);
        }
        length += n;
    }
};

Decoder::Decoder(const ModelConfig& config, const ParamTable& table, Tensor params, int64_t max_tokens) {
    if (max_tokens < 1 || max_tokens > config.max_position) {
        fail_input({.what = "context does not fit the model's positions",
                    .expected = cat({"1 to ", config.max_position, " tokens"}),
                    .actual = cat({max_tokens})});
    }
    state_ = std::make_unique<State>(config, table, params, max_tokens);
}
Decoder::~Decoder() = default;
int64_t Decoder::memory_bytes(const ModelConfig& config, DType dtype, int64_t max_tokens) {
    return State::bytes(config, dtype, std::min(max_tokens, config.max_position));
}
void Decoder::reset() { state_->length = 0; }
int64_t Decoder::length() const { return state_->length; }
int64_t Decoder::max_tokens() const { return state_->max_tokens; }
int64_t Decoder::vocab_size() const { return state_->config.vocab_size; }

Tensor Decoder::append(const int32_t* tokens, int64_t count) {
    State& s = *state_;
    CHECK(count > 0, cat({"count=", count}));
    if (count > s.max_tokens - s.length) {
        fail_input({.what = "the text does not fit into the context",
                    .expected = cat({"at most ", s.max_tokens, " tokens"}),
                    .actual = cat({s.length + count})});
    }
    for (int64_t i = 0; i < count; ++i) {
        if (tokens[i] >= 0 && tokens[i] < s.config.vocab_size) continue;
        fail_input({.what = "token id is outside the vocabulary",
                    .where = cat({"token ", s.length + i}),
                    .expected = cat({"0 to ", s.config.vocab_size - 1}),
                    .actual = cat({tokens[i]}),
                    .hint = "the tokenizer is another one than the model's"});
    }
    for (int64_t done = 0; done < count;) {
        const int64_t n = std::min(kChunkTokens, count - done);
        s.run_chunk(tokens + done, n);
        done += n;
    }
    const State::Places& at = s.places;
    norm_forward(at.last_hidden, at.mean, at.rstd, at.stream.rows(at.stream.dims[0] - 1, 1), s.final_norm_w,
                 s.final_norm_b, s.config.norm_eps);
    matmul_forward(at.logits, at.last_hidden, s.head);
    return at.logits.view(s.config.vocab_size);
}

std::vector<int32_t> generate(Decoder& decoder, const std::vector<int32_t>& prompt,
                              const GenerateParams& params, const std::function<bool(int32_t)>& emit) {
    if (prompt.empty())
        fail_input({.what = "nothing to continue", .expected = "a prompt of at least one token"});
    std::vector<int32_t> tokens;
    const RandomKey key{.seed = params.seed, .stream = kSamplingStream};
    const int64_t num_ids =
        params.num_ids > 0 ? std::min(params.num_ids, decoder.vocab_size()) : decoder.vocab_size();
    Tensor logits = decoder.append(prompt.data(), static_cast<int64_t>(prompt.size()));
    while (static_cast<int64_t>(tokens.size()) < params.max_new_tokens) {
        if (params.stop && params.stop()) break;
        const int32_t token =
            sample_token(logits.rows(0, num_ids), params.sampling, random_uniform(key, tokens.size()));
        if (token < 0) {
            fail_input({.what = "the model's logits are not finite",
                        .where = cat({"token ", decoder.length()}),
                        .hint = "its weights have diverged: use an earlier checkpoint"});
        }
        if (std::ranges::find(params.stop_tokens, token) != params.stop_tokens.end()) break;
        tokens.push_back(token);
        if (emit && !emit(token)) break;
        if (decoder.length() == decoder.max_tokens()) break;
        if (static_cast<int64_t>(tokens.size()) < params.max_new_tokens) logits = decoder.append(&token, 1);
    }
    return tokens;
}
