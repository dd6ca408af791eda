// multiply_batch() on flat tensors, as test_matmul_batch.cpp asks for it.
#include "tests/gpu_batch_product.h"

#include "kernels/matmul_gpu.h"

namespace GPU_NAMESPACE {

void run_batch_product(Tensor out, Tensor a, Tensor b, Tensor addend, const BatchProduct& product) {
    const auto [batch, rows, columns, inner, a_by_row, b_by_row, symmetric, bf16_math, scale, addend_scale,
                gap] = product;
    const auto matrix = [&](const Tensor& t, int64_t lines, int64_t line) {
        return t.absent() ? Matrix{} : Matrix{t.data, line, t.dtype, lines * line + gap};
    };
    const auto operand = [&](const Tensor& t, int64_t outer, bool by_row) {
        return Operand{.lines = by_row ? matrix(t, outer, inner) : matrix(t, inner, outer), .by_row = by_row};
    };
    multiply_batch({.a = operand(a, rows, a_by_row),
                    .b = operand(b, columns, b_by_row),
                    .output = {.out = matrix(out, rows, columns),
                               .addend = matrix(addend, rows, columns),
                               .scale = scale,
                               .addend_scale = addend_scale,
                               .rows = rows,
                               .columns = columns,
                               .symmetric = symmetric},
                    .inner = inner,
                    .bf16_math = bf16_math,
                    .batch = batch},
                   {});
}

}  // namespace GPU_NAMESPACE
