// Attention's forward pass on Hopper, and the choice of the Hopper kernels. FLOPs: 4 D a pair of a query and
// a key that it sees, beside the half tiles on the diagonal. Bytes: qkv once from memory, out once to it; K
// and V again from the L2 cache for each tile of queries. Bound by tensor cores for heads of 128; for heads
// of 64, which have half the products for each exponential, as much by the 16 exponentials a cycle of a
// multiprocessor. Not measured yet on a GPU.
//
// Scores of the next keys are multiplied while the softmax of these is made, twice over: within a warpgroup
// (QK^T of the next tile is started in front of PV of this one), and between warpgroups, which take turns at
// the tensor cores.
#include "kernels/attention_hopper.h"

#include "core/device.h"

namespace GPU_NAMESPACE {
namespace {

// A consumer's thread holds kDim / 2 sums, 64 scores and 32 registers of weights: 160 and 128. (Three
// consumers for heads of 64, with 160 registers each, would take more turns; the compiler then spills.)
// Shared memory: queries, and stages of keys and values, 160 and 144 KiB.
template <int kDim>
struct ForwardTiles {
    static constexpr int kKeys = 128, kStages = 256 / kDim;
    using Registers = RegisterShares<40, 232>;
    static constexpr int64_t kSharedBytes = tile_bytes(kOwnedRows + 2 * kStages * kKeys, kDim);
};

// Consumers start their products one after the other.
struct Turns {
    int consumer;
    __device__ void start() const {
        if (consumer == kConsumers - 1) pass();
    }
    __device__ void wait() const { named_barrier_sync(kTurnBarrier + consumer, 2 * kWarpgroup); }
    __device__ void pass() const {
        named_barrier_arrive(kTurnBarrier + (consumer + 1) % kConsumers, 2 * kWarpgroup);
    }
    // Takes what the last one has passed on.
    __device__ void end() const {
        if (consumer == 0) wait();
    }
};

template <int kDim>
__global__ void __launch_bounds__(kHopperThreads, 1)
    attention_forward_hopper_kernel(GRID_CONSTANT TensorMap rows_map, const AttentionProblem<bf16> problem,
                                    bf16* out, float* lse) {
    wait_for_previous();
    let_next_start();
    if constexpr (!kSm90a) {
        __trap();
    } else {
        using Tiles = ForwardTiles<kDim>;
        constexpr int kKeys = Tiles::kKeys, kStages = Tiles::kStages, kKeyTile = kKeys * kDim;
        DYN_SHARED(bf16, q_tile);
        bf16* const k_tiles = q_tile + kOwnedRows * kDim;
        bf16* const v_tiles = k_tiles + kStages * kKeyTile;
        SHARED(Ring<1>, queries, [1]);
        SHARED(Ring<kStages>, keys, [1]);
        SHARED(Ring<kStages>, values, [1]);
        if (threadIdx.x == 0) {
            queries->init(1);
            keys->init(1);
            values->init(1);
            fence_mbarrier_init();
        }
        __syncthreads();
        RingPlace<1> q_place;
        RingPlace<kStages> k_place, v_place;

        const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroup;
        if (warpgroup == 0) {
            give_registers<Tiles::Registers::kProducer>();
            if (threadIdx.x >= kWarp) return;
            for_own_tiles(problem, problem.num_heads, true, [&](const DocumentTile& tile, int head) {
                if (threadIdx.x != 0) return;
                const int kv_head = head / problem.group;
                const int k_column = (problem.num_heads + kv_head) * kDim;
                const int v_column = k_column + problem.num_heads / problem.group * kDim;
                const int end = end_key(tile);
                const auto load_keys = [&](bf16* tiles, Ring<kStages>& ring, RingPlace<kStages>& place,
                                           int column, int key) {
                    place.wait_empty(ring);
                    mbarrier_arrive_expect_bytes(&ring.full[place.stage()], tile_bytes(kKeys, kDim));
                    load_rows<kKeys, kDim>(tiles + place.stage() * kKeyTile, rows_map, tile.begin + key,
                                           column, end - key, &ring.full[place.stage()]);
                    ++place.passed;
                };
                q_place.wait_empty(*queries);
                mbarrier_arrive_expect_bytes(queries->full, tile_bytes(kOwnedRows, kDim));
                for (int r = 0; r < kOwnedRows; r += kConsumerRows) {
                    load_rows<kConsumerRows, kDim>(q_tile + r * kDim, rows_map, tile.begin + tile.first + r,
                                                   head * kDim, end - tile.first - r, queries->full);
                }
                ++q_place.passed;
                // In the order of their use: scores are one tile ahead.
                int key = begin_key<kKeys>(problem, tile);
                load_keys(k_tiles, *keys, k_place, k_column, key);
                for (; key < end; key += kKeys) {
                    if (key + kKeys < end) load_keys(k_tiles, *keys, k_place, k_column, key + kKeys);
                    load_keys(v_tiles, *values, v_place, v_column, key);
                }
            });
            return;
        }

        take_registers<Tiles::Registers::kConsumer>();
        const int consumer = warpgroup - 1;
        const int row = consumer * kConsumerRows + static_cast<int>(threadIdx.x) % kWarpgroup / kWarp * 16;
        const bf16* const own_queries = q_tile + consumer * kConsumerRows * kDim;
        const float scale_log2 = problem.scale_log2();
        const Turns turns{consumer};
        turns.start();
        for_own_tiles(problem, problem.num_heads, true, [&](const DocumentTile& tile, int head) {
            const int first_query = tile.first + row;  // the warp's
            const int end = end_key(tile);
            Sums<1, kDim> sums;
            Sums<1, kKeys> scores;
            Weights<kKeys> weights;
            float peak[1][2] = {{-INFINITY, -INFINITY}}, total[1][2] = {}, decay[1][2];
            clear<1, kDim>(sums);
            const auto start_scores = [&] {
                wgmma_fence(flat<kKeys>(scores), flat<kDim>(sums), weights.registers());
                start_products<kKeys, kDim>(scores, own_queries, k_tiles + k_place.stage() * kKeyTile);
            };
            const auto end_scores = [&](int key) {
                release(&keys->empty[k_place.stage()]);
                ++k_place.passed;
                if (problem.visibility.partial(first_query, first_query + 15, key, key + kKeys - 1)) {
                    mask<true, 1, kKeys>(scores, first_query, key, problem.visibility);
                }
                softmax_step<1, kKeys>(scores, peak, total, decay, scale_log2);
            };
            const auto end_sums = [&] {
                release(&values->empty[v_place.stage()]);
                ++v_place.passed;
            };

            q_place.wait_full(*queries);
            int key = begin_key<kKeys>(problem, tile);
            k_place.wait_full(*keys);
            turns.wait();
            start_scores();
            turns.pass();
            wgmma_wait<0>(flat<kKeys>(scores));
            end_scores(key);
            weights.set(scores);
            for (key += kKeys; key < end; key += kKeys) {
                k_place.wait_full(*keys);
                v_place.wait_full(*values);
                turns.wait();
                start_scores();
                start_weighted_rows<kKeys, kDim>(sums, weights, v_tiles + v_place.stage() * kKeyTile);
                turns.pass();
                wgmma_wait<1>(flat<kKeys>(scores));
                end_scores(key);
                wgmma_wait<0>(flat<kDim>(sums), weights.registers());
                end_sums();
                multiply<1, kDim>(sums, decay);
                weights.set(scores);
            }
            v_place.wait_full(*values);
            wgmma_fence(flat<kDim>(sums), weights.registers());
            start_weighted_rows<kKeys, kDim>(sums, weights, v_tiles + v_place.stage() * kKeyTile);
            wgmma_wait<0>(flat<kDim>(sums), weights.registers());
            end_sums();

            // The queries' memory becomes the way out.
            named_barrier_sync(kOwnBarrier + consumer, kWarpgroup);
            store_weighted_means<1, kDim>(problem, out, lse, head, int64_t{tile.begin} + tile.first,
                                          end - tile.first, row, sums, peak, total, q_tile);
            fence_proxy_async();
            release(queries->empty);
            ++q_place.passed;
        });
        turns.end();
    }
}

}  // namespace

bool runs_on_hopper(const AttentionProblem<bf16>& problem) {
    if ((problem.dim != 64 && problem.dim != 128) || !problem.aligned || !runs_sm90a()) return false;
    const AttentionKernel forced = forced_attention_kernel();
    return forced == AttentionKernel::wgmma ||
           (forced == AttentionKernel::fastest && kThisDevice == Device::cuda);
}

int64_t num_hopper_blocks(int64_t num_tokens, int64_t num_heads) {
    static const int64_t multiprocessors = device_info(kThisDevice).num_multiprocessors;
    const int64_t blocks = ceil_div(num_tokens, kOwnedRows) * num_heads;
    return blocks < multiprocessors ? blocks : multiprocessors;
}

TensorMap map_rows(const bf16* rows, int64_t num_rows, int64_t width) {
    return tensor_map({.data = rows - kBoxRows * width,
                       .rank = 3,
                       .dims = {width, kBoxRows, num_rows + 1},
                       .strides = {1, width, width},
                       .box = {64, kBoxRows, 1}});
}

void forward_on_hopper(const AttentionProblem<bf16>& problem, bf16* out, float* lse, Stream stream) {
    if (problem.num_tokens == 0) return;
    const TensorMap rows = map_rows(problem.q, problem.num_tokens, problem.q_stride);
    with_hopper_head_size(problem.dim, [&](auto size) {
        constexpr int kDim = decltype(size)::value;
        using Tiles = ForwardTiles<kDim>;
        launch(attention_forward_hopper_kernel<kDim>,
               num_hopper_blocks(problem.num_tokens, problem.num_heads), kHopperThreads, Tiles::kSharedBytes,
               stream, rows, problem, out, lse);
    });
}

}  // namespace GPU_NAMESPACE
