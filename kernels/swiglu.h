// SwiGLU (Shazeer 2020): out = silu(gate) * up,  silu(x) = x / (1 + exp(-x))
//   out  out [N,F] f32|bf16     gate_up in [N,2F] same dtype: F gates, then F ups, per row
// backward: dgate_up [N,2F] set; may alias gate_up.
//   absmax inout [1] f32 or absent: raised to the largest |out|, in backward |dgate_up| (kernels/quantize.h)
#pragma once
#include "core/tensor.h"

void swiglu_forward(Tensor out, Tensor gate_up, Tensor absmax = {}, Stream stream = {});
void swiglu_backward(Tensor dgate_up, Tensor gate_up, Tensor dout, Tensor absmax = {}, Stream stream = {});

// Both backends'; they throw InternalError.
void check_swiglu_forward(Tensor out, Tensor gate_up, Tensor absmax);
void check_swiglu_backward(Tensor dgate_up, Tensor gate_up, Tensor dout, Tensor absmax);
