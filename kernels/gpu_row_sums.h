// The second stage of sums over rows (gradients of a norm's weights): the first stage left one row of sums
// for each chunk of rows; these are added in order of the chunks.
#pragma once
#include "kernels/gpu.h"

namespace GPU_NAMESPACE {

// first[c] += sum over r of rows[r][c], c < num_first;  second[c] += the same of rows[r][num_first + c].
// rows [num_rows, num_first + num_second]; second may be null where num_second is 0.
void add_row_sums(float* first, int64_t num_first, float* second, int64_t num_second, const float* rows,
                  int64_t num_rows, Stream stream);

}  // namespace GPU_NAMESPACE
