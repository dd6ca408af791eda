// Which documents are held out. A function of the id alone, so adding, removing or reordering documents never
// moves another one between the splits; a larger fraction only adds to what a smaller one holds out.
#pragma once
#include <string_view>

#include "core/io.h"

inline bool held_out(std::string_view id, double val_frac) {
    constexpr uint64_t kSplitSeed = 0x76616c;  // "val": apart from other uses of the ids' hashes
    const Hash128 h = hash128(id.data(), static_cast<int64_t>(id.size()), kSplitSeed);
    return static_cast<double>(h.low >> 11) * 0x1p-53 < val_frac;
}
