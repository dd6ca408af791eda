// Squared ReLU on the GPU. Forward moves 2 elements (1 read, 1 written), backward 3; 2 FLOPs each: bound by
// memory. Not measured yet on a GPU.
#include "kernels/relu2.h"

#include "kernels/gpu_elementwise.h"

namespace GPU_NAMESPACE {
namespace {

__device__ inline float positive_part(float x) { return x < 0 ? 0 : x; }  // NaN stays

struct Relu2 {
    __device__ float operator()(float x) const { return positive_part(x) * positive_part(x); }
};
struct Relu2Gradient {
    __device__ float operator()(float x, float dout) const { return 2 * positive_part(x) * dout; }
};

}  // namespace

void relu2_forward(Tensor out, Tensor inp, Tensor absmax, Stream stream) {
    check_relu2("relu2_forward", inp, "out", out, "inp", inp, absmax);
    uint32_t* const raised = absmax_bits(absmax);
    if (inp.dtype == DType::f32) {
        return map_elements(Relu2{}, out.as<float>(), inp.as<float>(), inp.size(), stream, raised);
    }
    map_elements(Relu2{}, out.as<bf16>(), inp.as<bf16>(), inp.size(), stream, raised);
}

void relu2_backward(Tensor dinp, Tensor inp, Tensor dout, Tensor absmax, Stream stream) {
    check_relu2("relu2_backward", inp, "dinp", dinp, "dout", dout, absmax);
    uint32_t* const raised = absmax_bits(absmax);
    if (inp.dtype == DType::f32) {
        return map_elements(Relu2Gradient{}, dinp.as<float>(), inp.as<float>(), dout.as<float>(), inp.size(),
                            stream, raised);
    }
    map_elements(Relu2Gradient{}, dinp.as<bf16>(), inp.as<bf16>(), dout.as<bf16>(), inp.size(), stream,
                 raised);
}

}  // namespace GPU_NAMESPACE
