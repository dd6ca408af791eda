// Rung 1 of 8: one thread for each output.
//
// The definition, as it stands in a textbook. Each thread walks along a row of inp and a row of weight.
// Cost: 2 N O C FLOPs, and 4 bytes loaded for every 2 of them: each element of inp is asked for O times, each
// of weight N times. Threads next to each other read different rows of weight, so one load of a warp touches
// 16 or 32 cache lines and uses 2 bytes of each. Bound by the caches' rate of answering. Expected: 0.1 to 0.5
// % of the tensor cores' rate. Not measured yet on a GPU.
#include "bench/ladder/ladder.h"
#include "kernels/gpu.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kSide = 16;  // a block: 16 x 16 outputs

__global__ void naive_kernel(bf16* out, const bf16* inp, const bf16* weight, int64_t outputs,
                             int64_t inputs) {
    wait_for_previous();
    const int64_t o = int64_t{blockIdx.x} * kSide + threadIdx.x % kSide;
    const int64_t n = int64_t{blockIdx.y} * kSide + threadIdx.x / kSide;
    float sum = 0;
    for (int64_t c = 0; c < inputs; ++c)
        sum += to_float(inp[n * inputs + c]) * to_float(weight[o * inputs + c]);
    out[n * outputs + o] = from_float<bf16>(sum);
}

}  // namespace

void gemm_1_naive(const GemmOperands& m) {
    const dim3 blocks(static_cast<unsigned>(m.outputs() / kSide), static_cast<unsigned>(m.rows() / kSide));
    launch(naive_kernel, blocks, kSide * kSide, 0, {}, m.out.as<bf16>(), m.inp.as<bf16>(),
           m.weight.as<bf16>(), m.outputs(), m.inputs());
}

}  // namespace GPU_NAMESPACE
