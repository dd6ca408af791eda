// Tensor-core attention's building blocks: tiles of bf16 rows in shared memory, the two products that forward
// and backward consist of, masks, and the way back to global memory. A warp owns kRowTiles * 16 rows of the
// scores; fragments are as in kernels/mma.h, with group = lane / 4 and pair = lane % 4.
#pragma once
#include "kernels/attention_documents.h"
#include "kernels/mma.h"

namespace GPU_NAMESPACE {

// Head sizes that kernels are compiled for; others use the next larger one, whose further columns are zeros.
// 64 and 128 are what most models have, 96 serves 80 and 96 at little loss, 32 is for small models, 256 for
// what is left. run(std::integral_constant<int, size>).
template <class Run>
void with_head_size(int dim, Run&& run) {
    if (dim <= 32) return run(std::integral_constant<int, 32>{});
    if (dim <= 64) return run(std::integral_constant<int, 64>{});
    if (dim <= 96) return run(std::integral_constant<int, 96>{});
    if (dim <= 128) return run(std::integral_constant<int, 128>{});
    run(std::integral_constant<int, 256>{});
}

// ---- tiles in shared memory: rows of kDim bf16, in chunks of 16 bytes ----

// Where a chunk lies. ldmatrix reads one column of chunks of eight rows at a time; the twist puts these in
// eight different groups of four banks. Rows of whole 128 bytes all start in the same group, rows of an odd
// multiple of 64 bytes in two groups by turns.
constexpr int chunks_across(int dim) { return dim % 64 == 0 ? 8 : 4; }  // that a twist mixes
template <int kDim>
__device__ constexpr int twist(int row) {
    static_assert(kDim % 32 == 0);
    return chunks_across(kDim) == 8 ? row & 7 : row >> 1 & 3;
}
template <int kDim>
__device__ constexpr int tile_at(int row, int chunk) {
    return row * kDim + (chunk ^ twist<kDim>(row)) * 8;
}

// One chunk from global memory, or zeros. bf16 by an asynchronous copy; f32 is rounded on its way.
template <class T>
__device__ void stage_chunk(bf16* to, const T* from, bool inside, bool aligned) {
    if constexpr (sizeof(T) == 2) {
        if (aligned) return cp_async16(to, from, inside);
    }
    Pack<bf16> chunk = {};
    if (inside) {
        if (sizeof(T) == 4 && aligned) {
            const Pack<T> low = load128(from), high = load128(from + 4);
            UNROLL
            for (int i = 0; i < 4; ++i) {
                chunk[i] = from_float<bf16>(to_float(low[i]));
                chunk[4 + i] = from_float<bf16>(to_float(high[i]));
            }
        } else {
            UNROLL
            for (int i = 0; i < 8; ++i) chunk[i] = from_float<bf16>(to_float(from[i]));
        }
    }
    store128(to, chunk);
}

// kRows rows by all threads of the block; rows from `count` on and columns from `dim` on are zeros. Threads
// stand so that all chunks of one have the same twist, and addresses differ by constants and the stride.
template <int kRows, int kDim, int kThreads, class T>
__device__ void stage_rows(bf16* tile, const T* rows, int64_t stride, int count, int dim, bool aligned) {
    constexpr int kAcross = chunks_across(kDim), kStep = kThreads / kAcross;
    static_assert(kRows % kStep == 0 && kStep % 8 == 0);
    const int chunk = threadIdx.x % kAcross, row = threadIdx.x / kAcross;
    const T* from = rows + row * stride + chunk * 8;
    bf16* const to = tile + tile_at<kDim>(row, chunk);
    UNROLL_BY(sizeof(T) == 2 ? kRows / kStep : 1)  // f32 passes through registers
    for (int i = 0; i < kRows; i += kStep) {
        UNROLL
        for (int c = 0; c < kDim / 8; c += kAcross) {
            const bool inside = row + i < count && (chunk + c) * 8 < dim;
            stage_chunk(to + i * kDim + c * 8, from + c * 8, inside, aligned);
        }
        from += kStep * stride;
    }
}

// ---- products ----

// The addresses that a lane gives to ldmatrix: of its row, counted from `row` on, in steps of 16 columns.
template <int kDim>
class LaneRows {
public:
    __device__ LaneRows(const bf16* tile, int row, int chunk)
        : row_(tile + row * kDim), chunk_(chunk ^ twist<kDim>(row)) {}
    // `down` is a multiple of 8.
    __device__ const bf16* at(int down, int k) const { return row_ + down * kDim + (chunk_ ^ 2 * k) * 8; }

private:
    const bf16* row_;
    int chunk_;  // 0 or 1 before the twist
};

// Rows of the left operand by columns, as mma leaves them: [m16 tile][n8 tile][element].
template <int kRowTiles, int kColumns>
using Sums = float[kRowTiles][kColumns / 8][4];

// body(sum, m, n, e) for all of a lane's sums: element e of tile (m, n) stands in row
// m * 16 + e / 2 * 8 + group and column n * 8 + 2 * pair + e % 2.
template <int kRowTiles, int kColumns, class Body>
__device__ void for_each(Sums<kRowTiles, kColumns>& sums, Body body) {
    UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
        UNROLL
        for (int n = 0; n < kColumns / 8; ++n) {
            UNROLL
            for (int e = 0; e < 4; ++e) body(sums[m][n][e], m, n, e);
        }
    }
}
template <int kRowTiles, int kColumns>
__device__ void clear(Sums<kRowTiles, kColumns>& sums) {
    for_each<kRowTiles, kColumns>(sums, [](float& sum, int, int, int) { sum = 0; });
}

