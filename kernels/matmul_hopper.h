// The matrix product on Hopper, copies by TMA and products by wgmma, for bf16 (matmul_hopper.cu) and FP8
// (matmul_hopper_fp8.cu): tiles in a ring of stages, a warpgroup's sums in registers. 2 M N K FLOPs; each
// operand is read once per row (column) of tiles, from L2 for the most part. Bound by the tensor cores: wgmma
// reads both operands from shared memory itself. Not measured yet on a GPU.
//
// A block stays on its multiprocessor and takes one tile after the other. One thread copies stages of
// kPanelBytes of inner indices into a ring; two warpgroups multiply and store. They share a wide tile, 64
// rows each, which reads the least for a sum; or each takes every other square tile, so that one stores while
// the other multiplies. Registers: 168 a thread at the start; the copying warpgroup goes down to 40, the
// others up to 232, of which 128 are sums (3 x 128 x 168 >= 128 x 40 + 256 x 232). Every sum takes the inner
// indices from first to last, in the same steps whatever the tile: equal bits wherever a row lies.
//
// Math is what the two differ in:
//     using A, B                       an element of each operand, in memory
//     Major kMajorA, kMajorB
//     int kInner                       inner indices of a stage
//     int kUnderWay                    stages that may still be multiplied when the next is waited for
//     multiply<Tile>(sums, tile_a, tile_b, first_row, first)
//                                      sums (+)= a stage's product, of the warpgroup's rows of the tile; sets
//                                      where it is the first
#pragma once
#include "core/device.h"
#include "kernels/matmul_gpu.h"
#include "kernels/matmul_gpu_store.h"
#include "kernels/wgmma.h"

namespace GPU_NAMESPACE {

constexpr int kWarpgroup = 128, kConsumers = 2, kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kGroupRows = 64;  // of one wgmma

// kSharers warpgroups have kGroups times 64 rows each of a tile.
template <int kColumns_, int kSharers_, int kStages_>
struct HopperTile {
    static constexpr int kRows = 128, kColumns = kColumns_, kStages = kStages_;
    static constexpr int kSharers = kSharers_, kGroups = kRows / kGroupRows / kSharers;
    static_assert(kGroups * kSharers * kGroupRows == kRows);
    static constexpr int kStageBytes = (kRows + kColumns) * kPanelBytes;
    static constexpr int kBarrierBytes = 2 * kStages * static_cast<int>(sizeof(uint64_t));
    static constexpr int kSharedBytes = kStages * kStageBytes + kBarrierBytes;
};
// Both rings have 192 KiB of the multiprocessor's 227.
using HopperWide = HopperTile<256, 2, 4>;
using HopperSquare = HopperTile<128, 1, 6>;

// What a block does next: a tile, and the part of the inner dimension.
struct HopperWork {
    TilePlace place;
    int inner_begin, steps, split;
};
template <class Tile, int kInner>
struct HopperWorkList {
    const Output& output;
    int inner, inner_per_split;
    int64_t tiles;

    __device__ HopperWork operator[](int64_t index) const {
        const int split = static_cast<int>(index / tiles), begin = split * inner_per_split;
        const int length = inner - begin < inner_per_split ? inner - begin : inner_per_split;
        return {place_of_tile(output, Tile::kRows, Tile::kColumns, index % tiles), begin,
                (length + kInner - 1) / kInner, split};
    }
};

// The ring: stage `turn % kStages` is filled for the (turn / kStages)-th time.
template <class Tile, class Math>
struct HopperRing {
    using A = typename Math::A;
    using B = typename Math::B;
    unsigned char* stages;
    uint64_t *full, *empty;

