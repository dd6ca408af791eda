// Hopper's matrix product of a warpgroup (four warps, 128 threads), as functions of one: PTX, and the same in
// plain C++ for the emulator (simt/hopper.h); what holds in other builds is said in tma.h.
//     d [64, N] (+)= A [64, 16] B [16, N], bf16 operands, f32 sums. A from shared memory or registers, B from
//     shared memory; or FP8 operands, [64, 32] and [32, N], both from shared memory, by lines of inner
//     indices.
// d: warp w of the warpgroup has rows 16 w to 16 w + 15. With group = lane / 4 and pair = lane % 4 a thread
// has
//     d[4 j], d[4 j + 1]      rows 16 w + group,      columns 8 j + 2 pair, + 1
//     d[4 j + 2], d[4 j + 3]  rows 16 w + group + 8,  the same columns
// which is the C fragment of mma.h, N / 8 times; A in registers is mma.h's A fragment of the warp's 16 rows.
// Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions".
//
//     wgmma_fence(d);
//     for (...) wgmma_bf16<Major::k, Major::k>(d, a, b, true);
//     wgmma_commit();
//     wgmma_wait<0>(d);  // until then nobody touches d, nor what the descriptors point to
#pragma once
#include "kernels/tma.h"

namespace GPU_NAMESPACE {

// Which index of an operand is contiguous: the inner one, or the outer one (m of A, n of B).
enum class Major { k, mn };

constexpr int kPanelBytes = 128;  // a line of a panel: what the swizzle spans

// An operand's tile of T (bf16, or an FP8 number), kOuter x kInner, in shared memory from a multiple of 1024
// bytes on, as boxes with swizzle 128 bring it (tma.h): its contiguous index in panels of kPanel elements,
// each a box {kPanel, the other index}, one behind the other.
template <Major kMajor, int kOuter, int kInner, class T = bf16>
struct WgmmaTile {
    static constexpr int kBytes = sizeof(T), kPanel = kPanelBytes / kBytes;
    static constexpr int kLines = kMajor == Major::k ? kOuter : kInner;
    static constexpr int kPanels = (kMajor == Major::k ? kInner : kOuter) / kPanel;
    static constexpr int kPanelElements = kPanel * kLines, kElements = kPanels * kPanelElements;
    static_assert(kElements == kOuter * kInner && kLines % 8 == 0);
    static_assert(kMajor == Major::k || kBytes == 2, "the instruction transposes no bytes");

    // The descriptor of the operand that begins at (outer, inner). Major::k: outer is a multiple of 8, inner
    // of 32 bytes. Major::mn: outer of 64, inner of 8. Fields, in units of 16 bytes:
    //   bits 0-13   the first element's address
    //   bits 16-29  Major::mn: from one panel to the next. Major::k: not read with a swizzle; 1
    //   bits 32-45  from eight lines to the next eight: 8 x 128 bytes
    //   bits 49-51  0: eight lines begin at multiples of 1024 bytes
    //   bits 62-63  1: swizzle 128
    __device__ static uint64_t descriptor(const T* tile, int outer, int inner) {
        const int line = kMajor == Major::k ? outer : inner, along = kMajor == Major::k ? inner : outer;
        const T* const first = tile + along / kPanel * kPanelElements + line * kPanel + along % kPanel;
#if defined(__CUDACC__)
        const uint64_t address = __cvta_generic_to_shared(first);
#else
        const uint64_t address = simt::shared_offset(first);
#endif
        constexpr uint64_t kLeading = kMajor == Major::k ? 1 : kPanelElements * kBytes / 16;
        constexpr uint64_t kStride = 8 * kPanelBytes / 16;
        return (address & 0x3ffff) >> 4 | kLeading << 16 | kStride << 32 | uint64_t{1} << 62;
    }
};

// Registers that wgmma reads or writes later must hold what they should here and from here on: the compiler
// does not know that it will.
template <class T, int kCount>
__device__ void pin_registers([[maybe_unused]] T (&x)[kCount]) {
#if defined(__CUDA_ARCH__)
    UNROLL
    for (int i = 0; i < kCount; ++i) {
        if constexpr (std::is_same_v<T, float>) {
            asm volatile("" : "+f"(x[i])::"memory");
        } else {
            asm volatile("" : "+r"(x[i])::"memory");
        }
    }
#endif
}

template <class T, int kRows, int kCount>
__device__ void pin_registers(T (&x)[kRows][kCount]) {
    UNROLL
    for (int row = 0; row < kRows; ++row) pin_registers(x[row]);
}

// Before the first wgmma, and wherever registers that one takes (named here) were written since the last. All
// warps of the warpgroup, as everything below.
template <class... Registers>
__device__ void wgmma_fence(Registers&... registers) {
    (pin_registers(registers), ...);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#elif !defined(__CUDACC__)
    simt::wgmma_fence();
#endif
}
__device__ inline void wgmma_commit() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#elif !defined(__CUDACC__)
    simt::wgmma_commit();
#endif
}
// Until at most kPending groups are under way. `registers`: those of the groups that are done then.
template <int kPending, class... Registers>
__device__ void wgmma_wait(Registers&... registers) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#elif !defined(__CUDACC__)
    simt::wgmma_wait(kPending);
#endif
    (pin_registers(registers), ...);
}

// ---- the instruction itself -------------------------------------------------------------------------------
// Operands of the text below: the sums %0 to %(N / 2 - 1), then A and B, then whether to add.

#define WGMMA_TEN(t) \
    "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9,"
