// The guard on the GPU: one thread, some forty dependent f64 operations: bound by latency. Not measured yet
// on a GPU.
#include "kernels/gpu.h"
#include "kernels/step_guard.h"

namespace GPU_NAMESPACE {
namespace {

__global__ void guard_step_kernel(StepDecision* decision, const double* loss_sum, const double* squares,
                                  GuardLimits limits) {
    wait_for_previous();
    let_next_start();
    *decision = decide_step(*loss_sum / limits.num_targets, sqrt(*squares), limits);
}

}  // namespace

void guard_step(Tensor decision, Tensor loss_sum, Tensor squares, const GuardLimits& limits, Stream stream) {
    check_guard_step(decision, loss_sum, squares, limits);
    launch(guard_step_kernel, 1, 1, 0, stream, reinterpret_cast<StepDecision*>(decision.as<uint8_t>()),
           loss_sum.as<double>(), squares.as<double>(), limits);
}

}  // namespace GPU_NAMESPACE
