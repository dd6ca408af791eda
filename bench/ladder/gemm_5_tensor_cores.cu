// Rung 5 of 8: tensor cores.
//
// Idea: mma multiplies a 16 x 16 by a 16 x 8 matrix in one instruction of a warp, bf16 in, f32 sums. Operands
// are spread over the warp's registers in a fixed pattern (kernels/mma.h draws it); ldmatrix brings four 8 x
// 8 matrices from shared memory into that pattern. The operands stay bf16 all the way, so tiles take half the
// shared memory. Why it helps: 4096 FLOPs an instruction instead of 64, and a unit with 8 to 15 times the FMA
// units' rate. Cost: 2 N O C FLOPs; block tile 64 x 64: N O C / 16 bytes through L2. A warp has 32 x 32
// outputs: for 16 columns it loads 2 KiB and computes 32 Ki FLOPs. Rows in shared memory are one pack longer
// than needed, so that the 8 rows of an ldmatrix lie in different banks. Bound by waiting: nothing is
// multiplied while tiles are on their way. Expected: 3 to 5 times rung 4. Not measured yet on a GPU.
#include "bench/ladder/ladder.h"
#include "kernels/mma.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kTile = 64, kStep = 32, kThreads = 128;
constexpr int kPacks = kStep / 8, kPitch = kPacks + 1;

__device__ void load_tile(Pack<bf16> (&tile)[kTile][kPitch], const bf16* rows, int64_t inputs) {
    for (int i = threadIdx.x; i < kTile * kPacks; i += kThreads) {
        const int row = i / kPacks, pack = i % kPacks;
        tile[row][pack] = load128(rows + row * inputs + 8 * pack);
    }
}

__global__ void tensor_cores_kernel(bf16* out, const bf16* inp, const bf16* weight, int64_t outputs,
                                    int64_t inputs) {
    wait_for_previous();
    SHARED(Pack<bf16>, a_tile, [kTile][kPitch]);
    SHARED(Pack<bf16>, b_tile, [kTile][kPitch]);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int warp_row = warp / 2 * 32, warp_output = warp % 2 * 32;  // 4 warps: 2 x 2
    const int64_t first_row = int64_t{blockIdx.y} * kTile, first_output = int64_t{blockIdx.x} * kTile;
    float c[2][4][4] = {};
    for (int64_t step = 0; step < inputs; step += kStep) {
        __syncthreads();
        load_tile(a_tile, inp + first_row * inputs + step, inputs);
        load_tile(b_tile, weight + first_output * inputs + step, inputs);
        __syncthreads();
        UNROLL for (int k = 0; k < kStep / 16; ++k) {
            uint32_t a[2][4], b[4][2];
            UNROLL for (int i = 0; i < 2; ++i) {
                ldmatrix_x4(a[i], &a_tile[warp_row + 16 * i + lane % 16][2 * k + lane / 16]);
            }
            UNROLL for (int j = 0; j < 2; ++j) {  // rows of weight are columns of B: no transposition
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

void gemm_5_tensor_cores(const GemmOperands& m) {
    const dim3 blocks(static_cast<unsigned>(m.outputs() / kTile), static_cast<unsigned>(m.rows() / kTile));
    launch(tensor_cores_kernel, blocks, kThreads, 0, {}, m.out.as<bf16>(), m.inp.as<bf16>(),
           m.weight.as<bf16>(), m.outputs(), m.inputs());
}

}  // namespace GPU_NAMESPACE
