// SwiGLU on the CPU: one pass over memory. A gate of -infinity gives NaN, as the formula does.
#include "kernels/swiglu.h"

#include "kernels/check.h"
#include "kernels/elementwise.h"
#include "kernels/quantize.h"

#ifdef ISA_PLAIN
static void check_swiglu(const char* op, const char* half_name, Tensor half, Tensor gate_up, Tensor absmax) {
    const ArgumentCheck check{op, gate_up.device};
    check.floats("gate_up", gate_up, {-1, -1});
    check.that(gate_up.dims[1] % 2 == 0, "gate_up", "an even last dimension",
               static_cast<double>(gate_up.dims[1]));
    check.tensor(half_name, half, gate_up.dtype, {gate_up.dims[0], gate_up.dims[1] / 2});
    check.absmax(absmax);
}

void check_swiglu_forward(Tensor out, Tensor gate_up, Tensor absmax) {
    check_swiglu("swiglu_forward", "out", out, gate_up, absmax);
}

void check_swiglu_backward(Tensor dgate_up, Tensor gate_up, Tensor dout, Tensor absmax) {
    check_swiglu("swiglu_backward", "dout", dout, gate_up, absmax);
    ArgumentCheck{"swiglu_backward", gate_up.device}.like("dgate_up", dgate_up, gate_up);
}
#endif

namespace ISA_NAMESPACE {
namespace {

template <class T>
void forward(Tensor out, Tensor gate_up) {
    const int64_t width = out.dims[1];
    for_each_row(out.dims[0], 2 * width, [&](int64_t row) {
        const T* gate = gate_up.as<T>() + row * 2 * width;
        T* result = out.as<T>() + row * width;
        for_each_vec_of(0, width, [&](int64_t i, int64_t n) ALWAYS_INLINE {
            const Vec g = load_first(gate + i, n), u = load_first(gate + width + i, n);
            store_first(result + i, g * sigmoid(g) * u, n);
        });
    });
}

// silu'(g) = s (1 + g (1 - s)),  s = sigmoid(g)
template <class T>
void backward(Tensor dgate_up, Tensor gate_up, Tensor dout) {
    const int64_t width = dout.dims[1];
    for_each_row(dout.dims[0], 4 * width, [&](int64_t row) {
        const T* gate = gate_up.as<T>() + row * 2 * width;
        const T* gradient = dout.as<T>() + row * width;
        T* dgate = dgate_up.as<T>() + row * 2 * width;
        for_each_vec_of(0, width, [&](int64_t i, int64_t n) ALWAYS_INLINE {
            const Vec g = load_first(gate + i, n), u = load_first(gate + width + i, n);
            const Vec d = load_first(gradient + i, n), s = sigmoid(g);
            store_first(dgate + i, d * u * s * (1.0f + g * (1.0f - s)), n);
            store_first(dgate + width + i, d * g * s, n);
        });
    });
}

}  // namespace

void swiglu_forward(Tensor out, Tensor gate_up, Tensor absmax, Stream) {
    check_swiglu_forward(out, gate_up, absmax);
    (out.dtype == DType::f32 ? forward<float> : forward<bf16>)(out, gate_up);
    if (!absmax.absent()) raise_absmax(absmax, out);
}

void swiglu_backward(Tensor dgate_up, Tensor gate_up, Tensor dout, Tensor absmax, Stream) {
    check_swiglu_backward(dgate_up, gate_up, dout, absmax);
    (dout.dtype == DType::f32 ? backward<float> : backward<bf16>)(dgate_up, gate_up, dout);
    if (!absmax.absent()) raise_absmax(absmax, dgate_up);
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(gate_up.device, void, swiglu_forward, (Tensor out, Tensor gate_up, Tensor absmax, Stream stream),
             (out, gate_up, absmax, stream))
DEVICE_ENTRY(gate_up.device, void, swiglu_backward,
             (Tensor dgate_up, Tensor gate_up, Tensor dout, Tensor absmax, Stream stream),
             (dgate_up, gate_up, dout, absmax, stream))
