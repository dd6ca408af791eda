// RMSNorm on the GPU. Forward reads and writes each element once (and w from the caches); backward
// (kernels/gpu_norm_backward.h) reads x and dy and writes dx once. Some 8 instructions an element: bound by
// memory. Not measured yet on a GPU.
#include "kernels/rmsnorm.h"

#include "kernels/gpu_absmax.h"
#include "kernels/gpu_norm_backward.h"
#include "kernels/gpu_rows.h"

namespace GPU_NAMESPACE {
namespace {

template <class T, int kPack, int kRowThreads, int kHeld>
__global__ void __launch_bounds__(kRowBlock, kHeld == 4 ? 4 : 2)
    rmsnorm_forward_kernel(T* y, float* rstd, const T* x, const T* w, int64_t num_rows, int channels,
                           float eps, uint32_t* absmax) {
    wait_for_previous();
    let_next_start();
    const int64_t row = row_of_thread<kRowThreads>();
    LargestMagnitude largest(absmax);
    if (row < num_rows) {  // or not: a whole warp
        using Part = Elements<T, kPack>;
        const HeldRow<T, kPack, kRowThreads, kHeld> held(x + row * channels, channels);
        float square = 0;
        held.for_each([&](int, const Part& part) {
            for (int k = 0; k < kPack; ++k) square += to_float(part[k]) * to_float(part[k]);
        });
        const float r = 1.0f / sqrtf(row_sum<kRowThreads>(square) / static_cast<float>(channels) + eps);
        if (held.thread() == 0) rstd[row] = r;

        T* const result = y + row * channels;
        held.for_each([&](int c, const Part& part) {
            const Part weight = load_elements<kPack>(w + c);
            Floats<kPack> out;
            for (int k = 0; k < kPack; ++k) out[k] = to_float(part[k]) * r * to_float(weight[k]);
            const Part rounded = rounded_to<T>(out);
            store_elements(result + c, rounded);
            largest.add(rounded);
        });
    }
    largest.raise_by_block();
}

template <class T>
void forward(Tensor y, Tensor rstd, Tensor x, Tensor w, float eps, Tensor absmax, Stream stream) {
    const int64_t num_rows = x.dims[0], channels = x.dims[1];
    for_row_shape<T>(rows_have_packs<T>(channels, y.data, x.data, w.data), num_rows, channels,
                     [&](auto pack, auto row_threads, auto held, int64_t blocks) {
                         launch(rmsnorm_forward_kernel<T, pack(), row_threads(), held()>, blocks, kRowBlock,
                                0, stream, y.as<T>(), rstd.as<float>(), x.as<T>(), w.as<T>(), num_rows,
                                static_cast<int>(channels), eps, absmax_bits(absmax));
                     });
}

}  // namespace

void rmsnorm_forward(Tensor y, Tensor rstd, Tensor x, Tensor w, float eps, Tensor absmax, Stream stream) {
    check_rmsnorm_forward(y, rstd, x, w, absmax);
    (x.dtype == DType::f32 ? forward<float> : forward<bf16>)(y, rstd, x, w, eps, absmax, stream);
}

void rmsnorm_backward(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, bool accumulate_dx,
                      Tensor absmax, Stream stream) {
    check_rmsnorm_backward(dx, dw, dy, x, w, rstd, absmax);
    (x.dtype == DType::f32 ? norm_backward<float> : norm_backward<bf16>)(dx, dw, {}, dy, x, w, {}, rstd,
                                                                         accumulate_dx, absmax, stream);
}

}  // namespace GPU_NAMESPACE
