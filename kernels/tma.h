// Hopper's asynchronous copies (TMA) and the barriers that go with them: PTX, and the same in plain C++ for
// the emulator (simt/hopper.h). The PTX exists in the sm_90a build alone; in others the wrappers are empty,
// and a kernel says
//     if constexpr (kSm90a) { ... } else { __trap(); }
// The host asks runs_sm90a() before it launches one. Source: PTX ISA, "Asynchronous copy" and "mbarrier".
//
// The usual ring of stages, with one thread that copies and kConsumers that arrive:
//     mbarrier_init(&full[s], 1), mbarrier_init(&empty[s], kConsumers);  fence_mbarrier_init();
//     __syncthreads(); copies:  mbarrier_wait(&empty[s], turn % 2 ^ 1);
//     mbarrier_arrive_expect_bytes(&full[s], kBytes);
//              load_box(stage[s], map, {x, y}, &full[s]);
//     uses:    mbarrier_wait(&full[s], turn % 2);  ...;  mbarrier_arrive(&empty[s]);
#pragma once
#include "kernels/gpu.h"

#if defined(__CUDACC__)
#include <cuda.h>  // CUtensorMap; nothing of the driver's library is linked
#else
#include "kernels/simt/hopper.h"
#endif

namespace GPU_NAMESPACE {

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kSm90a = false;
#else
constexpr bool kSm90a = true;
#endif
// Whether the present device runs the sm_90a build: capability 9.0, no later one.
bool runs_sm90a();

// ---- mbarriers: a phase ends when all `arrivals` have come and all bytes that were expected
// ---------------- A barrier is 64 bits of shared memory. What was stored before an arrival is seen behind
// the wait for it.

// By one thread; fence_mbarrier_init() and __syncthreads() before anybody uses it.
__device__ inline void mbarrier_init(uint64_t* barrier, int arrivals) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(
                     static_cast<uint32_t>(__cvta_generic_to_shared(barrier))),
                 "r"(arrivals)
                 : "memory");
#elif !defined(__CUDACC__)
    simt::mbarrier_init(barrier, arrivals);
#endif
}
// Makes the inits before it known to asynchronous copies.
__device__ inline void fence_mbarrier_init() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
__device__ inline void mbarrier_arrive(uint64_t* barrier) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(
                     static_cast<uint32_t>(__cvta_generic_to_shared(barrier)))
                 : "memory");
#elif !defined(__CUDACC__)
    simt::mbarrier_arrive(barrier);
#endif
}
// The present phase waits for so many bytes of copies more. Without an arrival of its own.
__device__ inline void mbarrier_expect_bytes(uint64_t* barrier, int bytes) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(
                     static_cast<uint32_t>(__cvta_generic_to_shared(barrier))),
                 "r"(bytes)
                 : "memory");
#elif !defined(__CUDACC__)
    simt::mbarrier_expect_bytes(barrier, bytes);
#endif
}
// Both in one.
__device__ inline void mbarrier_arrive_expect_bytes(uint64_t* barrier, int bytes) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     static_cast<uint32_t>(__cvta_generic_to_shared(barrier))),
                 "r"(bytes)
                 : "memory");
#elif !defined(__CUDACC__)
    simt::mbarrier_expect_bytes(barrier, bytes);
    simt::mbarrier_arrive(barrier);
#endif
}
// Whether the phase of this parity is over. Phases are 0, 1, 0, ...; of a fresh barrier, 1 counts as over.
__device__ inline bool mbarrier_test(uint64_t* barrier, int parity) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    uint32_t over;
    asm volatile(
        "{\n.reg .pred over;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 over, [%1], %2;\n"
        "selp.b32 %0, 1, 0, over;\n}"
        : "=r"(over)
        : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(barrier))), "r"(parity)
        : "memory");
    return over != 0;
#elif !defined(__CUDACC__)
    return simt::mbarrier_test(barrier, parity);
#else
    return true;
#endif
}
// Until it is.
__device__ inline void mbarrier_wait(uint64_t* barrier, int parity) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    uint32_t over;
    do {  // the instruction itself waits for a while
        asm volatile(
            "{\n.reg .pred over;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
            "selp.b32 %0, 1, 0, over;\n}"
            : "=r"(over)
            : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(barrier))), "r"(parity)
            : "memory");
    } while (over == 0);
#elif !defined(__CUDACC__)
    simt::mbarrier_wait(barrier, parity);
#endif
}

// ---- named barriers: some warps of the block --------------------------------------------------------------
// id: 1 to 15 (0 is __syncthreads'). threads: of all warps that wait or arrive, a multiple of 32. Whole warps
// only.

__device__ inline void named_barrier_sync(int id, int threads) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#elif !defined(__CUDACC__)
    simt::named_barrier(id, threads, true);
#endif
}
// Counts as having come, and goes on.
__device__ inline void named_barrier_arrive(int id, int threads) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#elif !defined(__CUDACC__)
    simt::named_barrier(id, threads, false);
#endif
}

// ---- registers between warpgroups -------------------------------------------------------------------------
// By all warps of a warpgroup, 24 to 256 in steps of 8. The kernel needs __launch_bounds__: it starts with
// 65536 / threads registers each (168 of 384 threads), and what some take others must give.

