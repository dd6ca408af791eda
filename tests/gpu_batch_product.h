// multiply_batch() of kernels/matmul_gpu.h, which is the GPU backend's alone, for test_matmul_batch.cpp.
#pragma once
#include "core/device.h"

struct BatchProduct {
    int batch, rows, columns, inner;
    bool a_by_row = true, b_by_row = true;
    bool symmetric = false, bf16_math = false;
    float scale = 1, addend_scale = 0;
    int64_t gap = 0;  // elements between the matrices of a batch, in all tensors
};

// Flat tensors of f32 or bf16, of the batch's matrices one behind the other; addend may be absent.
void run_batch_product(Tensor out, Tensor a, Tensor b, Tensor addend, const BatchProduct& product);
