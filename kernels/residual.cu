// Residual addition on the GPU. 3 elements moved (2 read, 1 written) and 1 FLOP each: bound by memory.
#include "kernels/gpu.h"
#include "kernels/residual.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kThreads = 256;

// Whole packs, then single elements: tensors are views and need not be aligned.
template <class T>
__global__ void residual_forward_kernel(T* out, const T* a, const T* b, int64_t count, bool packed) {
    wait_for_previous();
    const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (packed) {
        const int64_t i = thread * Pack<T>::kSize;
        if (i + Pack<T>::kSize <= count) {
            const Pack<T> x = load128(a + i), y = load128(b + i);
            Pack<T> sum;
            for (int k = 0; k < Pack<T>::kSize; ++k) sum[k] = from_float<T>(to_float(x[k]) + to_float(y[k]));
            store128(out + i, sum);
            return;
        }
        for (int64_t k = i; k < count; ++k) out[k] = from_float<T>(to_float(a[k]) + to_float(b[k]));
        return;
    }
    if (thread < count) out[thread] = from_float<T>(to_float(a[thread]) + to_float(b[thread]));
}

template <class T>
void forward(Tensor out, Tensor a, Tensor b, Stream stream) {
    const bool packed = is_aligned128(out.data, a.data, b.data);
    const int64_t count = out.size();
    launch(residual_forward_kernel<T>, ceil_div(count, packed ? Pack<T>::kSize * kThreads : kThreads),
           kThreads, 0, stream, out.as<T>(), a.as<T>(), b.as<T>(), count, packed);
}

}  // namespace

void residual_forward(Tensor out, Tensor a, Tensor b, Stream stream) {
    check_residual(out, a, b);
    if (out.dtype == DType::f32) return forward<float>(out, a, b, stream);
    forward<bf16>(out, a, b, stream);
}

}  // namespace GPU_NAMESPACE
