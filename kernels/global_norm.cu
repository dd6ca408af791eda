// Sum of squares on the GPU: 4 bytes read, one f64 FMA and one conversion per element: bound by memory where
// the GPU has f64 units to speak of (A100, H100), by those elsewhere. How the elements are cut depends on
// their number only, and every sum has one order: the same bits on any GPU. Not measured yet on a GPU.
#include "kernels/global_norm.h"

#include "core/device.h"
#include "kernels/gpu_elements.h"
#include "kernels/workspace.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kThreads = 256;
constexpr int kSteps = 4;  // packs under way per thread

// Over the block; the sum is thread 0's.
__device__ double block_sum_of_doubles(double x) {
    SHARED(double, sums, [kThreads / kWarp]);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
    if (lane == 0) sums[warp] = x;
    __syncthreads();
    for (int other = 1; threadIdx.x == 0 && other < kThreads / kWarp; ++other) x += sums[other];
    return x;
}

// The whole packs, dealt to all threads of the grid in turn; what is left of one is the last block's.
template <int kPack>
__global__ void __launch_bounds__(kThreads)
    square_sums_kernel(double* block_sums, const float* x, int64_t count) {
    wait_for_previous();
    let_next_start();
    const int64_t num_packs = count / kPack, stride = int64_t{gridDim.x} * kThreads;
    double sum = 0;
    for (int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x; first < num_packs;
         first += kSteps * stride) {
        Elements<float, kPack> part[kSteps] = {};
        UNROLL for (int step = 0; step < kSteps; ++step) {
            const int64_t pack = first + step * stride;
            if (pack < num_packs) part[step] = load_streaming<kPack>(x + pack * kPack);
        }
        UNROLL for (int step = 0; step < kSteps; ++step) {
            UNROLL for (int k = 0; k < kPack; ++k) {
                const double value = part[step][k];
                sum += value * value;
            }
        }
    }
    if (blockIdx.x == gridDim.x - 1 && threadIdx.x < count % kPack) {
        const double value = x[num_packs * kPack + threadIdx.x];
        sum += value * value;
    }
    sum = block_sum_of_doubles(sum);
    if (threadIdx.x == 0) block_sums[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    add_block_sums_kernel(double* out, const double* block_sums, int count) {
    wait_for_previous();
    let_next_start();
    double sum = 0;
    for (int block = threadIdx.x; block < count; block += kThreads) sum += block_sums[block];
    sum = block_sum_of_doubles(sum);
    if (threadIdx.x == 0) *out = sum;
}

void sum_into(double* out, Tensor x, Stream stream) {
    const int64_t count = x.size();
    const bool packed = is_aligned128(x.data);
    const int64_t wanted = ceil_div(count, kThreads * kSteps * (packed ? 4 : 1));
    const int64_t blocks = wanted < kSquareSumBlocks ? wanted : kSquareSumBlocks;
    auto* const sums =
        static_cast<double*>(device_workspace(kThisDevice, Workspace::square_sums, square_sums_bytes()));
    launch(packed ? square_sums_kernel<4> : square_sums_kernel<1>, blocks, kThreads, 0, stream, sums,
           x.as<float>(), count);
    launch(add_block_sums_kernel, 1, kThreads, 0, stream, out, sums, static_cast<int>(blocks));
}

}  // namespace

void sum_of_squares_into(Tensor out, Tensor x, Stream stream) {
    check_sum_of_squares(x, out);
    sum_into(out.as<double>(), x, stream);
}

double sum_of_squares(Tensor x, Stream stream) {
    check_sum_of_squares(x, {});
    auto* const device_sum =
        static_cast<double*>(device_workspace(kThisDevice, Workspace::scalar, kScalarBytes));
    sum_into(device_sum, x, stream);
    Tensor on_device = tensor_of(device_sum, 1);
    on_device.device = x.device;
    double sum = 0;
    copy_tensor(tensor_of(&sum, 1), on_device, stream);
    return sum;
}

}  // namespace GPU_NAMESPACE
