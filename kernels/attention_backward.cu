// Attention's backward pass on tensor cores, and the op's dispatch. With P = exp(scale S - lse) recomputed
// tile by tile and delta = rowsum(dO O):
//   dV = P^T dO,   dP = dO V^T,   dS = P (dP - delta),   dQ = scale dS K,   dK = scale dS^T Q
// Three kernels: delta (bound by memory); dQ, whose blocks own queries and walk over keys; dK and dV, whose
// blocks own keys and walk over queries and, in order, the query heads of their group. Every sum has one
// owner and one order, so nothing is added atomically and the same input gives the same bits. The price is
// that S and dP are computed twice: 14 D FLOPs for each pair of a query and a key that it sees, where 10 D
// would do. Bound as the forward pass is (attention.cu). Not measured yet on a GPU.
//
// Both tensor-core kernels keep scores, P and dS in a warp's registers: a warp's rows are queries for dQ, and
// keys (the transposed scores) for dK and dV, so that dS always is the left operand of the next product. Of
// dK and dV at D = 64 the compiler spills 16 of 1,020 bytes a thread for sm_80, whose blocks fill the
// registers; newer GPUs have none.
#include "kernels/attention_hopper.h"
#include "kernels/check.h"
#include "kernels/quantize.h"

namespace GPU_NAMESPACE {
namespace {

// ---- delta ----

// Consecutive lanes, the smallest power of 2 that holds D / 8 of them, own a row of one head.
template <class T, bool kRounded>
__global__ void attention_delta_kernel(float* delta, const T* dout, const T* out, int64_t num_tokens,
                                       int num_heads, int dim, int lanes, bool aligned) {
    wait_for_previous();
    let_next_start();
    const int64_t row = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / lanes;
    const int column = threadIdx.x % lanes * 8;
    float sum = 0;
    if (row < num_tokens * num_heads && column < dim) {
        const int64_t at = row * dim + column;
        constexpr int kSize = Pack<T>::kSize;
        UNROLL
        for (int i = 0; i < 8; i += kSize) {
            Pack<T> d, o;
            if (aligned) {
                d = load128(dout + at + i);
                o = load128(out + at + i);
            } else {
                UNROLL
                for (int j = 0; j < kSize; ++j) {
                    d[j] = dout[at + i + j];
                    o[j] = out[at + i + j];
                }
            }
            UNROLL
            for (int j = 0; j < kSize; ++j) {
                // dO as the products see it, so that dP - delta of a token that sees only itself is zero.
                const float gradient = to_float(d[j]);
                sum += (kRounded ? to_float(from_float<bf16>(gradient)) : gradient) * to_float(o[j]);
            }
        }
    }
    for (int other = 1; other < lanes; other *= 2) sum += __shfl_xor_sync(kAllLanes, sum, other);
    if (row < num_tokens * num_heads && column == 0) {
        delta[row % num_heads * num_tokens + row / num_heads] = sum;
    }
}

template <class T, bool kRounded>
void compute_delta(float* delta, const T* dout, const T* out, const AttentionProblem<T>& problem,
                   Stream stream) {
    constexpr int kThreads = 256;
    int lanes = 1;
    while (lanes * 8 < problem.dim) lanes *= 2;
    const int64_t rows = int64_t{problem.num_tokens} * problem.num_heads;
    launch(attention_delta_kernel<T, kRounded>, ceil_div(rows * lanes, kThreads), kThreads, 0, stream, delta,
           dout, out, problem.num_tokens, problem.num_heads, problem.dim, lanes, problem.aligned);
}

// ---- dQ ----

struct BackwardShape {
    int row_tiles;  // of 16 rows, a warp; what the block owns
    int columns;    // of the tiles that it walks over
    int blocks;     // that a multiprocessor shall hold
    static constexpr int kWarps = 4;
    constexpr int threads() const { return kWarps * kWarp; }
    constexpr int rows() const { return kWarps * 16 * row_tiles; }
    // Two operands for its rows; two stages of two for the columns, with two floats each.
    constexpr int64_t smem_bytes(int dim) const {
        return int64_t{2} * dim * (2 * rows() + 4 * columns) + int64_t{16} * columns;
    }
};
// As in the forward pass, two row tiles where registers allow. Shared memory: 24, 48, 48, 64 and 96 KiB.
constexpr BackwardShape dq_shape(int dim) {
    switch (dim) {
        case 32: return {2, 32, 3};
        case 64: return {2, 32, 2};
        case 96: return {1, 32, 3};
        case 128: return {1, 32, 3};
        default: return {1, 16, 1};
    }
}
// dK and dV together take row_tiles * D registers a thread. Heads of 256 therefore get them from two
// launches, at the price of a fifth product. Shared memory as above, and 16 bytes a query.
constexpr BackwardShape dkv_shape(int dim) {
    switch (dim) {
        case 32: return {2, 32, 2};
        case 64: return {2, 32, 2};
        case 96: return {1, 32, 2};
        case 128: return {1, 32, 2};
        default: return {1, 16, 1};
    }
}

template <class T, int kDim>
__global__ void __launch_bounds__(dq_shape(kDim).threads(), dq_shape(kDim).blocks)
    attention_dq_kernel(const AttentionProblem<T> problem, const BackwardTensors<T> tensors) {
    wait_for_previous();
    let_next_start();
    constexpr BackwardShape kShape = dq_shape(kDim);
    constexpr int kRowTiles = kShape.row_tiles, kQueries = kShape.rows(), kKeys = kShape.columns;
    DYN_SHARED(bf16, q_tile);
    bf16* const dout_tile = q_tile + kQueries * kDim;
    bf16* const stages = dout_tile + kQueries * kDim;
    const int head = blockIdx.y, kv_head = head / problem.group;
    const int row = static_cast<int>(threadIdx.x) / kWarp * 16 * kRowTiles;  // the warp's first
    const float scale_log2 = problem.scale_log2();

    OwnedTiles<kQueries, T> tiles(problem, gridDim.x - 1 - blockIdx.x);
    for (DocumentTile tile; tiles.next(tile);) {
        const int first_query = tile.first, rows = min(kQueries, tile.length - first_query);
        const int end_key = first_query + rows;
        const int64_t kv_at = tile.begin * problem.kv_stride + kv_head * problem.dim;
        const auto stage_keys = [&](int key) {
            bf16* const k_tile = stages + key / kKeys % 2 * (2 * kKeys * kDim);
            const int64_t at = kv_at + key * problem.kv_stride;
            stage_rows<kKeys, kDim, kShape.threads()>(k_tile, problem.k + at, problem.kv_stride,
                                                      end_key - key, problem.dim, problem.aligned);
            stage_rows<kKeys, kDim, kShape.threads()>(k_tile + kKeys * kDim, problem.v + at,
                                                      problem.kv_stride, end_key - key, problem.dim,
                                                      problem.aligned);
            cp_async_commit();
        };

        __syncthreads();  // everyone is through with the tile before
        const int64_t first_token = tile.begin + first_query;
        const int64_t q_at = first_token * problem.q_stride + head * problem.dim;
        stage_rows<kQueries, kDim, kShape.threads()>(q_tile, problem.q + q_at, problem.q_stride, rows,
                                                     problem.dim, problem.aligned);
        stage_rows<kQueries, kDim, kShape.threads()>(
            dout_tile, tensors.dout + first_token * problem.out_stride() + head * problem.dim,
            problem.out_stride(), rows, problem.dim, problem.aligned);
        const int begin_key = problem.visibility.first_key(first_query) / kKeys * kKeys;
        stage_keys(begin_key);

        float lse_log2[kRowTiles][2], delta[kRowTiles][2];
        UNROLL
        for (int m = 0; m < kRowTiles; ++m) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                const int r = row + m * 16 + half * 8 + static_cast<int>(threadIdx.x) % kWarp / 4;
                const int64_t at = int64_t{head} * problem.num_tokens + first_token + r;
                lse_log2[m][half] = r < rows ? tensors.lse[at] * kLog2E : 0.0f;
                delta[m][half] = r < rows ? tensors.delta[at] : 0.0f;
            }
        }
        Sums<kRowTiles, kDim> dq;
        clear<kRowTiles, kDim>(dq);
        const int warp_first = first_query + row, warp_last = warp_first + 16 * kRowTiles - 1;
        for (int key = begin_key; key < end_key; key += kKeys) {
            cp_async_wait<0>();
            __syncthreads();  // this tile has come, and the one before is done with
            if (key + kKeys < end_key) stage_keys(key + kKeys);
            const int last_key = key + kKeys - 1;
            if (row >= rows || !problem.visibility.any(warp_first, warp_last, key, last_key)) continue;
            const bf16* const k_tile = stages + key / kKeys % 2 * (2 * kKeys * kDim);
            Sums<kRowTiles, kKeys> scores, gradients;
            clear<kRowTiles, kKeys>(scores);
            add_products<kRowTiles, kKeys, kDim>(scores, q_tile, row, k_tile);
            if (problem.visibility.partial(warp_first, warp_last, key, last_key)) {
                mask<true, kRowTiles, kKeys>(scores, warp_first, key, problem.visibility);
            }
            clear<kRowTiles, kKeys>(gradients);
            add_products<kRowTiles, kKeys, kDim>(gradients, dout_tile, row, k_tile + kKeys * kDim);
            for_each<kRowTiles, kKeys>(gradients, [&](float& x, int m, int n, int e) {
                const float p = exp2_approx(fmaf(scores[m][n][e], scale_log2, -lse_log2[m][e / 2]));
                x = p * (x - delta[m][e / 2]);
            });
            add_weighted_rows<kRowTiles, kKeys, kDim>(dq, gradients, k_tile);
        }
        multiply<kRowTiles, kDim>(dq, problem.scale);
        store_rows<kRowTiles, kDim>(tensors.dq + q_at + row * problem.q_stride, problem.q_stride, dq,
                                    rows - row, problem.dim, problem.aligned, q_tile, row, problem.absmax);
    }
}

