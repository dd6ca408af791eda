// Autoregressive decoding of one sequence with a KV cache. Knows token ids only; text is the caller's
// (eval/).
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/sampling.h"
#include "model/config.h"
#include "model/params.h"

class Decoder {
public:
    // params: the arena, owned by the caller, on any device. max_tokens: prompt plus continuation, at most
    // config.max_position.
    Decoder(const ModelConfig& config, const ParamTable& table, Tensor params, int64_t max_tokens);
    ~Decoder();
    // What a decoder allocates, for memory plans.
    static int64_t memory_bytes(const ModelConfig& config, DType dtype, int64_t max_tokens);
    void reset();
    int64_t length() const;  // tokens in the cache
    int64_t max_tokens() const;
    int64_t vocab_size() const;
    // Appends tokens (prefill in chunks, or one) and returns the logits [V] f32 after the last one, where the
    // parameters are; valid until the next call.
    Tensor append(const int32_t* tokens, int64_t count);

private:
    struct State;
    std::unique_ptr<State> state_;
};

struct GenerateParams {
    SamplingParams sampling;
    int64_t max_new_tokens = 128;
    uint64_t seed = 0;                      // token i draws from (seed, i): repeatable
    std::vector<int32_t> stop_tokens = {};  // not emitted
    std::function<bool()> stop = {};        // asked before each token: true ends the text
    int64_t num_ids = 0;  // only ids below: rows that pad an embedding are no tokens; 0: all
};
// Feeds the prompt behind what the decoder holds, then samples until max_new_tokens, a stop token or a full
// context; `emit` (may be empty) gets each token and returns false to stop (stop strings). Returns the
// tokens.
std::vector<int32_t> generate(Decoder& decoder, const std::vector<int32_t>& prompt,
                              const GenerateParams& params, const std::function<bool(int32_t)>& emit);
