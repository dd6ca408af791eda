// GELU, tanh form (Hendrycks & Gimpel 2016): gelu(x) = x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))
//   out, inp, dinp, dout [N,F] f32|bf16, one dtype. out may alias inp, dinp may alias dout.
//   absmax inout [1] f32 or absent: raised to the largest |out|, in backward |dinp| (kernels/quantize.h)
// (Training fuses it into kernels/matmul; these stand alone for recompute and as that fusion's oracle.)
#pragma once
#include "core/tensor.h"

void gelu_forward(Tensor out, Tensor inp, Tensor absmax = {}, Stream stream = {});
void gelu_backward(Tensor dinp, Tensor inp, Tensor dout, Tensor absmax = {}, Stream stream = {});

// Both backends'; throws InternalError.
void check_gelu(const char* op, Tensor inp, const char* name0, Tensor t0, const char* name1, Tensor t1,
                Tensor absmax);
