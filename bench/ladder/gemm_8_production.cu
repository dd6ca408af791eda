// Rung 8 of 8: the product that training runs (kernels/matmul.h).
//
// What it has besides: any size and alignment, transposed operands, sums over split inner dimensions, bias,
// GELU and residual while the tile is in registers, a choice of tiles by shape. Compare it with rung 7 to see
// what that and the last tuning are worth, and read kernels/matmul.cu next, on Hopper
// kernels/matmul_hopper.cu. Expected: the library's or our best kernel's rate, 70 to 80 % of the data sheet
// on an H100. Not measured yet on a GPU.
#include "bench/ladder/ladder.h"
#include "kernels/gpu.h"
#include "kernels/matmul.h"

namespace GPU_NAMESPACE {

void gemm_8_production(const GemmOperands& m) {
    ::matmul_forward(m.out, m.inp, m.weight, {}, MatmulMath::bf16);
}

}  // namespace GPU_NAMESPACE
