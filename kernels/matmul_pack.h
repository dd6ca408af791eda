// Packing: the one place that knows how operands lie in memory. It copies a block of an operand into panels
// of units (kernels/matmul_tile.h), transposing, widening or rounding on the way, and fills up with zeros.
#pragma once
#include <cstring>
#include <utility>

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
// Whole: all kWidth elements exist; otherwise the first `count`, which may be none.
template <bool Whole, class T>
SIMD_INLINE Vec load_part(const T* p, int64_t count) {
    if constexpr (Whole) return load(p);
    return load_first(p, count < 0 ? 0 : count);
}
template <class Units, bool Whole, class T>
SIMD_INLINE VecU element_bits(const T* p, int64_t count) {
    const Vec x = load_part<Whole>(p, count);
    if constexpr (Units::kRound && std::is_same_v<T, float>) return rounded_bits(x);
    return bits_of(x);
}

// kWidth units that follow each other in the inner dimension; `count` elements exist.
template <class Units, bool Whole, class T>
SIMD_INLINE VecU inner_units(const T* p, int64_t count) {
    if constexpr (Units::kElements == 1) {
        return element_bits<Units, Whole>(p, count);
#if defined(__AVX512BF16__)
    } else if constexpr (std::is_same_v<T, bf16>) {
        if (Whole) return load_units(reinterpret_cast<const uint32_t*>(p));
        uint32_t part[kWidth] = {};
        const int64_t valid = count < 2 * kWidth ? count : 2 * kWidth;
        if (valid > 0) std::memcpy(part, p, static_cast<size_t>(valid) * sizeof(bf16));
        return load_units(part);
    } else {
        const Vec low = load_part<Whole>(p, count), high = load_part<Whole>(p + kWidth, count - kWidth);
        return reinterpret_cast<VecU>(
            _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low)));
#endif
    }
}
// kWidth units side by side in the outer dimension, `count` of them in memory; `inner_count` (>= 1) inner
// elements exist.
template <class Units, bool Whole, class T>
SIMD_INLINE VecU outer_units(const T* p, int64_t stride, int64_t count, int64_t inner_count) {
    const VecU first = element_bits<Units, Whole>(p, count);
    if constexpr (Units::kElements == 1) return first;
    if (inner_count < 2) return first >> 16;
    return (first >> 16) | (element_bits<Units, Whole>(p + stride, count) & 0xffff0000u);
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

// Stores one inner unit of kWidth outer indices; `to` is the unit's place in the first of the panels they
// fall into, the next panels lie panel_size further on each.
template <int Width>
SIMD_INLINE void store_outer(uint32_t* to, int64_t panel_size, VecU x) {
    if constexpr (Width >= kWidth) {
        std::memcpy(to, &x, sizeof x);
    } else {
        typedef uint32_t Part __attribute__((vector_size(Width * 4)));
        const auto part = [&]<int... I>(int first, std::integer_sequence<int, I...>)
            __attribute__((always_inline)) {
            return Part{x[first + I]...};
        };
#pragma GCC unroll 8
        for (int i = 0; i < kWidth / Width; ++i) {
            const Part slice = part(i * Width, std::make_integer_sequence<int, Width>{});
            std::memcpy(to + i * panel_size, &slice, sizeof slice);
        }
    }
}

// kWidth outer indices, `outer_count` of them in memory, by kWidth inner units.
template <class Units, int Width, bool Whole, class T>
SIMD_INLINE void pack_transposed(const T* source, int64_t stride, int64_t outer_count, int64_t inner_count,
                                 uint32_t* to, int64_t panel_size) {
    VecU x[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
        x[i] =
            Whole || i < outer_count ? inner_units<Units, Whole>(source + i * stride, inner_count) : VecU{};
    }
    transpose(x);
    const int64_t units = Whole ? kWidth : (inner_count + Units::kElements - 1) / Units::kElements;
#pragma GCC unroll 16
    for (int64_t i = 0; i < kWidth; ++i) {
        if (Whole || i < units) store_outer<Width>(to + i * Width, panel_size, x[i]);
    }
}

// Outer indices [0, outer_count) from `source`, inner elements [0, inner_count). Panels are filled to a whole
// multiple of max(kWidth, Width) outer indices.
template <class Units, int Width, class T>
void pack_panels(const T* source, const Operand& operand, int64_t outer_count, int64_t inner_count,
                 uint32_t* panels) {
    const int64_t units = (inner_count + Units::kElements - 1) / Units::kElements;
    const int64_t stride = operand.stride, panel_size = Width * units;
    constexpr int64_t kFill = Width > kWidth ? Width : kWidth;
    const int64_t padded = (outer_count + kFill - 1) / kFill * kFill;
    const auto place = [&](int64_t at) { return panels + at / Width * panel_size + at % Width; };
    if (operand.inner_contiguous) {
        constexpr int64_t kInner = kWidth * Units::kElements;
        for (int64_t at = 0; at < padded; at += kWidth) {
            const T* from = source + at * stride;
            uint32_t* to = place(at);
            int64_t inner = 0;
            if (at + kWidth <= outer_count) {
                for (; inner + kInner <= inner_count; inner += kInner, to += kWidth * Width) {
                    pack_transposed<Units, Width, true>(from + inner, stride, kWidth, kInner, to, panel_size);
                }
            }
            for (; inner < inner_count; inner += kInner, to += kWidth * Width) {
                pack_transposed<Units, Width, false>(from + inner, stride, outer_count - at,
                                                     inner_count - inner, to, panel_size);
            }
        }
        return;
    }
    // Narrow panels lie so far apart that writing all of them in turn would fall into one set of the cache:
    // take a cache line's worth of outer indices at a time.
    constexpr int64_t kLine = 64 / sizeof(T);
    const int64_t group = Width < kWidth ? kLine : padded;
    for (int64_t first = 0; first < padded; first += group) {
        const int64_t end = first + group < padded ? first + group : padded;
        for (int64_t u = 0; u < units; ++u) {
            const T* row = source + u * Units::kElements * stride;
            const int64_t left = inner_count - u * Units::kElements;
            for (int64_t at = first; at < end; at += kWidth) {
                uint32_t* to = place(at) + u * Width;
                if (at + kWidth <= outer_count) {
                    store_outer<Width>(to, panel_size,
                                       outer_units<Units, true>(row + at, stride, kWidth, left));
                } else {
                    store_outer<Width>(
                        to, panel_size,
                        at < outer_count ? outer_units<Units, false>(row + at, stride, outer_count - at, left)
                                         : VecU{});
                }
            }
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
