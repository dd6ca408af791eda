// FP8 numbers in GPU kernels: rounding to them.
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

}  // namespace GPU_NAMESPACE
