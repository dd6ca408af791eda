// RoPE on the GPU, in place: queries and keys are read and written once, values are not touched; the table's
// rows come from the caches. 6 FLOPs for each pair of channels: bound by memory. Not measured yet on a GPU.
#include "kernels/rope.h"

#include "kernels/gpu_absmax.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kMaxThreads = 256;

// blockIdx.x is the token. A thread turns kPack channels of a head's lower half with those above them, then
// goes on to another head or part of one.
template <class T, int kPack>
__global__ void __launch_bounds__(kMaxThreads)
    rope_kernel(T* qkv, const float* table, const int32_t* positions, int64_t width, unsigned num_heads,
                unsigned half, float sine_sign, uint32_t* absmax) {
    wait_for_previous();
    let_next_start();
    T* const row = qkv + blockIdx.x * width;
    const float* const cosines = table + positions[blockIdx.x] * int64_t{2} * half;
    const unsigned packs_per_head = half / kPack, num_packs = num_heads * packs_per_head;
    LargestMagnitude largest(absmax);
    for (unsigned pack = threadIdx.x; pack < num_packs; pack += blockDim.x) {
        const unsigned head = pack / packs_per_head, i = (pack - head * packs_per_head) * kPack;
        T* const low = row + int64_t{head} * 2 * half + i;
        const Elements<T, kPack> a = load_elements<kPack>(low), b = load_elements<kPack>(low + half);
        const Floats<kPack> cosine = load_floats<kPack>(cosines + i);
        const Floats<kPack> sine = load_floats<kPack>(cosines + half + i);
        Floats<kPack> new_a, new_b;
        for (int k = 0; k < kPack; ++k) {
            const float c = cosine[k], s = sine[k] * sine_sign, x = to_float(a[k]), y = to_float(b[k]);
            new_a[k] = x * c - y * s;
            new_b[k] = y * c + x * s;
        }
        const Elements<T, kPack> rounded_a = rounded_to<T>(new_a), rounded_b = rounded_to<T>(new_b);
        store_elements(low, rounded_a);
        store_elements(low + half, rounded_b);
        largest.add(rounded_a);
        largest.add(rounded_b);
    }
    if (absmax != nullptr) {
        for (int64_t i = int64_t{num_heads} * 2 * half + threadIdx.x * kPack; i < width;
             i += blockDim.x * kPack) {
            largest.add(load_elements<kPack>(row + i));  // the values
        }
    }
    largest.raise_by_block();
}

template <class T>
void rotate(Tensor qkv, Tensor table, Tensor positions, int64_t num_heads, float sine_sign, Tensor absmax,
            Stream stream) {
    const int64_t num_tokens = qkv.dims[0], width = qkv.dims[1], half = table.dims[1] / 2;
    const bool packed = half % kFullPack<T> == 0 && is_aligned128(qkv.data, table.data);
    const int64_t packs = num_heads * half / (packed ? kFullPack<T> : 1);
    if (packs == 0) return;
    const int64_t threads = packs < kMaxThreads ? ceil_div(packs, kWarp) * kWarp : kMaxThreads;
    launch(packed ? rope_kernel<T, kFullPack<T>> : rope_kernel<T, 1>, num_tokens, static_cast<int>(threads),
           0, stream, qkv.as<T>(), table.as<float>(), positions.as<int32_t>(), width,
           static_cast<unsigned>(num_heads), static_cast<unsigned>(half), sine_sign, absmax_bits(absmax));
}

void rotate_any(const char* op, Tensor qkv, Tensor table, Tensor positions, int64_t num_heads,
                int64_t num_kv_heads, float sine_sign, Tensor absmax, Stream stream) {
    check_rope(op, qkv, table, positions, num_heads, num_kv_heads, absmax);
    const int64_t turned = num_heads + num_kv_heads;
    (qkv.dtype == DType::f32 ? rotate<float> : rotate<bf16>)(qkv, table, positions, turned, sine_sign, absmax,
                                                             stream);
}

}  // namespace

void rope_forward(Tensor qkv, Tensor table, Tensor positions, int64_t num_heads, int64_t num_kv_heads,
                  Stream stream) {
    rotate_any("rope_forward", qkv, table, positions, num_heads, num_kv_heads, 1, {}, stream);
}

void rope_backward(Tensor dqkv, Tensor table, Tensor positions, int64_t num_heads, int64_t num_kv_heads,
                   Tensor absmax, Stream stream) {
    rotate_any("rope_backward", dqkv, table, positions, num_heads, num_kv_heads, -1, absmax, stream);
}

}  // namespace GPU_NAMESPACE
