// Rung 3 of 6: 64 queries share a tile of keys.
//
// Idea: a block takes 64 queries of one head and walks over the keys in tiles of 32, which it copies to
// shared memory. Four threads a query: each computes 8 of the 32 scores and, after softmax, 16 of the 64
// dimensions of the output. This is FlashAttention's order of work (Dao et al. 2022): rung 2's update, once a
// tile instead of once a key. Why it helps: keys and values come from L2 once for 64 queries instead of once
// for each, and the corrections by e^(m - m') once for 32 keys. Shuffles: 4 a tile instead of 5 a key. Cost:
// 2 B H T^2 64 FLOPs; 2 B H T^2 bytes through L2. Each product reads a word of shared memory. Bound by that.
// Expected: 4 to 8 times rung 2. Not measured yet on a GPU.
#include "bench/ladder/ladder.h"
#include "kernels/gpu.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kDim = static_cast<int>(kHeadDim), kQueries = 64, kKeys = 32, kThreads = 4 * kQueries;
constexpr int kMine = kKeys / 4, kMyDims = kDim / 4;

__device__ void load_tile(float (&tile)[kKeys][kDim + 1], const bf16* from, int64_t row_elements) {
    const int row = threadIdx.x / 8, d = threadIdx.x % 8 * 8;  // a pack a thread
    const Pack<bf16> pack = load128(from + row * row_elements + d);
    UNROLL for (int k = 0; k < 8; ++k) tile[row][d + k] = to_float(pack[k]);
}
// Over the four threads of a query.
__device__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
    return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}
__device__ float quad_sum(float x) {
    x += __shfl_xor_sync(kAllLanes, x, 1);
    return x + __shfl_xor_sync(kAllLanes, x, 2);
}

__global__ void tiles_kernel(bf16* out, const bf16* qkv, int64_t seq_len, int num_heads, int num_kv_heads,
                             float scale) {
    wait_for_previous();
    SHARED(float, keys, [kKeys][kDim + 1]);
    SHARED(float, values, [kKeys][kDim + 1]);
    SHARED(float, weights, [kQueries][kKeys + 1]);
    const int part = threadIdx.x % 4, mine = threadIdx.x / 4, h = blockIdx.y % num_heads;
    const int kv = h / (num_heads / num_kv_heads);
    const int64_t row_elements = int64_t{num_heads + 2 * num_kv_heads} * kDim;
    const int64_t first = blockIdx.y / num_heads * seq_len, first_query = int64_t{blockIdx.x} * kQueries;
    const int64_t q = first_query + mine;
    float query[kDim];
    for (int d = 0; d < kDim; ++d)
        query[d] = scale * to_float(qkv[(first + q) * row_elements + h * kDim + d]);

    float m = -INFINITY, l = 0, o[kMyDims] = {};
    for (int64_t tile = 0; tile < first_query + kQueries; tile += kKeys) {
        __syncthreads();
        load_tile(keys, qkv + (first + tile) * row_elements + (num_heads + kv) * kDim, row_elements);
        load_tile(values, qkv + (first + tile) * row_elements + (num_heads + num_kv_heads + kv) * kDim,
                  row_elements);
        __syncthreads();
        float scores[kMine], larger = m, sum = 0;
        UNROLL for (int i = 0; i < kMine; ++i) {
            const int key = 4 * i + part;
            float dot = 0;
            UNROLL for (int d = 0; d < kDim; ++d) dot += query[d] * keys[key][d];
            scores[i] = tile + key <= q ? dot : -INFINITY;
            larger = fmaxf(larger, scores[i]);
        }
        larger = quad_max(larger);  // finite: key 0 is before every query
        UNROLL for (int i = 0; i < kMine; ++i) {
            const float p = __expf(scores[i] - larger);
            weights[mine][4 * i + part] = p;
            sum += p;
        }
        const float shrink = __expf(m - larger);
        m = larger;
        l = l * shrink + quad_sum(sum);
        __syncwarp();  // the four threads of a query are of one warp
        UNROLL for (int i = 0; i < kMyDims; ++i) o[i] *= shrink;
        for (int key = 0; key < kKeys; ++key) {
            const float p = weights[mine][key];
            UNROLL for (int i = 0; i < kMyDims; ++i) o[i] += p * values[key][4 * i + part];
        }
    }
    UNROLL for (int i = 0; i < kMyDims; ++i) {
        out[((first + q) * num_heads + h) * kDim + 4 * i + part] = from_float<bf16>(o[i] / l);
    }
}

}  // namespace

void attention_3_tiles(const AttentionOperands& a) {
    const dim3 blocks(static_cast<unsigned>(a.seq_len / kQueries),
                      static_cast<unsigned>(a.num_rows * a.num_heads));
    launch(tiles_kernel, blocks, kThreads, 0, {}, a.out.as<bf16>(), a.qkv.as<bf16>(), a.seq_len,
           static_cast<int>(a.num_heads), static_cast<int>(a.num_kv_heads), 1 / sqrtf(kDim));
}

}  // namespace GPU_NAMESPACE
