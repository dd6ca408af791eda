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
    // The id of the document that has this hash; "" when it is new.
    std::string id_of(const Hash128& hash) const;
    void remember(const Hash128& hash, const std::string& id);  // an earlier id stays

private:
    struct LowBits {
        size_t operator()(const Hash128& h) const { return static_cast<size_t>(h.low); }
    };
    std::unordered_map<Hash128, std::string, LowBits> first_;
};
