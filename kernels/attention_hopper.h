// Attention's passes on Hopper (sm_90a): what their kernels share. A block has one producer warpgroup, of
// which one warp asks for tiles by TMA, and consumer warpgroups, of 64 rows each, that multiply them by wgmma
// (Shah et al. 2024, FlashAttention-3). Tiles pass through rings in shared memory. Sums, weights and the
// softmax are as in the sm_80 kernels (attention_mma.h): a warp has 16 rows of its warpgroup's 64, and wgmma
// leaves a row's sums where mma does.
//
// A tile's rows behind the end of its document are zeros, as everywhere (attention_documents.h). TMA writes
// zeros for what is outside a tensor, and documents end inside of one; so the tensor map gives the token
// twice: element [end][x] is row end + x - 64, x < 64. A box of `count` rows from `token` on begins at [token
// + count][64 - count]: x then leaves the tensor just where the document ends.
#pragma once
#include "kernels/attention_mma.h"
#include "kernels/wgmma.h"

namespace GPU_NAMESPACE {

// Whether a pass of bf16 runs on these kernels: capability 9.0, a head of 64 or 128, aligned tensors; in the
// emulator where it is asked for (force_attention_kernel).
bool runs_on_hopper(const AttentionProblem<bf16>& problem);
// As forward_on_tensor_cores, of a batch of documents.
void forward_on_hopper(const AttentionProblem<bf16>& problem, bf16* out, float* lse, Stream stream);
// dqkv, with delta given (attention_hopper_backward.cu).
void backward_on_hopper(const AttentionProblem<bf16>& problem, const BackwardTensors<bf16>& tensors,
                        Stream stream);

// run(std::integral_constant<int, D>).
template <class Run>
void with_hopper_head_size(int dim, Run&& run) {
    if (dim == 64) return run(std::integral_constant<int, 64>{});
    run(std::integral_constant<int, 128>{});
}

// ---- the block ----

constexpr int kWarpgroup = 4 * kWarp;
constexpr int kConsumers = 2, kHopperThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kConsumerRows = 64;                       // of a consumer warpgroup: wgmma's m
constexpr int kOwnedRows = kConsumers * kConsumerRows;  // of a block's tile

// Of the multiprocessor's 65,536 registers each thread begins with 168, which is too few for a consumer and
// too many for the producer: they share unevenly.
template <int kProducer_, int kConsumer_>
struct RegisterShares {
    static constexpr int kProducer = kProducer_, kConsumer = kConsumer_;
    static_assert(kProducer + kConsumers * kConsumer <= 65536 / kWarpgroup);
};

// Named barriers: one a consumer for its turn, one a consumer for its own warps.
constexpr int kTurnBarrier = 1, kOwnBarrier = kTurnBarrier + kConsumers;

// Runs body(tile, head) for all tiles of kOwnedRows rows that are this block's. Blocks stay while there is
// work, so that one tile's products hide the next one's first loads. Heads, which share keys and values, are
// neighbours.
template <class Body>
__device__ void for_own_tiles(const AttentionProblem<bf16>& problem, int num_heads, bool last_first,
                              Body body) {
    const int num_ranges = (problem.num_tokens + kOwnedRows - 1) / kOwnedRows;
    for (int i = static_cast<int>(blockIdx.x); i < num_ranges * num_heads; i += static_cast<int>(gridDim.x)) {
        const int range = i / num_heads, head = i % num_heads;
        OwnedTiles<kOwnedRows, bf16> tiles(
            problem, static_cast<unsigned>(last_first ? num_ranges - 1 - range : range));
        for (DocumentTile tile; tiles.next(tile);) body(tile, head);
    }
}
// Blocks for them: at most one on each multiprocessor.
int64_t num_hopper_blocks(int64_t num_tokens, int64_t num_heads);

// Of a tile of queries, the keys [begin, end) that any of them sees, from a multiple of kKeys on.
template <int kKeys>
__device__ int begin_key(const AttentionProblem<bf16>& problem, const DocumentTile& tile) {
    return problem.visibility.first_key(tile.first) / kKeys * kKeys;
}
__device__ inline int end_key(const DocumentTile& tile) { return min(tile.length, tile.first + kOwnedRows); }

// ---- rings of tiles ----

// Of mbarriers in shared memory, two a stage.
template <int kStages>
struct Ring {
    uint64_t full[kStages], empty[kStages];

