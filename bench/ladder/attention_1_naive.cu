// Rung 1 of 6: three kernels, one for each line of the formula.
//
//   S = scale Q K^T, with -infinity where a key comes after its query;   P = softmax of each row;   out = P V
// Cost: 4 B H T^2 64 FLOPs (half of them behind the mask and wasted), and the T x T scores go to memory and
// back twice: 16 B H T^2 bytes, against 2 B T (2 H + 2 K) 64 for everything that attention is about. At T =
// 4096 that is 128 times as much. Bound by memory, and out of memory soon: B H T^2 floats. Expected: 1 % of
// the tensor cores' rate or less. Not measured yet on a GPU.
#include "bench/ladder/ladder.h"
#include "kernels/gpu.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kThreads = 128;
constexpr int kDim = static_cast<int>(kHeadDim);

// Where a token's query, key and value of head h begin; H query heads share K key and value heads.
struct Heads {
    const bf16* qkv;
    int64_t seq_len;
    int num_heads, num_kv_heads;

    __device__ const bf16* row(int64_t sequence, int64_t t, int slot) const {
        return qkv + ((sequence * seq_len + t) * (num_heads + 2 * num_kv_heads) + slot) * kDim;
    }
    __device__ int kv(int h) const { return h / (num_heads / num_kv_heads); }
    __device__ const bf16* query(int64_t sequence, int64_t t, int h) const { return row(sequence, t, h); }
    __device__ const bf16* key(int64_t sequence, int64_t t, int h) const {
        return row(sequence, t, num_heads + kv(h));
    }
    __device__ const bf16* value(int64_t sequence, int64_t t, int h) const {
        return row(sequence, t, num_heads + num_kv_heads + kv(h));
    }
};

// A thread a score. Grid: keys, queries, sequences x heads.
__global__ void scores_kernel(float* scores, Heads heads, float scale) {
    wait_for_previous();
    const int64_t k = int64_t{blockIdx.x} * kThreads + threadIdx.x, q = blockIdx.y;
    if (k >= heads.seq_len) return;
    const int h = blockIdx.z % heads.num_heads;
    const int64_t sequence = blockIdx.z / heads.num_heads;
    const bf16 *const a = heads.query(sequence, q, h), *const b = heads.key(sequence, k, h);
    float dot = 0;
    for (int d = 0; d < kDim; ++d) dot += to_float(a[d]) * to_float(b[d]);
    scores[(int64_t{blockIdx.z} * heads.seq_len + q) * heads.seq_len + k] = k <= q ? scale * dot : -INFINITY;
}

// A warp a row: its largest, the sum of its exponentials, and then the row again.
__global__ void softmax_kernel(float* scores, int64_t seq_len) {
    wait_for_previous();
    float* const row = scores + int64_t{blockIdx.x} * seq_len;
    float largest = -INFINITY, sum = 0;
    for (int64_t k = threadIdx.x; k < seq_len; k += kWarp) largest = fmaxf(largest, row[k]);
    largest = warp_max(largest);
    for (int64_t k = threadIdx.x; k < seq_len; k += kWarp) sum += expf(row[k] - largest);
    sum = warp_sum(sum);
    for (int64_t k = threadIdx.x; k < seq_len; k += kWarp) row[k] = expf(row[k] - largest) / sum;
}

// A thread an element of the output.
__global__ void values_kernel(bf16* out, const float* weights, Heads heads) {
    wait_for_previous();
    const int64_t q = blockIdx.x, sequence = blockIdx.y / heads.num_heads;
    const int h = blockIdx.y % heads.num_heads, d = threadIdx.x;
    const float* const row = weights + (int64_t{blockIdx.y} * heads.seq_len + q) * heads.seq_len;
    float sum = 0;
    for (int64_t k = 0; k <= q; ++k) sum += row[k] * to_float(heads.value(sequence, k, h)[d]);
    out[((sequence * heads.seq_len + q) * heads.num_heads + h) * kDim + d] = from_float<bf16>(sum);
}

}  // namespace

void attention_1_naive(const AttentionOperands& a) {
    const Heads heads{a.qkv.as<bf16>(), a.seq_len, static_cast<int>(a.num_heads),
                      static_cast<int>(a.num_kv_heads)};
    const unsigned length = static_cast<unsigned>(a.seq_len);
    const unsigned pairs = static_cast<unsigned>(a.num_rows * a.num_heads);  // of sequence and head
    float* const scores = a.scores.as<float>();
    launch(scores_kernel, dim3((length + kThreads - 1) / kThreads, length, pairs), kThreads, 0, {}, scores,
           heads, 1 / sqrtf(kDim));
    launch(softmax_kernel, int64_t{pairs} * length, kWarp, 0, {}, scores, a.seq_len);
    launch(values_kernel, dim3(length, pairs), kDim, 0, {}, a.out.as<bf16>(), scores, heads);
}

}  // namespace GPU_NAMESPACE
