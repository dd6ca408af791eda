// FP8 numbers in GPU kernels: rounding to them, and the largest magnitude of a tensor, from which their scale
// comes.
#pragma once
#include <type_traits>

#include "kernels/gpu.h"

namespace GPU_NAMESPACE {

// Two FP8 numbers in the lower half of a register, `low` in its lower byte: to nearest even, saturated
// (core/fp8.h).
template <class T>
__device__ uint32_t pack_fp8(float low, float high) {
    static_assert(std::is_same_v<T, e4m3> || std::is_same_v<T, e5m2>);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    uint16_t packed;
    if constexpr (std::is_same_v<T, e4m3>) {
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
    }
    return packed;
#else
    if constexpr (std::is_same_v<T, e4m3>) {
        return uint32_t{to_e4m3(high).bits} << 8 | to_e4m3(low).bits;
    } else {
        return uint32_t{to_e5m2(high).bits} << 8 | to_e5m2(low).bits;
    }
#endif
}

// |x| as an integer. These have the order of the numbers, and NaN is above infinity: the largest loses
// nothing.
__device__ inline uint32_t magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

// What another block may be writing at this moment: its old or its new value.
__device__ inline uint32_t load_relaxed(const uint32_t* address) {
#if defined(__CUDA_ARCH__)
    uint32_t value;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
#elif !defined(__CUDACC__)
    return __atomic_load_n(address, __ATOMIC_RELAXED);
#endif
}

// Raises *absmax (magnitude_bits, which is the f32 itself) to the largest of a warp, all of whose lanes call.
// A maximum has no order, so this atomic decides nothing. Most warps find that they need none.
__device__ inline void raise_absmax_by_warp(uint32_t* absmax, uint32_t magnitude) {
    const uint32_t largest = __reduce_max_sync(kAllLanes, magnitude);
    if (threadIdx.x % kWarp == 0 && largest > load_relaxed(absmax)) atomicMax(absmax, largest);
}

}  // namespace GPU_NAMESPACE
