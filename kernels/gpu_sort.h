// Tokens sorted by id, those of equal id in the order they came: what sums of tokens' gradients per id go by.
#pragma once
#include <cstdint>

#include "kernels/gpu.h"

namespace GPU_NAMESPACE {

struct SortedIds {
    const int32_t* ids;      // [count], ascending
    const int32_t* indices;  // [count]: where each was
};
// ids [count] in [0, num_ids), both below 2^31. The result is a workspace, valid until the next call.
SortedIds sort_ids(const int32_t* ids, int64_t count, int64_t num_ids, Stream stream);

}  // namespace GPU_NAMESPACE
