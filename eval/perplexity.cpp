// Held-out loss, window by window.
#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
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
                               bool show_progress, const std::function<bool()>& stop) {
    const int64_t rows = loader.micro_batch(), windows = loader.num_windows();
    const RunShape& shape = model.shape();
    CHECK(rows <= shape.num_rows && loader.seq_len() <= shape.seq_len,
          cat({"loader ", rows, "x", loader.seq_len(), ", model ", shape.num_rows, "x", shape.seq_len}));
    std::vector<float> losses(static_cast<size_t>(rows * loader.seq_len()));
    std::optional<Progress> progress;
    if (show_progress) progress.emplace("evaluate", loader.tokens_per_epoch(), "tok");
    Perplexity result;
    for (int64_t first = 0, batches = 0; first < windows && (max_batches == 0 || batches < max_batches);
         first += rows, ++batches) {
        if (stop && stop()) {
            result.whole = false;
            return result;
        }
        const Batch batch = loader.batch_at(first, std::min(rows, windows - first));
        const size_t num_tokens = batch.tokens.size();
        model.forward_loss(batch, tensor_of(losses.data(), static_cast<int64_t>(num_tokens)));
        // Token by token in order, so that the sum does not depend on how windows are batched.
        for (size_t i = 0; i < num_tokens; ++i) {
            const int32_t target = batch.targets[i];
            if (target < 0) continue;
            result.nats += losses[i];
            ++result.num_tokens;
            // A model may have rows that its tokenizer has no token for: no text is behind those.
            if (static_cast<size_t>(target) < token_bytes.size())
                result.num_bytes += token_bytes[static_cast<size_t>(target)];
        }
        if (progress) progress->update(result.num_tokens);
    }
    if (progress) progress->finish();
    return result;
}
