// How a row of the parameter table lies in a Hugging Face file.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/threads.h"
#include "model/params.h"

inline std::vector<int64_t> hf_shape(const ParamInfo& row) {
    if (row.rank == 1) return {row.rows};
    if (row.hf_transposed) return {row.cols, row.rows};
    return {row.rows, row.cols};
}

// out[c, r] = inp[r, c]
template <class T>
void transpose(T* out, const T* inp, int64_t rows, int64_t cols) {
    constexpr int64_t kTransposeTile = 32;  // of f32 4 KiB: both sides stay in the first cache
    parallel_ranges(cols, kTransposeTile, [&](int64_t begin, int64_t end) {
        for (int64_t top = 0; top < rows; top += kTransposeTile)
            for (int64_t c = begin; c < end; ++c)
                for (int64_t r = top; r < std::min(top + kTransposeTile, rows); ++r)
                    out[c * rows + r] = inp[r * cols + c];
    });
}
