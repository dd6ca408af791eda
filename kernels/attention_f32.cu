// Attention with exact f32 products (MatmulMath::f32), forward and backward: the formulas and the ownership
// of attention.cu and attention_backward.cu, by FMAs. FLOPs: 4 D (forward) and 14 D (backward) for each pair
// of a query and a key in tiles that hold any that is seen. Bound by FMAs: a thread does 64 of them for 8
// loads of 16 bytes from shared memory. Not measured yet on a GPU.
#include "kernels/attention_fma.h"

namespace GPU_NAMESPACE {
namespace {

template <class Tiles>
__global__ void __launch_bounds__(kThreads, 2)
    attention_forward_f32_kernel(const AttentionProblem<float> problem, float* out, float* lse) {
    wait_for_previous();
    let_next_start();
    constexpr int kTile = Tiles::kTile, kRows = Tiles::kRows;
    DYN_SHARED(float, q_tile);
    float* const k_tile = q_tile + kTile * Tiles::kStride;
    float* const v_tile = k_tile + kTile * Tiles::kStride;
    float* const weights = v_tile + kTile * Tiles::kStride;
    const int head = blockIdx.y, kv_head = head / problem.group;
    const float scale_log2 = problem.scale_log2();

    OwnedTiles<kTile, float> tiles(problem, gridDim.x - 1 - blockIdx.x);
    for (DocumentTile tile; tiles.next(tile);) {
        const int rows = min(kTile, tile.length - tile.first);
        const int first_query = problem.past + tile.first, end_key = first_query + rows;
        const int64_t first_token = tile.begin + tile.first;
        const int64_t kv_at = tile.begin * problem.kv_stride + kv_head * problem.dim;
        __syncthreads();  // everyone is through with the tile before
        stage_rows<Tiles>(q_tile, problem.q + first_token * problem.q_stride + head * problem.dim,
                          problem.q_stride, rows, problem.dim, problem.aligned);
        typename Tiles::Sums sums = {};
        float peak[kRows], total[kRows];
        UNROLL
        for (int i = 0; i < kRows; ++i) {
            peak[i] = -INFINITY;
            total[i] = 0;
        }
        const int begin_key = problem.visibility.first_key(first_query) / kTile * kTile;
        for (int key = begin_key; key < end_key; key += kTile) {
            __syncthreads();  // the keys before are done with
            const int64_t at = kv_at + key * problem.kv_stride;
            stage_rows<Tiles>(k_tile, problem.k + at, problem.kv_stride, end_key - key, problem.dim,
                              problem.aligned);
            stage_rows<Tiles>(v_tile, problem.v + at, problem.kv_stride, end_key - key, problem.dim,
                              problem.aligned);
            cp_async_commit();
            cp_async_wait<0>();
            __syncthreads();
            typename Tiles::Scores scores;
            multiply_rows<Tiles>(scores, q_tile, k_tile);
            UNROLL
            for (int i = 0; i < kRows; ++i) {
                float largest = -INFINITY;
                UNROLL
                for (int j = 0; j < kRows; ++j) {
                    const bool seen = problem.visibility.sees(first_query + thread_y() + i * kSide,
                                                              key + thread_x() + j * kSide);
                    if (!seen) scores[i][j] = -INFINITY;
                    largest = fmaxf(largest, scores[i][j]);
                }
                largest = fmaxf(peak[i], half_warp_max(largest));
                // Nothing seen yet: any finite offset keeps 2^-infinity at zero.
                const float offset = largest == -INFINITY ? 0.0f : largest * scale_log2;
                const float decay = exp2_approx(fmaf(peak[i], scale_log2, -offset));
                peak[i] = largest;
                total[i] *= decay;
                UNROLL
                for (int j = 0; j < kRows; ++j) {
                    scores[i][j] = exp2_approx(fmaf(scores[i][j], scale_log2, -offset));
                    total[i] += scores[i][j];
                }
                UNROLL
                for (int c = 0; c < Tiles::kColumns; ++c) sums[i][c] *= decay;
            }
            store_weights<Tiles>(weights, scores);
            __syncwarp();  // a row's weights stay among 16 lanes of a warp
            add_weighted_rows<Tiles, false>(sums, weights, v_tile);
        }
        UNROLL
        for (int i = 0; i < kRows; ++i) {
            const float sum = half_warp_sum(total[i]);
            UNROLL
            for (int c = 0; c < Tiles::kColumns; ++c) sums[i][c] *= 1.0f / sum;
            const int row = thread_y() + i * kSide;
            if (lse != nullptr && row < rows && thread_x() == 0) {
                lse[int64_t{head} * problem.num_tokens + first_token + row] =
                    peak[i] * problem.scale + logf(sum);
            }
        }
        store_sums<Tiles, false>(out + first_token * problem.out_stride() + head * problem.dim,
                                 problem.out_stride(), sums, 1.0f, rows, problem.dim);
    }
}

}  // namespace

void forward_in_f32(const AttentionProblem<float>& problem, float* out, float* lse, Stream stream) {
    with_f32_tiles(problem.dim, [&](auto tiles) {
        using Tiles = decltype(tiles);
        const dim3 blocks(num_ranges(problem.num_tokens, Tiles::kTile),
                          static_cast<unsigned>(problem.num_heads));
        launch(attention_forward_f32_kernel<Tiles>, blocks, kThreads, Tiles::smem_bytes(3), stream, problem,
               out, lse);
    });
}

// ---- backward ----

namespace {

// scores to P and gradients to dS. Rows are queries first_query..., of which those before end_query exist; at
// first_query lie `lse` and `delta`.
template <class Tiles>
__device__ void score_gradients(typename Tiles::Scores& scores, typename Tiles::Scores& gradients,
                                const float* lse, const float* delta, int first_query, int end_query,
                                int first_key, const AttentionProblem<float>& problem) {
    UNROLL
    for (int i = 0; i < Tiles::kRows; ++i) {
        const int row = thread_y() + i * kSide;
        // Of queries that do not exist, Q and dO are zero: any finite numbers will do.
        const bool exists = first_query + row < end_query;
        const float row_lse = exists ? lse[row] * kLog2E : 0.0f, row_delta = exists ? delta[row] : 0.0f;
        UNROLL
        for (int j = 0; j < Tiles::kRows; ++j) {
            const bool seen = problem.visibility.sees(first_query + row, first_key + thread_x() + j * kSide);
            const float p = seen ? exp2_approx(fmaf(scores[i][j], problem.scale_log2(), -row_lse)) : 0.0f;
            scores[i][j] = p;
            gradients[i][j] = p * (gradients[i][j] - row_delta);
        }
    }
}

template <class Tiles>
__global__ void __launch_bounds__(kThreads, 2)
    attention_dq_f32_kernel(const AttentionProblem<float> problem, const BackwardTensors<float> tensors) {
    wait_for_previous();
    let_next_start();
    constexpr int kTile = Tiles::kTile, kNumbers = kTile * Tiles::kStride;
    DYN_SHARED(float, q_tile);
    float *const dout_tile = q_tile + kNumbers, *const k_tile = dout_tile + kNumbers;
    float *const v_tile = k_tile + kNumbers, *const weights = v_tile + kNumbers;
    const int head = blockIdx.y, kv_head = head / problem.group;

    OwnedTiles<kTile, float> tiles(problem, gridDim.x - 1 - blockIdx.x);
    for (DocumentTile tile; tiles.next(tile);) {
        const int first_query = tile.first, rows = min(kTile, tile.length - first_query);
        const int end_key = first_query + rows;
        const int64_t first_token = tile.begin + first_query;
        const int64_t q_at = first_token * problem.q_stride + head * problem.dim;
        const int64_t kv_at = tile.begin * problem.kv_stride + kv_head * problem.dim;
        const int64_t lse_at = int64_t{head} * problem.num_tokens + first_token;
        __syncthreads();  // everyone is through with the tile before
        stage_rows<Tiles>(q_tile, problem.q + q_at, problem.q_stride, rows, problem.dim, problem.aligned);
        stage_rows<Tiles>(dout_tile, tensors.dout + first_token * problem.out_stride() + head * problem.dim,
                          problem.out_stride(), rows, problem.dim, problem.aligned);
        typename Tiles::Sums dq = {};
        const int begin_key = problem.visibility.first_key(first_query) / kTile * kTile;
        for (int key = begin_key; key < end_key; key += kTile) {
            __syncthreads();  // the keys before are done with
            const int64_t at = kv_at + key * problem.kv_stride;
            stage_rows<Tiles>(k_tile, problem.k + at, problem.kv_stride, end_key - key, problem.dim,
                              problem.aligned);
            stage_rows<Tiles>(v_tile, problem.v + at, problem.kv_stride, end_key - key, problem.dim,
                              problem.aligned);
            cp_async_commit();
            cp_async_wait<0>();
            __syncthreads();
            typename Tiles::Scores scores, gradients;
            multiply_rows<Tiles>(scores, q_tile, k_tile);
            multiply_rows<Tiles>(gradients, dout_tile, v_tile);
            score_gradients<Tiles>(scores, gradients, tensors.lse + lse_at, tensors.delta + lse_at,
                                   first_query, end_key, key, problem);
            store_weights<Tiles>(weights, gradients);
            __syncwarp();  // a row's weights stay among 16 lanes of a warp
            add_weighted_rows<Tiles, false>(dq, weights, k_tile);
        }
        store_sums<Tiles, false>(tensors.dq + q_at, problem.q_stride, dq, problem.scale, rows, problem.dim);
    }
}

void compute_dq_in_f32(const AttentionProblem<float>& problem, const BackwardTensors<float>& tensors,
                       Stream stream) {
    with_f32_tiles(problem.dim, [&](auto tiles) {
        using Tiles = decltype(tiles);
        const dim3 blocks(num_ranges(problem.num_tokens, Tiles::kTile),
                          static_cast<unsigned>(problem.num_heads));
        launch(attention_dq_f32_kernel<Tiles>, blocks, kThreads, Tiles::smem_bytes(4), stream, problem,
               tensors);
    });
}

template <class Tiles>
__global__ void __launch_bounds__(kThreads, Tiles::kDim == 64 ? 1 : 2)
    attention_dkv_f32_kernel(const AttentionProblem<float> problem, const BackwardTensors<float> tensors) {
    wait_for_previous();
    let_next_start();
    constexpr int kTile = Tiles::kTile, kNumbers = kTile * Tiles::kStride;
    DYN_SHARED(float, k_tile);
    float *const v_tile = k_tile + kNumbers, *const q_tile = v_tile + kNumbers;
    float *const dout_tile = q_tile + kNumbers, *const weights = dout_tile + kNumbers;
    const int kv_head = blockIdx.y;

    OwnedTiles<kTile, float> tiles(problem, blockIdx.x);
    for (DocumentTile tile; tiles.next(tile);) {
        const int first_key = tile.first, rows = min(kTile, tile.length - first_key);
        const int end_query = problem.visibility.end_query(first_key + rows - 1, tile.length);
        const int64_t kv_at = (int64_t{tile.begin} + first_key) * problem.kv_stride + kv_head * problem.dim;
        // The keys of the tile before were read for the last time before P was stored.
        stage_rows<Tiles>(k_tile, problem.k + kv_at, problem.kv_stride, rows, problem.dim, problem.aligned);
        stage_rows<Tiles>(v_tile, problem.v + kv_at, problem.kv_stride, rows, problem.dim, problem.aligned);
        typename Tiles::Sums dk = {}, dv = {};
        for (int head = kv_head * problem.group; head < (kv_head + 1) * problem.group; ++head) {
            for (int query = first_key; query < end_query; query += kTile) {
                const int64_t token = tile.begin + query;
                const int64_t lse_at = int64_t{head} * problem.num_tokens + token;
                __syncthreads();  // the queries before are done with
                stage_rows<Tiles>(q_tile, problem.q + token * problem.q_stride + head * problem.dim,
                                  problem.q_stride, end_query - query, problem.dim, problem.aligned);
                stage_rows<Tiles>(dout_tile, tensors.dout + token * problem.out_stride() + head * problem.dim,
                                  problem.out_stride(), end_query - query, problem.dim, problem.aligned);
                cp_async_commit();
                cp_async_wait<0>();
                __syncthreads();
                typename Tiles::Scores scores, gradients;
                multiply_rows<Tiles>(scores, q_tile, k_tile);
                multiply_rows<Tiles>(gradients, dout_tile, v_tile);
                score_gradients<Tiles>(scores, gradients, tensors.lse + lse_at, tensors.delta + lse_at, query,
                                       end_query, first_key, problem);
                store_weights<Tiles>(weights, scores);
                __syncthreads();
                add_weighted_rows<Tiles, true>(dv, weights, dout_tile);
                __syncthreads();  // P is done with
                store_weights<Tiles>(weights, gradients);
                __syncthreads();
                add_weighted_rows<Tiles, true>(dk, weights, q_tile);
            }
        }
        store_sums<Tiles, true>(tensors.dk + kv_at, problem.kv_stride, dk, problem.scale, rows, problem.dim);
        store_sums<Tiles, true>(tensors.dv + kv_at, problem.kv_stride, dv, 1.0f, rows, problem.dim);
    }
}

void compute_dk_dv_in_f32(const AttentionProblem<float>& problem, const BackwardTensors<float>& tensors,
                          Stream stream) {
    with_f32_tiles(problem.dim, [&](auto tiles) {
        using Tiles = decltype(tiles);
        const dim3 blocks(num_ranges(problem.num_tokens, Tiles::kTile),
                          static_cast<unsigned>(problem.num_heads / problem.group));
        launch(attention_dkv_f32_kernel<Tiles>, blocks, kThreads, Tiles::smem_bytes(4), stream, problem,
               tensors);
    });
}

}  // namespace

void backward_in_f32(const AttentionProblem<float>& problem, const BackwardTensors<float>& tensors,
                     Stream stream) {
    compute_dk_dv_in_f32(problem, tensors, stream);
    compute_dq_in_f32(problem, tensors, stream);
}

}  // namespace GPU_NAMESPACE