template <class T>
void compute_dq(const AttentionProblem<T>& problem, const BackwardTensors<T>& tensors, Stream stream) {
    with_head_size(problem.dim, [&](auto size) {
        constexpr int kDim = decltype(size)::value;
        constexpr BackwardShape kShape = dq_shape(kDim);
        const dim3 blocks(num_ranges(problem.num_tokens, kShape.rows()),
                          static_cast<unsigned>(problem.num_heads));
        launch(attention_dq_kernel<T, kDim>, blocks, kShape.threads(), kShape.smem_bytes(kDim), stream,
               problem, tensors);
    });
}

// ---- dK and dV ----

struct QueryTile {
    int head, first;
};

template <class T, int kDim, bool kWantDk, bool kWantDv>
__global__ void __launch_bounds__(dkv_shape(kDim).threads(), dkv_shape(kDim).blocks)
    attention_dkv_kernel(const AttentionProblem<T> problem, const BackwardTensors<T> tensors) {
    wait_for_previous();
    let_next_start();
    constexpr BackwardShape kShape = dkv_shape(kDim);
    constexpr int kRowTiles = kShape.row_tiles, kKeys = kShape.rows(), kQueries = kShape.columns;
    static_assert(2 * kQueries <= kShape.threads());
    DYN_SHARED(bf16, k_tile);
    bf16* const v_tile = k_tile + kKeys * kDim;
    bf16* const stages = v_tile + kKeys * kDim;
    // Of each stage's queries: the log-sum-exp in units of ln 2, then delta.
    float* const statistics = reinterpret_cast<float*>(stages + 4 * kQueries * kDim);
    const int kv_head = blockIdx.y, thread = threadIdx.x;
    const int row = thread / kWarp * 16 * kRowTiles;  // the warp's first
    const float scale_log2 = problem.scale_log2();

    // Earlier tiles of a document have more queries: they go first.
    OwnedTiles<kKeys, T> tiles(problem, blockIdx.x);
    for (DocumentTile tile; tiles.next(tile);) {
        const int first_key = tile.first, rows = min(kKeys, tile.length - first_key);
        const int end_query = problem.visibility.end_query(first_key + rows - 1, tile.length);
        const int end_head = (kv_head + 1) * problem.group;
        const auto stage_queries = [&](int stage, const QueryTile& queries) {
            bf16* const q_tile = stages + stage * (2 * kQueries * kDim);
            const int column = queries.head * problem.dim, count = end_query - queries.first;
            const int64_t token = tile.begin + queries.first;
            stage_rows<kQueries, kDim, kShape.threads()>(
                q_tile, problem.q + token * problem.q_stride + column, problem.q_stride, count, problem.dim,
                problem.aligned);
            stage_rows<kQueries, kDim, kShape.threads()>(
                q_tile + kQueries * kDim, tensors.dout + token * problem.out_stride() + column,
                problem.out_stride(), count, problem.dim, problem.aligned);
            cp_async_commit();
        };
        // A thread's one number of a tile's statistics, fetched before the tile in front of it is worked on
        // and stored after that. Of queries that do not exist, Q and dO are zero: any finite number will do.
        const auto fetch_statistic = [&](const QueryTile& queries) {
            const int query = queries.first + thread % kQueries;
            if (thread >= 2 * kQueries || query >= end_query) return 0.0f;
            const int64_t at = int64_t{queries.head} * problem.num_tokens + tile.begin + query;
            return thread < kQueries ? tensors.lse[at] * kLog2E : tensors.delta[at];
        };
        const auto store_statistic = [&](int stage, float statistic) {
            if (thread < 2 * kQueries) statistics[stage * 2 * kQueries + thread] = statistic;
        };

        __syncthreads();  // everyone is through with the tile before
        const int64_t kv_at = (tile.begin + first_key) * problem.kv_stride + kv_head * problem.dim;
        stage_rows<kKeys, kDim, kShape.threads()>(k_tile, problem.k + kv_at, problem.kv_stride, rows,
                                                  problem.dim, problem.aligned);
        if constexpr (kWantDk) {
            stage_rows<kKeys, kDim, kShape.threads()>(v_tile, problem.v + kv_at, problem.kv_stride, rows,
                                                      problem.dim, problem.aligned);
        }
        QueryTile queries{kv_head * problem.group, first_key};
        stage_queries(0, queries);
        store_statistic(0, fetch_statistic(queries));

        [[maybe_unused]] Sums<kRowTiles, kDim> dk, dv;
        if constexpr (kWantDk) clear<kRowTiles, kDim>(dk);
        if constexpr (kWantDv) clear<kRowTiles, kDim>(dv);
        const int warp_first = first_key + row, warp_last = warp_first + 16 * kRowTiles - 1;
        for (int stage = 0; queries.head < end_head; stage ^= 1) {
            cp_async_wait<0>();
            __syncthreads();  // this tile has come, and the one before is done with
            QueryTile next{queries.head, queries.first + kQueries};
            if (next.first >= end_query) next = {queries.head + 1, first_key};
            float next_statistic = 0;
            if (next.head < end_head) {
                stage_queries(stage ^ 1, next);
                next_statistic = fetch_statistic(next);
            }
            const int query = queries.first, last_query = query + kQueries - 1;
            if (row < rows && problem.visibility.any(query, last_query, warp_first, warp_last)) {
                const bf16* const q_tile = stages + stage * (2 * kQueries * kDim);
                const bf16* const dout_tile = q_tile + kQueries * kDim;
                const auto* const lse_log2 =
                    reinterpret_cast<const float2*>(statistics + stage * 2 * kQueries) + thread % 4;
                const auto* const delta = lse_log2 + kQueries / 2;
                Sums<kRowTiles, kQueries> scores;  // transposed: a row for each key
                clear<kRowTiles, kQueries>(scores);
                add_products<kRowTiles, kQueries, kDim>(scores, k_tile, row, q_tile);
                if (problem.visibility.partial(query, last_query, warp_first, warp_last)) {
                    mask<false, kRowTiles, kQueries>(scores, warp_first, query, problem.visibility);
                }
                for_each<kRowTiles, kQueries>(scores, [&](float& x, int, int n, int e) {
                    x = exp2_approx(fmaf(x, scale_log2, e % 2 ? -lse_log2[4 * n].y : -lse_log2[4 * n].x));
                });
                if constexpr (kWantDv) {
                    add_weighted_rows<kRowTiles, kQueries, kDim>(dv, scores, dout_tile);
                }
                if constexpr (kWantDk) {
                    Sums<kRowTiles, kQueries> gradients;
                    clear<kRowTiles, kQueries>(gradients);
                    add_products<kRowTiles, kQueries, kDim>(gradients, v_tile, row, dout_tile);
                    for_each<kRowTiles, kQueries>(gradients, [&](float& x, int m, int n, int e) {
                        x = scores[m][n][e] * (x - (e % 2 ? delta[4 * n].y : delta[4 * n].x));
                    });
                    add_weighted_rows<kRowTiles, kQueries, kDim>(dk, gradients, q_tile);
                }
            }
            if (next.head < end_head) store_statistic(stage ^ 1, next_statistic);
            queries = next;
        }
        const int64_t at = kv_at + row * problem.kv_stride;
        if constexpr (kWantDk) {
            multiply<kRowTiles, kDim>(dk, problem.scale);
            store_rows<kRowTiles, kDim>(tensors.dk + at, problem.kv_stride, dk, rows - row, problem.dim,
                                        problem.aligned, k_tile, row, problem.absmax);
        }
        if constexpr (kWantDv) {
            store_rows<kRowTiles, kDim>(tensors.dv + at, problem.kv_stride, dv, rows - row, problem.dim,
                                        problem.aligned, v_tile, row, problem.absmax);
        }
    }
}

