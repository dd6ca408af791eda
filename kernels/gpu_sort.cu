// A radix sort, least significant digit first, of 9 bits at a time: two passes for vocabularies up to 2^18. A
// pass reads and writes 8 bytes per token and launches two kernels of a few microseconds: bound by latency.
// Each place is computed, none is handed out by an atomic, so the sort is stable and the same every time. Not
// measured yet on a GPU.
#include "kernels/gpu_sort.h"

#include "kernels/workspace.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kDigitBits = 9, kDigits = 1 << kDigitBits;
static_assert(kDigits == kSortDigits);
constexpr int kThreads = kDigits;  // one for each digit
constexpr int kWarps = kThreads / kWarp;
constexpr int kRounds = 4;  // tokens per thread
constexpr int kBlockTokens = kThreads * kRounds;
static_assert(kBlockTokens == kSortBlockTokens);

__device__ inline int digit_of(int32_t id, int shift) { return id >> shift & (kDigits - 1); }

// block_counts[block][digit]: how many of the block's tokens have that digit.
__global__ void __launch_bounds__(kThreads)
    count_digits_kernel(int32_t* block_counts, const int32_t* ids, int count, int shift) {
    wait_for_previous();
    let_next_start();
    SHARED(int, counts, [kDigits]);
    counts[threadIdx.x] = 0;
    __syncthreads();
    for (int round = 0; round < kRounds; ++round) {
        const int64_t n = int64_t{blockIdx.x} * kBlockTokens + round * kThreads + threadIdx.x;
        if (n < count) atomicAdd(&counts[digit_of(ids[n], shift)], 1);
    }
    __syncthreads();
    block_counts[int64_t{blockIdx.x} * kDigits + threadIdx.x] = counts[threadIdx.x];
}

// The sum of the threads before this one.
__device__ int exclusive_sum(int x) {
    SHARED(int, sums, [kWarps]);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    int sum = x;
    for (int lanes = 1; lanes < kWarp; lanes *= 2) {
        const int below = __shfl_up_sync(kAllLanes, sum, lanes);
        if (lane >= lanes) sum += below;
    }
    if (lane == kWarp - 1) sums[warp] = sum;
    __syncthreads();
    for (int other = 0; other < warp; ++other) sum += sums[other];
    return sum - x;
}

// Each token goes behind all tokens of lower digits, and behind those of its own digit that came before it:
// in earlier blocks, in earlier warps of this one, in this warp. `indices` is null where token n is number n.
__global__ void __launch_bounds__(kThreads)
    place_kernel(int32_t* out_ids, int32_t* out_indices, const int32_t* ids, const int32_t* indices,
                 const int32_t* block_counts, int count, int shift) {
    wait_for_previous();
    let_next_start();
    // For each warp and digit: how many of the warp's tokens so far, later where they go.
    SHARED(int, places, [kWarps][kDigits]);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, digit_of_thread = threadIdx.x;
    for (int other = 0; other < kWarps; ++other) places[other][digit_of_thread] = 0;
    int before = 0, total = 0;
    for (int block = 0; block < static_cast<int>(gridDim.x); ++block) {
        const int of_block = block_counts[int64_t{block} * kDigits + digit_of_thread];
        if (block < static_cast<int>(blockIdx.x)) before += of_block;
        total += of_block;
    }
    int place = exclusive_sum(total) + before;  // (its barrier also lies between the zeros and their use)

    int32_t id[kRounds];
    int rank[kRounds];
    const int64_t first = int64_t{blockIdx.x} * kBlockTokens + warp * kRounds * kWarp + lane;
    for (int round = 0; round < kRounds; ++round) {
        const int64_t n = first + round * kWarp;
        id[round] = n < count ? ids[n] : 0;  // beyond the last token nothing follows that could be misplaced
        const int digit = digit_of(id[round], shift);
        const uint32_t alike = __match_any_sync(kAllLanes, digit);
        const uint32_t alike_before = alike & ((1u << lane) - 1);
        rank[round] = places[warp][digit] + __popc(alike_before);
        __syncwarp();
        if (alike_before == 0) places[warp][digit] += __popc(alike);
        __syncwarp();
    }
    __syncthreads();
    for (int other = 0; other < kWarps; ++other) {
        const int of_warp = places[other][digit_of_thread];
        places[other][digit_of_thread] = place;
        place += of_warp;
    }
    __syncthreads();
    for (int round = 0; round < kRounds; ++round) {
        const int64_t n = first + round * kWarp;
        if (n >= count) break;
        const int to = places[warp][digit_of(id[round], shift)] + rank[round];
        out_ids[to] = id[round];
        out_indices[to] = indices == nullptr ? static_cast<int32_t>(n) : indices[n];
    }
}

}  // namespace

SortedIds sort_ids(const int32_t* ids, int64_t count, int64_t num_ids, Stream stream) {
    const int64_t blocks = ceil_div(count, kBlockTokens);
    auto* const workspace =
        static_cast<int32_t*>(device_workspace(kThisDevice, Workspace::sorted_ids, sorted_ids_bytes(count)));
    int32_t* const block_counts = workspace + 4 * count;
    int32_t *out_ids = workspace, *out_indices = workspace + count;
    int32_t *spare_ids = workspace + 2 * count, *spare_indices = workspace + 3 * count;
    SortedIds sorted{ids, nullptr};
    int shift = 0;
    do {
        launch(count_digits_kernel, blocks, kThreads, 0, stream, block_counts, sorted.ids,
               static_cast<int>(count), shift);
        launch(place_kernel, blocks, kThreads, 0, stream, out_ids, out_indices, sorted.ids, sorted.indices,
               block_counts, static_cast<int>(count), shift);
        sorted = {out_ids, out_indices};
        std::swap(out_ids, spare_ids);
        std::swap(out_indices, spare_indices);
        shift += kDigitBits;
    } while (shift < 31 && (num_ids - 1) >> shift > 0);
    return sorted;
}

}  // namespace GPU_NAMESPACE
