// Whether a training step's update is applied, and by how much its gradient is scaled: decided where the
// step's numbers lie, so that the host need not wait for them.
//   loss = loss_sum / num_targets;  norm = sqrt(squares)
//   grad_scale = clip > 0 ? min(1, clip / (norm + 1e-6)) : 1     as torch.nn.utils.clip_grad_norm_
//   verdict, the first that holds:
//     nonfinite_loss       loss is not finite
//     nonfinite_gradient   not (norm grad_scale)^2 <= FLT_MAX / 2: AdamW's second moment is f32 (half: room
//                          for its bias correction to round up)
//     outlier_loss         (loss - mean) / deviation > outlier_z, by the losses before
//     outlier_gradient     the same of norm
// decision out u8 [sizeof(StepDecision)], aligned to 8 bytes    loss_sum, squares in [1] f64
#pragma once
#include <cstdint>
#include <limits>

#include "core/tensor.h"

enum class Verdict : int32_t { apply, nonfinite_loss, nonfinite_gradient, outlier_loss, outlier_gradient };

struct StepDecision {
    double loss, grad_norm;  // grad_norm: before clipping
    float grad_scale;
    Verdict verdict;
};
constexpr int64_t kDecisionBytes = sizeof(StepDecision);

// Of earlier values. A deviation of 0 makes nothing an outlier.
struct Spread {
    double mean = 0, deviation = 0;
};
struct GuardLimits {
    double num_targets = 1;
    double clip = 0;  // 0: off
    double outlier_z = std::numeric_limits<double>::infinity();
    Spread losses = {}, norms = {};
};

// One formula for every device: no sum in it has a product that a compiler could fuse, so all decide alike.
constexpr StepDecision decide_step(double loss, double grad_norm, const GuardLimits& limits) {
    constexpr double kLargestSquare = 0.5 * std::numeric_limits<float>::max();
    const auto is_finite = [](double x) { return x - x == 0; };
    const auto is_outlier = [&](double x, const Spread& before) {
        return before.deviation > 0 && (x - before.mean) / before.deviation > limits.outlier_z;
    };
    const double ratio = limits.clip / (grad_norm + 1e-6);
    const double scale = limits.clip > 0 && ratio < 1 ? ratio : 1, scaled = grad_norm * scale;
    const Verdict verdict = !is_finite(loss)                       ? Verdict::nonfinite_loss
                            : !(scaled * scaled <= kLargestSquare) ? Verdict::nonfinite_gradient
                            : is_outlier(loss, limits.losses)      ? Verdict::outlier_loss
                            : is_outlier(grad_norm, limits.norms)  ? Verdict::outlier_gradient
                                                                   : Verdict::apply;
    return {loss, grad_norm, static_cast<float>(scale), verdict};
}

void guard_step(Tensor decision, Tensor loss_sum, Tensor squares, const GuardLimits& limits,
                Stream stream = {});

// Both backends'; throws InternalError.
void check_guard_step(Tensor decision, Tensor loss_sum, Tensor squares, const GuardLimits& limits);
// That a kernel's optional `decision` is absent or one on `device`; likewise.
void check_decision(const char* op, Device device, Tensor decision);
// Its memory; null when it is absent.
inline const StepDecision* decision_data(const Tensor& decision) {
    return static_cast<const StepDecision*>(decision.data);
}
