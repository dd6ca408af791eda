// Rung 7 of 8: a tile four times as large.
//
// Idea: 128 x 128 outputs for a block of 8 warps, 64 x 32 for a warp. Four stages of such tiles need 80 KiB
// of shared memory, more than an array may have: the launch asks for dynamic shared memory. Why it helps:
// what is loaded grows with the tile's edge, what is multiplied with its area. A warp now loads 3 KiB for 64
// Ki FLOPs instead of 2 KiB for 32 Ki, and L2 gives half as much a FLOP. The 64 sums of a thread lie in
// registers, which sets the tile's limit. Cost: N O C / 32 bytes through L2; 80 KiB of shared memory, so two
// blocks a multiprocessor. Expected: 1.3 to 1.6 times rung 6; near what mma reaches on an A100. Hopper's own
// instruction (wgmma) goes on from there. Not measured yet on a GPU.
#include "bench/ladder/ladder.h"
#include "kernels/mma.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kTile = 128, kStep = 32, kThreads = 256, kStages = 4;
constexpr int kPacks = kStep / 8, kPitch = kPacks + 1;
using Tile = Pack<bf16>[kTile][kPitch];
constexpr int64_t kSharedBytes = 2 * kStages * static_cast<int64_t>(sizeof(Tile));

__device__ void fetch_tile(Tile& tile, const bf16* rows, int64_t inputs) {
    UNROLL for (int i = 0; i < kTile * kPacks / kThreads; ++i) {
        const int place = i * kThreads + static_cast<int>(threadIdx.x), row = place / kPacks,
                  pack = place % kPacks;
        cp_async16(&tile[row][pack], rows + row * inputs + 8 * pack);
    }
}

__global__ void __launch_bounds__(kThreads, 2)
    large_tiles_kernel(bf16* out, const bf16* inp, const bf16* weight, int64_t outputs, int64_t inputs) {
    wait_for_previous();
    DYN_SHARED(Tile, tiles);  // of stage s: inp's at 2 s, weight's at 2 s + 1
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int warp_row = warp / 4 * 64, warp_output = warp % 4 * 32;  // 8 warps: 2 x 4
    const int64_t first_row = int64_t{blockIdx.y} * kTile, first_output = int64_t{blockIdx.x} * kTile;
    const int num_steps = static_cast<int>(inputs / kStep);
    const auto fetch = [&](int step) {
        if (step < num_steps) {
            fetch_tile(tiles[2 * (step % kStages)], inp + first_row * inputs + step * kStep, inputs);
            fetch_tile(tiles[2 * (step % kStages) + 1], weight + first_output * inputs + step * kStep,
                       inputs);
        }
        cp_async_commit();
    };
    for (int step = 0; step < kStages - 1; ++step) fetch(step);
    float c[4][4][4] = {};
    for (int step = 0; step < num_steps; ++step) {
        cp_async_wait<kStages - 2>();
        __syncthreads();
        fetch(step + kStages - 1);
        const Tile& a_tile = tiles[2 * (step % kStages)];
        const Tile& b_tile = tiles[2 * (step % kStages) + 1];
        UNROLL for (int k = 0; k < kStep / 16; ++k) {
            uint32_t a[4][4], b[4][2];
            UNROLL for (int i = 0; i < 4; ++i) {
                ldmatrix_x4(a[i], &a_tile[warp_row + 16 * i + lane % 16][2 * k + lane / 16]);
            }
            UNROLL for (int j = 0; j < 2; ++j) {
                uint32_t r[4];
                ldmatrix_x4(r,
                            &b_tile[warp_output + 16 * j + lane / 16 * 8 + lane % 8][2 * k + lane / 8 % 2]);
                b[2 * j][0] = r[0], b[2 * j][1] = r[1], b[2 * j + 1][0] = r[2], b[2 * j + 1][1] = r[3];
            }
            UNROLL for (int i = 0; i < 4; ++i) {
                UNROLL for (int j = 0; j < 4; ++j) mma_bf16(c[i][j], a[i], b[j]);
            }
        }
    }
    UNROLL for (int i = 0; i < 4; ++i) {
        UNROLL for (int j = 0; j < 4; ++j) {
            const int64_t row = first_row + warp_row + 16 * i + lane / 4;
            bf16* const to = out + row * outputs + first_output + warp_output + 8 * j + lane % 4 * 2;
            *reinterpret_cast<uint32_t*>(to) = pack_bf16(c[i][j][0], c[i][j][1]);
            *reinterpret_cast<uint32_t*>(to + 8 * outputs) = pack_bf16(c[i][j][2], c[i][j][3]);
        }
    }
}

}  // namespace

void gemm_7_large_tiles(const GemmOperands& m) {
    const dim3 blocks(static_cast<unsigned>(m.outputs() / kTile), static_cast<unsigned>(m.rows() / kTile));
    launch(large_tiles_kernel, blocks, kThreads, kSharedBytes, {}, m.out.as<bf16>(), m.inp.as<bf16>(),
           m.weight.as<bf16>(), m.outputs(), m.inputs());
}

}  // namespace GPU_NAMESPACE
