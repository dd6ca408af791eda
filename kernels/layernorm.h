// LayerNorm over the last axis (Ba et al. 2016).  y = (x - mean) * rstd * w + b,  rstd = 1/sqrt(var + eps),
// biased variance
//   y     out [N,C] f32|bf16      mean, rstd out [N] f32, kept for backward
//   x     in  [N,C] same dtype    w, b       in  [C] same dtype
// backward: dx = (or += when accumulate_dx: the residual stream's gradient), dw += and db += in f32.
// Statistics in f32, sums over rows in fixed chunks: deterministic. Any N >= 0, C >= 1.
//   absmax inout [1] f32 or absent: raised to the largest |y|, in backward |dx| (kernels/quantize.h)
#pragma once
#include "core/tensor.h"

void layernorm_forward(Tensor y, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor b, float eps,
                       Tensor absmax = {}, Stream stream = {});
//   dx out [N,C] x's dtype   dw, db out [C] f32, += ;  dy in [N,C] x's dtype
void layernorm_backward(Tensor dx, Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor w, Tensor mean,
                        Tensor rstd, bool accumulate_dx, Tensor absmax = {}, Stream stream = {});

// Both backends'; they throw InternalError.
void check_layernorm_forward(Tensor y, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor b, Tensor absmax);
void check_layernorm_backward(Tensor dx, Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor w, Tensor mean,
                              Tensor rstd, Tensor absmax);
