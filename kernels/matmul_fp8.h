// The matrix product of two FP8 operands as quantize() makes them, for all three products of a linear layer:
//   out[m,n] = a.inverse * b.inverse * sum_k a[m,k] b[n,k], and then what matmul.h calls the epilogue
// FP8 instructions want both operands by lines of the inner dimension, so the backward products take
// quantize()'s transposed results:
//   forward:          a = inp [N,C]        b = weight [OC,C]
//   backward input:   a = dout [N,OC]      b = weight transposed [C,OC]
//   backward weight:  a = dout transposed  b = inp transposed [C,N];   residual = out accumulates
// Sums are f32 on the CPU and in the emulator; Hopper's tensor cores keep some 14 bits of the sums within an
// instruction (DeepSeek-V3, arXiv:2412.19437, section 3.3.2), so that there every 128 inner indices are added
// up in f32 (matmul_hopper_fp8.cu). The order of the sum over k depends on the
// shape alone. An operand that is not finite has inverse NaN, and so is all of out.
#pragma once
#include "kernels/matmul.h"

struct Fp8Matrix {
    Tensor codes;    // [lines, a multiple of kFp8Line], zeros behind the inner dimension's end
    Tensor inverse;  // [1] f32
};

// out  out [M,N] f32|bf16      a  in [M,K] e4m3|e5m2      b  in [N,K] e4m3, K padded as said
// epilogue  residual may alias out      gelu_pre  in [M,N] or absent, as in matmul_backward_input
// absmax  inout [1] f32 or absent, raised to the largest |out| (kernels/quantize.h)
void matmul_fp8(Tensor out, const Fp8Matrix& a, const Fp8Matrix& b, const MatmulEpilogue& epilogue = {},
                Tensor gelu_pre = {}, Tensor absmax = {}, Stream stream = {});

// Both backends'; throws InternalError.
void check_matmul_fp8(Tensor out, const Fp8Matrix& a, const Fp8Matrix& b, const MatmulEpilogue& epilogue,
                      Tensor gelu_pre, Tensor absmax);
