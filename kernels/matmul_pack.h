// Packing: the one place that knows how operands lie in memory. It copies a block of an operand into panels
// of units (kernels/matmul_tile.h), transposing, widening or rounding on the way, and fills up with zeros.
#pragma once
#include <cstring>

#include "core/tensor.h"
#include "kernels/matmul_tile.h"

namespace ISA_NAMESPACE {

// A matrix as the product sees it: `outer` indexes rows or columns of the result, `inner` the sum.
struct Operand {
    const void* data;
    DType dtype;
    int64_t stride;         // elements between rows in memory
    bool inner_contiguous;  // element (outer, inner) lies at outer * stride + inner, else inner * stride +
                            // outer

    const void* at(int64_t outer, int64_t inner) const {
        const int64_t element = inner_contiguous ? outer * stride + inner : inner * stride + outer;
        return static_cast<const char*>(data) + element * dtype_bytes(dtype);
    }
};

SIMD_INLINE VecU bits_of(Vec x) { return reinterpret_cast<VecU>(x); }
// x rounded to bf16, as f32.
SIMD_INLINE VecU rounded_bits(Vec x) {
    bf16 part[kWidth];
    store(part, x);
    return bits_of(load(part));
}
template <class Units, class T>
SIMD_INLINE VecU unit_half(const T* p, int64_t count) {
    const Vec x = load_first(p, count < 0 ? 0 : count);
    if constexpr (Units::kRound && std::is_same_v<T, float>) return rounded_bits(x);
    return bits_of(x);
}

// kWidth units that follow each other in the inner dimension; `count` elements exist.
template <class Units, class T>
SIMD_INLINE VecU inner_units(const T* p, int64_t count) {
    if constexpr (Units::kElements == 1) {
        return unit_half<Units>(p, count);
#if defined(__AVX512BF16__)
    } else if constexpr (std::is_same_v<T, bf16>) {
        if (count >= 2 * kWidth) return load_units(reinterpret_cast<const uint32_t*>(p));
        uint32_t part[kWidth] = {};
        if (count > 0) std::memcpy(part, p, static_cast<size_t>(count) * sizeof(bf16));
        return load_units(part);
    } else {
        const Vec low = load_first(p, count < 0 ? 0 : count);
        const Vec high = load_first(p + kWidth, count < kWidth ? 0 : count - kWidth);
        return reinterpret_cast<VecU>(
            _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low)));
#endif
    }
}
// kWidth units side by side in the outer dimension; `inner_count` (>= 1) inner elements exist.
template <class Units, class T>
SIMD_INLINE VecU outer_units(const T* p, int64_t stride, int64_t count, int64_t inner_count) {
    const VecU first = unit_half<Units>(p, count);
    if constexpr (Units::kElements == 1) return first;
    if (inner_count < 2) return first >> 16;
    return (first >> 16) | (unit_half<Units>(p + stride, count) & 0xffff0000u);
}

template <int Distance>
SIMD_INLINE void transpose_step(VecU (&x)[kWidth]) {
    VecI low, high;  // of a block of 2 x 2 parts, swap the two off the diagonal
    for (int i = 0; i < kWidth; ++i) {
        low[i] = (i & Distance) == 0 ? i : kWidth + i - Distance;
        high[i] = (i & Distance) == 0 ? i + Distance : kWidth + i;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
        if ((i & Distance) != 0) continue;
        const VecU a = x[i], b = x[i + Distance];
        x[i] = __builtin_shuffle(a, b, low);
        x[i + Distance] = __builtin_shuffle(a, b, high);
    }
}
SIMD_INLINE void transpose(VecU (&x)[kWidth]) {
    if constexpr (kWidth == 16) transpose_step<8>(x);
    transpose_step<4>(x);
    transpose_step<2>(x);
    transpose_step<1>(x);
}

// Stores units for outer indices [at, at + kWidth) of one inner unit into panels `Width` wide.
template <int Width>
SIMD_INLINE void store_outer(uint32_t* panels, int64_t at, int64_t unit, int64_t units, VecU x) {
    if constexpr (Width >= kWidth) {
        std::memcpy(panels + at / Width * (Width * units) + unit * Width + at % Width, &x, sizeof x);
    } else {
        uint32_t part[kWidth];
        std::memcpy(part, &x, sizeof x);
#pragma GCC unroll 8
        for (int i = 0; i < kWidth; i += Width) {
            std::memcpy(panels + (at + i) / Width * (Width * units) + unit * Width, part + i, Width * 4);
        }
    }
}

// Outer indices [0, outer_count) from `source`, inner elements [0, inner_count). Panels are filled to a whole
// multiple of max(kWidth, Width) outer indices.
template <class Units, int Width, class T>
void pack_panels(const T* source, const Operand& operand, int64_t outer_count, int64_t inner_count,
                 uint32_t* panels) {
    const int64_t units = (inner_count + Units::kElements - 1) / Units::kElements;
    const int64_t stride = operand.stride;
    constexpr int64_t kFill = Width > kWidth ? Width : kWidth;
    const int64_t padded = (outer_count + kFill - 1) / kFill * kFill;
    if (operand.inner_contiguous) {
        for (int64_t at = 0; at < padded; at += kWidth) {
            for (int64_t u = 0; u < units; u += kWidth) {
                VecU x[kWidth];
                const int64_t count = inner_count - u * Units::kElements;
                for (int i = 0; i < kWidth; ++i) {
                    x[i] = at + i < outer_count
                               ? inner_units<Units>(source + (at + i) * stride + u * Units::kElements, count)
                               : VecU{};
                }
                transpose(x);
                const int64_t valid = units - u < kWidth ? units - u : kWidth;
                for (int64_t i = 0; i < valid; ++i) store_outer<Width>(panels, at, u + i, units, x[i]);
            }
        }
        return;
    }
    for (int64_t u = 0; u < units; ++u) {
        const T* row = source + u * Units::kElements * stride;
        const int64_t left = inner_count - u * Units::kElements;
        for (int64_t at = 0; at < padded; at += kWidth) {
            const VecU x =
                at < outer_count ? outer_units<Units>(row + at, stride, outer_count - at, left) : VecU{};
            store_outer<Width>(panels, at, u, units, x);
        }
    }
}

template <class Units, int Width>
void pack(const Operand& operand, int64_t outer, int64_t outer_count, int64_t inner, int64_t inner_count,
          float* panels) {
    const void* source = operand.at(outer, inner);
    uint32_t* to = reinterpret_cast<uint32_t*>(panels);
    if (operand.dtype == DType::f32) {
        pack_panels<Units, Width>(static_cast<const float*>(source), operand, outer_count, inner_count, to);
    } else {
        pack_panels<Units, Width>(static_cast<const bf16*>(source), operand, outer_count, inner_count, to);
    }
}

}  // namespace ISA_NAMESPACE
