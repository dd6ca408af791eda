// QK-norm on the CPU: RMSNorm of each query and key head, in place in the packed qkv. A head (64 to 256
// channels) stays in L1 between its two reads. dwq and dwk are summed over fixed chunks of rows.
#include "kernels/qknorm.h"

#include <cmath>

#include "kernels/check.h"
#include "kernels/elementwise.h"
#include "kernels/quantize.h"
#include "kernels/row_chunks.h"

#ifdef ISA_PLAIN
static void check_qknorm(const ArgumentCheck& check, const char* name, Tensor qkv, Tensor rstd, Tensor wq,
                         Tensor wk, int64_t num_heads, int64_t num_kv_heads) {
    check.floats("wq", wq, {-1});
    check.that(check.device == Device::cpu || wq.dims[0] <= kMaxQkNormHeadDim, "wq",
               "a head dim that a GPU's warp can hold", static_cast<double>(wq.dims[0]));
    check.like("wk", wk, wq);
    check.tensor(name, qkv, wq.dtype, {-1, (num_heads + 2 * num_kv_heads) * wq.dims[0]});
    check.tensor("rstd", rstd, DType::f32, {qkv.dims[0], num_heads + num_kv_heads});
}

void check_qknorm_forward(Tensor qkv, Tensor rstd, Tensor raw, Tensor wq, Tensor wk, int64_t num_heads,
                          int64_t num_kv_heads) {
    const ArgumentCheck check{"qknorm_forward", qkv.device};
    check_qknorm(check, "qkv", qkv, rstd, wq, wk, num_heads, num_kv_heads);
    if (raw.absent()) return;
    check.tensor("raw", raw, qkv.dtype, {qkv.dims[0], (num_heads + num_kv_heads) * wq.dims[0]});
}

void check_qknorm_backward(Tensor dqkv, Tensor dwq, Tensor dwk, Tensor raw, Tensor rstd, Tensor wq, Tensor wk,
                           int64_t num_heads, int64_t num_kv_heads, Tensor absmax) {
    const ArgumentCheck check{"qknorm_backward", dqkv.device};
    check.absmax(absmax);
    check_qknorm(check, "dqkv", dqkv, rstd, wq, wk, num_heads, num_kv_heads);
    check.tensor("raw", raw, dqkv.dtype, {dqkv.dims[0], (num_heads + num_kv_heads) * wq.dims[0]});
    check.tensor("dwq", dwq, DType::f32, {wq.dims[0]});
    check.tensor("dwk", dwk, DType::f32, {wq.dims[0]});
}
#endif

