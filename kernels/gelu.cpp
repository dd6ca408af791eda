// GELU on the CPU: one pass, the exponential in registers. -infinity gives NaN, as the formula does.
#include "kernels/gelu.h"

#include "kernels/check.h"
#include "kernels/elementwise.h"

#ifdef ISA_PLAIN
void check_gelu(const char* op, Tensor inp, const char* name0, Tensor t0, const char* name1, Tensor t1) {
    const ArgumentCheck check{op, inp.device};
    check.float_dtype("inp", inp);
    check.like(name0, t0, inp);
    check.like(name1, t1, inp);
}
#endif

namespace ISA_NAMESPACE {
namespace {

template <class T>
void forward(T* out, const T* inp, int64_t count) {
    for_each_vec(count, [=](int64_t i, int64_t n)
                            ALWAYS_INLINE { store_first(out + i, gelu(load_first(inp + i, n)), n); });
}

template <class T>
void backward(T* dinp, const T* inp, const T* dout, int64_t count) {
    for_each_vec(count, [=](int64_t i, int64_t n) ALWAYS_INLINE {
        store_first(dinp + i, gelu_derivative(load_first(inp + i, n)) * load_first(dout + i, n), n);
    });
}

}  // namespace

void gelu_forward(Tensor out, Tensor inp, Stream) {
    check_gelu("gelu_forward", inp, "out", out, "inp", inp);
    if (inp.dtype == DType::f32) return forward(out.as<float>(), inp.as<float>(), inp.size());
    forward(out.as<bf16>(), inp.as<bf16>(), inp.size());
}

void gelu_backward(Tensor dinp, Tensor inp, Tensor dout, Stream) {
    check_gelu("gelu_backward", inp, "dinp", dinp, "dout", dout);
    if (inp.dtype == DType::f32) {
        return backward(dinp.as<float>(), inp.as<float>(), dout.as<float>(), inp.size());
    }
    backward(dinp.as<bf16>(), inp.as<bf16>(), dout.as<bf16>(), inp.size());
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(inp.device, void, gelu_forward, (Tensor out, Tensor inp, Stream stream), (out, inp, stream))
DEVICE_ENTRY(inp.device, void, gelu_backward, (Tensor dinp, Tensor inp, Tensor dout, Stream stream),
             (dinp, inp, dout, stream))
