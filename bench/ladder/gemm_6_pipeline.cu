// Rung 6 of 8: copies that nobody waits for.
//
// Idea: cp.async copies from memory to shared memory without a register between, and the thread that asked
// goes on. A ring of three tiles: while one is multiplied, the next two are on their way. Why it helps: a
// tile takes 500 to 1000 cycles to arrive, and its products a few hundred. Rung 5 spends these one after the
// other; here they overlap, and one barrier a step is enough: behind it the tile to be multiplied is there,
// and the one multiplied in the last step is free.
// Cost: as rung 5; 30 KiB of shared memory.
// Expected: 1.5 to 2 times rung 5. Not measured yet on a GPU.
#include "bench/ladder/ladder.h"
#include "kernels/mma.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kTile = 64, kStep = 32, kThreads = 128, kStages = 3;
constexpr int kPacks = kStep / 8, kPitch = kPacks + 1;

__device__ void fetch_tile(Pack<bf16> (&tile)[kTile][kPitch], const bf16* rows, int64_t inputs) {
    for (int i = threadIdx.x; i < kTile * kPacks; i += kThreads) {
        const int row = i / kPacks, pack = i % kPacks;
        cp_async16(&tile[row][pack], rows + row * inputs + 8 * pack);
    }
}

__global__ void pipeline_kernel(bf16* out, const bf16* inp, const bf16* weight, int64_t outputs,
                                int64_t inputs) {
    wait_for_previous();
    SHARED(Pack<bf16>, a_tiles, [kStages][kTile][kPitch]);
    SHARED(Pack<bf16>, b_tiles, [kStages][kTile][kPitch]);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int warp_row = warp / 2 * 32, warp_output = warp % 2 * 32;
    const int64_t first_row = int64_t{blockIdx.y} * kTile, first_output = int64_t{blockIdx.x} * kTile;
    const int num_steps = static_cast<int>(inputs / kStep);
    const auto fetch = [&](int step) {
        if (step < num_steps) {
            fetch_tile(a_tiles[step % kStages], inp + first_row * inputs + step * kStep, inputs);
            fetch_tile(b_tiles[step % kStages], weight + first_output * inputs + step * kStep, inputs);
        }
        cp_async_commit();  // an empty group at the end, so that counting them stays simple
    };
    for (int step = 0; step < kStages - 1; ++step) fetch(step);
    float c[2][4][4] = {};
    for (int step = 0; step < num_steps; ++step) {
        cp_async_wait<kStages - 2>();
        __syncthreads();
        fetch(step + kStages - 1);  // where the tile of the last step was
        const auto& a_tile = a_tiles[step % kStages];
        const auto& b_tile = b_tiles[step % kStages];
        UNROLL for (int k = 0; k < kStep / 16; ++k) {
            uint32_t a[2][4], b[4][2];
            UNROLL for (int i = 0; i < 2; ++i) {
                ldmatrix_x4(a[i], &a_tile[warp_row + 16 * i + lane % 16][2 * k + lane / 16]);
            }
            UNROLL for (int j = 0; j < 2; ++j) {
                uint32_t r[4];
                ldmatrix_x4(r,
                            &b_tile[warp_output + 16 * j + lane / 16 * 8 + lane % 8][2 * k + lane / 8 % 2]);
                b[2 * j][0] = r[0], b[2 * j][1] = r[1], b[2 * j + 1][0] = r[2], b[2 * j + 1][1] = r[3];
            }
            UNROLL for (int i = 0; i < 2; ++i) {
                UNROLL for (int j = 0; j < 4; ++j) mma_bf16(c[i][j], a[i], b[j]);
            }
        }
    }
    UNROLL for (int i = 0; i < 2; ++i) {
        UNROLL for (int j = 0; j < 4; ++j) {
            const int64_t row = first_row + warp_row + 16 * i + lane / 4;
            bf16* const to = out + row * outputs + first_output + warp_output + 8 * j + lane % 4 * 2;
            *reinterpret_cast<uint32_t*>(to) = pack_bf16(c[i][j][0], c[i][j][1]);
            *reinterpret_cast<uint32_t*>(to + 8 * outputs) = pack_bf16(c[i][j][2], c[i][j][3]);
        }
    }
}

}  // namespace

void gemm_6_pipeline(const GemmOperands& m) {
    const dim3 blocks(static_cast<unsigned>(m.outputs() / kTile), static_cast<unsigned>(m.rows() / kTile));
    launch(pipeline_kernel, blocks, kThreads, 0, {}, m.out.as<bf16>(), m.inp.as<bf16>(), m.weight.as<bf16>(),
           m.outputs(), m.inputs());
}

}  // namespace GPU_NAMESPACE
