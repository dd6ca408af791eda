// Activation functions on the GPU, for the kernels that apply them and for those that fuse them. T is what
// the result will be rounded to: a bf16 does not see the last bits, so it is served by the hardware's
// approximate exponential and reciprocal (about 1e-6, one instruction each), which f32 would see.
#pragma once
#include "kernels/gpu.h"

namespace GPU_NAMESPACE {

// 1 / (1 + e^-x): 0 at -infinity, 1 at infinity, NaN stays.
template <class T>
__device__ float sigmoid(float x) {
    if constexpr (sizeof(T) == 2) {
        return __fdividef(1.0f, 1.0f + __expf(-x));
    } else {
        return 1.0f / (1.0f + expf(-x));
    }
}

constexpr float kGeluScale = 0.7978845608028654f;  // sqrt(2/pi)
constexpr float kGeluCube = 0.044715f;

// x/2 (1 + tanh u) = x sigmoid(2u)
template <class T>
__device__ float gelu(float x) {
    return x * sigmoid<T>(2.0f * kGeluScale * (x + kGeluCube * x * x * x));
}
template <class T>
__device__ float gelu_derivative(float x) {
    const float s = sigmoid<T>(2.0f * kGeluScale * (x + kGeluCube * x * x * x));
    return s + x * s * (1.0f - s) * (2.0f * kGeluScale * (1.0f + 3.0f * kGeluCube * x * x));
}

}  // namespace GPU_NAMESPACE
