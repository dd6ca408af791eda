// Exact f32 attention's building blocks: tiles of f32 rows in shared memory and the two products, by FMAs.
// The block's threads stand in a square of 16 x 16. All tiles have kTile rows; scores are [kTile][kTile] and
// pass through shared memory to become weights of the next product.
#pragma once
#include "kernels/attention_documents.h"

namespace GPU_NAMESPACE {

constexpr int kSide = 16, kThreads = kSide * kSide;

// kDim: the head size or more; columns beyond it are zeros. Tiles hold 4,096 numbers: three or four of them
// and the weights take at most 88 KiB, and the sums 16 or 32 registers a thread.
template <int kSize>
struct F32Tiles {
    static constexpr int kDim = kSize, kTile = 4096 / kDim;
    static constexpr int kRows = kTile / kSide;    // of a thread: ty + 16 i (or kRows ty + i)
    static constexpr int kColumns = kDim / kSide;  // of a thread: 4 tx + 64 (c / 4) + c % 4
    static constexpr int kStride = kDim + 4;       // 16 rows of a column in different banks
    static constexpr int kWeights = kTile % 32 == 0 ? kTile + 16 : kTile;  // a warp's two rows: likewise
    static constexpr int64_t smem_bytes(int tiles) {
        return int64_t{4} * kTile * (tiles * kStride + kWeights);
    }
    using Scores = float[kRows][kRows];  // [i][j]: row ty + 16 i, column tx + 16 j
    using Sums = float[kRows][kColumns];
};

template <class Run>
void with_f32_tiles(int dim, Run&& run) {
    if (dim <= 64) return run(F32Tiles<64>{});
    if (dim <= 128) return run(F32Tiles<128>{});
    run(F32Tiles<256>{});
}

__device__ inline int thread_x() { return threadIdx.x % kSide; }
__device__ inline int thread_y() { return threadIdx.x / kSide; }

// kTile rows; those from `count` on and columns from `dim` on are zeros.
template <class Tiles>
__device__ void stage_rows(float* tile, const float* rows, int64_t stride, int count, int dim, bool aligned) {
    constexpr int kChunks = Tiles::kDim / 4;
    for (int i = threadIdx.x; i < Tiles::kTile * kChunks; i += kThreads) {
        const int row = i / kChunks, column = i % kChunks * 4;
        const bool inside = row < count && column < dim;
        float* const to = tile + row * Tiles::kStride + column;
        const float* const from = rows + row * stride + column;
        if (aligned) {
            cp_async16(to, from, inside);
        } else {
            for (int j = 0; j < 4; ++j) to[j] = inside ? from[j] : 0.0f;
        }
    }
}

// scores = A B^T.
template <class Tiles>
__device__ void multiply_rows(typename Tiles::Scores& scores, const float* a, const float* b) {
    constexpr int kRows = Tiles::kRows;
    a += thread_y() * Tiles::kStride;
    b += thread_x() * Tiles::kStride;
    UNROLL
    for (int i = 0; i < kRows; ++i) {
        UNROLL
        for (int j = 0; j < kRows; ++j) scores[i][j] = 0;
    }
    UNROLL_BY(1)  // 64 FMAs are enough, and registers few
    for (int k = 0; k < Tiles::kDim; k += 4) {
        Pack<float> left[kRows], right[kRows];
        UNROLL
        for (int i = 0; i < kRows; ++i) {
            left[i] = load128(a + i * kSide * Tiles::kStride + k);
            right[i] = load128(b + i * kSide * Tiles::kStride + k);
        }
        UNROLL
        for (int i = 0; i < kRows; ++i) {
            UNROLL
            for (int j = 0; j < kRows; ++j) {
                UNROLL
                for (int x = 0; x < 4; ++x) scores[i][j] = fmaf(left[i][x], right[j][x], scores[i][j]);
            }
        }
    }
}

// sums += W B, or (transposed) W^T B, whose thread's rows then are neighbours.
template <class Tiles, bool kTransposed>
__device__ void add_weighted_rows(typename Tiles::Sums& sums, const float* weights, const float* b) {
    constexpr int kRows = Tiles::kRows;
    weights += kTransposed ? thread_y() * kRows : thread_y() * Tiles::kWeights;
    b += thread_x() * 4;
    UNROLL_BY(1)
    for (int k = 0; k < Tiles::kTile; k += 4) {
        float weight[kRows][4];
        UNROLL
        for (int i = 0; i < kRows; ++i) {
            if constexpr (kTransposed) {
                UNROLL
                for (int x = 0; x < 4; ++x) weight[i][x] = weights[(k + x) * Tiles::kWeights + i];
            } else {
                const Pack<float> four = load128(weights + i * kSide * Tiles::kWeights + k);
                UNROLL
                for (int x = 0; x < 4; ++x) weight[i][x] = four[x];
            }
        }
        UNROLL
        for (int x = 0; x < 4; ++x) {
            UNROLL
            for (int c = 0; c < Tiles::kColumns; c += 4) {
                const Pack<float> row = load128(b + (k + x) * Tiles::kStride + c * kSide);
                UNROLL
                for (int i = 0; i < kRows; ++i) {
                    UNROLL
                    for (int y = 0; y < 4; ++y) {
                        sums[i][c + y] = fmaf(weight[i][x], row[y], sums[i][c + y]);
                    }
                }
            }
        }
    }
}

template <class Tiles>
__device__ void store_weights(float* weights, const typename Tiles::Scores& scores) {
    UNROLL
    for (int i = 0; i < Tiles::kRows; ++i) {
        UNROLL
        for (int j = 0; j < Tiles::kRows; ++j) {
            weights[(thread_y() + i * kSide) * Tiles::kWeights + thread_x() + j * kSide] = scores[i][j];
        }
    }
}

// The thread's part of the rows from `rows` on, of which `count` exist.
template <class Tiles, bool kTransposed>
__device__ void store_sums(float* rows, int64_t stride, const typename Tiles::Sums& sums, float factor,
                           int count, int dim) {
    UNROLL
    for (int i = 0; i < Tiles::kRows; ++i) {
        const int row = kTransposed ? thread_y() * Tiles::kRows + i : thread_y() + i * kSide;
        UNROLL
        for (int c = 0; c < Tiles::kColumns; ++c) {
            const int column = thread_x() * 4 + c / 4 * 64 + c % 4;
            if (row < count && column < dim) rows[row * stride + column] = sums[i][c] * factor;
        }
    }
}

// Over the 16 threads that share a row of scores.
__device__ inline float half_warp_max(float x) {
    for (int lanes = kSide / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, lanes));
    return x;
}
__device__ inline float half_warp_sum(float x) {
    for (int lanes = kSide / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
    return x;
}

}  // namespace GPU_NAMESPACE
