// Draws one token from logits. temperature 0: the largest (lowest id on ties). Otherwise softmax(logits /
// temperature), restricted to the top_k largest (0: all) and then to the smallest set whose probability
// reaches top_p (1: all; Holtzman et al. 2019), in descending order with ties by id; `uniform` in [0,1) picks
// by inverse cumulative probability.
//   logits in [V] f32
#pragma once
#include "core/tensor.h"

struct SamplingParams {
    double temperature = 1;
    int64_t top_k = 0;
    double top_p = 1;
};
int32_t sample_token(Tensor logits, const SamplingParams& params, float uniform);
