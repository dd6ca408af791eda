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
    ReadAhead(const void* begin, int64_t run_bytes, int64_t stride, int64_t runs)
        : next_(static_cast<const char*>(begin)),
          run_end_(next_ + run_bytes),
          run_bytes_(run_bytes),
          stride_(stride),
          runs_left_(runs) {}
    // Prefetching never faults, so an exhausted reader may go on with its last line.
    SIMD_INLINE void step(ReadAhead& r) {
        __builtin_prefetch(r.next_, 0, 2);
        if (r.runs_left_ == 0) return;
        r.next_ += 64;
        if (r.next_ < r.run_end_) return;
        r.next_ = r.run_end_ - r.run_bytes_ + r.stride_;
        r.run_end_ += r.stride_;
        --r.runs_left_;
    }

private:
    const char* next_ = nullptr;
    const char* run_end_ = nullptr;
    int64_t run_bytes_ = 0, stride_ = 0, runs_left_ = 0;
};

// to[r * to_stride + c] = (from ? from[r * kTileCols + c] : 0) + sum_u row_panel[u][r] * column_panel[u][c],
// in the order of u, for the first Rows rows.
template <class Units, int Rows>
void multiply_tile(const uint32_t* row_panel, const uint32_t* column_panel, int64_t units, const float* from,
                   float* to, int64_t to_stride, ReadAhead& ahead) {
    Vec sum[Rows][kTileVectors];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
        for (int v = 0; v < kTileVectors; ++v) {
            sum[r][v] = from != nullptr ? load(from + r * kTileCols + v * kWidth) : Vec{};
        }
    }
    const auto add_unit = [&](const uint32_t* a, const uint32_t* b) __attribute__((always_inline)) {
        VecU column[kTileVectors];
#pragma GCC unroll 3
        for (int v = 0; v < kTileVectors; ++v) column[v] = load_units(b + v * kWidth);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            const VecU row = VecU{} + a[r];
#pragma GCC unroll 3
            for (int v = 0; v < kTileVectors; ++v) {
                sum[r][v] = Units::multiply_add(row, column[v], sum[r][v]);
            }
        }
    };
    constexpr int kStep = 8;  // units per line fetched ahead
    int64_t u = 0;
    for (; u + kStep <= units; u += kStep) {
        ReadAhead::step(ahead);
#pragma GCC unroll 4
        for (int i = 0; i < kStep; ++i) {
            add_unit(row_panel + i * kTileRows, column_panel + i * kTileCols);
        }
        row_panel += kStep * kTileRows;
        column_panel += kStep * kTileCols;
    }
    for (; u < units; ++u) {
        add_unit(row_panel, column_panel);
        row_panel += kTileRows;
        column_panel += kTileCols;
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
        for (int v = 0; v < kTileVectors; ++v) store(to + r * to_stride + v * kWidth, sum[r][v]);
    }
}

// Only as many rows as there are: a single token costs an eighth of a full tile.
template <class Units>
void multiply_tile_rows(int64_t rows, const uint32_t* row_panel, const uint32_t* column_panel, int64_t units,
                        const float* from, float* to, int64_t to_stride, ReadAhead& ahead) {
    if (rows > kTileRows / 2) {
        multiply_tile<Units, kTileRows>(row_panel, column_panel, units, from, to, to_stride, ahead);
    } else if (rows > 1) {
        multiply_tile<Units, kTileRows / 2>(row_panel, column_panel, units, from, to, to_stride, ahead);
    } else {
        multiply_tile<Units, 1>(row_panel, column_panel, units, from, to, to_stride, ahead);
    }
}

}  // namespace ISA_NAMESPACE