    // By one thread. A stage is full when `fillers` threads have arrived and all expected bytes have come,
    // and empty when all warps of the consumers have arrived.
    __device__ void init(int fillers) {
        for (int s = 0; s < kStages; ++s) {
            mbarrier_init(&full[s], fillers);
            mbarrier_init(&empty[s], 4 * kConsumers);
        }
    }
};

// A consumer's warp is through with a stage. Its lanes have waited for the wgmma that read it.
__device__ inline void release(uint64_t* empty) {
    __syncwarp();
    if (threadIdx.x % kWarp == 0) mbarrier_arrive(empty);
}

// Where a thread is in a ring: how many stages it has passed.
template <int kStages>
struct RingPlace {
    static_assert((kStages & (kStages - 1)) == 0);
    uint32_t passed = 0;
    __device__ int stage() const { return static_cast<int>(passed % kStages); }
    __device__ int parity() const { return static_cast<int>(passed / kStages % 2); }
    // The producer's: until all have read what was there before.
    __device__ void wait_empty(Ring<kStages>& ring) const {
        mbarrier_wait(&ring.empty[stage()], parity() ^ 1);
    }
    __device__ void wait_full(Ring<kStages>& ring) const { mbarrier_wait(&ring.full[stage()], parity()); }
    // The consumer's, of the stage before this one.
    __device__ void release_last(Ring<kStages>& ring) const { release(&ring.empty[(passed - 1) % kStages]); }
};

// ---- tiles ----

// Rows [num_rows][width] of bf16 for load_rows.
TensorMap map_rows(const bf16* rows, int64_t num_rows, int64_t width);
constexpr int kBoxRows = 64;

// kRows rows from `token` on, of which `count` belong to the document, and kDim columns, as WgmmaTile wants
// them. By one thread; `arrived` gets tile_bytes().
template <int kRows, int kDim>
__device__ void load_rows(bf16* tile, const TensorMap& rows, int token, int column, int count,
                          uint64_t* arrived) {
    constexpr int kPanel = 64;
    static_assert(kRows % kBoxRows == 0 && kDim % kPanel == 0);
    UNROLL_BY(1)  // the producer has few registers
    for (int panel = 0; panel < kDim / kPanel; ++panel) {
        UNROLL_BY(1)
        for (int r = 0; r < kRows; r += kBoxRows) {
            const int inside = min(max(count - r, 0), kBoxRows);
            load_box(tile + (panel * kRows + r) * kPanel, rows,
                     {column + panel * kPanel, kBoxRows - inside, token + r + inside}, arrived);
        }
    }
}
constexpr int tile_bytes(int rows, int dim) { return 2 * rows * dim; }

// ---- products ----

// The registers of a warpgroup's sums as wgmma counts them.
template <int kColumns>
__device__ float (&flat(Sums<1, kColumns>& sums))[kColumns / 2] {
    return reinterpret_cast<float(&)[kColumns / 2]>(sums);
}

// Starts scores = A B^T as a group: the warpgroup's 64 rows of A, kColumns rows of B.
template <int kColumns, int kDim>
__device__ void start_products(Sums<1, kColumns>& scores, const bf16* a, const bf16* b) {
    using A = WgmmaTile<Major::k, kConsumerRows, kDim>;
    using B = WgmmaTile<Major::k, kColumns, kDim>;
    UNROLL
    for (int k = 0; k < kDim; k += 16) {
        wgmma_bf16<Major::k, Major::k>(flat<kColumns>(scores), A::descriptor(a, 0, k), B::descriptor(b, 0, k),
                                       k > 0);
    }
    wgmma_commit();
}

// Weights as the left operand of the next product: scores, rounded to bf16.
template <int kInner>
struct Weights {
    uint32_t fragments[kInner / 16][4];
    __device__ void set(const Sums<1, kInner>& scores) {
        UNROLL
        for (int k = 0; k < kInner / 16; ++k) {
            UNROLL
            for (int i = 0; i < 4; ++i) {
                const float* const pair = &scores[0][2 * k + i / 2][i % 2 * 2];
                fragments[k][i] = pack_bf16(pair[0], pair[1]);
            }
        }
    }
    __device__ uint32_t (&registers())[kInner / 4] {
        return reinterpret_cast<uint32_t(&)[kInner / 4]>(fragments);
    }
};

// Starts sums += weights B as a group; B has kInner rows.
template <int kInner, int kDim>
__device__ void start_weighted_rows(Sums<1, kDim>& sums, const Weights<kInner>& weights, const bf16* b) {
    using B = WgmmaTile<Major::mn, kDim, kInner>;
    UNROLL
    for (int k = 0; k < kInner / 16; ++k) {
        wgmma_bf16<Major::mn>(flat<kDim>(sums), weights.fragments[k], B::descriptor(b, 0, 16 * k), true);
    }
    wgmma_commit();
}

}  // namespace GPU_NAMESPACE