template <int kRegisters>
__device__ void give_registers() {
    static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
__device__ void take_registers() {
    static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

// ---- tensor maps ------------------------------------------------------------------------------------------

// A kernel takes it as `GRID_CONSTANT TensorMap map`: its address must be the grid's own parameter.
#define GRID_CONSTANT const __grid_constant__
#if defined(__CUDACC__)
using TensorMap = CUtensorMap;
#else
using TensorMap = simt::TensorMap;
#endif

// A tensor in global memory, and the box of it that one copy moves. Dimension 0 is the innermost and is
// contiguous. In shared memory a box lies densely, dimension 0 first; with a swizzle its rows (dimension 0)
// are swizzle_bytes long and their 16-byte units change places: unit u of row r lies at u ^ (r % 8) for 128
// bytes, where rows are counted from a multiple of 1024 bytes.
struct BoxedTensor {
    const void* data = nullptr;  // aligned to 16 bytes
    DType dtype = DType::bf16;   // bf16, f32 or u8
    int rank = 2;                // 2 to 4
    int64_t dims[4] = {};        // elements, at least 1
    int64_t strides[4] = {};  // elements from one index to the next, a multiple of 16 bytes; [0] is not read
    int box[4] = {};          // elements, at most 256; a row has a multiple of 16 bytes
    int swizzle_bytes = 128;  // 0, 32, 64 or 128
};
// Throws InternalError where the driver refuses.
TensorMap tensor_map(const BoxedTensor& tensor);

// Brings the map itself near. By one thread.
__device__ inline void prefetch_tensor_map(const TensorMap& map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#else
    static_cast<void>(map);
#endif
}

// ---- copies, each by one thread ---------------------------------------------------------------------------

// What this thread stored to shared memory is seen by copies (and wgmma) that it, or those behind a barrier
// after it, start. Not needed for what copies brought.
__device__ inline void fence_proxy_async() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// The box whose first element is at these coordinates, to shared memory, aligned to 128 bytes (1024 with
// swizzle 128, for wgmma). Elements outside the tensor are zeros, and count: `barrier` gets the whole box's
// bytes.
template <int kRank>
__device__ void load_box(void* shared, const TensorMap& map, const int (&at)[kRank], uint64_t* barrier) {
    static_assert(kRank >= 2 && kRank <= 4);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared)),
                   arrived = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
    if constexpr (kRank == 2) {
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%3, %4}], [%2];" ::"r"(to),
            "l"(&map), "r"(arrived), "r"(at[0]), "r"(at[1])
            : "memory");
    } else if constexpr (kRank == 3) {
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
            "l"(&map), "r"(arrived), "r"(at[0]), "r"(at[1]), "r"(at[2])
            : "memory");
    } else {
        asm volatile(
            "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
            "l"(&map), "r"(arrived), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
            : "memory");
    }
#elif !defined(__CUDACC__)
    simt::load_box(shared, map, at, barrier);
#endif
}
// `bytes` as they lie; both sides and the count aligned to 16.
__device__ inline void load_bytes(void* shared, const void* global, int bytes, uint64_t* barrier) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
        "l"(__cvta_generic_to_global(global)), "r"(bytes),
        "r"(static_cast<uint32_t>(__cvta_generic_to_shared(barrier)))
        : "memory");
#elif !defined(__CUDACC__)
    simt::load_bytes(shared, global, bytes, barrier);
#endif
}

// From shared memory, behind fence_proxy_async() and a barrier; elements outside the tensor are dropped.
// Waited for by the thread's own groups.
template <int kRank>
__device__ void store_box(const TensorMap& map, const int (&at)[kRank], const void* shared) {
    static_assert(kRank >= 2 && kRank <= 4);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    if constexpr (kRank == 2) {
        asm volatile(
            "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
            "r"(from), "r"(at[0]), "r"(at[1])
            : "memory");
    } else if constexpr (kRank == 3) {
        asm volatile(
            "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
                &map),
            "r"(from), "r"(at[0]), "r"(at[1]), "r"(at[2])
            : "memory");
    } else {
        asm volatile(
            "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(
                &map),
            "r"(from), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
            : "memory");
    }
#elif !defined(__CUDACC__)
    simt::store_box(map, at, shared);
#endif
}
__device__ inline void store_bytes(void* global, const void* shared, int bytes) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile(
        "cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(global)),
        "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))), "r"(bytes)
        : "memory");
#elif !defined(__CUDACC__)
    simt::store_bytes(global, shared, bytes);
#endif
}
__device__ inline void store_commit() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#elif !defined(__CUDACC__)
    simt::store_commit();
#endif
}
// Until at most kPending of this thread's groups have not been written ...
template <int kPending>
__device__ void store_wait() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
#elif !defined(__CUDACC__)
    simt::store_wait(kPending);
#endif
}
// ... or have not yet been read, so that their shared memory may be written again.
template <int kPending>
__device__ void store_wait_read() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
#elif !defined(__CUDACC__)
    simt::store_wait(kPending);
#endif
}

}  // namespace GPU_NAMESPACE
