// LayerNorm on the CPU. Forward takes the mean first and the variance of what is left, so a mean far from
// zero costs no accuracy; the row is read again from L1. Backward sums dw and db over fixed chunks of rows.
// Memory-bound where the activations do not fit the cache.
#include "kernels/layernorm.h"

#include <cmath>

#include "kernels/check.h"
#include "kernels/elementwise.h"
#include "kernels/quantize.h"
#include "kernels/row_chunks.h"

#ifdef ISA_PLAIN
void check_layernorm_forward(Tensor y, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor b,
                             Tensor absmax) {
    const ArgumentCheck check{"layernorm_forward", x.device};
    check.floats("x", x, {-1, -1});
    check.like("y", y, x);
    check.tensor("w", w, x.dtype, {x.dims[1]});
    check.tensor("b", b, x.dtype, {x.dims[1]});
    check.tensor("mean", mean, DType::f32, {x.dims[0]});
    check.tensor("rstd", rstd, DType::f32, {x.dims[0]});
    check.absmax(absmax);
}

void check_layernorm_backward(Tensor dx, Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor w, Tensor mean,
                              Tensor rstd, Tensor absmax) {
    const ArgumentCheck check{"layernorm_backward", x.device};
    check.floats("x", x, {-1, -1});
    check.like("dx", dx, x);
    check.like("dy", dy, x);
    check.tensor("w", w, x.dtype, {x.dims[1]});
    check.tensor("dw", dw, DType::f32, {x.dims[1]});
    check.tensor("db", db, DType::f32, {x.dims[1]});
    check.tensor("mean", mean, DType::f32, {x.dims[0]});
    check.tensor("rstd", rstd, DType::f32, {x.dims[0]});
    check.absmax(absmax);
}
#endif

namespace ISA_NAMESPACE {
namespace {

// Lanes below n keep x, the others become 0 (where 0 - mean would not be).
SIMD_INLINE Vec first_lanes(Vec x, int64_t n) {
    if (n >= kWidth) return x;
    for (int64_t i = n; i < kWidth; ++i) x[i] = 0;
    return x;
}

template <class T>
void forward_row(T* y, float* mean, float* rstd, const T* x, const T* w, const T* b, int64_t channels,
                 float eps) {
    const float inverse_count = 1.0f / static_cast<float>(channels);
    const float rough_mean = inverse_count * sum_over(channels, [&](int64_t c, int64_t n) ALWAYS_INLINE {
                                 return load_first(x + c, n);
                             });
    // The rounding of that sum grows with the mean; the sum of what is left finds it, and the variance allows
    // for it.
    Vec sum_rest{};
    const float square = sum_over(channels, [&](int64_t c, int64_t n) ALWAYS_INLINE {
        const Vec centred = first_lanes(load_first(x + c, n) - rough_mean, n);
        sum_rest += centred;
        return centred * centred;
    });
    const float rest = inverse_count * reduce_add(sum_rest);
    const float difference = inverse_count * square - rest * rest;
    const float variance = difference < 0 ? 0 : difference;  // rounding, in a row of equal values; NaN passes
    const float r = 1.0f / std::sqrt(variance + eps);
    *mean = rough_mean + rest;
    *rstd = r;
    for_each_vec_of(0, channels, [&](int64_t c, int64_t n) ALWAYS_INLINE {
        const Vec xhat = (load_first(x + c, n) - rough_mean - rest) * r;
        store_first(y + c, xhat * load_first(w + c, n) + load_first(b + c, n), n);
    });
}

// With xhat = (x - mean) rstd and g = dy w:
//   dx = rstd (g - mean(g) - xhat mean(g xhat)),  dw += dy xhat,  db += dy
template <class T>
void backward_row(T* dx, float* dw, float* db, const T* dy, const T* x, const T* w, float mean, float rstd,
                  int64_t channels, bool accumulate) {
    const float inverse_count = 1.0f / static_cast<float>(channels);
    Vec sum_g{};
    const float sum_g_xhat = sum_over(channels, [&](int64_t c, int64_t n) ALWAYS_INLINE {
        const Vec g = load_first(dy + c, n) * load_first(w + c, n);
        sum_g += g;
        return g * ((load_first(x + c, n) - mean) * rstd);
    });
    const float mean_g = reduce_add(sum_g) * inverse_count, mean_g_xhat = sum_g_xhat * inverse_count;
    for_each_vec_of(0, channels, [&](int64_t c, int64_t n) ALWAYS_INLINE {
        const Vec gradient = load_first(dy + c, n), xhat = (load_first(x + c, n) - mean) * rstd;
        store_first(db + c, load_first(db + c, n) + gradient, n);
        store_first(dw + c, fma(gradient, xhat, load_first(dw + c, n)), n);
        Vec result = rstd * (gradient * load_first(w + c, n) - mean_g - xhat * mean_g_xhat);
        if (accumulate) result += load_first(dx + c, n);
        store_first(dx + c, result, n);
    });
}

template <class T>
void forward(Tensor y, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor b, float eps) {
    const int64_t channels = x.dims[1];
    for_each_row(x.dims[0], channels, [&](int64_t row) {
        forward_row(y.as<T>() + row * channels, mean.as<float>() + row, rstd.as<float>() + row,
                    x.as<T>() + row * channels, w.as<T>(), b.as<T>(), channels, eps);
    });
}

template <class T>
void backward(Tensor dx, Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor w, Tensor mean, Tensor rstd,
              bool accumulate_dx) {
    const int64_t channels = x.dims[1];
    RowSums sums(x.dims[0], 2 * channels);  // dw, then db
    sums.for_each_chunk([&](int64_t begin, int64_t end, float* chunk) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t at = row * channels;
            backward_row(dx.as<T>() + at, chunk, chunk + channels, dy.as<T>() + at, x.as<T>() + at, w.as<T>(),
                         mean.as<float>()[row], rstd.as<float>()[row], channels, accumulate_dx);
        }
    });
    sums.add_to(dw.as<float>(), 0, channels);
    sums.add_to(db.as<float>(), channels, channels);
}

}  // namespace

void layernorm_forward(Tensor y, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor b, float eps,
                       Tensor absmax, Stream) {
    check_layernorm_forward(y, mean, rstd, x, w, b, absmax);
    (x.dtype == DType::f32 ? forward<float> : forward<bf16>)(y, mean, rstd, x, w, b, eps);
    if (!absmax.absent()) raise_absmax(absmax, y);
}

void layernorm_backward(Tensor dx, Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor w, Tensor mean,
                        Tensor rstd, bool accumulate_dx, Tensor absmax, Stream) {
    check_layernorm_backward(dx, dw, db, dy, x, w, mean, rstd, absmax);
    (x.dtype == DType::f32 ? backward<float> : backward<bf16>)(dx, dw, db, dy, x, w, mean, rstd,
                                                               accumulate_dx);
    if (!absmax.absent()) raise_absmax(absmax, dx);
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(x.device, void, layernorm_forward,
             (Tensor y, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor b, float eps, Tensor absmax,
              Stream stream),
             (y, mean, rstd, x, w, b, eps, absmax, stream))
DEVICE_ENTRY(x.device, void, layernorm_backward,
             (Tensor dx, Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor w, Tensor mean, Tensor rstd,
              bool accumulate_dx, Tensor absmax, Stream stream),
             (dx, dw, db, dy, x, w, mean, rstd, accumulate_dx, absmax, stream))
