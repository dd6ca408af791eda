// The heart of the matrix product: a tile of kTileRows x kTileCols sums held in registers while the inner
// index runs. Operands come packed, in panels of 32-bit units: unit u of a row panel is kTileRows units side
// by side, of a column panel kTileCols. A unit is one f32, or two neighbouring bf16 of the inner dimension.
#pragma once
#include "kernels/tuning.h"

namespace ISA_NAMESPACE {

// One inner element per unit; bf16 sources are widened. Round: f32 sources are rounded to bf16 first, which
// makes the product what bf16 hardware would give, up to the order of the sums.
template <bool Round>
struct FloatUnits {
    static constexpr int kElements = 1;
    static constexpr bool kRound = Round;
    SIMD_INLINE Vec multiply_add(VecU a, VecU b, Vec sum) {
        return fma(reinterpret_cast<Vec>(a), reinterpret_cast<Vec>(b), sum);
    }
};
#if defined(__AVX512BF16__)
// Two inner elements per unit, the earlier one in the low half.
struct PairUnits {
    static constexpr int kElements = 2;
    static constexpr bool kRound = true;
    SIMD_INLINE Vec multiply_add(VecU a, VecU b, Vec sum) {
        return reinterpret_cast<Vec>(_mm512_dpbf16_ps(
            reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
    }
};
using Bf16Units = PairUnits;
#else
using Bf16Units = FloatUnits<true>;
#endif

SIMD_INLINE VecU load_units(const uint32_t* p) { return *reinterpret_cast<const VecU*>(p); }

// Memory that will be packed next, fetched into the second-level cache line by line between the FMAs, so that
// packing finds it there: `runs` runs of run_bytes, `stride` bytes apart.
class ReadAhead {
public:
    ReadAhead() = default;
    ReadAhead(const void* begin, int64_t run_bytes, int64_t stride, int64_t runs, int lines_per_step)
        : next_(static_cast<const char*>(begin)),
          run_end_(next_ + run_bytes),
          run_bytes_(run_bytes),
          stride_(stride),
          runs_left_(runs),
          lines_per_step_(lines_per_step) {}
    bool done() const { return runs_left_ == 0; }
    SIMD_INLINE void step(ReadAhead& r) {
        for (int line = 0; line < r.lines_per_step_; ++line) {
            __builtin_prefetch(r.next_, 0, 2);
            if (r.runs_left_ == 0) return;  // prefetching never faults: the last line again does no harm
            r.next_ += 64;
            if (r.next_ < r.run_end_) continue;
            r.next_ = r.run_end_ - r.run_bytes_ + r.stride_;
            r.run_end_ += r.stride_;
            --r.runs_left_;
        }
    }

private:
    const char* next_ = nullptr;
    const char* run_end_ = nullptr;
    int64_t run_bytes_ = 0, stride_ = 0, runs_left_ = 0;
    int lines_per_step_ = 0;
};
// What a tile's products fetch for those who pack after it: the next strip, and the next shared panels.
struct ReadAheads {
    ReadAhead strip, shared;
};

// Stream: past the caches, without reading what is overwritten. p must then be aligned to 64 bytes, and the
// thread must call end_stores() before others may read.
template <bool Stream>
SIMD_INLINE void store_sum(float* p, Vec x) {
#if defined(__AVX512F__)
    if (Stream) return _mm512_stream_ps(p, reinterpret_cast<__m512>(x));
#elif defined(__AVX2__)
    if (Stream) return _mm256_stream_ps(p, reinterpret_cast<__m256>(x));
#endif
    store(p, x);
}
SIMD_INLINE void end_stores() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

constexpr int kReadAheadUnits = 8;  // units per step of reading ahead

// Rows x kTileCols sums. Named members, not an array: the compiler then keeps every one in a register.
template <class Units, int Rows>
struct Sums {
    static_assert(kTileVectors == 3);
    Vec s0{}, s1{}, s2{};
    Sums<Units, Rows - 1> below;

    SIMD_INLINE void load_from(Sums& sums, const float* p) {
        sums.s0 = load(p);
        sums.s1 = load(p + kWidth);
        sums.s2 = load(p + 2 * kWidth);
        Sums<Units, Rows - 1>::load_from(sums.below, p + kTileCols);
    }
    SIMD_INLINE void add_unit(Sums& sums, const uint32_t* rows, VecU c0, VecU c1, VecU c2) {
        const VecU row = VecU{} + *rows;
        sums.s0 = Units::multiply_add(row, c0, sums.s0);
        sums.s1 = Units::multiply_add(row, c1, sums.s1);
        sums.s2 = Units::multiply_add(row, c2, sums.s2);
        Sums<Units, Rows - 1>::add_unit(sums.below, rows + 1, c0, c1, c2);
    }
    template <bool Stream>
    SIMD_INLINE void store_to(const Sums& sums, float* p, int64_t stride) {
        store_sum<Stream>(p, sums.s0);
        store_sum<Stream>(p + kWidth, sums.s1);
        store_sum<Stream>(p + 2 * kWidth, sums.s2);
        Sums<Units, Rows - 1>::template store_to<Stream>(sums.below, p + stride, stride);
    }
};
template <class Units>
struct Sums<Units, 0> {
    SIMD_INLINE void load_from(Sums&, const float*) {}
    SIMD_INLINE void add_unit(Sums&, const uint32_t*, VecU, VecU, VecU) {}
    template <bool Stream>
    SIMD_INLINE void store_to(const Sums&, float*, int64_t) {}
};

// to[r * to_stride + c] = (from ? from[r * kTileCols + c] : 0) + sum_u row_panel[u][r] * column_panel[u][c],
// in the order of u, for the first Rows rows.
template <class Units, int Rows>
void multiply_tile(const uint32_t* row_panel, const uint32_t* column_panel, int64_t units, const float* from,
                   float* to, int64_t to_stride, bool stream, ReadAheads& ahead_of) {
    ReadAheads ahead = ahead_of;
    Sums<Units, Rows> sums;
    if (from != nullptr) Sums<Units, Rows>::load_from(sums, from);
    int64_t u = 0;
    for (; u + kReadAheadUnits <= units; u += kReadAheadUnits) {
        ReadAhead::step(ahead.strip);
        ReadAhead::step(ahead.shared);
#pragma GCC unroll 8
        for (int i = 0; i < kReadAheadUnits; ++i) {
            Sums<Units, Rows>::add_unit(sums, row_panel, load_units(column_panel),
                                        load_units(column_panel + kWidth),
                                        load_units(column_panel + 2 * kWidth));
            row_panel += kTileRows;
            column_panel += kTileCols;
        }
    }
    for (; u < units; ++u) {
        Sums<Units, Rows>::add_unit(sums, row_panel, load_units(column_panel),
                                    load_units(column_panel + kWidth), load_units(column_panel + 2 * kWidth));
        row_panel += kTileRows;
        column_panel += kTileCols;
    }
    if (stream) {
        Sums<Units, Rows>::template store_to<true>(sums, to, to_stride);
    } else {
        Sums<Units, Rows>::template store_to<false>(sums, to, to_stride);
    }
    ahead_of = ahead;
}

// Only as many rows as there are: a single token costs an eighth of a full tile.
template <class Units>
void multiply_tile_rows(int64_t rows, const uint32_t* row_panel, const uint32_t* column_panel, int64_t units,
                        const float* from, float* to, int64_t to_stride, bool stream, ReadAheads& ahead) {
    if (rows > kTileRows / 2) {
        multiply_tile<Units, kTileRows>(row_panel, column_panel, units, from, to, to_stride, stream, ahead);
    } else if (rows > 1) {
        multiply_tile<Units, kTileRows / 2>(row_panel, column_panel, units, from, to, to_stride, stream,
                                            ahead);
    } else {
        multiply_tile<Units, 1>(row_panel, column_panel, units, from, to, to_stride, stream, ahead);
    }
}

}  // namespace ISA_NAMESPACE
