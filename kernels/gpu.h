// The seam between the CUDA kernels and what runs them: nvcc and a GPU (namespace on_cuda), or g++ and the
// emulator in kernels/simt/ (namespace on_simt). A kernel includes this file (and mma.h), lives in
// GPU_NAMESPACE, takes shared memory by SHARED and DYN_SHARED and is started by launch(). What a GPU does by
// inline PTX is wrapped here, with the same in plain C++ beside it.
//
// Rules for kernels, all of them checked by the emulator or by scripts/lint.sh:
//   - wait_for_previous() comes first in every kernel: grids overlap (programmatic dependent launch).
//   - __syncwarp() between what lanes store and what other lanes of the warp load; no implicit synchrony.
//   - A collective (shuffle, vote, mma, ldmatrix) has one call site for all lanes of its mask; whole warps
//   may
//     return early, and only if no __syncthreads() follows.
//   - 128-bit accesses by load128 and store128 on aligned addresses; no float atomics.
//   - Nothing waits for another block; "the last block to finish" may continue (__threadfence + atomicAdd).
#pragma once
#include <cuda_runtime.h>  // the toolkit's, or kernels/simt/include's

#include <cstdint>

#include "core/bf16.h"
#include "core/error.h"
#include "core/tensor.h"

#if defined(__CUDACC__)
#define GPU_NAMESPACE on_cuda
#else
#include "kernels/simt/simt.h"
#define GPU_NAMESPACE on_simt
#endif

// SHARED(float, sums, [8][32]): an array of the block, undefined at the block's start.
// DYN_SHARED(bf16, tiles): the block's dynamic shared memory, 1024-byte aligned (TMA's widest swizzle).
#if defined(__CUDACC__)
#define SHARED(type, name, dims) __shared__ type name dims
#define DYN_SHARED(type, name)                                           \
    extern __shared__ __align__(1024) unsigned char dyn_shared_memory[]; \
    type* const name = reinterpret_cast<type*>(dyn_shared_memory)