#define WGMMA_30 WGMMA_TEN() WGMMA_TEN(1) WGMMA_TEN(2)
#define WGMMA_60 WGMMA_30 WGMMA_TEN(3) WGMMA_TEN(4) WGMMA_TEN(5)
#define WGMMA_90 WGMMA_60 WGMMA_TEN(6) WGMMA_TEN(7) WGMMA_TEN(8)
#define WGMMA_SUMS_64 "{" WGMMA_30 "%30,%31}"
#define WGMMA_SUMS_128 "{" WGMMA_60 "%60,%61,%62,%63}"
#define WGMMA_SUMS_192 "{" WGMMA_90 "%90,%91,%92,%93,%94,%95}"
#define WGMMA_SUMS_256 \
    "{" WGMMA_90 WGMMA_TEN(9) WGMMA_TEN(10) WGMMA_TEN(11) "%120,%121,%122,%123,%124,%125,%126,%127}"
#define WGMMA_EIGHT(i)                                                                          \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define WGMMA_D_32(i) WGMMA_EIGHT(i), WGMMA_EIGHT(i + 8), WGMMA_EIGHT(i + 16), WGMMA_EIGHT(i + 24)
#define WGMMA_D_64 WGMMA_D_32(0)
#define WGMMA_D_128 WGMMA_D_64, WGMMA_D_32(32)
#define WGMMA_D_192 WGMMA_D_128, WGMMA_D_32(64)
#define WGMMA_D_256 WGMMA_D_192, WGMMA_D_32(96)
// kind: inner indices and types. modifiers: signs, and for bf16 which operands are transposed.
#define WGMMA_TEXT(n, kind, a, b, add, modifiers)                                                   \
    "{\n.reg .pred adds;\nsetp.ne.b32 adds, " add ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n kind \
    " " WGMMA_SUMS_##n ", " a ", " b ", adds, " modifiers ";\n}"
#define WGMMA_BF16 "k16.f32.bf16.bf16"
#define WGMMA_FROM_SHARED(n, a_at, b_at, add_at, major_a, major_b)                            \
    asm volatile(WGMMA_TEXT(n, WGMMA_BF16, a_at, b_at, add_at, "1, 1, " major_a ", " major_b) \
                 : WGMMA_D_##n                                                                \
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(kA == Major::mn),   \
                   "n"(kB == Major::mn))
#define WGMMA_FROM_REGISTERS(n, a_at, b_at, add_at, major_b)                                              \
    asm volatile(WGMMA_TEXT(n, WGMMA_BF16, a_at, b_at, add_at, "1, 1, " major_b)                          \
                 : WGMMA_D_##n                                                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)), \
                   "n"(kB == Major::mn))
#define WGMMA_OF_FP8(kind)                                          \
    asm volatile(WGMMA_TEXT(128, kind, "%64", "%65", "%66", "1, 1") \
                 : WGMMA_D_128                                      \
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)))

// d += A B, or d = A B where !accumulate; N = 2 kSums. a, b: WgmmaTile::descriptor().
template <Major kA, Major kB, int kSums>
__device__ void wgmma_bf16(float (&d)[kSums], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(kSums == 32 || kSums == 64 || kSums == 96 || kSums == 128);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    if constexpr (kSums == 32) WGMMA_FROM_SHARED(64, "%32", "%33", "%34", "%35", "%36");
    if constexpr (kSums == 64) WGMMA_FROM_SHARED(128, "%64", "%65", "%66", "%67", "%68");
    if constexpr (kSums == 96) WGMMA_FROM_SHARED(192, "%96", "%97", "%98", "%99", "%100");
    if constexpr (kSums == 128) WGMMA_FROM_SHARED(256, "%128", "%129", "%130", "%131", "%132");
#elif !defined(__CUDACC__)
    simt::wgmma(d, {2 * kSums, accumulate, nullptr, a, b, kA == Major::mn, kB == Major::mn});
#endif
}
// The same with A in registers, which must not change before wgmma_wait() either.
template <Major kB, int kSums>
__device__ void wgmma_bf16(float (&d)[kSums], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    static_assert(kSums == 32 || kSums == 64 || kSums == 96 || kSums == 128);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    if constexpr (kSums == 32) WGMMA_FROM_REGISTERS(64, "{%32,%33,%34,%35}", "%36", "%37", "%38");
    if constexpr (kSums == 64) WGMMA_FROM_REGISTERS(128, "{%64,%65,%66,%67}", "%68", "%69", "%70");
    if constexpr (kSums == 96) WGMMA_FROM_REGISTERS(192, "{%96,%97,%98,%99}", "%100", "%101", "%102");
    if constexpr (kSums == 128) WGMMA_FROM_REGISTERS(256, "{%128,%129,%130,%131}", "%132", "%133", "%134");
#elif !defined(__CUDACC__)
    simt::wgmma(d, {2 * kSums, accumulate, a, 0, b, false, kB == Major::mn});
#endif
}

// The same of FP8 numbers, 32 along the inner dimension: A is e4m3 or e5m2, B is e4m3. Hopper is reported to
// keep 14 bits of sums (DeepSeek-V3, arXiv:2412.19437, section 3.3.2), so that long ones are better added up
// in parts. N = 128, which leaves registers for that.
template <class A>
__device__ void wgmma_fp8(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
    constexpr bool kE5m2 = std::is_same_v<A, e5m2>;
    static_assert(kE5m2 || std::is_same_v<A, e4m3>);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    if constexpr (kE5m2) {
        WGMMA_OF_FP8("k32.f32.e5m2.e4m3");
    } else {
        WGMMA_OF_FP8("k32.f32.e4m3.e4m3");
    }
#elif !defined(__CUDACC__)
    simt::wgmma(d, {128, accumulate, nullptr, a, b, false, false,
                    kE5m2 ? simt::WgmmaNumbers::e5m2 : simt::WgmmaNumbers::e4m3});
#endif
}

}  // namespace GPU_NAMESPACE
