// Residual connection: out = a + b, one dtype f32|bf16, same shape; out may alias either. Summed in f32,
// rounded once.
#pragma once
#include "core/tensor.h"

void residual_forward(Tensor out, Tensor a, Tensor b, Stream stream = {});

void check_residual(Tensor out, Tensor a, Tensor b);  // both backends'; throws InternalError
