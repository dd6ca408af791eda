// Tensor-core instructions of sm_80 and up, each as a function of one warp: PTX, and the same in plain C++
// for the emulator. Fragments are as the PTX manual draws them ("Matrix Fragments for mma.m16n8k16"); with
// group = lane / 4 and pair = lane % 4:
//   A [16,16]  a[0] = A[group   ][2 pair, +1]     a[2] = A[group   ][2 pair + 8, +9]
//              a[1] = A[group +8][2 pair, +1]     a[3] = A[group +8][2 pair + 8, +9]
//   B [16,8]   b[0] = B[2 pair, +1][group]        b[1] = B[2 pair + 8, +9][group]
//   C [16,8]   c[0], c[1] = C[group][2 pair, +1]  c[2], c[3] = C[group + 8][2 pair, +1]
#pragma once
#include <type_traits>

#include "kernels/gpu.h"

namespace GPU_NAMESPACE {

// Four 8x8 matrices of 16-bit elements. Lane i gives the address of row i % 8 of matrix i / 8 (16 bytes,
// aligned, in shared memory); r[m] gets elements [lane / 4][2 (lane % 4), +1] of matrix m.
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
#if defined(__CUDA_ARCH__)
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
#elif !defined(__CUDACC__)
    simt::load_matrices(r, row, 4, false);
#endif
}
// The same of the transposed matrices: r[m] gets elements [2 (lane % 4), +1][lane / 4].
__device__ inline void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row) {
#if defined(__CUDA_ARCH__)
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
#elif !defined(__CUDACC__)
    simt::load_matrices(r, row, 4, true);
#endif
}

// c += A B, bf16 operands, f32 sums. The order of the 16 products within one c is the hardware's own.
__device__ inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif !defined(__CUDACC__)
    simt::mma_m16n8k16(c, a, b);
#endif
}

// The same of FP8 numbers, 32 of them along the inner dimension (sm_89): A is e4m3 or e5m2, B is e4m3. Two
// neighbours along the inner dimension take the place of one bf16 in every fragment drawn above.
template <class A>
__device__ void mma_fp8(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    constexpr bool kE5m2 = std::is_same_v<A, e5m2>;
    static_assert(kE5m2 || std::is_same_v<A, e4m3>);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    if constexpr (kE5m2) {
        asm volatile(
            "mma.sync.aligned.m16n8k32.row.col.f32.e5m2.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
        asm volatile(
            "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
#elif defined(__CUDA_ARCH__)
    __trap();  // no such instruction; the host refuses FP8 on such a GPU (core/device.h)
#elif !defined(__CUDACC__)
    simt::mma_m16n8k32(c, a, b, kE5m2);
#endif
}

}  // namespace GPU_NAMESPACE
