// Exact deduplication by the hash of the white-space-collapsed text.
#include "data/dedup.h"

Hash128 normalized_text_hash(std::string_view text) {
    std::string collapsed;
    collapsed.reserve(text.size());
    bool blank = false;
    for (const char c : text) {
        if (c == ' ' || (c >= '\t' && c <= '\r')) {
            blank = true;
            continue;
        }
        if (blank && !collapsed.empty()) collapsed += ' ';
        blank = false;
        collapsed += c;
    }
    return hash128(collapsed.data(), static_cast<int64_t>(collapsed.size()));
}

std::string ExactDedup::id_of(const Hash128& hash) const {
    const auto found = first_.find(hash);
    return found == first_.end() ? std::string() : found->second;
}

void ExactDedup::remember(const Hash128& hash, const std::string& id) { first_.try_emplace(hash, id); }
