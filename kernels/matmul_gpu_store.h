// The way out of the GPU's matrix product: chunks of neighbouring sums become elements of the result.
#pragma once
#include "kernels/gpu_absmax.h"
#include "kernels/gpu_activations.h"
#include "kernels/matmul_gpu.h"
#include "kernels/matmul_gpu_load.h"

namespace GPU_NAMESPACE {

// The first `count` of x from element `at`.
__device__ inline void store_chunk(const Matrix& m, bool packed, int64_t at, int count,
                                   const float (&x)[kChunk]) {
    if (m.dtype == DType::f32) {
        float* to = static_cast<float*>(m.data) + at;
        if (packed && count == kChunk) {
            Pack<float> low, high;
            UNROLL
            for (int i = 0; i < 4; ++i) low[i] = x[i], high[i] = x[i + 4];
            store128(to, low);
            store128(to + 4, high);
        } else {
            UNROLL
            for (int i = 0; i < kChunk; ++i) {
                if (i < count) to[i] = x[i];
            }
        }
    } else {
        bf16* to = static_cast<bf16*>(m.data) + at;
        Pack<bf16> pack;
        UNROLL
        for (int i = 0; i < kChunk; ++i) pack[i] = from_float<bf16>(x[i]);
        if (packed && count == kChunk) {
            store128(to, pack);
        } else {
            UNROLL
            for (int i = 0; i < kChunk; ++i) {
                if (i < count) to[i] = pack[i];
            }
        }
    }
}

// The chunks of `sums` at (row[i], column), as far as the result reaches. The addend may be the output
// itself: a thread reads its elements before it writes them. `largest` is of output.absmax; it is the
// caller's to raise it, when the thread has stored everything.
template <int kCount>
__device__ void store_sums(const Output& output, const int (&row)[kCount], int column,
                           float (&sums)[kCount][kChunk], LargestMagnitude& largest) {
    const int left = output.columns - column, width = left < kChunk ? left : kChunk;
    int count[kCount];
    UNROLL
    for (int i = 0; i < kCount; ++i) count[i] = row[i] < output.rows ? width : 0;
    const auto load = [&](Chunk(&chunks)[kCount], const Matrix& m) {
        if (m.data == nullptr) return;
        int64_t at[kCount];
        UNROLL
        for (int i = 0; i < kCount; ++i) at[i] = row[i] * m.stride + column;
        load_chunks(chunks, m, output.packed, at, count);
    };
    const bool to_f32 = output.out.dtype == DType::f32;
    float scale = output.scale;
    if (output.scale_a != nullptr) scale *= *output.scale_a * *output.scale_b;
    Chunk bias[1] = {}, gelu_pre[kCount] = {}, addend[kCount] = {};
    if (output.bias.data != nullptr) load_chunks(bias, output.bias, output.packed, {column}, {width});
    load(gelu_pre, output.gelu_pre);
    load(addend, output.addend);
    UNROLL
    for (int i = 0; i < kCount; ++i) {
        if (count[i] <= 0) continue;
        float(&x)[kChunk] = sums[i];
        UNROLL
        for (int k = 0; k < kChunk; ++k) x[k] *= scale;
        if (output.bias.data != nullptr) {
            UNROLL
            for (int k = 0; k < kChunk; ++k) x[k] += bias[0].value(k, output.bias.dtype);
        }
        if (output.pre_activation.data != nullptr) {
            const Matrix& pre = output.pre_activation;
            store_chunk(pre, output.packed, row[i] * pre.stride + column, count[i], x);
            UNROLL
            for (int k = 0; k < kChunk; ++k) x[k] = to_f32 ? gelu<float>(x[k]) : gelu<bf16>(x[k]);
        }
        if (output.gelu_pre.data != nullptr) {
            UNROLL
            for (int k = 0; k < kChunk; ++k) {
                const float pre = gelu_pre[i].value(k, output.gelu_pre.dtype);
                x[k] *= to_f32 ? gelu_derivative<float>(pre) : gelu_derivative<bf16>(pre);
            }
        }
        if (output.addend.data != nullptr) {
            UNROLL
            for (int k = 0; k < kChunk; ++k)  // fused everywhere: both sides of a diagonal get the same bits
                x[k] = fmaf(output.addend_scale, addend[i].value(k, output.addend.dtype), x[k]);
        }
        store_chunk(output.out, output.packed, row[i] * output.out.stride + column, count[i], x);
        UNROLL
        for (int k = 0; k < kChunk; ++k) {
            if (k < count[i]) largest.add(to_f32 ? x[k] : to_float(from_float<bf16>(x[k])));
        }
    }
}

// Tile `index` of the result. Blocks that run together cover a compact part of the result, so that they share
// both operands in L2: tiles go down kTallest rows of tiles before they go right.
struct TilePlace {
    int row, column;
};
__device__ inline TilePlace place_of_tile(const Output& output, int tile_rows, int tile_columns,
                                          int64_t index) {
    constexpr int64_t kTallest = 8;
    const int64_t down = (output.rows + tile_rows - 1) / tile_rows,
                  across = (output.columns + tile_columns - 1) / tile_columns;
    const int64_t band = index / (kTallest * across), in_band = index % (kTallest * across);
    const int64_t left = down - band * kTallest, height = left < kTallest ? left : kTallest;
    return {static_cast<int>(band * kTallest + in_band % height) * tile_rows,
            static_cast<int>(in_band / height) * tile_columns};
}
// The same for a symmetric result, of which only tiles on and below the diagonal are computed: by rows.
__device__ inline TilePlace place_below_diagonal(int tile_size, int64_t index) {
    int row = 0;
    while (index > row) index -= ++row;
    return {row * tile_size, static_cast<int>(index) * tile_size};
}
inline int64_t num_tiles(const Output& output, int tile_rows, int tile_columns) {
    const int64_t down = ceil_div(output.rows, tile_rows), across = ceil_div(output.columns, tile_columns);
    return output.symmetric ? down * (down + 1) / 2 : down * across;
}
// From a batch's operands and result to those of one of its products.
__host__ __device__ inline void enter_batch(Operand& a, Operand& b, Output& output, int64_t index) {
    a.lines = a.lines.of_batch(index);
    b.lines = b.lines.of_batch(index);
    output.out = output.out.of_batch(index);
    if (output.addend.data != nullptr) output.addend = output.addend.of_batch(index);
}

}  // namespace GPU_NAMESPACE
