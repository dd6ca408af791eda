// The functions that CUDA C++ gives a kernel: barriers, warp collectives, fences, atomics, arithmetic. Part
// of include/cuda_runtime.h. Signatures are CUDA's, with the place of the call behind as default arguments.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

namespace simt {

// What a thread does and where in the source; the two together are a call site.
struct Site {
    const char* what;
    const char* file;
    int line;
};

unsigned lane_id();
int block_barrier(const Site& site, int predicate);  // of all threads; how many predicates were not zero
void warp_barrier(unsigned mask, const Site& site);
uint64_t shuffle(unsigned mask, uint64_t bits, int source_lane, const Site& site);
unsigned ballot(unsigned mask, bool predicate, const Site& site);
unsigned match_any(unsigned mask, uint64_t bits, const Site& site);
enum class Reduce { add, min_signed, max_signed, min_unsigned, max_unsigned, bit_and, bit_or, bit_xor };
unsigned reduce(unsigned mask, unsigned bits, Reduce operation, const Site& site);
void fence();
void yield();  // lets others go on: in every loop that waits for them
[[noreturn]] void trap(const Site& site);
// Aborts unless the bytes lie in the block's shared memory, aligned to their size.
void check_shared(const void* address, int bytes, const Site& site);
bool is_shared(const void* address);

// The bits of any 4- or 8-byte number, and back.
template <class T>
uint64_t bits_of(T value) {
    static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "as CUDA's shuffles");
    if constexpr (sizeof(T) == 4) return std::bit_cast<uint32_t>(value);
    if constexpr (sizeof(T) == 8) return std::bit_cast<uint64_t>(value);
}
template <class T>
T from_bits(uint64_t bits) {
    if constexpr (sizeof(T) == 4) return std::bit_cast<T>(static_cast<uint32_t>(bits));
    if constexpr (sizeof(T) == 8) return std::bit_cast<T>(bits);
}

}  // namespace simt

#define SIMT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// ---- barriers and fences ----------------------------------------------------------------------------------

inline void __syncthreads(SIMT_SITE) { simt::block_barrier({"__syncthreads", file, line}, 0); }
inline int __syncthreads_count(int predicate, SIMT_SITE) {
    return simt::block_barrier({"__syncthreads_count", file, line}, predicate);
}
inline int __syncthreads_or(int predicate, SIMT_SITE) {
    return simt::block_barrier({"__syncthreads_or", file, line}, predicate) != 0;
}
inline int __syncthreads_and(int predicate, SIMT_SITE) {
    return simt::block_barrier({"__syncthreads_and", file, line}, !predicate) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_SITE) {
    simt::warp_barrier(mask, {"__syncwarp", file, line});
}
inline void __threadfence() { simt::fence(); }
inline void __threadfence_block() { simt::fence(); }

// ---- collectives of a warp --------------------------------------------------------------------------------

// Lanes are cut into segments of `width`; a source outside the caller's segment gives the caller's own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMT_SITE) {
    const int lane = static_cast<int>(simt::lane_id());
    const int from = (lane & ~(width - 1)) | (source & (width - 1));
    return simt::from_bits<T>(simt::shuffle(mask, simt::bits_of(value), from, {"__shfl_sync", file, line}));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, SIMT_SITE) {
    const int lane = static_cast<int>(simt::lane_id()), other = lane ^ lane_mask;
    // Earlier segments may be read, later ones may not.
    const int from = other < (lane & ~(width - 1)) + width ? other : lane;
    return simt::from_bits<T>(
        simt::shuffle(mask, simt::bits_of(value), from, {"__shfl_xor_sync", file, line}));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE) {
    const int lane = static_cast<int>(simt::lane_id()), other = lane - static_cast<int>(delta);
    const int from = other >= (lane & ~(width - 1)) ? other : lane;
    return simt::from_bits<T>(
        simt::shuffle(mask, simt::bits_of(value), from, {"__shfl_up_sync", file, line}));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE) {
    const int lane = static_cast<int>(simt::lane_id()), other = lane + static_cast<int>(delta);
    const int from = other < (lane & ~(width - 1)) + width ? other : lane;
    return simt::from_bits<T>(
        simt::shuffle(mask, simt::bits_of(value), from, {"__shfl_down_sync", file, line}));
}

inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_SITE) {
    return simt::ballot(mask, predicate != 0, {"__ballot_sync", file, line});
}
inline int __any_sync(unsigned mask, int predicate, SIMT_SITE) {
    return simt::ballot(mask, predicate != 0, {"__any_sync", file, line}) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SIMT_SITE) {
    return simt::ballot(mask, predicate != 0, {"__all_sync", file, line}) == mask;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, SIMT_SITE) {
    return simt::match_any(mask, simt::bits_of(value), {"__match_any_sync", file, line});
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned value, SIMT_SITE) {
    return simt::reduce(mask, value, simt::Reduce::add, {"__reduce_add_sync", file, line});
}
inline int __reduce_add_sync(unsigned mask, int value, SIMT_SITE) {
    return static_cast<int>(simt::reduce(mask, static_cast<unsigned>(value), simt::Reduce::add,
                                         {"__reduce_add_sync", file, line}));
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value, SIMT_SITE) {
    return simt::reduce(mask, value, simt::Reduce::min_unsigned, {"__reduce_min_sync", file, line});
}
inline int __reduce_min_sync(unsigned mask, int value, SIMT_SITE) {
    return static_cast<int>(simt::reduce(mask, static_cast<unsigned>(value), simt::Reduce::min_signed,
                                         {"__reduce_min_sync", file, line}));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value, SIMT_SITE) {
    return simt::reduce(mask, value, simt::Reduce::max_unsigned, {"__reduce_max_sync", file, line});
}
inline int __reduce_max_sync(unsigned mask, int value, SIMT_SITE) {
    return static_cast<int>(simt::reduce(mask, static_cast<unsigned>(value), simt::Reduce::max_signed,
                                         {"__reduce_max_sync", file, line}));
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, SIMT_SITE) {
    return simt::reduce(mask, value, simt::Reduce::bit_and, {"__reduce_and_sync", file, line});
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, SIMT_SITE) {
    return simt::reduce(mask, value, simt::Reduce::bit_or, {"__reduce_or_sync", file, line});
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, SIMT_SITE) {
    return simt::reduce(mask, value, simt::Reduce::bit_xor, {"__reduce_xor_sync", file, line});
}

