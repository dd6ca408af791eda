// The sum of losses in f64:   total = (or += when accumulate) sum_n losses[n], in one fixed order
//   total out [1] f64      losses in [N] f32
#pragma once
#include "core/tensor.h"

void loss_sum(Tensor total, Tensor losses, bool accumulate, Stream stream = {});

void check_loss_sum(Tensor total, Tensor losses);  // both backends'; throws InternalError
