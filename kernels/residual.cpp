// Residual addition on the CPU: one pass, memory-bound.
#include "kernels/residual.h"

#include "kernels/check.h"
#include "kernels/elementwise.h"

#ifdef ISA_PLAIN
void check_residual(Tensor out, Tensor a, Tensor b) {
    const ArgumentCheck check{"residual_forward", out.device};
    check.float_dtype("out", out);
    check.like("a", a, out);
    check.like("b", b, out);
}
#endif

namespace ISA_NAMESPACE {
namespace {

template <class T>
void forward(T* out, const T* a, const T* b, int64_t count) {
    for_each_vec(count, [=](int64_t i, int64_t n) ALWAYS_INLINE {
        store_first(out + i, load_first(a + i, n) + load_first(b + i, n), n);
    });
}

}  // namespace

void residual_forward(Tensor out, Tensor a, Tensor b, Stream) {
    check_residual(out, a, b);
    if (out.dtype == DType::f32) return forward(out.as<float>(), a.as<float>(), b.as<float>(), out.size());
    forward(out.as<bf16>(), a.as<bf16>(), b.as<bf16>(), out.size());
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(out.device, void, residual_forward, (Tensor out, Tensor a, Tensor b, Stream stream),
             (out, a, b, stream))
