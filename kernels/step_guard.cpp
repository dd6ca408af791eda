// The guard on the CPU.
#include "kernels/step_guard.h"

#include <cmath>

#include "kernels/check.h"
#include "kernels/isa.h"

#ifdef ISA_PLAIN
void check_guard_step(Tensor decision, Tensor loss_sum, Tensor squares, const GuardLimits& limits) {
    const ArgumentCheck check{"guard_step", decision.device};
    check.tensor("decision", decision, DType::u8, {kDecisionBytes});
    check.tensor("loss_sum", loss_sum, DType::f64, {1});
    check.tensor("squares", squares, DType::f64, {1});
    check.that(limits.num_targets >= 1, "num_targets", "at least 1", limits.num_targets);
    check.that(limits.outlier_z > 0, "outlier_z", "above 0", limits.outlier_z);
}

void check_decision(const char* op, Device device, Tensor decision) {
    if (decision.absent()) return;
    ArgumentCheck{op, device}.tensor("decision", decision, DType::u8, {kDecisionBytes});
}
#endif

namespace ISA_NAMESPACE {

void guard_step(Tensor decision, Tensor loss_sum, Tensor squares, const GuardLimits& limits, Stream) {
    check_guard_step(decision, loss_sum, squares, limits);
    *reinterpret_cast<StepDecision*>(decision.as<uint8_t>()) =
        decide_step(*loss_sum.as<double>() / limits.num_targets, std::sqrt(*squares.as<double>()), limits);
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(decision.device, void, guard_step,
             (Tensor decision, Tensor loss_sum, Tensor squares, const GuardLimits& limits, Stream stream),
             (decision, loss_sum, squares, limits, stream))
