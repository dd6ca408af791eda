// Sum of squares of a flat f32 tensor in f64, over fixed chunks in fixed order: the same bits for any number
// of threads. A NaN or infinity anywhere gives a non-finite result.
#pragma once
#include "core/tensor.h"

double sum_of_squares(Tensor x, Stream stream = {});
