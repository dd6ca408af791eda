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
        // Units of bf16 may begin at any element.
        typedef uint16_t Pairs __attribute__((vector_size(kWidth * 4), aligned(2), may_alias));
        if (Whole) return reinterpret_cast<VecU>(*reinterpret_cast<const Pairs*>(p));
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
        x[i] = shuffle(a, b, low);
        x[i + Distance] = shuffle(a, b, high);
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
        const auto store_parts = [&]<int... I, int... P>(std::integer_sequence<int, I...>,
                                                         std::integer_sequence<int, P...>)
            __attribute__((always_inline)) {
            const auto store_part = [&]<int First>(std::integral_constant<int, First>)
                __attribute__((always_inline)) {
                const Part slice = __builtin_shufflevector(x, x, (First * Width + I)...);
                std::memcpy(to + First * panel_size, &slice, sizeof slice);
            };
            (store_part(std::integral_constant<int, P>{}), ...);
        };
        store_parts(std::make_integer_sequence<int, Width>{},
                    std::make_integer_sequence<int, kWidth / Width>{});
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

struct Range {
    int64_t begin, size;
    Range piece(int64_t index, int64_t width) const {
        return {begin + index * width, size - index * width < width ? size - index * width : width};
    }
};

// Packs outer x inner of an operand, a piece of kPieceUnits units at a time, so that packing can hide between
// products that need the memory bus little. A whole number of max(kWidth, Width) outer indices is filled.
template <class Units, int Width>
class PieceByPiece {
public:
    PieceByPiece() = default;
    PieceByPiece(const Operand& operand, Range outer, Range inner, float* panels)
        : operand_(operand),
          outer_(outer),
          inner_(inner),
          units_((inner.size + Units::kElements - 1) / Units::kElements),
          panels_(reinterpret_cast<uint32_t*>(panels)) {
        num_pieces_ = (units_ + kPieceUnits - 1) / kPieceUnits;
    }

    int64_t num_pieces() const { return num_pieces_; }
    int64_t num_packed() const { return num_packed_; }
    int64_t lines_per_piece() const {
        if (operand_.inner_contiguous) return outer_.size;
        return kPieceElements * ((outer_.size * dtype_bytes(operand_.dtype) + 63) / 64);
    }
    void pack_until(int64_t piece) {
        if (piece > num_pieces_) piece = num_pieces_;
        for (; num_packed_ < piece; ++num_packed_) {
            if (operand_.dtype == DType::f32) {
                pack_piece<float>(num_packed_);
            } else {
                pack_piece<bf16>(num_packed_);
            }
        }
    }
    // All of it now, fetching ahead of itself: operands that earlier kernels wrote are often no longer in any
    // cache, and rows that lie pages apart are found by no hardware prefetcher.
    void pack_all() {
        constexpr int64_t kDistance = 16;  // a piece takes some 100 cycles, memory 500 and more
        for (int64_t piece = 0; piece < kDistance; ++piece) fetch(piece);
        for (int64_t piece = 0; piece < num_pieces_; ++piece) {
            fetch(piece + kDistance);
            pack_until(piece + 1);
        }
    }
    // The memory of pieces [num_packed(), until), at `per_step` lines a step.
    ReadAhead read_ahead(int64_t until, int per_step) const {
        if (until > num_pieces_) until = num_pieces_;
        if (num_packed_ >= until) return {};
        return lines(num_packed_, until - num_packed_, per_step);
    }

private:
    static constexpr int64_t kPieceElements = kPieceUnits * Units::kElements;

    ReadAhead lines(int64_t piece, int64_t count, int per_step) const {
        const int64_t first = piece * kPieceElements, most = count * kPieceElements;
        const int64_t left = inner_.size - first;
        const Range inner{inner_.begin + first, left < most ? left : most};
        const int64_t element = dtype_bytes(operand_.dtype);
        const Range run = operand_.inner_contiguous ? inner : outer_;
        const Range runs = operand_.inner_contiguous ? outer_ : inner;
        return ReadAhead(operand_.at(outer_.begin, inner.begin), run.size * element,
                         operand_.stride * element, runs.size, per_step);
    }
    void fetch(int64_t piece) const {
        if (piece >= num_pieces_) return;
        ReadAhead ahead = lines(piece, 1, 1);
        while (!ahead.done()) ReadAhead::step(ahead);
        // Where it will be written.
        for (int64_t at = 0; at < outer_.size; at += Width) {
            const uint32_t* to = panels_ + at * units_ + piece * kPieceUnits * Width;
            for (int64_t word = 0; word < kPieceUnits * Width; word += 16)
                __builtin_prefetch(to + word, 1, 2);
        }
    }

    template <class T>
    void pack_piece(int64_t piece) const {
        const Range inner = inner_.piece(piece, kPieceElements);
        const T* source = static_cast<const T*>(operand_.at(outer_.begin, inner.begin));
        uint32_t* const panels = panels_ + piece * kPieceUnits * Width;
        const int64_t panel_size = units_ * Width;
        constexpr int64_t kFill = Width > kWidth ? Width : kWidth;
        const int64_t padded = (outer_.size + kFill - 1) / kFill * kFill;
        const bool whole = inner.size == kPieceElements;
        for (int64_t at = 0; at < padded; at += kWidth) {
            uint32_t* to = panels + at / Width * panel_size + at % Width;
            const int64_t count = outer_.size - at;
            if (whole && count >= kWidth) {
                pack_part<true>(source, at, kWidth, kPieceElements, to, panel_size);
            } else {
                pack_part<false>(source, at, count, inner.size, to, panel_size);
            }
        }
    }
    // kWidth outer indices from `at` on, `count` of them in memory.
    template <bool Whole, class T>
    void pack_part(const T* source, int64_t at, int64_t count, int64_t inner_count, uint32_t* to,
                   int64_t panel_size) const {
        const int64_t stride = operand_.stride;
        if (operand_.inner_contiguous) {
            constexpr int64_t kInner = kWidth * Units::kElements;
            for (int64_t inner = 0; inner < inner_count; inner += kInner, to += kWidth * Width) {
                pack_transposed<Units, Width, Whole>(source + at * stride + inner, stride, count,
                                                     inner_count - inner, to, panel_size);
            }
            return;
        }
        for (int64_t inner = 0; inner < inner_count; inner += Units::kElements, to += Width) {
            const T* row = source + inner * stride + at;
            const bool any = Whole || count > 0;
            store_outer<Width>(
                to, panel_size,
                any ? outer_units<Units, Whole>(row, stride, count, inner_count - inner) : VecU{});
        }
    }

    Operand operand_{};
    Range outer_{}, inner_{};
    int64_t units_ = 0, num_pieces_ = 0, num_packed_ = 0;
    uint32_t* panels_ = nullptr;
};

}  // namespace ISA_NAMESPACE
