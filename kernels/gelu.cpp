// GELU on the CPU: one pass, the exponential in registers. -infinity gives NaN, as the formula does.
#include "kernels/gelu.h"

#include "kernels/check.h"
#include "kernels/elementwise.h"
#include "kernels/quantize.h"

#ifdef ISA_PLAIN
void check_gelu(const char* op, Tensor inp, const char* name0, Tensor t0, const char* name1, Tensor t1,
                Tensor absmax) {
    const ArgumentCheck check{op, inp.device};
    check.float_dtype("inp", inp);
    check.like(name0, t0, inp);
    check.like(name1, t1, inp);
    check.absmax(absmax);
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

void gelu_forward(Tensor out, Tensor inp, Tensor absmax, Stream) {
    check_gelu("gelu_forward", inp, "out", out, "inp", inp, absmax);
    if (inp.dtype == DType::f32) {
        forward(out.as<float>(), inp.as<float>(), inp.size());
    } else {
        forward(out.as<bf16>(), inp.as<bf16>(), inp.size());
    }
    if (!absmax.absent()) raise_absmax(absmax, out);
}

void gelu_backward(Tensor dinp, Tensor inp, Tensor dout, Tensor absmax, Stream) {
    check_gelu("gelu_backward", inp, "dinp", dinp, "dout", dout, absmax);
    if (inp.dtype == DType::f32) {
        backward(dinp.as<float>(), inp.as<float>(), dout.as<float>(), inp.size());
    } else {
        backward(dinp.as<bf16>(), inp.as<bf16>(), dout.as<bf16>(), inp.size());
    }
    if (!absmax.absent()) raise_absmax(absmax, dinp);
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(inp.device, void, gelu_forward, (Tensor out, Tensor inp, Tensor absmax, Stream stream),
             (out, inp, absmax, stream))
DEVICE_ENTRY(inp.device, void, gelu_backward,
             (Tensor dinp, Tensor inp, Tensor dout, Tensor absmax, Stream stream),
             (dinp, inp, dout, absmax, stream))
