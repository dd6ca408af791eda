// RMSNorm on the CPU. Forward reads a row twice, the second time from L1. Backward reads x and dy twice the
// same way and sums dw over fixed chunks of rows. Memory-bound where the activations do not fit the cache.
#include "kernels/rmsnorm.h"

#include <cmath>

#include "kernels/check.h"
#include "kernels/elementwise.h"
#include "kernels/quantize.h"
#include "kernels/row_chunks.h"

#ifdef ISA_PLAIN
void check_rmsnorm_forward(Tensor y, Tensor rstd, Tensor x, Tensor w, Tensor absmax) {
    const ArgumentCheck check{"rmsnorm_forward", x.device};
    check.floats("x", x, {-1, -1});
    check.like("y", y, x);
    check.tensor("w", w, x.dtype, {x.dims[1]});
    check.tensor("rstd", rstd, DType::f32, {x.dims[0]});
    check.absmax(absmax);
}

void check_rmsnorm_backward(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, Tensor absmax) {
    const ArgumentCheck check{"rmsnorm_backward", x.device};
    check.floats("x", x, {-1, -1});
    check.like("dx", dx, x);
    check.like("dy", dy, x);
    check.tensor("w", w, x.dtype, {x.dims[1]});
    check.tensor("dw", dw, DType::f32, {x.dims[1]});
    check.tensor("rstd", rstd, DType::f32, {x.dims[0]});
    check.absmax(absmax);
}
#endif

namespace ISA_NAMESPACE {
namespace {

template <class T>
void forward_row(T* y, float* rstd, const T* x, const T* w, int64_t channels, float eps) {
    const float square = sum_over(channels, [&](int64_t c, int64_t n) ALWAYS_INLINE {
        const Vec v = load_first(x + c, n);
        return v * v;
    });
    const float r = 1.0f / std::sqrt(square / static_cast<float>(channels) + eps);
    *rstd = r;
    for_each_vec_of(0, channels, [&](int64_t c, int64_t n) ALWAYS_INLINE {
        store_first(y + c, load_first(x + c, n) * r * load_first(w + c, n), n);
    });
}

// With xhat = x rstd and g = dy w:  dx = rstd (g - xhat mean(g xhat)),  dw += dy xhat
template <class T>
void backward_row(T* dx, float* dw, const T* dy, const T* x, const T* w, float rstd, int64_t channels,
                  bool accumulate) {
    const float product = sum_over(channels, [&](int64_t c, int64_t n) ALWAYS_INLINE {
        return load_first(dy + c, n) * load_first(w + c, n) * load_first(x + c, n);
    });
    const float mean = product * rstd / static_cast<float>(channels);
    for_each_vec_of(0, channels, [&](int64_t c, int64_t n) ALWAYS_INLINE {
        const Vec gradient = load_first(dy + c, n), xhat = load_first(x + c, n) * rstd;
        store_first(dw + c, fma(gradient, xhat, load_first(dw + c, n)), n);
        Vec result = rstd * (gradient * load_first(w + c, n) - xhat * mean);
        if (accumulate) result += load_first(dx + c, n);
        store_first(dx + c, result, n);
    });
}

template <class T>
void forward(Tensor y, Tensor rstd, Tensor x, Tensor w, float eps) {
    const int64_t channels = x.dims[1];
    for_each_row(x.dims[0], channels, [&](int64_t row) {
        forward_row(y.as<T>() + row * channels, rstd.as<float>() + row, x.as<T>() + row * channels, w.as<T>(),
                    channels, eps);
    });
}

template <class T>
void backward(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, bool accumulate_dx) {
    const int64_t channels = x.dims[1];
    RowSums sums(x.dims[0], channels);
    sums.for_each_chunk([&](int64_t begin, int64_t end, float* dw_chunk) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t at = row * channels;
            backward_row(dx.as<T>() + at, dw_chunk, dy.as<T>() + at, x.as<T>() + at, w.as<T>(),
                         rstd.as<float>()[row], channels, accumulate_dx);
        }
    });
    sums.add_to(dw.as<float>(), 0, channels);
}

}  // namespace

void rmsnorm_forward(Tensor y, Tensor rstd, Tensor x, Tensor w, float eps, Tensor absmax, Stream) {
    check_rmsnorm_forward(y, rstd, x, w, absmax);
    (x.dtype == DType::f32 ? forward<float> : forward<bf16>)(y, rstd, x, w, eps);
    if (!absmax.absent()) raise_absmax(absmax, y);
}

void rmsnorm_backward(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, bool accumulate_dx,
                      Tensor absmax, Stream) {
    check_rmsnorm_backward(dx, dw, dy, x, w, rstd, absmax);
    (x.dtype == DType::f32 ? backward<float> : backward<bf16>)(dx, dw, dy, x, w, rstd, accumulate_dx);
    if (!absmax.absent()) raise_absmax(absmax, dx);
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(x.device, void, rmsnorm_forward,
             (Tensor y, Tensor rstd, Tensor x, Tensor w, float eps, Tensor absmax, Stream stream),
             (y, rstd, x, w, eps, absmax, stream))
DEVICE_ENTRY(x.device, void, rmsnorm_backward,
             (Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, bool accumulate_dx,
              Tensor absmax, Stream stream),
             (dx, dw, dy, x, w, rstd, accumulate_dx, absmax, stream))