    __device__ explicit HopperRing(unsigned char* shared)
        : stages(shared),
          full(reinterpret_cast<uint64_t*>(shared + Tile::kStages * Tile::kStageBytes)),
          empty(full + Tile::kStages) {}
    __device__ static int stage(int turn) { return turn % Tile::kStages; }
    __device__ static int parity(int turn) { return turn / Tile::kStages % 2; }
    __device__ A* tile_a(int turn) const {
        return reinterpret_cast<A*>(stages + stage(turn) * Tile::kStageBytes);
    }
    __device__ B* tile_b(int turn) const {
        return reinterpret_cast<B*>(stages + stage(turn) * Tile::kStageBytes + Tile::kRows * kPanelBytes);
    }
};

// One operand of a stage: [kOuter, kInner] from (outer, inner) on, zeros where the operand ends.
template <Major kMajor, int kOuter, int kInner, class T>
__device__ void load_operand(T* tile, const TensorMap& map, int outer, int inner, uint64_t* full) {
    using Operand = WgmmaTile<kMajor, kOuter, kInner, T>;
    UNROLL
    for (int panel = 0; panel < Operand::kPanels; ++panel) {
        const int along = panel * Operand::kPanel;
        T* const to = tile + panel * Operand::kPanelElements;
        if constexpr (kMajor == Major::k) {
            load_box(to, map, {inner + along, outer}, full);
        } else {
            load_box(to, map, {outer + along, inner}, full);
        }
    }
}

// By one thread.
template <class Tile, class Math>
__device__ void produce(const HopperRing<Tile, Math>& ring, const TensorMap& map_a, const TensorMap& map_b,
                        const HopperWorkList<Tile, Math::kInner>& list, int64_t num_work) {
    constexpr int kInner = Math::kInner;
    prefetch_tensor_map(map_a);
    prefetch_tensor_map(map_b);
    int turn = 0;
    for (int64_t index = blockIdx.x; index < num_work; index += gridDim.x) {
        const HopperWork work = list[index];
        for (int step = 0; step < work.steps; ++step, ++turn) {
            uint64_t* const full = &ring.full[ring.stage(turn)];
            mbarrier_wait(&ring.empty[ring.stage(turn)], ring.parity(turn) ^ 1);
            mbarrier_arrive_expect_bytes(full, Tile::kStageBytes);
            const int inner = work.inner_begin + step * kInner;
            load_operand<Math::kMajorA, Tile::kRows, kInner>(ring.tile_a(turn), map_a, work.place.row, inner,
                                                             full);
            load_operand<Math::kMajorB, Tile::kColumns, kInner>(ring.tile_b(turn), map_b, work.place.column,
                                                                inner, full);
        }
    }
}

// Four lanes hold two neighbours each of four chunks in a row: lane `pair` gets all of chunk `pair`. pairs:
// [chunk][2]; chunk: by lane.
[[maybe_unused]] __device__ inline void gather_chunk(float (&chunk)[kChunk], const float (&pairs)[4][2]) {
    const bool odd = threadIdx.x % 2 != 0, upper = threadIdx.x / 2 % 2 != 0;
    float of_two[2][2][2];  // [chunk / 2][lane % 2][]: the chunks of this lane's parity, from two lanes
    UNROLL
    for (int half = 0; half < 2; ++half) {
        UNROLL
        for (int i = 0; i < 2; ++i) {
            const float even_chunk = pairs[2 * half][i], odd_chunk = pairs[2 * half + 1][i];
            const float mine = odd ? odd_chunk : even_chunk;
            const float other = __shfl_xor_sync(kAllLanes, odd ? even_chunk : odd_chunk, 1);
            of_two[half][0][i] = odd ? other : mine;
            of_two[half][1][i] = odd ? mine : other;
        }
    }
    UNROLL
    for (int lane = 0; lane < 2; ++lane) {
        UNROLL
        for (int i = 0; i < 2; ++i) {
            const float lower_chunk = of_two[0][lane][i], upper_chunk = of_two[1][lane][i];
            const float mine = upper ? upper_chunk : lower_chunk;
            const float other = __shfl_xor_sync(kAllLanes, upper ? lower_chunk : upper_chunk, 2);
            chunk[2 * lane + i] = upper ? other : mine;
            chunk[4 + 2 * lane + i] = upper ? mine : other;
        }
    }
}

// A warp's sums, as wgmma leaves them: 16 rows of every 64 from `row` on, from `column` on. The loop stays a
// loop, for store_sums() is long (unrolled: 340 KiB of instructions); what it takes of the sums is selected.
template <int kGroups, int kSums>
__device__ void store_warp(const Output& output, float (&sums)[kGroups][kSums], int row, int column) {
    constexpr int kAcross = 4 * kChunk, kTaken = kAcross / 2;  // columns at a time, and their sums
    constexpr int kParts = kGroups * kSums / kTaken, kPartsAcross = kSums / kTaken;
    const int lane = static_cast<int>(threadIdx.x) % kWarp, group = lane / 4, pair = lane % 4;
    LargestMagnitude largest(output.absmax);
    UNROLL_BY(1)
    for (int part = 0; part < kParts; ++part) {
        const int first_row = row + part / kPartsAcross * kGroupRows;
        const int first_column = column + part % kPartsAcross * kAcross;
        if (first_row >= output.rows || first_column >= output.columns) continue;
        float taken[kTaken] = {};
        UNROLL
        for (int i = 0; i < kParts; ++i) {
            if (i != part) continue;
            UNROLL
            for (int k = 0; k < kTaken; ++k) taken[k] = sums[i / kPartsAcross][i % kPartsAcross * kTaken + k];
        }
        float x[2][kChunk];
        UNROLL
        for (int half = 0; half < 2; ++half) {
            float pairs[4][2];
            UNROLL
            for (int i = 0; i < 4; ++i) {
                pairs[i][0] = taken[4 * i + 2 * half];
                pairs[i][1] = taken[4 * i + 2 * half + 1];
            }
            gather_chunk(x[half], pairs);
        }
        store_sums(output, {first_row + group, first_row + group + 8}, first_column + pair * kChunk, x,
                   largest);
    }
    largest.raise_by_warp();
}

// By one of the warpgroups that multiply.
template <class Tile, class Math>
__device__ void consume(const HopperRing<Tile, Math>& ring, const Output& output,
                        const HopperWorkList<Tile, Math::kInner>& list, int64_t num_work, int consumer) {
    constexpr int kUnderWay = Math::kUnderWay;
    constexpr int kTurns = kConsumers / Tile::kSharers;  // tiles go round among so many
    const int first_row = consumer / kTurns * Tile::kGroups * kGroupRows;
    const int warp = static_cast<int>(threadIdx.x) % kWarpgroup / kWarp;
    const auto release = [&](int turn) {  // what this warp's products have read may be overwritten
        if (threadIdx.x % kWarp == 0) mbarrier_arrive(&ring.empty[ring.stage(turn)]);
    };
    int turn = 0, count = 0;
    for (int64_t index = blockIdx.x; index < num_work; index += gridDim.x, ++count) {
        const HopperWork work = list[index];
        if (count % kTurns != consumer % kTurns) {
            turn += work.steps;
            continue;
        }
        // The other's turns are over: the parities that this one waits for could be those of a round before.
        if (kTurns > 1 && count > 0) named_barrier_sync(1 + consumer, kConsumers * kWarpgroup);
        float sums[Tile::kGroups][Tile::kColumns / 2];
        for (int step = 0; step < work.steps; ++step, ++turn) {
            mbarrier_wait(&ring.full[ring.stage(turn)], ring.parity(turn));
            Math::template multiply<Tile>(sums, ring.tile_a(turn), ring.tile_b(turn), first_row, step == 0);
            wgmma_wait<kUnderWay>(sums);
            if (step >= kUnderWay) release(turn - kUnderWay);
        }
        if (kTurns > 1 && index + gridDim.x < num_work) {
            named_barrier_arrive(1 + (consumer + 1) % kConsumers, kConsumers * kWarpgroup);
        }
        if constexpr (kUnderWay > 0) {
            wgmma_wait<0>(sums);
            release(turn - 1);
        }
        if (index + gridDim.x >= num_work) let_next_start();
        // Sums of one split lie below those of the one before.
        Output part = output;
        if (part.out.dtype == DType::f32) {
            part.out.data =
                static_cast<float*>(part.out.data) + int64_t{work.split} * output.rows * part.out.stride;
        }
        store_warp(part, sums, work.place.row + first_row + warp * 16, work.place.column);
    }
}

template <class Tile, class Math>
__global__ void __launch_bounds__(kThreads, 1)
    product_hopper_kernel(GRID_CONSTANT TensorMap map_a, GRID_CONSTANT TensorMap map_b, Output output,
                          int inner, int inner_per_split, int64_t tiles, int64_t num_work) {
    wait_for_previous();
    if constexpr (kSm90a) {
        DYN_SHARED(unsigned char, shared);
        const HopperRing<Tile, Math> ring(shared);
        if (threadIdx.x == 0) {
            for (int s = 0; s < Tile::kStages; ++s) {
                mbarrier_init(&ring.full[s], 1);
                mbarrier_init(&ring.empty[s], Tile::kSharers * kWarpgroup / kWarp);  // warps that read it
            }
            fence_mbarrier_init();
        }
        __syncthreads();
        const HopperWorkList<Tile, Math::kInner> list{output, inner, inner_per_split, tiles};
        const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroup;
        if (warpgroup == 0) {
            give_registers<40>();
            if (threadIdx.x == 0) produce(ring, map_a, map_b, list, num_work);
        } else {
            take_registers<232>();
            consume(ring, output, list, num_work, warpgroup - 1);
        }
    } else {
        __trap();
    }
}

// Boxes as load_operand() asks for them; FP8 numbers are copied as bytes.
inline TensorMap map_of(const Operand& operand, int outer, int inner, int tile_outer) {
    const int bytes = static_cast<int>(dtype_bytes(operand.lines.dtype)), panel = kPanelBytes / bytes;
    const int64_t across = operand.by_row ? inner : outer, down = operand.by_row ? outer : inner;
    return tensor_map({.data = operand.lines.data,
                       .dtype = bytes == 1 ? DType::u8 : operand.lines.dtype,
                       .dims = {across, down},
                       .strides = {1, operand.lines.stride},
                       .box = {panel, operand.by_row ? tile_outer : panel}});
}

template <class Tile, class Math>
void launch_tile(const Product& product, int splits, int inner_per_split, Stream stream) {
    static const int64_t multiprocessors = device_info(kThisDevice).num_multiprocessors;
    const Output& output = product.output;
    const int64_t tiles = ceil_div(output.rows, Tile::kRows) * ceil_div(output.columns, Tile::kColumns);
    const int64_t num_work = tiles * splits;
    launch(product_hopper_kernel<Tile, Math>, num_work < multiprocessors ? num_work : multiprocessors,
           kThreads, Tile::kSharedBytes, stream, map_of(product.a, output.rows, product.inner, Tile::kRows),
           map_of(product.b, output.columns, product.inner, Tile::kColumns), output, product.inner,
           inner_per_split, tiles, num_work);
}

// One of Hopper's tiles.
template <class Math>
void launch_hopper(const Product& product, MatmulTile tile, int splits, int inner_per_split, Stream stream) {
    CHECK(splits == 1 || inner_per_split % Math::kInner == 0,
          cat({inner_per_split, " inner indices a split"}));
    const auto launch =
        tile == MatmulTile::hopper_wide ? launch_tile<HopperWide, Math> : launch_tile<HopperSquare, Math>;
    launch(product, splits, inner_per_split, stream);
}

}  // namespace GPU_NAMESPACE