// scores += A B^T: A's rows from `row` on, all kColumns rows of B.
template <int kRowTiles, int kColumns, int kDim>
__device__ void add_products(Sums<kRowTiles, kColumns>& scores, const bf16* a, int row, const bf16* b) {
    const int lane = threadIdx.x % kWarp;
    const LaneRows<kDim> a_rows(a, row + lane % 16, lane / 16);
    const LaneRows<kDim> b_rows(b, lane / 16 * 8 + lane % 8, lane / 8 % 2);
    UNROLL_BY(2)  // all at once, the compiler would run out of registers for fragments that it fetches ahead
    for (int k = 0; k < kDim / 16; ++k) {
        uint32_t left[kRowTiles][4];
        UNROLL
        for (int m = 0; m < kRowTiles; ++m) {
            ldmatrix_x4(left[m], a_rows.at(m * 16, k));
        }
        UNROLL
        for (int n = 0; n < kColumns / 16; ++n) {
            uint32_t right[4];
            ldmatrix_x4(right, b_rows.at(n * 16, k));
            const uint32_t low[2] = {right[0], right[1]}, high[2] = {right[2], right[3]};
            UNROLL
            for (int m = 0; m < kRowTiles; ++m) {
                mma_bf16(scores[m][2 * n], left[m], low);
                mma_bf16(scores[m][2 * n + 1], left[m], high);
            }
        }
    }
}

// sums += weights B: weights, rounded to bf16, are scores as add_products left them (an mma's sums are laid
// out as the next one's left operand); B has kInner rows.
template <int kRowTiles, int kInner, int kDim>
__device__ void add_weighted_rows(Sums<kRowTiles, kDim>& sums, const Sums<kRowTiles, kInner>& weights,
                                  const bf16* b) {
    const int lane = threadIdx.x % kWarp;
    const LaneRows<kDim> b_rows(b, lane % 16, lane / 16);
    UNROLL
    for (int k = 0; k < kInner / 16; ++k) {
        uint32_t left[kRowTiles][4];
        UNROLL
        for (int m = 0; m < kRowTiles; ++m) {
            UNROLL
            for (int i = 0; i < 4; ++i) {
                const float* pair = &weights[m][2 * k + i / 2][i % 2 * 2];
                left[m][i] = pack_bf16(pair[0], pair[1]);
            }
        }
        UNROLL
        for (int n = 0; n < kDim / 16; ++n) {
            uint32_t right[4];
            ldmatrix_x4_transposed(right, b_rows.at(k * 16, n));
            const uint32_t low[2] = {right[0], right[1]}, high[2] = {right[2], right[3]};
            UNROLL
            for (int m = 0; m < kRowTiles; ++m) {
                mma_bf16(sums[m][2 * n], left[m], low);
                mma_bf16(sums[m][2 * n + 1], left[m], high);
            }
        }
    }
}

// ---- scores ----

// Scores that are not seen become -infinity.
template <bool kRowsAreQueries, int kRowTiles, int kColumns>
__device__ void mask(Sums<kRowTiles, kColumns>& scores, int first_row, int first_column,
                     const Visibility& visibility) {
    const int row = first_row + static_cast<int>(threadIdx.x) % kWarp / 4;
    const int column = first_column + static_cast<int>(threadIdx.x) % 4 * 2;
    for_each<kRowTiles, kColumns>(scores, [&](float& score, int m, int n, int e) {
        const int r = row + m * 16 + e / 2 * 8, c = column + n * 8 + e % 2;
        if (!(kRowsAreQueries ? visibility.sees(r, c) : visibility.sees(c, r))) score = -INFINITY;
    });
}

// Over the four lanes that share a row.
__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
    return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}
__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(kAllLanes, x, 1);
    return x + __shfl_xor_sync(kAllLanes, x, 2);
}

// One step of the online softmax: scores become weights 2^(score * scale_log2 - offset), with an offset of
// the largest score so far; `decay` is what earlier sums have to be multiplied by.
template <int kRowTiles, int kKeys>
__device__ void softmax_step(Sums<kRowTiles, kKeys>& scores, float (&peak)[kRowTiles][2],
                             float (&total)[kRowTiles][2], float (&decay)[kRowTiles][2], float scale_log2) {
    UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            float largest = -INFINITY;
            UNROLL
            for (int n = 0; n < kKeys / 8; ++n) {
                largest = fmaxf(largest, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
            }
            largest = fmaxf(peak[m][half], row_max(largest));
            // Nothing seen yet: any finite offset keeps 2^-infinity at zero.
            const float offset = largest == -INFINITY ? 0.0f : largest * scale_log2;
            decay[m][half] = exp2_approx(fmaf(peak[m][half], scale_log2, -offset));
            peak[m][half] = largest;
            float sum = 0;
            UNROLL
            for (int n = 0; n < kKeys / 8; ++n) {
                UNROLL
                for (int e = 2 * half; e < 2 * half + 2; ++e) {
                    const float weight = exp2_approx(fmaf(scores[m][n][e], scale_log2, -offset));
                    scores[m][n][e] = weight;
                    sum += weight;
                }
            }
            total[m][half] = total[m][half] * decay[m][half] + sum;
        }
    }
}