template <class T>
void compute_dk_dv(const AttentionProblem<T>& problem, const BackwardTensors<T>& tensors, Stream stream) {
    with_head_size(problem.dim, [&](auto size) {
        constexpr int kDim = decltype(size)::value;
        constexpr BackwardShape kShape = dkv_shape(kDim);
        const dim3 blocks(num_ranges(problem.num_tokens, kShape.rows()),
                          static_cast<unsigned>(problem.num_heads / problem.group));
        const auto start = [&](auto kernel) {
            launch(kernel, blocks, kShape.threads(), kShape.smem_bytes(kDim), stream, problem, tensors);
        };
        if constexpr (kDim > 128) {
            start(attention_dkv_kernel<T, kDim, true, false>);
            start(attention_dkv_kernel<T, kDim, false, true>);
        } else {
            start(attention_dkv_kernel<T, kDim, true, true>);
        }
    });
}

// ---- the op ----

template <class T, bool kTensorCores>
void backward(const Tensor& dqkv, const Tensor& dout, const Tensor& out, const Tensor& lse, const Tensor& qkv,
              const Tensor& cu_seqlens, const AttentionShape& shape, const Tensor& scratch,
              const Tensor& absmax, Stream stream) {
    const auto problem = training_problem<T>(qkv, cu_seqlens, shape, absmax, dqkv, dout, out);
    T* const dq = dqkv.as<T>();
    float* const delta = static_cast<float*>(scratch.data);
    const BackwardTensors<T> tensors{
        dq, dq + (problem.k - problem.q), dq + (problem.v - problem.q), dout.as<T>(), lse.as<float>(), delta};
    compute_delta<T, kTensorCores>(delta, dout.as<T>(), out.as<T>(), problem, stream);
    if constexpr (sizeof(T) == 2) {
        if (runs_on_hopper(problem)) return backward_on_hopper(problem, tensors, stream);
    }
    if constexpr (kTensorCores) {
        compute_dk_dv(problem, tensors, stream);
        compute_dq(problem, tensors, stream);
    } else {
        backward_in_f32(problem, tensors, stream);
    }
}

}  // namespace

