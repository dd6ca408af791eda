// LayerNorm on the GPU. Forward reads and writes each element once (and w and b from the caches); backward
// (kernels/gpu_norm_backward.h) reads x and dy and writes dx once. Some 15 instructions an element: bound by
// memory. Not measured yet on a GPU.
#include "kernels/layernorm.h"

#include "kernels/gpu_absmax.h"
#include "kernels/gpu_norm_backward.h"
#include "kernels/gpu_rows.h"

namespace GPU_NAMESPACE {
namespace {

template <class T, int kPack, int kRowThreads, int kHeld>
__global__ void __launch_bounds__(kRowBlock, kHeld == 4 ? 4 : 2)
    layernorm_forward_kernel(T* y, float* mean, float* rstd, const T* x, const T* w, const T* b,
                             int64_t num_rows, int channels, float eps, uint32_t* absmax) {
    wait_for_previous();
    let_next_start();
    const int64_t row = row_of_thread<kRowThreads>();
    LargestMagnitude largest(absmax);
    if (row < num_rows) {  // or not: a whole warp
        using Part = Elements<T, kPack>;
        const HeldRow<T, kPack, kRowThreads, kHeld> held(x + row * channels, channels);
        const float inverse_count = 1.0f / static_cast<float>(channels);

        float sum = 0;
        held.for_each([&](int, const Part& part) {
            for (int k = 0; k < kPack; ++k) sum += to_float(part[k]);
        });
        const float rough_mean = inverse_count * row_sum<kRowThreads>(sum);
        // The rounding of that sum grows with the mean; the sum of what is left finds it, and the variance
        // allows for it.
        float sum_rest = 0, square = 0;
        held.for_each([&](int, const Part& part) {
            for (int k = 0; k < kPack; ++k) {
                const float centred = to_float(part[k]) - rough_mean;
                sum_rest += centred;
                square += centred * centred;
            }
        });
        const float rest = inverse_count * row_sum<kRowThreads>(sum_rest);
        const float difference = fmaf(inverse_count, row_sum<kRowThreads>(square), -rest * rest);
        const float variance =
            difference < 0 ? 0 : difference;  // rounding, in a row of equal values; NaN passes
        const float r = 1.0f / sqrtf(variance + eps);
        if (held.thread() == 0) {
            mean[row] = rough_mean + rest;
            rstd[row] = r;
        }

        T* const result = y + row * channels;
        held.for_each([&](int c, const Part& part) {
            const Part weight = load_elements<kPack>(w + c), bias = load_elements<kPack>(b + c);
            Floats<kPack> out;
            for (int k = 0; k < kPack; ++k) {
                const float xhat = (to_float(part[k]) - rough_mean - rest) * r;
                out[k] = xhat * to_float(weight[k]) + to_float(bias[k]);
            }
            const Part rounded = rounded_to<T>(out);
            store_elements(result + c, rounded);
            largest.add(rounded);
        });
    }
    largest.raise_by_block();
}

template <class T>
void forward(Tensor y, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor b, float eps, Tensor absmax,
             Stream stream) {
    const int64_t num_rows = x.dims[0], channels = x.dims[1];
    for_row_shape<T>(rows_have_packs<T>(channels, y.data, x.data, w.data, b.data), num_rows, channels,
                     [&](auto pack, auto row_threads, auto held, int64_t blocks) {
                         launch(layernorm_forward_kernel<T, pack(), row_threads(), held()>, blocks, kRowBlock,
                                0, stream, y.as<T>(), mean.as<float>(), rstd.as<float>(), x.as<T>(),
                                w.as<T>(), b.as<T>(), num_rows, static_cast<int>(channels), eps,
                                absmax_bits(absmax));
                     });
}

}  // namespace

void layernorm_forward(Tensor y, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor b, float eps,
                       Tensor absmax, Stream stream) {
    check_layernorm_forward(y, mean, rstd, x, w, b, absmax);
    (x.dtype == DType::f32 ? forward<float> : forward<bf16>)(y, mean, rstd, x, w, b, eps, absmax, stream);
}

void layernorm_backward(Tensor dx, Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor w, Tensor mean,
                        Tensor rstd, bool accumulate_dx, Tensor absmax, Stream stream) {
    check_layernorm_backward(dx, dw, db, dy, x, w, mean, rstd, absmax);
    (x.dtype == DType::f32 ? norm_backward<float> : norm_backward<bf16>)(dx, dw, db, dy, x, w, mean, rstd,
                                                                         accumulate_dx, absmax, stream);
}

}  // namespace GPU_NAMESPACE
