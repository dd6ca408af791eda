// The matrix product on tensor cores by mma.sync, for bf16 (matmul_mma.cu) and FP8 (matmul_fp8.cu): tiles in
// stages of shared memory, a warp's sums in registers. Mma is the instruction: with FP8 numbers an "element"
// is a pair of them, which takes the place of one bf16 in memory and in every fragment (kernels/mma.h).
// kBatches: it is asked for batches, which cost registers.
#pragma once
#include "kernels/gpu.h"
#include "kernels/matmul_gpu.h"
#include "kernels/matmul_gpu_load.h"
#include "kernels/matmul_gpu_store.h"
#include "kernels/mma.h"

namespace GPU_NAMESPACE {

// kInner: inner indices in shared memory at a time. 32 of them keep four stages of two blocks within the
// shared memory of every GPU of compute capability 8.0 and 9.0.
constexpr int kInner = 32, kFragment = 16;

// What a block computes and how its warps share it.
template <int kRows_, int kColumns_, int kWarpRows_, int kWarpColumns_, int kStages_, int kBlocks_>
struct Tile {
    static constexpr int kRows = kRows_, kColumns = kColumns_;
    static constexpr int kWarpRows = kWarpRows_, kWarpColumns = kWarpColumns_;
    static constexpr int kWarpsAcross = kColumns / kWarpColumns;
    static constexpr int kThreads = kRows / kWarpRows * kWarpsAcross * kWarp;
    static constexpr int kStages = kStages_, kBlocks = kBlocks_;  // blocks on a multiprocessor
    static constexpr int kStageElements = (kRows + kColumns) * kInner;
    static constexpr int kStageBytes = kStages * kStageElements * 2, kSumBytes = kRows * kColumns * 4;
    static constexpr int kSharedBytes = kStageBytes > kSumBytes ? kStageBytes : kSumBytes;
};
// Copied: 128 of a thread's 255 registers are sums. Staged tiles pass through registers too, so there twice
// the threads share the sums.
using CopiedLarge = Tile<128, 128, 64, 64, 4, 2>;
using CopiedSmall = Tile<64, 64, 32, 32, 4, 4>;
using StagedLarge = Tile<128, 128, 64, 32, 2, 1>;
using StagedSmall = Tile<64, 64, 32, 32, 2, 4>;

// A warp's sums, as fragments of C (kernels/mma.h).
template <class Tile>
struct WarpSums {
    static constexpr int kDown = Tile::kWarpRows / kFragment, kAcross = Tile::kWarpColumns / 8;
    float c[kDown][kAcross][4];
};

// sums += a b over the kInner inner indices of one stage.
template <class Mma, class Tile, class SharedA, class SharedB>
__device__ void multiply_stage(WarpSums<Tile>& sums, const bf16* a, const bf16* b, int warp_row,
                               int warp_column) {
    constexpr int kDown = WarpSums<Tile>::kDown, kAcross = WarpSums<Tile>::kAcross;
    UNROLL
    for (int inner = 0; inner < kInner; inner += kFragment) {
        uint32_t rows[kDown][4], columns[kAcross / 2][4];
        UNROLL
        for (int m = 0; m < kDown; ++m) SharedA::load_fragment(rows[m], a, warp_row + m * kFragment, inner);
        UNROLL
        for (int n = 0; n < kAcross / 2; ++n) {
            SharedB::load_fragment(columns[n], b, warp_column + n * kFragment, inner);
        }
        UNROLL
        for (int m = 0; m < kDown; ++m) {
            UNROLL
            for (int n = 0; n < kAcross; ++n) {
                const uint32_t pair[2] = {columns[n / 2][n % 2], columns[n / 2][n % 2 + 2]};
                Mma::add_product(sums.c[m][n], rows[m], pair);
            }
        }
    }
}

// Fragments hold two neighbours of a row, memory wants many: each warp passes its sums through a part of
// shared memory of its own. Where a chunk of a row lies there: permuted, so that pairs of a fragment fall
// into different banks, and where the result is mirrored what eight columns have in four groups of eight rows
// does, too.
template <class Tile, bool kSymmetric>
__device__ int place_of_sums(int row, int chunk) {
    const int order = kSymmetric ? row ^ row / kChunk : row;
    return row * Tile::kWarpColumns + (chunk ^ order % 4) * kChunk;
}
// Rows (or columns) at a time, so that what they are added to arrives together.
template <class Tile>
constexpr int kStoreBatch = Tile::kThreads* Tile::kBlocks > 256 ? 2 : 4;

// Of a symmetric result, what lies above the diagonal, from the sums below it: chunks of columns become
// chunks of rows. Blocks of kChunk x kChunk on the diagonal are store_warp's.
template <class Tile>
__device__ void mirror_warp(const Output& output, const float* shared, int row, int column) {
    constexpr int kBatch = kStoreBatch<Tile>, kChunks = Tile::kWarpColumns / kChunk;
    static_assert(Tile::kWarpRows % kWarp == 0 && kChunks % kBatch == 0);
    const int lane = static_cast<int>(threadIdx.x) % kWarp, in_chunk = lane % kChunk;
    LargestMagnitude none(nullptr);
    for (int first = lane / kChunk * kChunk; first < Tile::kWarpRows; first += kWarp) {
        for (int chunk = 0; chunk < kChunks; chunk += kBatch) {
            float x[kBatch][kChunk];
            int rows[kBatch];
            UNROLL
            for (int i = 0; i < kBatch; ++i) {
                UNROLL
                for (int k = 0; k < kChunk; ++k)
                    x[i][k] = shared[place_of_sums<Tile, true>(first + k, chunk + i) + in_chunk];
                const int mirrored = column + (chunk + i) * kChunk;
                rows[i] = mirrored < row + first ? mirrored + in_chunk : output.rows;
            }
            store_sums(output, rows, row + first, x, none);
        }
    }
}

template <class Tile, bool kSymmetric>
__device__ void store_warp(const Output& output, const WarpSums<Tile>& sums, float* shared, int row,
                           int column) {
    constexpr int kColumns = Tile::kWarpColumns, kChunks = kColumns / kChunk;
    const int lane = static_cast<int>(threadIdx.x) % kWarp, group = lane / 4, pair = lane % 4;
    UNROLL
    for (int m = 0; m < WarpSums<Tile>::kDown; ++m) {
        UNROLL
        for (int n = 0; n < WarpSums<Tile>::kAcross; ++n) {
            const int r = m * kFragment + group;
            float* const upper = shared + place_of_sums<Tile, kSymmetric>(r, n) + 2 * pair;
            float* const lower = shared + place_of_sums<Tile, kSymmetric>(r + 8, n) + 2 * pair;
            *reinterpret_cast<float2*>(upper) = make_float2(sums.c[m][n][0], sums.c[m][n][1]);
            *reinterpret_cast<float2*>(lower) = make_float2(sums.c[m][n][2], sums.c[m][n][3]);
        }
    }
    __syncwarp();
    constexpr int kRowStep = kWarp / kChunks, kBatch = kStoreBatch<Tile>;
    static_assert(Tile::kWarpRows % (kRowStep * kBatch) == 0);
    const int chunk = lane % kChunks;
    LargestMagnitude largest(output.absmax);
    for (int first = lane / kChunks; first < Tile::kWarpRows; first += kRowStep * kBatch) {
        float x[kBatch][kChunk];
        int rows[kBatch];
        UNROLL
        for (int i = 0; i < kBatch; ++i) {
            const int r = first + i * kRowStep;
            const float* const at = shared + place_of_sums<Tile, kSymmetric>(r, chunk);
            const Pack<float> low = load128(at), high = load128(at + 4);
            UNROLL
            for (int k = 0; k < 4; ++k) x[i][k] = low[k], x[i][k + 4] = high[k];
            rows[i] = row + r;
            if constexpr (kSymmetric) {
                const int in_block = r % kChunk, above = column + chunk * kChunk - (rows[i] - in_block);
                if (above > 0) rows[i] = output.rows;  // mirror_warp's
                if (above == 0) {
                    UNROLL
                    for (int k = 0; k < kChunk; ++k) {
                        if (k > in_block) {
                            x[i][k] = shared[place_of_sums<Tile, true>(r - in_block + k, chunk) + in_block];
                        }
                    }
                }
            }
        }
        store_sums(output, rows, column + chunk * kChunk, x, largest);
    }
    largest.raise_by_warp();
    if constexpr (kSymmetric) mirror_warp<Tile>(output, shared, row, column);
}

template <class Mma, class Tile, bool kRowsA, bool kRowsB, bool kCopied, bool kSymmetric>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    tensor_core_product_kernel(Operand a, Operand b, Output output, int inner, int inner_per_split) {
    wait_for_previous();
    DYN_SHARED(bf16, shared);
    if constexpr (Mma::kBatches) enter_batch(a, b, output, blockIdx.z);
    using SharedA = SharedTile<Tile::kRows, kInner, kRowsA>;
    using SharedB = SharedTile<Tile::kColumns, kInner, kRowsB>;
    const auto tile_a = [&](int step) { return shared + step % Tile::kStages * Tile::kStageElements; };
    const auto tile_b = [&](int step) { return tile_a(step) + SharedA::kElements; };

    static_assert(!kSymmetric || Tile::kRows == Tile::kColumns);
    const TilePlace tile = kSymmetric ? place_below_diagonal(Tile::kRows, blockIdx.x)
                                      : place_of_tile(output, Tile::kRows, Tile::kColumns, blockIdx.x);
    const int inner_begin = static_cast<int>(blockIdx.y) * inner_per_split;
    const int inner_end = inner - inner_begin < inner_per_split ? inner : inner_begin + inner_per_split;
    const int steps = (inner_end - inner_begin + kInner - 1) / kInner;
    const OperandRange range_a{tile.row, output.rows, inner_end},
        range_b{tile.column, output.columns, inner_end};
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int warp_row = warp / Tile::kWarpsAcross * Tile::kWarpRows;
    const int warp_column = warp % Tile::kWarpsAcross * Tile::kWarpColumns;
    WarpSums<Tile> sums = {};

    if constexpr (kCopied) {
        TileCopier<Tile::kRows, kInner, kRowsA, Tile::kThreads> copy_a(a, range_a, inner_begin);
        TileCopier<Tile::kColumns, kInner, kRowsB, Tile::kThreads> copy_b(b, range_b, inner_begin);
        const auto fetch = [&](int step) {
            if (step < steps) {
                copy_a.copy(tile_a(step));
                copy_b.copy(tile_b(step));
            }
            cp_async_commit();  // an empty group too: groups are counted, and at the end all others have
                                // arrived
        };
        for (int step = 0; step < Tile::kStages - 1; ++step) fetch(step);
        for (int step = 0; step < steps; ++step) {
            cp_async_wait<Tile::kStages - 2>();
            // This step's tiles are there for all threads, and all are done with the last step's, whose place
            // the next copy takes.
            __syncthreads();
            fetch(step + Tile::kStages - 1);
            multiply_stage<Mma, Tile, SharedA, SharedB>(sums, tile_a(step), tile_b(step), warp_row,
                                                        warp_column);
        }
    } else {
        StagedTile<Tile::kRows, kInner, kRowsA, Tile::kThreads, false> staged_a;
        StagedTile<Tile::kColumns, kInner, kRowsB, Tile::kThreads, false> staged_b;
        const auto load = [&](int step) {
            staged_a.load(a, range_a, inner_begin + step * kInner);
            staged_b.load(b, range_b, inner_begin + step * kInner);
        };
        const auto store = [&](int step) {
            UNROLL
            for (int i = 0; i < staged_a.kPerThread; ++i) {
                const int place = SharedA::place(staged_a.line(i), staged_a.chunk(i));
                store128(reinterpret_cast<uint32_t*>(tile_a(step) + place),
                         staged_a.chunks[i].pairs(a.lines.dtype));
            }
            UNROLL
            for (int i = 0; i < staged_b.kPerThread; ++i) {
                const int place = SharedB::place(staged_b.line(i), staged_b.chunk(i));
                store128(reinterpret_cast<uint32_t*>(tile_b(step) + place),
                         staged_b.chunks[i].pairs(b.lines.dtype));
            }
        };
        if (steps > 0) {
            load(0);
            store(0);
        }
        for (int step = 0; step < steps; ++step) {
            __syncthreads();                       // stored by all, and the other stage is free
            if (step + 1 < steps) load(step + 1);  // on its way while this step multiplies
            multiply_stage<Mma, Tile, SharedA, SharedB>(sums, tile_a(step), tile_b(step), warp_row,
                                                        warp_column);
            if (step + 1 < steps) store(step + 1);
        }
    }
    let_next_start();
    __syncthreads();  // the stages' memory takes the sums
    float* const warp_sums = reinterpret_cast<float*>(shared) + warp * Tile::kWarpRows * Tile::kWarpColumns;
    // Sums of one split lie below those of the one before.
    const int64_t split_row = int64_t{blockIdx.y} * output.rows;
    Output part = output;
    if (part.out.dtype == DType::f32) {
        part.out.data = static_cast<float*>(part.out.data) + split_row * part.out.stride;
    }
    store_warp<Tile, kSymmetric>(part, sums, warp_sums, tile.row + warp_row, tile.column + warp_column);
}

template <class Mma, class Tile, bool kRowsA, bool kRowsB, bool kCopied, bool kSymmetric = false>
void launch_product(const Product& product, int splits, int inner_per_split, Stream stream) {
    const Output& output = product.output;
    const int64_t tiles = num_tiles(output, Tile::kRows, Tile::kColumns);
    launch(tensor_core_product_kernel<Mma, Tile, kRowsA, kRowsB, kCopied, kSymmetric>,
           dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(splits),
                static_cast<unsigned>(product.batch)),
           Tile::kThreads, Tile::kSharedBytes, stream, product.a, product.b, output, product.inner,
           inner_per_split);
}

}  // namespace GPU_NAMESPACE
