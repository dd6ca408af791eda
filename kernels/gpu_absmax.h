// The largest magnitude of what a kernel stores, which the scale of its FP8 form comes from (quantize.h): its
// blocks raise one number by it, so that no pass over the tensor has to look for it.
#pragma once
#include "kernels/gpu_elements.h"

namespace GPU_NAMESPACE {

// |x| as an integer. These have the order of the numbers, and NaN is above infinity: the largest loses
// nothing.
__device__ inline uint32_t magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

// Raises *absmax (magnitude_bits, which is the f32 itself) to the largest of a warp, all of whose lanes call.
// A maximum has no order, so this atomic decides nothing, and nobody waits for it.
__device__ inline void raise_absmax_by_warp(uint32_t* absmax, uint32_t magnitude) {
    const uint32_t largest = __reduce_max_sync(kAllLanes, magnitude);
    if (threadIdx.x % kWarp == 0) atomicMax(absmax, largest);
}

// A thread's part of it. `to` is null where nobody asks, and then nothing is looked at.
//   LargestMagnitude largest(absmax);   largest.add(stored);   largest.raise_by_block();
class LargestMagnitude {
public:
    __device__ explicit LargestMagnitude(uint32_t* to) : to_(to) {}

    template <class T, int kCount>
    __device__ void add(const Elements<T, kCount>& stored) {
        if (to_ == nullptr) return;
        UNROLL for (int k = 0; k < kCount; ++k) add_magnitude(stored[k]);
    }
    template <class T>
    __device__ void add(T stored) {
        if (to_ != nullptr) add_magnitude(stored);
    }
    // All lanes of the warp call: for kernels of few or long-lived warps.
    __device__ void raise_by_warp() const {
        if (to_ != nullptr) raise_absmax_by_warp(to_, largest_);
    }
    // All threads of the block call: where warps are so many and short that they would queue for one address.
    __device__ void raise_by_block() const {
        if (to_ == nullptr) return;
        SHARED(uint32_t, of_warps, [kWarp]);
        const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
        const uint32_t largest = __reduce_max_sync(kAllLanes, largest_);
        if (lane == 0) of_warps[warp] = largest;
        __syncthreads();
        if (warp == 0) raise_absmax_by_warp(to_, lane < blockDim.x / kWarp ? of_warps[lane] : 0);
    }

private:
    template <class T>
    __device__ void add_magnitude(T stored) {
        const uint32_t bits = magnitude_bits(to_float(stored));
        largest_ = bits > largest_ ? bits : largest_;
    }

    uint32_t* const to_;
    uint32_t largest_ = 0;
};

// Where a tensor's absmax is raised; null for none.
inline uint32_t* absmax_bits(const Tensor& absmax) {
    return absmax.absent() ? nullptr : reinterpret_cast<uint32_t*>(absmax.as<float>());
}

}  // namespace GPU_NAMESPACE
