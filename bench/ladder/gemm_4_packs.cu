// Rung 4 of 8: 128 bits at a time.
//
// Idea: one instruction moves 8 bf16 from memory, or 4 f32 from shared memory. A thread takes 8 x 8 outputs,
// so that there are products enough for what it loads: two packs of each operand, 64 products. Why it helps:
// an FMA unit is idle while its scheduler issues a load; loads fall from 8 instructions for 16 products to 4
// for 64. The tile of a block is 128 x 128, and each element comes through L2 half as often as on rung 3.
// Cost: 2 N O C FLOPs; N O C / 32 bytes through L2; a quarter of a word of shared memory a product. Bound by
// the FMA units: 67 TFLOP/s on an H100, which has 15 times that in its tensor cores. Expected: 2 to 3 times
// rung 3, 60 to 80 % of the FMA rate. Not measured yet on a GPU.
#include "bench/ladder/ladder.h"
#include "kernels/gpu.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kTile = 128, kStep = 16, kThreads = 256;
constexpr int kPitch = kTile + 4;  // a multiple of a pack

// 128 rows x 16 columns: one pack of 8 for each thread.
__device__ void load_transposed(Pack<float> (&tile)[kStep][kPitch / 4], const bf16* rows, int64_t inputs) {
    const int row = threadIdx.x / 2, c = threadIdx.x % 2 * 8;
    const Pack<bf16> pack = load128(rows + row * inputs + c);
    UNROLL for (int k = 0; k < 8; ++k) tile[c + k][row / 4][row % 4] = to_float(pack[k]);
}

__global__ void packs_kernel(bf16* out, const bf16* inp, const bf16* weight, int64_t outputs,
                             int64_t inputs) {
    wait_for_previous();
    SHARED(Pack<float>, a, [kStep][kPitch / 4]);
    SHARED(Pack<float>, b, [kStep][kPitch / 4]);
    const int64_t first_row = int64_t{blockIdx.y} * kTile, first_output = int64_t{blockIdx.x} * kTile;
    // Two groups of 4 outputs, 64 apart, in each direction: packs of neighbouring threads are neighbours.
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    float sums[8][8] = {};
    for (int64_t c = 0; c < inputs; c += kStep) {
        __syncthreads();
        load_transposed(a, inp + first_row * inputs + c, inputs);
        load_transposed(b, weight + first_output * inputs + c, inputs);
        __syncthreads();
        for (int k = 0; k < kStep; ++k) {
            const Pack<float> p[2] = {a[k][y], a[k][y + 16]}, q[2] = {b[k][x], b[k][x + 16]};
            UNROLL for (int i = 0; i < 8; ++i) {
                UNROLL for (int j = 0; j < 8; ++j) sums[i][j] += p[i / 4][i % 4] * q[j / 4][j % 4];
            }
        }
    }
    UNROLL for (int i = 0; i < 8; ++i) {
        const int64_t row = first_row + i / 4 * 64 + 4 * y + i % 4;
        UNROLL for (int half = 0; half < 2; ++half) {
            uint2 four;
            four.x = pack_bf16(sums[i][4 * half], sums[i][4 * half + 1]);
            four.y = pack_bf16(sums[i][4 * half + 2], sums[i][4 * half + 3]);
            *reinterpret_cast<uint2*>(out + row * outputs + first_output + 64 * half + 4 * x) = four;
        }
    }
}

}  // namespace

void gemm_4_packs(const GemmOperands& m) {
    const dim3 blocks(static_cast<unsigned>(m.outputs() / kTile), static_cast<unsigned>(m.rows() / kTile));
    launch(packs_kernel, blocks, kThreads, 0, {}, m.out.as<bf16>(), m.inp.as<bf16>(), m.weight.as<bf16>(),
           m.outputs(), m.inputs());
}

}  // namespace GPU_NAMESPACE
