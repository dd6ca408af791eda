// Loss on held-out shards: the one function behind the trainer's --eval-every and build/evaluate.
//   loss = sum of -ln p(token) / predicted tokens          perplexity = e^loss
//   bits per byte = sum of -log2 p(token) / bytes of the predicted tokens' text
// Every token is predicted once, in windows of seq_len; end-of-text tokens cost nats but have no bytes. So
// bits per byte compare across tokenizers, and with a compressor's output over the same bytes.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "core/comm.h"
#include "data/loader.h"
#include "model/transformer.h"
#include "tokenizer/tokenizer.h"

struct Perplexity {
    double nats = 0;
    int64_t num_tokens = 0;
    int64_t num_bytes = 0;  // 0: unknown (no tokenizer)
    bool whole = true;      // false: stopped before the end, of no use
    double loss() const;
    double perplexity() const;
    double bits_per_byte() const;  // NaN when bytes are unknown
};

// Bytes of text behind each id: 0 for special tokens.
std::vector<int32_t> bytes_per_token(const Tokenizer& tokenizer);

// Runs over `loader` (sequential order) from its start; max_batches 0: all of it. token_bytes may be empty.
// `stop` (may be empty) is asked before each micro-batch. With `comm` each rank takes some of the
// micro-batches, and all get the result.
// Sums in f64 window by window: the same bits for any number of threads and ranks and any micro-batch.
Perplexity evaluate_perplexity(Transformer& model, const Loader& loader,
                               const std::vector<int32_t>& token_bytes, int64_t max_batches = 0,
                               bool show_progress = false, const std::function<bool()>& stop = {},
                               Comm* comm = nullptr);
