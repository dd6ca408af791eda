// RMSNorm over the last axis (Zhang & Sennrich 2019).  y = x * rstd * w,  rstd = 1/sqrt(mean(x^2) + eps)
//   y     out [N,C] f32|bf16      rstd out [N] f32, kept for backward
//   x     in  [N,C] same dtype    w    in  [C] same dtype
// backward: dx = (or += when accumulate_dx), dw += in f32. Deterministic. Any N >= 0, C >= 1.
//   absmax inout [1] f32 or absent: raised to the largest |y|, in backward |dx| (kernels/quantize.h)
#pragma once
#include "core/tensor.h"

void rmsnorm_forward(Tensor y, Tensor rstd, Tensor x, Tensor w, float eps, Tensor absmax = {},
                     Stream stream = {});
void rmsnorm_backward(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, bool accumulate_dx,
                      Tensor absmax = {}, Stream stream = {});

// Both backends'; they throw InternalError.
void check_rmsnorm_forward(Tensor y, Tensor rstd, Tensor x, Tensor w, Tensor absmax);
void check_rmsnorm_backward(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, Tensor absmax);
