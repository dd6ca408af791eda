// Summing losses on the GPU: one block, since N floats are little. Each thread adds every kThreads-th loss,
// then a tree over the threads.
#include "kernels/gpu.h"
#include "kernels/loss_sum.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kThreads = 512;

__global__ void loss_sum_kernel(double* total, const float* losses, int64_t count, bool accumulate) {
    wait_for_previous();
    SHARED(double, sums, [kThreads]);
    double sum = 0;
    for (int64_t n = threadIdx.x; n < count; n += kThreads) sum += losses[n];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int half = kThreads / 2; half > 0; half /= 2) {
        if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) *total = accumulate ? *total + sums[0] : sums[0];
}

}  // namespace

void loss_sum(Tensor total, Tensor losses, bool accumulate, Stream stream) {
    check_loss_sum(total, losses);
    launch(loss_sum_kernel, 1, kThreads, 0, stream, total.as<double>(), losses.as<float>(), losses.size(),
           accumulate);
}

}  // namespace GPU_NAMESPACE
