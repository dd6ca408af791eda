// Matrix products of training, with fused epilogues. Weights are [OC,C] ("out, in"), as in Hugging Face's
// linear layers.
//   forward:          out[n,o]     = sum_c inp[n,c] * weight[o,c] + bias[o]
//   backward input:   dinp[n,c]    = sum_o dout[n,o] * weight[o,c]
//   backward weight:  dweight[o,c] (+)= sum_n dout[n,o] * inp[n,c],   dbias[o] (+)= sum_n dout[n,o]
// Every operand may be f32 or bf16 on its own. Sums are f32. MatmulMath::bf16 rounds f32 operands to bf16 on
// their way (2x the peak where the CPU has vdpbf16ps, tensor cores on a GPU; elsewhere the products are f32
// of bf16-rounded values). Two bf16 operands always use bf16 math. The sum over the inner index runs in one
// fixed order. On the CPU it depends on nothing but the inner size: same bits for any number of threads and
// for any row's place in the batch. On a GPU it depends on the shape, on whether Hopper's kernel can do it,
// and where there is cuBLASLt, on the plan that was chosen (matmul_cublaslt.cu): same bits in every run on
// such a GPU with the same plans. Source of the
// CPU's blocking: Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008).
#pragma once
#include "core/tensor.h"

enum class MatmulMath : uint8_t { f32, bf16 };

struct MatmulEpilogue {
    Tensor bias = {};            // [OC] f32|bf16, added
    Tensor residual = {};        // [N,OC] f32|bf16, added last; may alias out
    bool gelu = false;           // out = gelu_tanh(pre); pre (after the bias) is written to pre_activation
    Tensor pre_activation = {};  // [N,OC] f32|bf16, required with gelu
};

//   out     out  [N,OC] f32|bf16       inp  in [N,C] f32|bf16       weight in [OC,C] f32|bf16
void matmul_forward(Tensor out, Tensor inp, Tensor weight, const MatmulEpilogue& epilogue = {},
                    MatmulMath math = MatmulMath::f32, Stream stream = {});

//   dinp      out [N,C] f32|bf16, set, or added to when accumulate.   dout in [N,OC]   weight in [OC,C]
//   gelu_pre  in  [N,C] or absent: multiplies the result by gelu_tanh'(gelu_pre) before storing (backward
//             through the GELU that made inp)
void matmul_backward_input(Tensor dinp, Tensor dout, Tensor weight, bool accumulate = false,
                           Tensor gelu_pre = {}, MatmulMath math = MatmulMath::f32, Stream stream = {});

//   dweight out  [OC,C] f32, set, or added to when accumulate.       dbias out [OC] f32 or absent, likewise
//   dout    in   [N,OC] f32|bf16       inp  in [N,C] f32|bf16
void matmul_backward_weight(Tensor dweight, Tensor dbias, Tensor dout, Tensor inp, bool accumulate,
                            MatmulMath math = MatmulMath::f32, Stream stream = {});

//   dbias   out  [OC] f32, set, or added to when accumulate: sum_n dout[n,o].       dout in [N,OC] f32|bf16
// Alone, for where the weight's gradient is another op's (kernels/matmul_fp8.h).
void matmul_backward_bias(Tensor dbias, Tensor dout, bool accumulate, Stream stream = {});

//   Plain product for Muon: c[m,n] = alpha * sum_k a[m,k] * b[n,k] (b_transposed) or b[k,n], + beta * d[m,n].
//   d may alias c.
void matmul_general(Tensor c, Tensor a, Tensor b, bool b_transposed, float alpha, float beta, Tensor d,
                    MatmulMath math = MatmulMath::f32, Stream stream = {});

// Both backends'; throw InternalError.
void check_matmul_forward(Tensor out, Tensor inp, Tensor weight, const MatmulEpilogue& epilogue);
void check_matmul_backward_input(Tensor dinp, Tensor dout, Tensor weight, Tensor gelu_pre);
void check_matmul_backward_weight(Tensor dweight, Tensor dbias, Tensor dout, Tensor inp);
void check_matmul_backward_bias(Tensor dbias, Tensor dout);
void check_matmul_general(Tensor c, Tensor a, Tensor b, bool b_transposed, float beta, Tensor d);
