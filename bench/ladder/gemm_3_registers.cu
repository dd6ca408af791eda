// Rung 3 of 8: 4 x 4 outputs for each thread.
//
// Idea: a thread that has 4 numbers of a column of inp and 4 of weight in registers can make 16 products of
// them. Why it helps: rung 2 read two words of shared memory for each product; here it is 8 words for 16. A
// block of 256 threads now has 64 x 64 outputs, so each element comes through L2 half as often, too. Cost: 2
// N O C FLOPs; N O C / 16 bytes through L2; half a word of shared memory a product. (Tiles lie transposed: a
// thread's four numbers are neighbours, and so are those of the threads beside it.)
// Expected: 3 to 4 times rung 2. Not measured yet on a GPU.
#include "bench/ladder/ladder.h"
#include "kernels/gpu.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kTile = 64, kStep = 16, kEach = 4, kThreads = (kTile / kEach) * (kTile / kEach);

__device__ void load_transposed(float (&tile)[kStep][kTile + 1], const bf16* rows, int64_t inputs) {
    for (int i = threadIdx.x; i < kTile * kStep; i += kThreads) {
        const int row = i / kStep, c = i % kStep;
        tile[c][row] = to_float(rows[row * inputs + c]);
    }
}

__global__ void registers_kernel(bf16* out, const bf16* inp, const bf16* weight, int64_t outputs,
                                 int64_t inputs) {
    wait_for_previous();
    SHARED(float, a, [kStep][kTile + 1]);
    SHARED(float, b, [kStep][kTile + 1]);
    const int64_t first_row = int64_t{blockIdx.y} * kTile, first_output = int64_t{blockIdx.x} * kTile;
    const int x = static_cast<int>(threadIdx.x) % (kTile / kEach) * kEach;
    const int y = static_cast<int>(threadIdx.x) / (kTile / kEach) * kEach;
    float sums[kEach][kEach] = {};
    for (int64_t c = 0; c < inputs; c += kStep) {
        __syncthreads();
        load_transposed(a, inp + first_row * inputs + c, inputs);
        load_transposed(b, weight + first_output * inputs + c, inputs);
        __syncthreads();
        for (int k = 0; k < kStep; ++k) {
            float p[kEach], q[kEach];
            UNROLL for (int i = 0; i < kEach; ++i) p[i] = a[k][y + i];
            UNROLL for (int j = 0; j < kEach; ++j) q[j] = b[k][x + j];
            UNROLL for (int i = 0; i < kEach; ++i) {
                UNROLL for (int j = 0; j < kEach; ++j) sums[i][j] += p[i] * q[j];
            }
        }
    }
    UNROLL for (int i = 0; i < kEach; ++i) {
        UNROLL for (int j = 0; j < kEach; ++j) {
            out[(first_row + y + i) * outputs + first_output + x + j] = from_float<bf16>(sums[i][j]);
        }
    }
}

}  // namespace

void gemm_3_registers(const GemmOperands& m) {
    const dim3 blocks(static_cast<unsigned>(m.outputs() / kTile), static_cast<unsigned>(m.rows() / kTile));
    launch(registers_kernel, blocks, kThreads, 0, {}, m.out.as<bf16>(), m.inp.as<bf16>(), m.weight.as<bf16>(),
           m.outputs(), m.inputs());
}

}  // namespace GPU_NAMESPACE
