// A few consecutive elements of a tensor, as one thread of a GPU kernel handles them: moved by one access of
// at most 16 bytes, computed in f32. kCount = 1 is the way of tensors that are not aligned.
#pragma once
#include "kernels/gpu.h"

namespace GPU_NAMESPACE {

template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Elements {
    static_assert(sizeof(T) * kCount <= 16);
    T v[kCount];
    __device__ T& operator[](int i) { return v[i]; }
    __device__ const T& operator[](int i) const { return v[i]; }
};
template <int kCount>
struct Floats {
    float v[kCount];
    __device__ float& operator[](int i) { return v[i]; }
    __device__ const float& operator[](int i) const { return v[i]; }
};
// As many as 16 bytes hold.
template <class T>
constexpr int kFullPack = 16 / static_cast<int>(sizeof(T));

// The elements at an address as one word of memory. Where a GPU would stop, the emulator does.
template <class Word, class T>
__device__ Word* word_at(T* address) {
#if !defined(__CUDACC__)
    if (reinterpret_cast<uintptr_t>(address) % alignof(Word) != 0) __trap();
#endif
    return reinterpret_cast<Word*>(address);
}
template <int kCount, class T>
__device__ Elements<T, kCount> load_elements(const T* address) {
    return *word_at<const Elements<T, kCount>>(address);
}
template <class T, int kCount>
__device__ void store_elements(T* address, const Elements<T, kCount>& x) {
    *word_at<Elements<T, kCount>>(address) = x;
}

template <int kBytes>
struct WordOf;
template <>
struct WordOf<2> {
    using Type = short;
};
template <>
struct WordOf<4> {
    using Type = int;
};
template <>
struct WordOf<8> {
    using Type = int2;
};
template <>
struct WordOf<16> {
    using Type = int4;
};
// For what is read once, or written and not read soon (kernels/gpu.h).
template <int kCount, class T>
__device__ Elements<T, kCount> load_streaming(const T* address) {
    using Word = typename WordOf<kCount* static_cast<int>(sizeof(T))>::Type;
    const Word bits = __ldcs(word_at<const Word>(address));
    return *reinterpret_cast<const Elements<T, kCount>*>(&bits);
}
template <class T, int kCount>
__device__ void store_streaming(T* address, const Elements<T, kCount>& x) {
    using Word = typename WordOf<kCount* static_cast<int>(sizeof(T))>::Type;
    __stcs(word_at<Word>(address), *reinterpret_cast<const Word*>(&x));
}

template <class T, int kCount>
__device__ Elements<T, kCount> rounded_to(const Floats<kCount>& x) {
    Elements<T, kCount> result;
    if constexpr (sizeof(T) == 2 && kCount % 2 == 0) {  // one instruction rounds two
        for (int k = 0; k < kCount; k += 2) {
            const uint32_t pair = pack_bf16(x[k], x[k + 1]);
            result[k].bits = static_cast<uint16_t>(pair);
            result[k + 1].bits = static_cast<uint16_t>(pair >> 16);
        }
    } else {
        for (int k = 0; k < kCount; ++k) result[k] = from_float<T>(x[k]);
    }
    return result;
}

// kCount f32 in accesses of 16 bytes where they are as many.
template <int kCount>
__device__ Floats<kCount> load_floats(const float* address) {
    constexpr int kStep = kCount < 4 ? kCount : 4;
    Floats<kCount> result;
    UNROLL for (int k = 0; k < kCount; k += kStep) {
        const Elements<float, kStep> part = load_elements<kStep>(address + k);
        UNROLL for (int n = 0; n < kStep; ++n) result[k + n] = part[n];
    }
    return result;
}
template <int kCount>
__device__ void store_floats(float* address, const Floats<kCount>& x) {
    constexpr int kStep = kCount < 4 ? kCount : 4;
    UNROLL for (int k = 0; k < kCount; k += kStep) {
        Elements<float, kStep> part;
        UNROLL for (int n = 0; n < kStep; ++n) part[n] = x[k + n];
        store_elements(address + k, part);
    }
}

}  // namespace GPU_NAMESPACE