template <int kRowTiles, int kDim>
__device__ void multiply(Sums<kRowTiles, kDim>& sums, const float (&factor)[kRowTiles][2]) {
    for_each<kRowTiles, kDim>(sums, [&](float& sum, int m, int, int e) { sum *= factor[m][e / 2]; });
}

template <int kRowTiles, int kDim>
__device__ void multiply(Sums<kRowTiles, kDim>& sums, float factor) {
    for_each<kRowTiles, kDim>(sums, [&](float& sum, int, int, int) { sum *= factor; });
}

// ---- results ----

// A warp's sums to the first `count` of its rows in global memory. `rows` is the first of them; `staging` is
// a tile of shared memory whose rows from `row` on only this warp has ever read: bf16 results pass through
// them, so that they leave in whole chunks. They raise *absmax where it is not null.
template <int kRowTiles, int kDim, class T>
__device__ void store_rows(T* rows, int64_t stride, const Sums<kRowTiles, kDim>& sums, int count, int dim,
                           bool aligned, bf16* staging, int row, [[maybe_unused]] uint32_t* absmax) {
    const int lane = threadIdx.x % kWarp;
    if constexpr (sizeof(T) == 4) {
        UNROLL
        for (int m = 0; m < kRowTiles; ++m) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                const int r = m * 16 + half * 8 + lane / 4;
                T* const to = rows + r * stride + lane % 4 * 2;
                UNROLL
                for (int n = 0; n < kDim / 8; ++n) {
                    if (r >= count || n * 8 >= dim) continue;
                    to[n * 8] = sums[m][n][2 * half];
                    to[n * 8 + 1] = sums[m][n][2 * half + 1];
                }
            }
        }
    } else {
        __syncwarp();  // all lanes have read these rows
        UNROLL
        for (int m = 0; m < kRowTiles; ++m) {
            UNROLL
            for (int n = 0; n < kDim / 8; ++n) {
                UNROLL
                for (int half = 0; half < 2; ++half) {
                    bf16* const at = staging + tile_at<kDim>(row + m * 16 + half * 8 + lane / 4, n);
                    reinterpret_cast<uint32_t*>(at)[lane % 4] =
                        pack_bf16(sums[m][n][2 * half], sums[m][n][2 * half + 1]);
                }
            }
        }
        __syncwarp();
        constexpr int kAcross = chunks_across(kDim), kStep = kWarp / kAcross;
        const int chunk = lane % kAcross, first = lane / kAcross;
        LargestMagnitude largest(absmax);
        UNROLL
        for (int i = 0; i < kRowTiles * 16; i += kStep) {
            T* const to = rows + (first + i) * stride + chunk * 8;
            UNROLL
            for (int c = 0; c < kDim / 8; c += kAcross) {
                if (first + i >= count || (chunk + c) * 8 >= dim) continue;
                const Elements<bf16, 8> values =
                    load_elements<8>(staging + tile_at<kDim>(row + first + i, chunk + c));
                if (aligned) {
                    store_elements(to + c * 8, values);
                } else {
                    for (int j = 0; j < 8; ++j) to[c * 8 + j] = values[j];
                }
                largest.add(values);
            }
        }
        largest.raise_by_warp();
    }
}

// The forward pass's end: sums over the totals of their weights, and the log-sum-exp (lse may be null). `row`
// is the warp's first one of a tile's `rows`, whose first is `first_token`; staging as above.
template <int kRowTiles, int kDim, class T>
__device__ void store_weighted_means(const AttentionProblem<T>& problem, T* out, float* lse, int head,
                                     int64_t first_token, int rows, int row, Sums<kRowTiles, kDim>& sums,
                                     const float (&peak)[kRowTiles][2], const float (&total)[kRowTiles][2],
                                     bf16* staging) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    float inverse[kRowTiles][2];
    UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            const float sum = row_sum(total[m][half]);
            inverse[m][half] = 1.0f / sum;
            const int r = row + m * 16 + half * 8 + lane / 4;
            if (lse != nullptr && r < rows && lane % 4 == 0) {
                lse[int64_t{head} * problem.num_tokens + first_token + r] =
                    peak[m][half] * problem.scale + logf(sum);
            }
        }
    }
    multiply<kRowTiles, kDim>(sums, inverse);
    store_rows<kRowTiles, kDim>(out + (first_token + row) * problem.out_stride() + head * problem.dim,
                                problem.out_stride(), sums, rows - row, problem.dim, problem.aligned, staging,
                                row, problem.absmax);
}

}  // namespace GPU_NAMESPACE
