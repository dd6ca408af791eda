// Squared ReLU on the CPU: one pass, memory-bound. NaN stays NaN.
#include "kernels/relu2.h"

#include "kernels/check.h"
#include "kernels/elementwise.h"
#include "kernels/quantize.h"

#ifdef ISA_PLAIN
void check_relu2(const char* op, Tensor inp, const char* name0, Tensor t0, const char* name1, Tensor t1,
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

SIMD_INLINE Vec positive_part(Vec x) { return select(x < splat(0.0f), splat(0.0f), x); }
template <class T>
void forward(T* out, const T* inp, int64_t count) {
    for_each_vec(count, [=](int64_t i, int64_t n) ALWAYS_INLINE {
        const Vec x = positive_part(load_first(inp + i, n));
        store_first(out + i, x * x, n);
    });
}

template <class T>
void backward(T* dinp, const T* inp, const T* dout, int64_t count) {
    for_each_vec(count, [=](int64_t i, int64_t n) ALWAYS_INLINE {
        store_first(dinp + i, 2.0f * positive_part(load_first(inp + i, n)) * load_first(dout + i, n), n);
    });
}

}  // namespace

void relu2_forward(Tensor out, Tensor inp, Tensor absmax, Stream) {
    check_relu2("relu2_forward", inp, "out", out, "inp", inp, absmax);
    if (inp.dtype == DType::f32) {
        forward(out.as<float>(), inp.as<float>(), inp.size());
    } else {
        forward(out.as<bf16>(), inp.as<bf16>(), inp.size());
    }
    if (!absmax.absent()) raise_absmax(absmax, out);
}

void relu2_backward(Tensor dinp, Tensor inp, Tensor dout, Tensor absmax, Stream) {
    check_relu2("relu2_backward", inp, "dinp", dinp, "dout", dout, absmax);
    if (inp.dtype == DType::f32) {
        backward(dinp.as<float>(), inp.as<float>(), dout.as<float>(), inp.size());
    } else {
        backward(dinp.as<bf16>(), inp.as<bf16>(), dout.as<bf16>(), inp.size());
    }
    if (!absmax.absent()) raise_absmax(absmax, dinp);
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(inp.device, void, relu2_forward, (Tensor out, Tensor inp, Tensor absmax, Stream stream),
             (out, inp, absmax, stream))
DEVICE_ENTRY(inp.device, void, relu2_backward,
             (Tensor dinp, Tensor inp, Tensor dout, Tensor absmax, Stream stream),
             (dinp, inp, dout, absmax, stream))
