// AdamW (Loshchilov & Hutter 2019), bias-corrected, decoupled decay, one pass over memory:
//   g = grad * grad_scale;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//   master -= lr * ( (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps) + weight_decay * master )
//   param   = bf16(master), stochastically rounded with the key (element index as counter), when param is
//   given master, m, v inout [n] f32      grad in [n] f32      param out [n] bf16, or absent when master is
//   the parameter
#pragma once
#include "core/rng.h"
#include "core/tensor.h"

struct AdamWStep {
    float lr, beta1, beta2, eps, weight_decay;
    float grad_scale;     // clipping
    int64_t step;         // t, counts from 1
    RandomKey rounding;   // stochastic rounding of param
    int64_t first_index;  // counter of element 0: the tensor's place in the flat arena
    // Of kernels/step_guard.h, or absent. Then grad_scale is the decision's, and nothing changes unless its
    // verdict is to apply.
    Tensor decision = {};
};
void adamw_step(Tensor param, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamWStep& step,
                Stream stream = {});

// Both backends': the check, which throws InternalError, ...
void check_adamw(Tensor param, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamWStep& step);
// ... and the step with everything that does not depend on the element folded in.
struct AdamWConstants {
    float grad_scale, keep1, keep2;  // keep = 1 - beta
    float m_scale, v_scale;          // 1 / (1 - beta^t)
    float eps, weight_decay, lr;
};
AdamWConstants adamw_constants(const AdamWStep& step);