int64_t attention_backward_scratch_bytes(int64_t num_tokens, int64_t, int64_t, const AttentionShape& shape,
                                         Device) {
    return num_tokens * shape.num_heads * static_cast<int64_t>(sizeof(float));
}

void attention_backward(Tensor dqkv, Tensor dout, Tensor out, Tensor lse, Tensor qkv, Tensor cu_seqlens,
                        const AttentionShape& shape, MatmulMath math, Tensor scratch, Tensor absmax,
                        Stream stream) {
    check_attention_backward(dqkv, dout, out, lse, qkv, cu_seqlens, shape, absmax);
    const ArgumentCheck check{"attention_backward", qkv.device};
    check.scratch(scratch,
                  GPU_NAMESPACE::attention_backward_scratch_bytes(qkv.dims[0], 0, 0, shape, qkv.device));
    if (qkv.dtype == DType::bf16) {
        backward<bf16, true>(dqkv, dout, out, lse, qkv, cu_seqlens, shape, scratch, absmax, stream);
    } else if (math == MatmulMath::bf16) {
        backward<float, true>(dqkv, dout, out, lse, qkv, cu_seqlens, shape, scratch, absmax, stream);
    } else {
        backward<float, false>(dqkv, dout, out, lse, qkv, cu_seqlens, shape, scratch, absmax, stream);
    }
    if (qkv.dtype == DType::f32 && !absmax.absent()) raise_absmax(absmax, dqkv, stream);
}

}  // namespace GPU_NAMESPACE
