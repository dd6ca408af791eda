// Squared ReLU (So et al. 2021, Primer): out = max(x, 0)^2,  dinp = 2 max(x, 0) dout
//   out, inp, dinp, dout [N,F] f32|bf16, one dtype. out may alias inp, dinp may alias dout.
//   absmax inout [1] f32 or absent: raised to the largest |out|, in backward |dinp| (kernels/quantize.h)
#pragma once
#include "core/tensor.h"

void relu2_forward(Tensor out, Tensor inp, Tensor absmax = {}, Stream stream = {});
void relu2_backward(Tensor dinp, Tensor inp, Tensor dout, Tensor absmax = {}, Stream stream = {});

// Both backends'; throws InternalError.
void check_relu2(const char* op, Tensor inp, const char* name0, Tensor t0, const char* name1, Tensor t1,
                 Tensor absmax);