#else
// A static of its own marks each declaration (and each instantiation of a template).
#define SHARED(type, name, dims)                   \
    static char name##_site;                       \
    type(&name) dims = *static_cast<type(*) dims>( \
        simt::shared_array(&name##_site, sizeof(type dims), alignof(type), __FILE__, __LINE__))
#define DYN_SHARED(type, name) type* const name = static_cast<type*>(simt::dynamic_shared())
#endif

// Before a loop whose counts are constants and whose arrays must stay in registers.
#if defined(__CUDACC__)
#define UNROLL _Pragma("unroll")
#define PRAGMA(text) _Pragma(#text)
#define UNROLL_BY(count) PRAGMA(unroll count)
#else
#define UNROLL
#define UNROLL_BY(count)
#endif

namespace GPU_NAMESPACE {

#if defined(__CUDACC__)
constexpr Device kThisDevice = Device::cuda;
#else
constexpr Device kThisDevice = Device::simt;
#endif
constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- starting kernels

// The blocks of a grid, and where in the source it was asked for.
struct Grid {
    dim3 blocks;
    const char* file;
    int line;
    Grid(dim3 blocks, const char* file = __builtin_FILE(), int line = __builtin_LINE())
        : blocks(blocks), file(file), line(line) {}
    Grid(int64_t blocks, const char* file = __builtin_FILE(), int line = __builtin_LINE())
        : blocks(static_cast<unsigned>(blocks)), file(file), line(line) {}
};

// The stream that a Stream stands for; {} is the device's compute stream (core/device.h).
cudaStream_t stream_of(Stream stream);
// Says which launch failed, of which shape, and throws InternalError.
[[noreturn]] void fail_launch(const void* kernel, const Grid& grid, int threads, int64_t smem_bytes,
                              cudaError_t error);
// Whether the present device overlaps grids (compute capability 9.0 and up).
bool grids_overlap();

// Starts kernel<<<grid, threads, smem_bytes>>>(args...). A grid without blocks is nothing to do.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), Grid grid, int threads, int64_t smem_bytes, Stream stream,
            Args... args) {
    if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) return;
#if defined(__CUDACC__)
    const void* function = reinterpret_cast<const void*>(kernel);
    cudaError_t error = cudaSuccess;
    if (smem_bytes > 48 << 10) {  // more than every GPU has must be asked for
        error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(smem_bytes));
    }
    cudaLaunchAttribute overlap[1];
    overlap[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap[0].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid.blocks;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(smem_bytes);
    config.stream = stream_of(stream);
    config.attrs = overlap;
    config.numAttrs = grids_overlap() ? 1 : 0;
    if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
    if (error != cudaSuccess) fail_launch(function, grid, threads, smem_bytes, error);
#else
    simt::launch(kernel,
                 {grid.blocks, dim3(static_cast<unsigned>(threads)), smem_bytes, stream_of(stream), grid.file,
                  grid.line},
                 static_cast<Params>(args)...);
#endif
}

// Until the kernels before this one in the stream have finished and their results can be seen.
__device__ inline void wait_for_previous() {
#if !defined(__CUDACC__)
    simt::grid_dependency_wait();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel in the stream may start its prologue.
__device__ inline void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- 128 bits at a time

template <class T>
struct alignas(16) Pack {
    static constexpr int kSize = 16 / static_cast<int>(sizeof(T));
    T v[kSize];
    __device__ T& operator[](int i) { return v[i]; }
    __device__ const T& operator[](int i) const { return v[i]; }
};

template <class T>
__device__ Pack<T> load128(const T* address) {
#if !defined(__CUDACC__)
    simt::check_aligned128(address);
#endif
    return *reinterpret_cast<const Pack<T>*>(address);
}
template <class T>
__device__ void store128(T* address, const Pack<T>& pack) {
#if !defined(__CUDACC__)
    simt::check_aligned128(address);
#endif
    *reinterpret_cast<Pack<T>*>(address) = pack;
}
// Whether all addresses (null ones too) allow 128-bit access.
template <class... Addresses>
bool is_aligned128(const Addresses*... addresses) {
    return ((reinterpret_cast<uintptr_t>(addresses) % 16 == 0) && ...);
}
// Read once, or written and not read soon: kept out of the way of what the caches should hold.
template <class T>
__device__ Pack<T> load128_streaming(const T* address) {
#if defined(__CUDACC__)
    const int4 bits = __ldcs(reinterpret_cast<const int4*>(address));
    return *reinterpret_cast<const Pack<T>*>(&bits);
#else
    return load128(address);
#endif
}
template <class T>
__device__ void store128_streaming(T* address, const Pack<T>& pack) {
#if defined(__CUDACC__)
    __stcs(reinterpret_cast<int4*>(address), *reinterpret_cast<const int4*>(&pack));
#else
    store128(address, pack);
#endif
}

// ---- bf16

// T(x) for T = float or bf16, to nearest even.
template <class T>
__device__ T from_float(float x) {
    if constexpr (sizeof(T) == 2) {
#if defined(__CUDA_ARCH__)
        bf16 rounded;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(x));
        return rounded;
#else
        return to_bf16(x);
#endif
    } else {
        return x;
    }
}
// Two bf16 in one register, `low` in the lower half: operands of mma.
__device__ inline uint32_t pack_bf16(float low, float high) {
#if defined(__CUDA_ARCH__)
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    return uint32_t{to_bf16(high).bits} << 16 | to_bf16(low).bits;
#endif
}

// 2^x to 2 ulp; 0 where that is below 2^-126, and for -infinity.
__device__ inline float exp2_approx(float x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

// ---- reductions: one fixed order, all lanes (threads) get the same bits

__device__ inline float warp_sum(float x) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
    return x;
}
// A NaN may be lost.
__device__ inline float warp_max(float x) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, lanes));
    return x;
}
// Over the block's kThreads threads, all of which must call. May be called again at once.
template <int kThreads>
__device__ float block_sum(float x) {
    static_assert(kThreads % kWarp == 0 && kThreads <= 1024);
    SHARED(float, sums, [kWarp]);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    x = warp_sum(x);
    if (lane == 0) sums[warp] = x;
    __syncthreads();
    x = warp_sum(lane < kThreads / kWarp ? sums[lane] : 0.0f);
    __syncthreads();  // the sums are read before the next call overwrites them
    return x;
}
template <int kThreads>
__device__ float block_max(float x) {
    static_assert(kThreads % kWarp == 0 && kThreads <= 1024);
    SHARED(float, largest, [kWarp]);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    x = warp_max(x);
    if (lane == 0) largest[warp] = x;
    __syncthreads();
    x = warp_max(largest[lane < kThreads / kWarp ? lane : 0]);
    __syncthreads();
    return x;
}

// ---- asynchronous copies to shared memory (cp.async, sm_80)

// 16 bytes, both sides aligned; zeros where !valid (the source is not read then).
__device__ inline void cp_async16(void* shared, const void* global, bool valid = true) {
#if defined(__CUDA_ARCH__)
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
#elif !defined(__CUDACC__)
    simt::copy_async(shared, global, 16, valid ? 16 : 0);
#endif
}
__device__ inline void cp_async_commit() {
#if defined(__CUDA_ARCH__)
    asm volatile("cp.async.commit_group;" ::: "memory");
#elif !defined(__CUDACC__)
    simt::copy_async_commit();
#endif
}
// Until at most kPending of this thread's groups are under way. Other threads' copies need a barrier after
// it.
template <int kPending>
__device__ void cp_async_wait() {
#if defined(__CUDA_ARCH__)
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#elif !defined(__CUDACC__)
    simt::copy_async_wait(kPending);
#endif
}

}  // namespace GPU_NAMESPACE
