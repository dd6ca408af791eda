// Held-out loss, window by window.
#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <optional>

#include "core/error.h"
#include "core/log.h"

double Perplexity::loss() const { return nats / static_cast<double>(num_tokens); }
double Perplexity::perplexity() const { return std::exp(loss()); }
double Perplexity::bits_per_byte() const {
    if (num_bytes == 0) return std::numeric_limits<double>::quiet_NaN();
    return nats / std::numbers::ln2 / static_cast<double>(num_bytes);
}

std::vector<int32_t> bytes_per_token(const Tokenizer& tokenizer) {
    std::vector<int32_t> bytes(static_cast<size_t>(tokenizer.vocab_size()));
    for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
        bytes[static_cast<size_t>(id)] = static_cast<int32_t>(tokenizer.token_bytes(id).size());
    }
    for (const AddedToken& token : tokenizer.added_tokens()) {
        if (token.special) bytes[static_cast<size_t>(token.id)] = 0;  // its name is not part of any text
    }
    return bytes;
}

Perplexity evaluate_perplexity(Transformer& model, const Loader& loader,
                               const std::vector<int32_t>& token_bytes, int64_t max_batches,
                               bool show_progress, const std::function<bool()>& stop, Comm* comm) {
    const int64_t rows = loader.micro_batch();
    const RunShape& shape = model.shape();
    CHECK(rows <= shape.num_rows && loader.seq_len() <= shape.seq_len,
          cat({"loader ", rows, "x", loader.seq_len(), ", model ", shape.num_rows, "x", shape.seq_len}));
    int64_t batches = (loader.num_windows() + rows - 1) / rows;
    if (max_batches > 0) batches = std::min(batches, max_batches);
    const int64_t windows = std::min(batches * rows, loader.num_windows());
    const int64_t rank = comm != nullptr ? comm->rank() : 0, ranks = comm != nullptr ? comm->size() : 1;

    std::vector<float> losses(static_cast<size_t>(rows * loader.seq_len()));
    std::vector<double> nats(static_cast<size_t>(windows));  // of each window; the others' are zero
    double counts[3] = {};                                   // tokens, bytes, ranks that stopped
    std::optional<Progress> progress;
    if (show_progress) progress.emplace("evaluate", loader.tokens_per_epoch(), "tok");
    // As many rounds on each rank: where weights are sharded, all ranks are needed for anybody's pass.
    for (int64_t round = 0; round * ranks < batches; ++round) {
        const int64_t b = batches * rank / ranks + round;
        if (stop && stop()) counts[2] = 1;
        if (counts[2] > 0 || b >= batches * (rank + 1) / ranks) {
            model.idle_forward();
            continue;
        }
        const int64_t first = b * rows;
        const Batch batch = loader.batch_at(first, std::min(rows, windows - first));
        const size_t num_tokens = batch.tokens.size();
        model.forward_loss(batch, tensor_of(losses.data(), static_cast<int64_t>(num_tokens)));
        for (size_t i = 0; i < num_tokens; ++i) {
            const int32_t target = batch.targets[i];
            if (target < 0) continue;
            nats[static_cast<size_t>(first) + i / static_cast<size_t>(batch.seq_len)] += losses[i];
            counts[0] += 1;
            // A model may have rows that its tokenizer has no token for: no text is behind those.
            if (static_cast<size_t>(target) < token_bytes.size())
                counts[1] += token_bytes[static_cast<size_t>(target)];
        }
        if (progress) progress->update(static_cast<int64_t>(counts[0]));
    }
    if (comm != nullptr) {
        comm->all_reduce_sum(tensor_of(nats.data(), windows));
        comm->all_reduce_sum(tensor_of(counts, 3));
    }
    if (progress) progress->finish();
    // Window by window: the sum depends neither on how windows are batched nor on who took which.
    return {.nats = std::accumulate(nats.begin(), nats.end(), 0.0),
            .num_tokens = static_cast<int64_t>(counts[0]),
            .num_bytes = static_cast<int64_t>(counts[1]),
            .whole = counts[2] == 0};
}