// Which lanes happen to run together is no property of a program.
unsigned __activemask() = delete;

// ---- atomics: relaxed, of the types that CUDA has; float sums would depend on the order of threads --------

namespace simt {
template <class T, class Change>
T update(T* address, Change change) {
    T old = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (
        !__atomic_compare_exchange_n(address, &old, change(old), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
}  // namespace simt

#define SIMT_ATOMICS(T)                                                                                      \
    inline T atomicAdd(T* address, T value) { return __atomic_fetch_add(address, value, __ATOMIC_RELAXED); } \
    inline T atomicOr(T* address, T value) { return __atomic_fetch_or(address, value, __ATOMIC_RELAXED); }   \
    inline T atomicAnd(T* address, T value) { return __atomic_fetch_and(address, value, __ATOMIC_RELAXED); } \
    inline T atomicExch(T* address, T value) {                                                               \
        return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);                                        \
    }                                                                                                        \
    inline T atomicMax(T* address, T value) {                                                                \
        return simt::update(address, [value](T old) { return std::max(old, value); });                       \
    }                                                                                                        \
    inline T atomicMin(T* address, T value) {                                                                \
        return simt::update(address, [value](T old) { return std::min(old, value); });                       \
    }                                                                                                        \
    inline T atomicCAS(T* address, T expected, T value) {                                                    \
        __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);   \
        return expected;                                                                                     \
    }
SIMT_ATOMICS(int)
SIMT_ATOMICS(unsigned)
SIMT_ATOMICS(unsigned long long)
#undef SIMT_ATOMICS
inline int atomicSub(int* address, int value) { return __atomic_fetch_sub(address, value, __ATOMIC_RELAXED); }
inline unsigned atomicSub(unsigned* address, unsigned value) {
    return __atomic_fetch_sub(address, value, __ATOMIC_RELAXED);
}
// Counts 0, 1, ..., limit, 0, ...
inline unsigned atomicInc(unsigned* address, unsigned limit) {
    return simt::update(address, [limit](unsigned old) { return old >= limit ? 0u : old + 1; });
}
float atomicAdd(float*, float) = delete;
double atomicAdd(double*, double) = delete;

// ---- memory -----------------------------------------------------------------------------------------------

template <class T>
T __ldg(const T* address) {
    return *address;
}
template <class T>
T __ldcs(const T* address) {
    return *address;
}
template <class T>
T __ldcg(const T* address) {
    return *address;
}
template <class T>
void __stcs(T* address, T value) {
    *address = value;
}
template <class T>
void __stcg(T* address, T value) {
    *address = value;
}
inline unsigned __isShared(const void* address) { return simt::is_shared(address); }

// ---- arithmetic -------------------------------------------------------------------------------------------

namespace simt {
// As the hardware computes the fast ones: through powers and logarithms of 2.
inline float fast_exp(float x) { return exp2f(x * 1.4426950408889634f); }
inline float fast_log(float x) { return log2f(x) * 0.6931471805599453f; }
}  // namespace simt
// Macros, for the C library declares these names for itself.
#define __expf(x) simt::fast_exp(x)
#define __logf(x) simt::fast_log(x)
#define __log2f(x) log2f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __powf(x, y) powf(x, y)

#if defined(__GLIBC_PREREQ)
#if __GLIBC_PREREQ(2, 42)
#define SIMT_LIBC_HAS_RSQRT
#endif
#endif
#if !defined(SIMT_LIBC_HAS_RSQRT)
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
#endif
inline float __fdividef(float x, float y) { return x / y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(lrintf(x)); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
    return reversed;
}
inline unsigned __umulhi(unsigned x, unsigned y) { return static_cast<unsigned>(uint64_t{x} * y >> 32); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(x) * y >> 64);
}
inline unsigned __umul24(unsigned x, unsigned y) { return (x & 0xffffffu) * (y & 0xffffffu); }

#define SIMT_MIN_MAX(T)                              \
    inline T min(T x, T y) { return y < x ? y : x; } \
    inline T max(T x, T y) { return x < y ? y : x; }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
inline float min(float x, float y) { return fminf(x, y); }
inline float max(float x, float y) { return fmaxf(x, y); }
inline double min(double x, double y) { return fmin(x, y); }
inline double max(double x, double y) { return fmax(x, y); }

// ---- the rest ---------------------------------------------------------------------------------------------

inline void __nanosleep(unsigned) { simt::yield(); }
long long clock64();
[[noreturn]] inline void __trap(SIMT_SITE) { simt::trap({"__trap", file, line}); }

#undef SIMT_SITE
