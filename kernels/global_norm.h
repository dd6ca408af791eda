// Sum of squares of a flat f32 tensor in f64, over fixed chunks in fixed order: the same bits for any number
// of threads. A NaN or infinity anywhere gives a non-finite result.
//   out   out [1] f64, on x's device     x   in f32, any shape
#pragma once
#include "core/tensor.h"

void sum_of_squares_into(Tensor out, Tensor x, Stream stream = {});
double sum_of_squares(Tensor x, Stream stream = {});  // waits for x's device

// Both backends' (out may be absent); throws InternalError.
void check_sum_of_squares(Tensor x, Tensor out);
