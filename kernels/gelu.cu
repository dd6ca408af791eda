// GELU on the GPU. Forward moves 2 elements (1 read, 1 written), backward 3; some 20 instructions each, two
// of them on the special function units: bound by memory. Not measured yet on a GPU.
#include "kernels/gelu.h"

#include "kernels/gpu_activations.h"
#include "kernels/gpu_elementwise.h"

namespace GPU_NAMESPACE {
namespace {

template <class T>
struct Gelu {
    __device__ float operator()(float x) const { return gelu<T>(x); }
};
template <class T>
struct GeluGradient {
    __device__ float operator()(float x, float dout) const { return gelu_derivative<T>(x) * dout; }
};

}  // namespace

void gelu_forward(Tensor out, Tensor inp, Tensor absmax, Stream stream) {
    check_gelu("gelu_forward", inp, "out", out, "inp", inp, absmax);
    uint32_t* const raised = absmax_bits(absmax);
    if (inp.dtype == DType::f32) {
        return map_elements(Gelu<float>{}, out.as<float>(), inp.as<float>(), inp.size(), stream, raised);
    }
    map_elements(Gelu<bf16>{}, out.as<bf16>(), inp.as<bf16>(), inp.size(), stream, raised);
}

void gelu_backward(Tensor dinp, Tensor inp, Tensor dout, Tensor absmax, Stream stream) {
    check_gelu("gelu_backward", inp, "dinp", dinp, "dout", dout, absmax);
    uint32_t* const raised = absmax_bits(absmax);
    if (inp.dtype == DType::f32) {
        return map_elements(GeluGradient<float>{}, dinp.as<float>(), inp.as<float>(), dout.as<float>(),
                            inp.size(), stream, raised);
    }
    map_elements(GeluGradient<bf16>{}, dinp.as<bf16>(), inp.as<bf16>(), dout.as<bf16>(), inp.size(), stream,
                 raised);
}

}  // namespace GPU_NAMESPACE
