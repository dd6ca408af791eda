// Conversions between f32 and bf16 (to nearest even), and filling.
#pragma once
#include "core/rng.h"
#include "core/tensor.h"

void cast(Tensor out, Tensor inp, Stream stream = {});  // any pair of f32|bf16, equal sizes
// out bf16 = stochastically rounded inp f32; counter of element i: first_index + i
void cast_stochastic(Tensor out, Tensor inp, RandomKey key, int64_t first_index, Stream stream = {});
void fill_zero(Tensor out, Stream stream = {});
void scale_in_place(Tensor x, float factor, Stream stream = {});  // f32

// Both backends'; throws InternalError.
void check_cast(const char* op, Tensor out, Tensor inp);
