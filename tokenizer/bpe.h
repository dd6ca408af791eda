// Byte-pair encoding of one piece: the pair with the lowest rank merges first, the leftmost of equals, until
// no pair has a rank. The same ids from both forms below; the heap keeps long pieces from costing n^2.
#pragma once
#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "tokenizer/pair_map.h"

struct MergeRule {
    int32_t rank = 0;
    int32_t merged = -1;
};

struct MergeTable {
    std::array<int32_t, 256> byte_ids{};
    PairMap<MergeRule> rules;
};

// Appends the ids of `piece`.
void merge_piece(const MergeTable& table, std::string_view piece, std::vector<int32_t>& ids);
