// What kernels/gpu.h and kernels/mma.h ask of the emulator, and how tests steer it. A kernel runs as fibers,
// one for each thread of a block, block after block, on the thread of this process that synchronises. The
// CUDA language and runtime themselves, as far as kernels use them, are in include/cuda_runtime.h and
// intrinsics.h. How it works: README.md.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <type_traits>

namespace simt {

// ---- launches ---------------------------------------------------------------------------------------------

struct LaunchSite {
    dim3 grid, block;
    int64_t smem_bytes;
    cudaStream_t stream;
    const char* file;
    int line;
};

// Queues `thread`, to be run once for each thread of the grid. `pointers`: the launch's pointer arguments
// (null in the place of others), which must lie in device memory.
void run_grid(const LaunchSite& site, std::initializer_list<const void*> pointers,
              std::function<void()> thread);

template <class T>
const void* pointer_argument(const T& argument) {
    if constexpr (std::is_pointer_v<T>) return reinterpret_cast<const void*>(argument);
    return nullptr;
}
template <class... Params>
void launch(void (*kernel)(Params...), const LaunchSite& site, std::type_identity_t<Params>... arguments) {
    run_grid(site, {pointer_argument(arguments)...}, [=] { kernel(arguments...); });
}

// ---- the order of threads, blocks and streams: what CUDA leaves open --------------------------------------

// ascending, descending: by index, and work of streams runs at its call. random: by a seed; streams run at
// synchronisation points. At the start: the environment's SIMT_ORDER (random) and SIMT_SEED (1).
enum class Order { ascending, descending, random };
void set_order(Order order);
void set_seed(uint64_t seed);

// ---- inside kernels ---------------------------------------------------------------------------------------

[[noreturn]] void misaligned_access(const void* address);
// load128 and store128: this processor would often let it pass.
inline void check_aligned128(const void* address) {
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) misaligned_access(address);
}

// Shared memory of the current block: one array for each `site`, filled with 0xff (NaN, -1) at the block's
// start.
void* shared_array(const void* site, size_t bytes, size_t alignment, const char* file, int line);
void* dynamic_shared();

void grid_dependency_wait();  // every thread of every kernel must have called it before it ends

// cp.async. The destination is 0xff until its group is waited for or, by chance, committed.
void issue_copy(void* shared, const void* global, int bytes, int valid_bytes, const Site& site);
void copy_async_commit();
void copy_async_wait(int pending_groups);
// Inline so that sanitizers see the accesses in the kernel that asked for them.
inline void copy_async(void* shared, const void* global, int bytes, int valid_bytes,
                       const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    const Site site{"cp.async", file, line};
    check_shared(shared, bytes, site);
    for (int i = 0; i < valid_bytes; i += 4) {
        static_cast<void>(*reinterpret_cast<const volatile uint32_t*>(static_cast<const char*>(global) + i));
    }
    for (int i = 0; i < bytes; i += 4) {
        *reinterpret_cast<uint32_t*>(static_cast<char*>(shared) + i) = 0xffffffffu;
    }
    issue_copy(shared, global, bytes, valid_bytes, site);
}

// Collectives of a whole warp (kernels/mma.h): `count` matrices of 8x8 16-bit elements, 1, 2 or 4. Lane i
// owns row i % 8 of matrix i / 8; it alone touches that memory.
struct MatrixRow {
    uint32_t words[4];
};
void distribute_rows(uint32_t* r, const MatrixRow& mine, int count, bool transposed, const Site& site);
void collect_rows(MatrixRow& mine, const uint32_t* r, int count, bool transposed, const Site& site);

inline void load_matrices(uint32_t* r, const void* row, int count, bool transposed,
                          const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    const Site site{"ldmatrix", file, line};
    MatrixRow mine = {};
    if (static_cast<int>(lane_id()) < 8 * count) {
        check_shared(row, 16, site);
        mine = *static_cast<const MatrixRow*>(row);
    }
    distribute_rows(r, mine, count, transposed, site);
}
inline void store_matrices(void* row, const uint32_t* r, int count, bool transposed,
                           const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    const Site site{"stmatrix", file, line};
    MatrixRow mine;
    collect_rows(mine, r, count, transposed, site);
    if (static_cast<int>(lane_id()) < 8 * count) {
        check_shared(row, 16, site);
        *static_cast<MatrixRow*>(row) = mine;
    }
}
void mma_m16n8k16(float* c, const uint32_t* a, const uint32_t* b, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE());
// FP8: b is e4m3, a too or e5m2.
void mma_m16n8k32(float* c, const uint32_t* a, const uint32_t* b, bool a_is_e5m2,
                  const char* file = __builtin_FILE(), int line = __builtin_LINE());

}  // namespace simt
