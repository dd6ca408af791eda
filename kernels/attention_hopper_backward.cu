// Attention's backward pass on Hopper: dQ, whose blocks own queries and walk over keys; dK and dV, whose
// blocks own keys and walk over queries and, in order, the query heads of their group. Formulas, order and
// the reason for two kernels are those of attention_backward.cu: every sum has one owner, nothing is added
// atomically, and S and dP are multiplied twice, 14 D FLOPs a pair where 10 D would do. Bytes: Q, dO, K, V
// once from memory to each of the two, and from the L2 cache again for each tile that is owned. Bound by
// tensor cores, and nearly as much by shared memory, which delivers both operands of S and dP: 4 KiB for a
// product of 64 x 64 x 16, the 32 cycles that it takes. Not measured yet on a GPU.
//
// Exponentials hide behind products: dQ's last product of a tile ends while the next tile's scores are
// multiplied, and the other warpgroup is elsewhere in its tile.
#include "kernels/attention_hopper.h"

namespace GPU_NAMESPACE {
namespace {

template <int kDim>
struct DqTiles {
    // Registers of scores, their gradients, weights and sums: 192 and 144.
    static constexpr int kKeys = kDim == 64 ? 128 : 64, kStages = 4;
    using Registers = RegisterShares<32, 240>;
    static constexpr int64_t kSharedBytes =
        tile_bytes(2 * kOwnedRows + 2 * kStages * kKeys, kDim);  // 160, 192 KiB
};

template <int kDim>
__global__ void __launch_bounds__(kHopperThreads, 1)
    attention_dq_hopper_kernel(GRID_CONSTANT TensorMap qkv_rows, GRID_CONSTANT TensorMap dout_rows,
                               const AttentionProblem<bf16> problem, const BackwardTensors<bf16> tensors) {
    wait_for_previous();
    let_next_start();
    if constexpr (!kSm90a) {
        __trap();
    } else {
        constexpr int kKeys = DqTiles<kDim>::kKeys, kStages = DqTiles<kDim>::kStages;
        constexpr int kKeyTile = kKeys * kDim;
        DYN_SHARED(bf16, q_tile);
        bf16* const dout_tile = q_tile + kOwnedRows * kDim;
        bf16* const stages = dout_tile + kOwnedRows * kDim;
        SHARED(Ring<1>, queries, [1]);
        SHARED(Ring<kStages>, keys, [1]);
        if (threadIdx.x == 0) {
            queries->init(1);
            keys->init(1);
            fence_mbarrier_init();
        }
        __syncthreads();
        RingPlace<1> owned;
        RingPlace<kStages> place;

        const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroup;
        if (warpgroup == 0) {
            give_registers<DqTiles<kDim>::Registers::kProducer>();
            if (threadIdx.x >= kWarp) return;
            for_own_tiles(problem, problem.num_heads, true, [&](const DocumentTile& tile, int head) {
                if (threadIdx.x != 0) return;
                const int num_kv_heads = problem.num_heads / problem.group;
                const int k_column = (problem.num_heads + head / problem.group) * kDim;
                const int end = end_key(tile);
                owned.wait_empty(*queries);
                mbarrier_arrive_expect_bytes(queries->full, 2 * tile_bytes(kOwnedRows, kDim));
                UNROLL_BY(1)
                for (int r = 0; r < kOwnedRows; r += kConsumerRows) {
                    const int query = tile.first + r;
                    load_rows<kConsumerRows, kDim>(q_tile + r * kDim, qkv_rows, tile.begin + query,
                                                   head * kDim, end - query, queries->full);
                    load_rows<kConsumerRows, kDim>(dout_tile + r * kDim, dout_rows, tile.begin + query,
                                                   head * kDim, end - query, queries->full);
                }
                ++owned.passed;
                for (int key = begin_key<kKeys>(problem, tile); key < end; key += kKeys, ++place.passed) {
                    place.wait_empty(*keys);
                    uint64_t* const full = &keys->full[place.stage()];
                    bf16* const k_tile = stages + place.stage() * 2 * kKeyTile;
                    mbarrier_arrive_expect_bytes(full, 2 * tile_bytes(kKeys, kDim));
                    load_rows<kKeys, kDim>(k_tile, qkv_rows, tile.begin + key, k_column, end - key, full);
                    load_rows<kKeys, kDim>(k_tile + kKeyTile, qkv_rows, tile.begin + key,
                                           k_column + num_kv_heads * kDim, end - key, full);
                }
            });
            return;
        }

        take_registers<DqTiles<kDim>::Registers::kConsumer>();
        const int consumer = warpgroup - 1;
        const int row = consumer * kConsumerRows + static_cast<int>(threadIdx.x) % kWarpgroup / kWarp * 16;
        const float scale_log2 = problem.scale_log2();
        for_own_tiles(problem, problem.num_heads, true, [&](const DocumentTile& tile, int head) {
            const int first_query = tile.first + row;  // the warp's
            const int end = end_key(tile), rows = end - tile.first;
            const int64_t first_token = int64_t{tile.begin} + tile.first;
            float lse_log2[2], delta[2];
            UNROLL
            for (int half = 0; half < 2; ++half) {
                const int r = row + half * 8 + static_cast<int>(threadIdx.x) % kWarp / 4;
                const int64_t at = int64_t{head} * problem.num_tokens + first_token + r;
                lse_log2[half] = r < rows ? tensors.lse[at] * kLog2E : 0.0f;
                delta[half] = r < rows ? tensors.delta[at] : 0.0f;
            }
            Sums<1, kDim> dq;
            Sums<1, kKeys> scores, gradients;
            Weights<kKeys> weights;
            clear<1, kDim>(dq);
            owned.wait_full(*queries);
            const int begin = begin_key<kKeys>(problem, tile);
            for (int key = begin; key < end; key += kKeys, ++place.passed) {
                const bf16* const k_tile = stages + place.stage() * 2 * kKeyTile;
                place.wait_full(*keys);
                wgmma_fence(flat<kKeys>(scores), flat<kKeys>(gradients));
                start_products<kKeys, kDim>(scores, q_tile + consumer * kConsumerRows * kDim, k_tile);
                start_products<kKeys, kDim>(gradients, dout_tile + consumer * kConsumerRows * kDim,
                                            k_tile + kKeyTile);
                wgmma_wait<1>(flat<kKeys>(scores), flat<kDim>(dq), weights.registers());
                if (key > begin) place.release_last(*keys);
                if (problem.visibility.partial(first_query, first_query + 15, key, key + kKeys - 1)) {
                    mask<true, 1, kKeys>(scores, first_query, key, problem.visibility);
                }
                for_each<1, kKeys>(scores, [&](float& x, int, int, int e) {
                    x = exp2_approx(fmaf(x, scale_log2, -lse_log2[e / 2]));
                });
                wgmma_wait<0>(flat<kKeys>(gradients));
                for_each<1, kKeys>(gradients, [&](float& x, int m, int n, int e) {
                    x = scores[m][n][e] * (x - delta[e / 2]);
                });
                weights.set(gradients);
                wgmma_fence(flat<kDim>(dq), weights.registers());
                start_weighted_rows<kKeys, kDim>(dq, weights, k_tile);
            }
            wgmma_wait<0>(flat<kDim>(dq), weights.registers());
            place.release_last(*keys);

            // The queries' memory becomes the way out.
            named_barrier_sync(kOwnBarrier + consumer, kWarpgroup);
            multiply<1, kDim>(dq, problem.scale);
            store_rows<1, kDim>(tensors.dq + (first_token + row) * problem.q_stride + head * kDim,
                                problem.q_stride, dq, rows - row, kDim, true, q_tile, row, problem.absmax);
            fence_proxy_async();
            release(queries->empty);
            ++owned.passed;
        });
    }
}

// ---- dK and dV ----

// Scores are transposed: a warpgroup's rows are keys, and what it walks over are queries. Registers of dK and
// dV, scores and their gradients, and the weights of both: 160 and 224.
template <int kDim>
struct DkvTiles {
    static constexpr int kQueries = 64, kStages = 4;
    using Registers = RegisterShares<40, 232>;
    static constexpr int64_t kSharedBytes =
        tile_bytes(2 * kOwnedRows + 2 * kStages * kQueries, kDim);  // 96, 192 KiB
};

template <int kDim>
__global__ void __launch_bounds__(kHopperThreads, 1)
    attention_dkv_hopper_kernel(GRID_CONSTANT TensorMap qkv_rows, GRID_CONSTANT TensorMap dout_rows,
                                const AttentionProblem<bf16> problem, const BackwardTensors<bf16> tensors) {
    wait_for_previous();
    let_next_start();
    if constexpr (!kSm90a) {
        __trap();
    } else {
        constexpr int kQueries = DkvTiles<kDim>::kQueries, kStages = DkvTiles<kDim>::kStages;
        constexpr int kQueryTile = kQueries * kDim;
        DYN_SHARED(bf16, k_tile);
        bf16* const v_tile = k_tile + kOwnedRows * kDim;
        bf16* const stages = v_tile + kOwnedRows * kDim;
        SHARED(Ring<1>, keys, [1]);
        SHARED(Ring<kStages>, queries, [1]);
        // Of each stage's queries: the log-sum-exp in units of ln 2, and delta.
        SHARED(float2, statistics, [kStages][2][kQueries / 2]);
        if (threadIdx.x == 0) {
            keys->init(1);
            queries->init(1 + kWarp);
            fence_mbarrier_init();
        }
        __syncthreads();
        const int num_kv_heads = problem.num_heads / problem.group;
        // Runs body(head, query) for all tiles of queries that see a tile of keys.
        const auto for_queries = [&](const DocumentTile& tile, int kv_head, int end, auto body) {
            for (int head = kv_head * problem.group; head < (kv_head + 1) * problem.group; ++head) {
                for (int query = tile.first; query < end; query += kQueries) body(head, query);
            }
        };
        // One behind the last query that sees any of the tile's keys.
        const auto end_query = [&](const DocumentTile& tile) {
            return problem.visibility.end_query(min(tile.first + kOwnedRows, tile.length) - 1, tile.length);
        };
        RingPlace<1> owned;
        RingPlace<kStages> place;

        const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroup;
        if (warpgroup == 0) {
            give_registers<DkvTiles<kDim>::Registers::kProducer>();
            const int warp = static_cast<int>(threadIdx.x) / kWarp,
                      lane = static_cast<int>(threadIdx.x) % kWarp;
            if (warp == 0) {
                for_own_tiles(problem, num_kv_heads, false, [&](const DocumentTile& tile, int kv_head) {
                    if (lane != 0) return;
                    owned.wait_empty(*keys);
                    mbarrier_arrive_expect_bytes(keys->full, 2 * tile_bytes(kOwnedRows, kDim));
                    const int k_column = (problem.num_heads + kv_head) * kDim;
                    UNROLL_BY(1)
                    for (int r = 0; r < kOwnedRows; r += kConsumerRows) {
                        const int key = tile.first + r, count = tile.length - key;
                        load_rows<kConsumerRows, kDim>(k_tile + r * kDim, qkv_rows, tile.begin + key,
                                                       k_column, count, keys->full);
                        load_rows<kConsumerRows, kDim>(v_tile + r * kDim, qkv_rows, tile.begin + key,
                                                       k_column + num_kv_heads * kDim, count, keys->full);
                    }
                    ++owned.passed;
                    const int end = end_query(tile);
                    for_queries(tile, kv_head, end, [&](int head, int query) {
                        place.wait_empty(*queries);
                        uint64_t* const full = &queries->full[place.stage()];
                        bf16* const tiles = stages + place.stage() * 2 * kQueryTile;
                        mbarrier_arrive_expect_bytes(full, 2 * tile_bytes(kQueries, kDim));
                        load_rows<kQueries, kDim>(tiles, qkv_rows, tile.begin + query, head * kDim,
                                                  end - query, full);
                        load_rows<kQueries, kDim>(tiles + kQueryTile, dout_rows, tile.begin + query,
                                                  head * kDim, end - query, full);
                        ++place.passed;
                    });
                });
            } else if (warp == 1) {
                for_own_tiles(problem, num_kv_heads, false, [&](const DocumentTile& tile, int kv_head) {
                    const int end = end_query(tile);
                    for_queries(tile, kv_head, end, [&](int head, int query) {
                        // Of queries that do not exist, Q and dO are zero: any finite number will do.
                        const int64_t at = int64_t{head} * problem.num_tokens + tile.begin + query;
                        float fetched[2][kQueries / kWarp];
                        UNROLL
                        for (int i = 0; i < kQueries / kWarp; ++i) {
                            const int r = i * kWarp + lane;
                            fetched[0][i] = query + r < end ? tensors.lse[at + r] * kLog2E : 0.0f;
                            fetched[1][i] = query + r < end ? tensors.delta[at + r] : 0.0f;
                        }
                        place.wait_empty(*queries);
                        float* const to = &statistics[place.stage()][0][0].x + lane;
                        UNROLL
                        for (int i = 0; i < kQueries / kWarp; ++i) {
                            to[i * kWarp] = fetched[0][i];
                            to[kQueries + i * kWarp] = fetched[1][i];
                        }
                        mbarrier_arrive(&queries->full[place.stage()]);
                        ++place.passed;
                    });
                });
            }
            return;
        }

        take_registers<DkvTiles<kDim>::Registers::kConsumer>();
        const int consumer = warpgroup - 1;
        const int row = consumer * kConsumerRows + static_cast<int>(threadIdx.x) % kWarpgroup / kWarp * 16;
        const float scale_log2 = problem.scale_log2();
        for_own_tiles(problem, num_kv_heads, false, [&](const DocumentTile& tile, int kv_head) {
            const int first_key = tile.first + row;  // the warp's
            Sums<1, kDim> dk, dv;
            Sums<1, kQueries> scores, gradients;
            Weights<kQueries> p, ds;
            clear<1, kDim>(dk);
            clear<1, kDim>(dv);
            owned.wait_full(*keys);
            for_queries(tile, kv_head, end_query(tile), [&](int, int query) {
                const bf16* const tiles = stages + place.stage() * 2 * kQueryTile;
                place.wait_full(*queries);
                wgmma_fence(flat<kQueries>(scores), flat<kQueries>(gradients));
                start_products<kQueries, kDim>(scores, k_tile + consumer * kConsumerRows * kDim, tiles);
                start_products<kQueries, kDim>(gradients, v_tile + consumer * kConsumerRows * kDim,
                                               tiles + kQueryTile);
                wgmma_wait<1>(flat<kQueries>(scores));
                if (problem.visibility.partial(query, query + kQueries - 1, first_key, first_key + 15)) {
                    mask<false, 1, kQueries>(scores, first_key, query, problem.visibility);
                }
                // A lane's two columns of every eight.
                const float2* const lse_log2 = statistics[place.stage()][0] + threadIdx.x % 4;
                const float2* const delta = statistics[place.stage()][1] + threadIdx.x % 4;
                for_each<1, kQueries>(scores, [&](float& x, int, int n, int e) {
                    x = exp2_approx(fmaf(x, scale_log2, e % 2 ? -lse_log2[4 * n].y : -lse_log2[4 * n].x));
                });
                p.set(scores);
                wgmma_wait<0>(flat<kQueries>(gradients));
                for_each<1, kQueries>(gradients, [&](float& x, int m, int n, int e) {
                    x = scores[m][n][e] * (x - (e % 2 ? delta[4 * n].y : delta[4 * n].x));
                });
                ds.set(gradients);
                // Both at the end: heads of 128 have no registers for P beside its weights while one runs.
                wgmma_fence(flat<kDim>(dv), flat<kDim>(dk), p.registers(), ds.registers());
                start_weighted_rows<kQueries, kDim>(dv, p, tiles + kQueryTile);
                start_weighted_rows<kQueries, kDim>(dk, ds, tiles);
                wgmma_wait<0>(flat<kDim>(dv), flat<kDim>(dk), p.registers(), ds.registers());
                release(&queries->empty[place.stage()]);
                ++place.passed;
            });

            // The keys' and values' memory becomes the way out.
            named_barrier_sync(kOwnBarrier + consumer, kWarpgroup);
            const int rows = min(kOwnedRows, tile.length - tile.first);
            const int64_t at = (int64_t{tile.begin} + first_key) * problem.kv_stride + kv_head * problem.dim;
            multiply<1, kDim>(dk, problem.scale);
            store_rows<1, kDim>(tensors.dk + at, problem.kv_stride, dk, rows - row, kDim, true, k_tile, row,
                                problem.absmax);
            store_rows<1, kDim>(tensors.dv + at, problem.kv_stride, dv, rows - row, kDim, true, v_tile, row,
                                problem.absmax);
            fence_proxy_async();
            release(keys->empty);
            ++owned.passed;
        });
    }
}

}  // namespace

void backward_on_hopper(const AttentionProblem<bf16>& problem, const BackwardTensors<bf16>& tensors,
                        Stream stream) {
    if (problem.num_tokens == 0) return;
    const TensorMap qkv_rows = map_rows(problem.q, problem.num_tokens, problem.q_stride);
    const TensorMap dout_rows =
        map_rows(tensors.dout, problem.num_tokens, int64_t{problem.num_heads} * problem.dim);
    with_hopper_head_size(problem.dim, [&](auto size) {
        constexpr int kDim = decltype(size)::value;
        const auto start = [&](auto kernel, int64_t num_heads, int64_t smem_bytes) {
            launch(kernel, num_hopper_blocks(problem.num_tokens, num_heads), kHopperThreads, smem_bytes,
                   stream, qkv_rows, dout_rows, problem, tensors);
        };
        start(attention_dkv_hopper_kernel<kDim>, problem.num_heads / problem.group,
              DkvTiles<kDim>::kSharedBytes);
        start(attention_dq_hopper_kernel<kDim>, problem.num_heads, DqTiles<kDim>::kSharedBytes);
    });
}

}  // namespace GPU_NAMESPACE
