// What wrappers of sm_90's instructions ask of the emulator: named barriers, mbarriers, bulk copies (TMA) and
// wgmma. All that is asynchronous is done as late as is legal, or at a random moment: on the way,
// destinations are 0xff.
#pragma once
#include "kernels/simt/simt.h"

#define SIMT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace simt {

// The address that instructions and descriptors use: bytes from the begin of the block's shared memory.
uint32_t shared_offset(const void* shared);

// bar.sync id, threads and, without `wait`, bar.arrive. id: 1 to 15.
void named_barrier(int id, int threads, bool wait, SIMT_SITE);

// ---- mbarrier: a phase ends when as many threads have arrived as it was made for and all expected bytes ---
// have come --

enum class Mbarrier { arrive, expect_bytes, test, wait };
uint64_t new_mbarrier(uint64_t* barrier, int arrivals, const Site& site);
bool use_mbarrier(uint64_t* barrier, Mbarrier use, int value, const Site& site);

// Accesses in the headers are for ThreadSanitizer: who uses a barrier must be behind its init.
inline void mbarrier_init(uint64_t* barrier, int arrivals, SIMT_SITE) {
    *barrier = new_mbarrier(barrier, arrivals, {"mbarrier.init", file, line});
}
inline void mbarrier_arrive(uint64_t* barrier, SIMT_SITE) {
    static_cast<void>(__atomic_load_n(barrier, __ATOMIC_RELAXED));
    use_mbarrier(barrier, Mbarrier::arrive, 1, {"mbarrier.arrive", file, line});
}
inline void mbarrier_expect_bytes(uint64_t* barrier, int bytes, SIMT_SITE) {
    static_cast<void>(__atomic_load_n(barrier, __ATOMIC_RELAXED));
    use_mbarrier(barrier, Mbarrier::expect_bytes, bytes, {"mbarrier.expect_tx", file, line});
}
// Whether the phase of this parity is over; a fresh barrier is in phase 0, and 1 counts as over.
inline bool mbarrier_test(uint64_t* barrier, int parity, SIMT_SITE) {
    static_cast<void>(__atomic_load_n(barrier, __ATOMIC_RELAXED));
    return use_mbarrier(barrier, Mbarrier::test, parity, {"mbarrier.test_wait", file, line});
}
inline void mbarrier_wait(uint64_t* barrier, int parity, SIMT_SITE) {
    static_cast<void>(__atomic_load_n(barrier, __ATOMIC_RELAXED));
    use_mbarrier(barrier, Mbarrier::wait, parity, {"mbarrier.try_wait", file, line});
}

// ---- bulk copies ------------------------------------------------------------------------------------------

// A tensor in global memory and the box that one copy moves. Dimension 0 is the innermost one and is
// contiguous.
struct TensorMap {
    void* data = nullptr;
    int rank = 1, element_bytes = 1;
    int64_t dims[5] = {1, 1, 1, 1, 1}, strides_bytes[5] = {};
    int box[5] = {1, 1, 1, 1, 1};
    int swizzle_bytes = 0;  // 0, 32, 64 or 128: 16-byte units change places within as many bytes
};
void issue_load(void* shared, const TensorMap& map, const int* at, uint64_t* barrier, const Site& site);
void issue_store(const TensorMap& map, const int* at, const void* shared, const Site& site);
int64_t box_bytes(const TensorMap& map);
TensorMap contiguous_bytes(const void* global, int bytes);

// The box whose first element is `at`, zeros outside the tensor; its bytes are told to `barrier` when they
// are there.
inline void load_box(void* shared, const TensorMap& map, const int* at, uint64_t* barrier, SIMT_SITE) {
    const Site site{"cp.async.bulk.tensor", file, line};
    check_shared(shared, 16, site);
    for (int64_t i = 0; i < box_bytes(map); ++i) static_cast<unsigned char*>(shared)[i] = 0xff;
    issue_load(shared, map, at, barrier, site);
}
inline void load_bytes(void* shared, const void* global, int bytes, uint64_t* barrier, SIMT_SITE) {
    const int at[1] = {0};
    load_box(shared, contiguous_bytes(global, bytes), at, barrier, file, line);
}
// To global memory; elements outside the tensor are dropped. Groups are the thread's own, as cp.async's.
inline void store_box(const TensorMap& map, const int* at, const void* shared, SIMT_SITE) {
    issue_store(map, at, shared, {"cp.async.bulk.tensor", file, line});
}
inline void store_bytes(void* global, const void* shared, int bytes, SIMT_SITE) {
    const int at[1] = {0};
    issue_store(contiguous_bytes(global, bytes), at, shared, {"cp.async.bulk", file, line});
}
void store_commit();
void store_wait(int pending_groups);

// ---- wgmma: d [64,n] (+)= A [64,k] B [k,n], bf16 (k 16) or FP8 (k 32) with f32 sums, by four warps of 16 --
// rows each --

// Of A; B is bf16 too, or else e4m3. FP8 operands lie in shared memory and are not transposed.
enum class WgmmaNumbers { bf16, e4m3, e5m2 };
// The thread's n / 2 sums of `d` hold NaN until wgmma_wait(). Matrices in shared memory are given by
// descriptors in the hardware's layout; `mn_major` is the instruction's "transposed". a: null, or the warp's
// fragment as of mma.m16n8k16.
struct Wgmma {
    int n;
    bool accumulate;
    const uint32_t* a;
    uint64_t a_descriptor, b_descriptor;
    bool a_mn_major, b_mn_major;
    WgmmaNumbers numbers = WgmmaNumbers::bf16;
};
void wgmma(float* d, const Wgmma& operation, SIMT_SITE);
void wgmma_fence(SIMT_SITE);
void wgmma_commit(SIMT_SITE);
void wgmma_wait(int pending_groups, SIMT_SITE);

}  // namespace simt

#undef SIMT_SITE
