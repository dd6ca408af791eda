// Column sums of a small matrix of f32: 4 bytes read per element, which the kernel before it has just written
// and the L2 cache still holds. Bound by latency. Not measured yet on a GPU.
#include "kernels/gpu_row_sums.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kWarps = 32;

// A block sums kWarp columns: its warps take the rows in turn, then the warps' sums are added in order.
__global__ void __launch_bounds__(kWarps* kWarp)
    add_row_sums_kernel(float* first, int64_t num_first, float* second, int64_t num_second, const float* rows,
                        int64_t num_rows) {
    wait_for_previous();
    let_next_start();
    SHARED(float, sums, [kWarps][kWarp]);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int64_t column = int64_t{blockIdx.x} * kWarp + lane, width = num_first + num_second;
    float sum = 0;
    if (column < width) {
        for (int64_t row = warp; row < num_rows; row += kWarps) sum += rows[row * width + column];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || column >= width) return;
    for (int other = 1; other < kWarps; ++other) sum += sums[other][lane];
    (column < num_first ? first[column] : second[column - num_first]) += sum;
}

}  // namespace

void add_row_sums(float* first, int64_t num_first, float* second, int64_t num_second, const float* rows,
                  int64_t num_rows, Stream stream) {
    launch(add_row_sums_kernel, ceil_div(num_first + num_second, kWarp), kWarps * kWarp, 0, stream, first,
           num_first, second, num_second, rows, num_rows);
}

}  // namespace GPU_NAMESPACE
