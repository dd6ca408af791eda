// GPU kernels that treat every element alone: out[i] = f(a[i]) or f(a[i], b[i]), in f32. out may alias a and
// b.
#pragma once
#include "kernels/gpu_absmax.h"

namespace GPU_NAMESPACE {

constexpr int kElementThreads = 256;
constexpr int kElementSteps = 2;  // packs of each input that a thread has under way at a time

// A block's threads take neighbouring packs, kElementSteps times. What is left of a pack at the end goes by
// elements.
template <int kInputs, int kCount, class Out, class In, class F>
__global__ void __launch_bounds__(kElementThreads)
    elementwise_kernel(F f, Out* out, const In* a, const In* b, int64_t count, uint32_t* absmax) {
    wait_for_previous();
    let_next_start();
    constexpr int64_t kStride = kElementThreads * kCount;
    const int64_t first = int64_t{blockIdx.x} * kElementSteps * kStride + threadIdx.x * kCount;
    Elements<In, kCount> x[kElementSteps] = {}, y[kElementSteps] = {};
    for (int step = 0; step < kElementSteps; ++step) {
        const int64_t i = first + step * kStride;
        if (i + kCount > count) break;
        x[step] = load_elements<kCount>(a + i);
        if constexpr (kInputs == 2) y[step] = load_elements<kCount>(b + i);
    }
    LargestMagnitude largest(absmax);
    for (int step = 0; step < kElementSteps; ++step) {
        const int64_t i = first + step * kStride;
        if (i + kCount <= count) {
            Floats<kCount> result;
            for (int k = 0; k < kCount; ++k) {
                if constexpr (kInputs == 2) {
                    result[k] = f(to_float(x[step][k]), to_float(y[step][k]));
                } else {
                    result[k] = f(to_float(x[step][k]));
                }
            }
            const Elements<Out, kCount> rounded = rounded_to<Out>(result);
            store_elements(out + i, rounded);
            largest.add(rounded);
            continue;
        }
        for (int64_t k = i; k < count; ++k) {
            if constexpr (kInputs == 2) {
                out[k] = from_float<Out>(f(to_float(a[k]), to_float(b[k])));
            } else {
                out[k] = from_float<Out>(f(to_float(a[k])));
            }
            largest.add(out[k]);
        }
        break;
    }
    largest.raise_by_block();
}

// f: a functor whose operator() is a __device__ function of one or two floats. absmax: null, or raised to the
// largest magnitude of `out`.
template <int kInputs, class Out, class In, class F>
void launch_elementwise(F f, Out* out, const In* a, const In* b, int64_t count, Stream stream,
                        uint32_t* absmax) {
    constexpr int kPack = sizeof(In) > sizeof(Out) ? kFullPack<In> : kFullPack<Out>;
    const bool packed = is_aligned128(out, a, b);
    const auto kernel =
        packed ? elementwise_kernel<kInputs, kPack, Out, In, F> : elementwise_kernel<kInputs, 1, Out, In, F>;
    launch(kernel, ceil_div(count, kElementThreads * kElementSteps * (packed ? kPack : 1)), kElementThreads,
           0, stream, f, out, a, b, count, absmax);
}
template <class Out, class In, class F>
void map_elements(F f, Out* out, const In* inp, int64_t count, Stream stream, uint32_t* absmax = nullptr) {
    launch_elementwise<1>(f, out, inp, static_cast<const In*>(nullptr), count, stream, absmax);
}
template <class Out, class In, class F>
void map_elements(F f, Out* out, const In* a, const In* b, int64_t count, Stream stream,
                  uint32_t* absmax = nullptr) {
    launch_elementwise<2>(f, out, a, b, count, stream, absmax);
}

}  // namespace GPU_NAMESPACE
