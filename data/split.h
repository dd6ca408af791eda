// Which documents are held out. A function of the document's id alone, so adding, removing or reordering
// documents never moves another one between the splits; a larger fraction only adds to what a smaller one
// holds out. A document is held out whole, with all the pieces it is cut into: what stands next to a held-out
// piece would tell of it. Only where a document has more than 16 pieces (a corpus may be one book) runs of 2
// to 16 neighbours are what is held out or not, spread evenly over it.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string_view>

#include "core/io.h"

// The run that a piece of a document belongs to; 0 for all pieces of most documents.
inline size_t run_of_piece(size_t piece, size_t num_pieces) {
    return num_pieces <= 16 ? 0 : piece / std::clamp<size_t>(num_pieces / 8, 2, 16);
}

// In [0, 1); what lies below the fraction is held out.
inline double split_place(std::string_view id, size_t run = 0) {
    constexpr uint64_t kSplitSeed = 0x76616c;       // "val": apart from other uses of the ids' hashes
    constexpr double kGolden = 0.6180339887498949;  // multiples of it fill [0, 1) evenly from the start
    const Hash128 h = hash128(id.data(), static_cast<int64_t>(id.size()), kSplitSeed);
    const double place = static_cast<double>(h.low >> 11) * 0x1p-53 + static_cast<double>(run) * kGolden;
    return place - std::floor(place);
}

inline bool held_out(std::string_view id, double val_frac) { return split_place(id) < val_frac; }
