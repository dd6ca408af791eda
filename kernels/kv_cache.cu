// Appending to the key-value cache on the GPU: a block copies one token's keys and values; 4 K D elements
// moved.
#include "kernels/gpu.h"
#include "kernels/kv_cache.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kThreads = 128;

template <class T>
__global__ void kv_cache_append_kernel(T* k_cache, T* v_cache, const T* qkv, int64_t channels,
                                       int64_t row_size, int64_t past) {
    wait_for_previous();
    const T* k = qkv + blockIdx.x * row_size + row_size - 2 * channels;
    const int64_t out = (past + blockIdx.x) * channels;
    for (int64_t c = threadIdx.x; c < channels; c += kThreads) {
        k_cache[out + c] = k[c];
        v_cache[out + c] = k[channels + c];
    }
}

template <class T>
void append(Tensor k_cache, Tensor v_cache, Tensor qkv, int64_t past, Stream stream) {
    launch(kv_cache_append_kernel<T>, qkv.dims[0], kThreads, 0, stream, k_cache.as<T>(), v_cache.as<T>(),
           qkv.as<T>(), k_cache.dims[1], qkv.dims[1], past);
}

}  // namespace

void kv_cache_append(Tensor k_cache, Tensor v_cache, Tensor qkv, int64_t past, Stream stream) {
    check_kv_cache_append(k_cache, v_cache, qkv, past);
    if (qkv.dtype == DType::f32) return append<float>(k_cache, v_cache, qkv, past, stream);
    append<bf16>(k_cache, v_cache, qkv, past, stream);
}

}  // namespace GPU_NAMESPACE
