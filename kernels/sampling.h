// Draws one token from logits. temperature 0: the largest (lowest id on ties). Otherwise softmax(logits /
// temperature), restricted to the top_k largest (0: all) and then to the smallest set whose probability
// reaches top_p (1: all; Holtzman et al. 2019), in descending order with ties by id; `uniform` in [0,1) picks
// by inverse cumulative probability.
//   logits in [V] f32
// Returns -1 when nothing can be drawn: a logit is NaN, or the largest is not finite.
#pragma once
#include "core/tensor.h"

struct SamplingParams {
    double temperature = 1;
    int64_t top_k = 0;
    double top_p = 1;
};
// On a GPU: waits for the token. Probabilities are then rounded to 2^-40 of the largest.
int32_t sample_token(Tensor logits, const SamplingParams& params, float uniform);

void check_sampling(Tensor logits, const SamplingParams& params, float uniform);  // both backends'
