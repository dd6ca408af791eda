// Matrix product in f32: 2 M N K FLOPs on the FMA units, which bound it; every sum is one chain of FMAs in
// the order of the inner index, whatever the tile. Not measured yet on a GPU. (Tensor cores would round the
// operands to TF32.)
#include "kernels/gpu.h"
#include "kernels/matmul_gpu.h"
#include "kernels/matmul_gpu_load.h"
#include "kernels/matmul_gpu_store.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kInner = 16;  // inner indices in shared memory at a time, twice
// A thread has kChunk x kChunk sums: 16 values from shared memory feed 64 FMAs. Lanes lie 4 x 8, so that what
// a warp reads at a time is a broadcast or 128 bytes.
constexpr int kLanesDown = 4, kLanesAcross = 8;
constexpr int kWarpRows = kLanesDown * kChunk, kWarpColumns = kLanesAcross * kChunk;

// One operand of a block: kSize outer indices, in shared memory by inner index.
template <int kSize, bool kByRow, int kThreads>
struct FloatTile {
    // Rows turn into columns here: neighbouring threads take neighbouring rows, to store into different
    // banks.
    using Staged = StagedTile<kSize, kInner, kByRow, kThreads, kByRow>;
    static constexpr int kLine = kSize + 4;

    __device__ static void store(float (&tile)[kInner][kLine], const Staged& staged, DType dtype) {
        UNROLL
        for (int i = 0; i < Staged::kPerThread; ++i) {
            const int line = staged.line(i), first = staged.chunk(i) * kChunk;
            if constexpr (kByRow) {
                UNROLL
                for (int k = 0; k < kChunk; ++k) tile[first + k][line] = staged.chunks[i].value(k, dtype);
            } else {
                Pack<float> low, high;
                UNROLL
                for (int k = 0; k < 4; ++k) {
                    low[k] = staged.chunks[i].value(k, dtype);
                    high[k] = staged.chunks[i].value(k + 4, dtype);
                }
                store128(&tile[line][first], low);
                store128(&tile[line][first + 4], high);
            }
        }
    }
};

__device__ inline void load_eight(float (&x)[kChunk], const float* shared) {
    const Pack<float> low = load128(shared), high = load128(shared + 4);
    UNROLL
    for (int i = 0; i < 4; ++i) x[i] = low[i], x[i + 4] = high[i];
}

template <int kSize, bool kRowsA, bool kRowsB>
__global__ void __launch_bounds__(kSize* kSize / (kChunk * kChunk), kSize == 128 ? 2 : 6)
    product_f32_kernel(Operand a, Operand b, Output output, int inner, int inner_per_split) {
    constexpr int kThreads = kSize * kSize / (kChunk * kChunk), kWarpsAcross = kSize / kWarpColumns;
    using TileA = FloatTile<kSize, kRowsA, kThreads>;
    using TileB = FloatTile<kSize, kRowsB, kThreads>;
    wait_for_previous();
    SHARED(float, tile_a, [2][kInner][TileA::kLine]);
    SHARED(float, tile_b, [2][kInner][TileB::kLine]);
    enter_batch(a, b, output, blockIdx.z);

    const TilePlace tile = place_of_tile(output, kSize, kSize, blockIdx.x);
    const int inner_begin = static_cast<int>(blockIdx.y) * inner_per_split;
    const int inner_end = inner - inner_begin < inner_per_split ? inner : inner_begin + inner_per_split;
    const int steps = (inner_end - inner_begin + kInner - 1) / kInner;
    const OperandRange range_a{tile.row, output.rows, inner_end},
        range_b{tile.column, output.columns, inner_end};
    const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
    const int row = warp / kWarpsAcross * kWarpRows + lane / kLanesAcross * kChunk;
    const int column = warp % kWarpsAcross * kWarpColumns + lane % kLanesAcross * kChunk;

    typename TileA::Staged staged_a;
    typename TileB::Staged staged_b;
    const auto load = [&](int step) {
        staged_a.load(a, range_a, inner_begin + step * kInner);
        staged_b.load(b, range_b, inner_begin + step * kInner);
    };
    const auto store = [&](int step) {
        TileA::store(tile_a[step % 2], staged_a, a.lines.dtype);
        TileB::store(tile_b[step % 2], staged_b, b.lines.dtype);
    };
    float sums[kChunk][kChunk] = {};
    if (steps > 0) {
        load(0);
        store(0);
    }
    for (int step = 0; step < steps; ++step) {
        __syncthreads();  // stored by all, and the other half is free
        if (step + 1 < steps) load(step + 1);
        for (int k = 0; k < kInner; ++k) {
            float x[kChunk], y[kChunk];
            load_eight(x, &tile_a[step % 2][k][row]);
            load_eight(y, &tile_b[step % 2][k][column]);
            UNROLL
            for (int m = 0; m < kChunk; ++m) {
                UNROLL
                for (int n = 0; n < kChunk; ++n) sums[m][n] += x[m] * y[n];
            }
        }
        if (step + 1 < steps) store(step + 1);
    }
    let_next_start();
    Output part = output;  // of this split: below the one before
    if (part.out.dtype == DType::f32) {
        part.out.data =
            static_cast<float*>(part.out.data) + int64_t{blockIdx.y} * output.rows * part.out.stride;
    }
    LargestMagnitude largest(output.absmax);
    UNROLL
    for (int m = 0; m < kChunk; ++m) {
        float chunk[1][kChunk];
        UNROLL
        for (int n = 0; n < kChunk; ++n) chunk[0][n] = sums[m][n];
        store_sums(part, {tile.row + row + m}, tile.column + column, chunk, largest);
    }
    largest.raise_by_warp();
}

template <int kSize, bool kRowsA, bool kRowsB>
void launch_product(const Product& product, int splits, int inner_per_split, Stream stream) {
    const int64_t tiles = ceil_div(product.output.rows, kSize) * ceil_div(product.output.columns, kSize);
    launch(product_f32_kernel<kSize, kRowsA, kRowsB>,
           dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(splits),
                static_cast<unsigned>(product.batch)),
           kSize * kSize / (kChunk * kChunk), 0, stream, product.a, product.b, product.output, product.inner,
           inner_per_split);
}

template <int kSize>
void launch_layout(const Product& product, int splits, int inner_per_split, Stream stream) {
    const bool rows_a = product.a.by_row, rows_b = product.b.by_row;
    CHECK(rows_a || !rows_b, "no op multiplies columns by rows");
    const auto launch =
        rows_a ? (rows_b ? launch_product<kSize, true, true> : launch_product<kSize, true, false>)
               : launch_product<kSize, false, false>;
    launch(product, splits, inner_per_split, stream);
}

}  // namespace

void multiply_f32(const Product& product, MatmulTile tile, int splits, int inner_per_split, Stream stream) {
    const auto launch = tile == MatmulTile::large ? launch_layout<128> : launch_layout<64>;
    launch(product, splits, inner_per_split, stream);
}

}  // namespace GPU_NAMESPACE
