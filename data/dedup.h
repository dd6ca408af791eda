// Exact duplicates: documents equal but for white space. The first one in source order stays.
#pragma once
#include <string>
#include <string_view>
#include <unordered_map>

#include "core/io.h"

// XXH3-128 of the text with every run of white space made one space and none at either end.
Hash128 normalized_text_hash(std::string_view text);

class ExactDedup {
public:
    // "" when the hash is new (`id` is remembered with it), else the id of the document that has it.
    std::string seen_before(const Hash128& hash, const std::string& id);

private:
    struct LowBits {
        size_t operator()(const Hash128& h) const { return static_cast<size_t>(h.low); }
    };
    std::unordered_map<Hash128, std::string, LowBits> first_;
};
