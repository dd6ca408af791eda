// The way out: a finished tile of sums becomes elements of the result, with everything fused that training
// asks for between two products.
#pragma once
#include "core/tensor.h"
#include "kernels/tuning.h"

namespace ISA_NAMESPACE {

//   x = scale * sum + bias;   pre = x, x = gelu(x);   x *= gelu'(gelu_pre);   out = x + addend_scale * addend
// All but the first are left out when absent. Matrices have the shape of `out`.
struct Output {
    Tensor out;
    Tensor bias = {}, pre_activation = {}, gelu_pre = {}, addend = {};
    float scale = 1, addend_scale = 1;
    bool read_much_later = false;  // then it may bypass the caches

    int64_t stride() const { return out.dims[1]; }
    bool plain() const {
        return scale == 1 && bias.absent() && pre_activation.absent() && gelu_pre.absent() && addend.absent();
    }
};

// Whole: all kWidth elements exist, otherwise the first n.
template <bool Whole>
SIMD_INLINE Vec load_any(const Tensor& t, int64_t at, int64_t n) {
    if (Whole) n = kWidth;
    return t.dtype == DType::f32 ? load_first(static_cast<const float*>(t.data) + at, n)
                                 : load_first(static_cast<const bf16*>(t.data) + at, n);
}
template <bool Whole>
SIMD_INLINE void store_any(const Tensor& t, int64_t at, Vec x, int64_t n) {
    if (Whole) n = kWidth;
    if (t.dtype == DType::f32) {
        store_first(static_cast<float*>(t.data) + at, x, n);
    } else {
        store_first(static_cast<bf16*>(t.data) + at, x, n);
    }
}

template <bool Write>
SIMD_INLINE void fetch_rows(const Output& output, const Tensor& t, int64_t row, int64_t rows, int64_t column,
                            int64_t columns) {
    if (t.absent()) return;
    const int64_t element = dtype_bytes(t.dtype), row_bytes = output.stride() * element;
    const char* line = static_cast<const char*>(t.data) + row * row_bytes + column * element;
    for (int64_t r = 0; r < rows; ++r, line += row_bytes) {
        for (int64_t at = 0; at < columns * element; at += 64) __builtin_prefetch(line + at, Write, 2);
    }
}
// Asks for the lines that store_tile will write or read, so that they arrive while the tile is multiplied.
inline void fetch_tile(const Output& output, int64_t row, int64_t rows, int64_t column, int64_t columns) {
    fetch_rows<true>(output, output.out, row, rows, column, columns);
    fetch_rows<true>(output, output.pre_activation, row, rows, column, columns);
    fetch_rows<false>(output, output.gelu_pre, row, rows, column, columns);
    if (output.addend.data != output.out.data)
        fetch_rows<false>(output, output.addend, row, rows, column, columns);
}

template <bool Plain, bool Whole>
void store_rows(const Output& output, const float* tile, int64_t row, int64_t rows, int64_t column,
                int64_t columns) {
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < (Whole ? kTileCols : columns); c += kWidth) {
            const int64_t n = columns - c;
            const int64_t at = (row + r) * output.stride() + column + c;
            Vec x = load(tile + r * kTileCols + c);
            if constexpr (!Plain) {
                x *= output.scale;
                if (!output.bias.absent()) x += load_any<Whole>(output.bias, column + c, n);
                if (!output.pre_activation.absent()) {
                    store_any<Whole>(output.pre_activation, at, x, n);
                    x = gelu(x);
                }
                if (!output.gelu_pre.absent()) x *= gelu_derivative(load_any<Whole>(output.gelu_pre, at, n));
                if (!output.addend.absent()) x += output.addend_scale * load_any<Whole>(output.addend, at, n);
            }
            store_any<Whole>(output.out, at, x, n);
        }
    }
}

// tile [rows][kTileCols] goes to out[row .. row + rows, column .. column + columns).
inline void store_tile(const Output& output, const float* tile, int64_t row, int64_t rows, int64_t column,
                       int64_t columns) {
    const bool whole = columns == kTileCols;
    if (output.plain()) {
        (whole ? store_rows<true, true> : store_rows<true, false>)(output, tile, row, rows, column, columns);
    } else {
        (whole ? store_rows<false, true> : store_rows<false, false>)(output, tile, row, rows, column,
                                                                     columns);
    }
}

}  // namespace ISA_NAMESPACE
