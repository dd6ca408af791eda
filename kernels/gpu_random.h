// The draws of kernels/philox_simd.h on the GPU, to the bit. Its layout gives the 8 half-words of one counter
// to 8 elements that lie 16 apart. A thread therefore takes one counter and its 8 elements, and one call of
// random4 serves them all; the 16 counters of a block of 128 elements are the lanes of half a warp, whose
// accesses are then 16 neighbours: whole sectors of 32 bytes, for any place where a tensor may begin, with 8
// of each array under way per thread.
#pragma once
#include "core/rng.h"
#include "kernels/gpu.h"

namespace GPU_NAMESPACE {

constexpr int kDraws = 8;  // per counter
constexpr int64_t kDrawLanes = 16, kDrawBlock = kDraws * kDrawLanes;

// The counters that the elements with indices [first_index, first_index + count) need.
inline int64_t num_counters(int64_t first_index, int64_t count) {
    if (count == 0) return 0;
    return ((first_index + count - 1) / kDrawBlock - first_index / kDrawBlock + 1) * kDrawLanes;
}

// Counter number `slot` of those, and which elements of the tensor (may lie outside of it) it serves.
struct DrawSlot {
    uint64_t counter;
    int64_t first;  // element of draw 0; draw h is that of element first + 16 h
    __device__ DrawSlot(int64_t first_index, int64_t slot) {
        const int64_t first_block = first_index / kDrawBlock;
        counter = static_cast<uint64_t>(first_block * kDrawLanes + slot);
        first = (first_block + slot / kDrawLanes) * kDrawBlock + slot % kDrawLanes - first_index;
    }
    __device__ int64_t element(int draw) const { return first + draw * kDrawLanes; }
};
// 16 bits, in the lower half.
__device__ inline uint32_t draw_of(const Random4& random, int draw) {
    return random.word[draw / 2] >> (draw % 2 * 16);
}

}  // namespace GPU_NAMESPACE
