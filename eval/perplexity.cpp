// Held-out loss, window by window.
#include "eval/perplexity.h"

#include <cmath>
#include <limits>
#include <numbers>

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
