// Finds the names of added tokens in a text: leftmost first, the longest of those that begin there.
#pragma once
#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

// InputError for names that no tokenizer.json can hold: empty, not UTF-8, or one of them twice.
void check_added_names(const std::vector<std::string>& names);

class AddedTokenFinder {
public:
    void add(const AddedToken& token);
    struct Match {
        size_t begin, end;
        int32_t id;
    };
    // The first match at or after `from`; begin = npos when there is none.
    Match find(std::string_view text, size_t from) const;
    bool empty() const { return count_ == 0; }

private:
    std::array<std::vector<AddedToken>, 256> by_first_byte_;  // longest first
    std::string first_bytes_;
    size_t count_ = 0;
};
