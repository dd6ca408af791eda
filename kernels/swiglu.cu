// SwiGLU on the GPU. Forward moves 3 elements (2 read, 1 written) for each of the N F outputs, backward 5 (3
// read, 2 written); some 20 instructions, two of them on the special function units: bound by memory. Not
// measured yet on a GPU.
#include "kernels/swiglu.h"

#include "kernels/gpu_absmax.h"
#include "kernels/gpu_activations.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kMaxThreads = 256;

// blockIdx.x is the row, blockIdx.y the part of its width.
template <class T, int kCount>
__global__ void __launch_bounds__(kMaxThreads)
    swiglu_forward_kernel(T* out, const T* gate_up, int64_t width, uint32_t* absmax) {
    wait_for_previous();
    let_next_start();
    LargestMagnitude largest(absmax);
    const int64_t i = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kCount;
    if (i < width) {
        const T* gate = gate_up + blockIdx.x * 2 * width + i;
        const Elements<T, kCount> g = load_elements<kCount>(gate), u = load_elements<kCount>(gate + width);
        Floats<kCount> result;
        for (int k = 0; k < kCount; ++k) {
            const float x = to_float(g[k]);
            result[k] = x * sigmoid<T>(x) * to_float(u[k]);
        }
        const Elements<T, kCount> rounded = rounded_to<T>(result);
        store_elements(out + blockIdx.x * width + i, rounded);
        largest.add(rounded);
    }
    largest.raise_by_block();
}

// silu'(g) = s (1 + g (1 - s)),  s = sigmoid(g)
template <class T, int kCount>
__global__ void __launch_bounds__(kMaxThreads)
    swiglu_backward_kernel(T* dgate_up, const T* gate_up, const T* dout, int64_t width, uint32_t* absmax) {
    wait_for_previous();
    let_next_start();
    LargestMagnitude largest(absmax);
    const int64_t i = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kCount;
    if (i < width) {
        const int64_t at = blockIdx.x * 2 * width + i;
        const Elements<T, kCount> g = load_elements<kCount>(gate_up + at);
        const Elements<T, kCount> u = load_elements<kCount>(gate_up + at + width);
        const Elements<T, kCount> d = load_elements<kCount>(dout + blockIdx.x * width + i);
        Floats<kCount> dgate, dup;
        for (int k = 0; k < kCount; ++k) {
            const float x = to_float(g[k]), gradient = to_float(d[k]), s = sigmoid<T>(x);
            dgate[k] = gradient * to_float(u[k]) * s * (1.0f + x * (1.0f - s));
            dup[k] = gradient * x * s;
        }
        const Elements<T, kCount> rounded_dgate = rounded_to<T>(dgate), rounded_dup = rounded_to<T>(dup);
        store_elements(dgate_up + at, rounded_dgate);
        store_elements(dgate_up + at + width, rounded_dup);
        largest.add(rounded_dgate);
        largest.add(rounded_dup);
    }
    largest.raise_by_block();
}

// Whether each row's halves can be cut into whole, aligned packs.
template <class T>
bool has_packs(int64_t width, Tensor a, Tensor b, Tensor c) {
    return width % kFullPack<T> == 0 && is_aligned128(a.data, b.data, c.data);
}
int threads_for(int64_t packs) {
    return static_cast<int>(packs < kMaxThreads ? ceil_div(packs, kWarp) * kWarp : kMaxThreads);
}
Grid grid_of(int64_t rows, int64_t packs) {
    const int64_t parts = packs > 0 ? ceil_div(packs, threads_for(packs)) : 0;
    return dim3(static_cast<unsigned>(rows), static_cast<unsigned>(parts));
}

template <class T>
void forward(Tensor out, Tensor gate_up, Tensor absmax, Stream stream) {
    const int64_t rows = out.dims[0], width = out.dims[1];
    const bool packed = has_packs<T>(width, out, gate_up, {});
    const int64_t packs = packed ? width / kFullPack<T> : width;
    launch(packed ? swiglu_forward_kernel<T, kFullPack<T>> : swiglu_forward_kernel<T, 1>,
           grid_of(rows, packs), threads_for(packs), 0, stream, out.as<T>(), gate_up.as<T>(), width,
           absmax_bits(absmax));
}

template <class T>
void backward(Tensor dgate_up, Tensor gate_up, Tensor dout, Tensor absmax, Stream stream) {
    const int64_t rows = dout.dims[0], width = dout.dims[1];
    const bool packed = has_packs<T>(width, dgate_up, gate_up, dout);
    const int64_t packs = packed ? width / kFullPack<T> : width;
    launch(packed ? swiglu_backward_kernel<T, kFullPack<T>> : swiglu_backward_kernel<T, 1>,
           grid_of(rows, packs), threads_for(packs), 0, stream, dgate_up.as<T>(), gate_up.as<T>(),
           dout.as<T>(), width, absmax_bits(absmax));
}

}  // namespace

void swiglu_forward(Tensor out, Tensor gate_up, Tensor absmax, Stream stream) {
    check_swiglu_forward(out, gate_up, absmax);
    (out.dtype == DType::f32 ? forward<float> : forward<bf16>)(out, gate_up, absmax, stream);
}

void swiglu_backward(Tensor dgate_up, Tensor gate_up, Tensor dout, Tensor absmax, Stream stream) {
    check_swiglu_backward(dgate_up, gate_up, dout, absmax);
    (dout.dtype == DType::f32 ? backward<float> : backward<bf16>)(dgate_up, gate_up, dout, absmax, stream);
}

}  // namespace GPU_NAMESPACE