namespace ISA_NAMESPACE {
namespace {

template <class T>
void forward_head(T* x, float* rstd, const T* w, int64_t head_dim, float eps) {
    const float square = sum_over(head_dim, [&](int64_t i, int64_t n) ALWAYS_INLINE {
        const Vec v = load_first(x + i, n);
        return v * v;
    });
    const float r = 1.0f / std::sqrt(square / static_cast<float>(head_dim) + eps);
    *rstd = r;
    for_each_vec_of(0, head_dim, [&](int64_t i, int64_t n) ALWAYS_INLINE {
        store_first(x + i, load_first(x + i, n) * r * load_first(w + i, n), n);
    });
}

// In place: dx = rstd (g - xhat mean(g xhat)) with g = dx w, xhat = raw rstd;  dw += dx xhat
template <class T>
void backward_head(T* dx, float* dw, const T* raw, const T* w, float rstd, int64_t head_dim) {
    const float product = sum_over(head_dim, [&](int64_t i, int64_t n) ALWAYS_INLINE {
        return load_first(dx + i, n) * load_first(w + i, n) * load_first(raw + i, n);
    });
    const float mean = product * rstd / static_cast<float>(head_dim);
    for_each_vec_of(0, head_dim, [&](int64_t i, int64_t n) ALWAYS_INLINE {
        const Vec gradient = load_first(dx + i, n), xhat = load_first(raw + i, n) * rstd;
        store_first(dw + i, fma(gradient, xhat, load_first(dw + i, n)), n);
        store_first(dx + i, rstd * (gradient * load_first(w + i, n) - xhat * mean), n);
    });
}

template <class T>
void forward(Tensor qkv, Tensor rstd, Tensor raw, Tensor wq, Tensor wk, float eps, int64_t num_heads,
             int64_t num_kv_heads) {
    const int64_t heads = num_heads + num_kv_heads, head_dim = wq.dims[0], width = qkv.dims[1];
    for_each_row(qkv.dims[0], heads * head_dim, [&](int64_t row) {
        T* x = qkv.as<T>() + row * width;
        if (!raw.absent()) {
            std::memcpy(raw.as<T>() + row * heads * head_dim, x,
                        static_cast<size_t>(heads * head_dim) * sizeof(T));
        }
        for (int64_t head = 0; head < heads; ++head) {
            const T* w = head < num_heads ? wq.as<T>() : wk.as<T>();
            forward_head(x + head * head_dim, rstd.as<float>() + row * heads + head, w, head_dim, eps);
        }
    });
}

template <class T>
void backward(Tensor dqkv, Tensor dwq, Tensor dwk, Tensor raw, Tensor rstd, Tensor wq, Tensor wk,
              int64_t num_heads, int64_t num_kv_heads) {
    const int64_t heads = num_heads + num_kv_heads, head_dim = wq.dims[0], width = dqkv.dims[1];
    RowSums sums(dqkv.dims[0], 2 * head_dim);  // dwq, then dwk
    sums.for_each_chunk([&](int64_t begin, int64_t end, float* chunk) {
        for (int64_t row = begin; row < end; ++row) {
            for (int64_t head = 0; head < heads; ++head) {
                const bool is_query = head < num_heads;
                backward_head(
                    dqkv.as<T>() + row * width + head * head_dim, is_query ? chunk : chunk + head_dim,
                    raw.as<T>() + (row * heads + head) * head_dim, is_query ? wq.as<T>() : wk.as<T>(),
                    rstd.as<float>()[row * heads + head], head_dim);
            }
        }
    });
    sums.add_to(dwq.as<float>(), 0, head_dim);
    sums.add_to(dwk.as<float>(), head_dim, head_dim);
}

}  // namespace

void qknorm_forward(Tensor qkv, Tensor rstd, Tensor raw, Tensor wq, Tensor wk, float eps, int64_t num_heads,
                    int64_t num_kv_heads, Stream) {
    check_qknorm_forward(qkv, rstd, raw, wq, wk, num_heads, num_kv_heads);
    if (qkv.dtype == DType::f32) return forward<float>(qkv, rstd, raw, wq, wk, eps, num_heads, num_kv_heads);
    forward<bf16>(qkv, rstd, raw, wq, wk, eps, num_heads, num_kv_heads);
}

void qknorm_backward(Tensor dqkv, Tensor dwq, Tensor dwk, Tensor raw, Tensor rstd, Tensor wq, Tensor wk,
                     int64_t num_heads, int64_t num_kv_heads, Tensor absmax, Stream) {
    check_qknorm_backward(dqkv, dwq, dwk, raw, rstd, wq, wk, num_heads, num_kv_heads, absmax);
    (dqkv.dtype == DType::f32 ? backward<float> : backward<bf16>)(dqkv, dwq, dwk, raw, rstd, wq, wk,
                                                                  num_heads, num_kv_heads);
    if (!absmax.absent()) raise_absmax(absmax, dqkv);
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(qkv.device, void, qknorm_forward,
             (Tensor qkv, Tensor rstd, Tensor raw, Tensor wq, Tensor wk, float eps, int64_t num_heads,
              int64_t num_kv_heads, Stream stream),
             (qkv, rstd, raw, wq, wk, eps, num_heads, num_kv_heads, stream))
DEVICE_ENTRY(dqkv.device, void, qknorm_backward,
             (Tensor dqkv, Tensor dwq, Tensor dwk, Tensor raw, Tensor rstd, Tensor wq, Tensor wk,
              int64_t num_heads, int64_t num_kv_heads, Tensor absmax, Stream stream),
             (dqkv, dwq, dwk, raw, rstd, wq, wk, num_heads, num_kv_heads, absmax, stream))
