// Operands of the GPU's matrix product on their way to shared memory: asynchronously where they are bf16 and
// aligned, else through registers, where anything becomes bf16 or f32.
#pragma once
#include "kernels/matmul_gpu.h"
#include "kernels/mma.h"

namespace GPU_NAMESPACE {

// kChunk neighbours of a line in registers, as they lay in memory: f32 one a word, bf16 two.
struct Chunk {
    uint32_t raw[kChunk];

    __device__ float value(int i, DType dtype) const {
        if (dtype == DType::f32) return std::bit_cast<float>(raw[i]);
        return std::bit_cast<float>(i % 2 ? raw[i / 2] & 0xffff0000u : raw[i / 2] << 16);
    }
    // The elements as four pairs of bf16.
    __device__ Pack<uint32_t> pairs(DType dtype) const {
        Pack<uint32_t> result;
        UNROLL
        for (int i = 0; i < 4; ++i) {
            result[i] =
                dtype == DType::f32 ? pack_bf16(value(2 * i, dtype), value(2 * i + 1, dtype)) : raw[i];
        }
        return result;
    }
};

// chunks[i]: the first count[i] elements from element at[i], zeros behind them. `packed`: of the matrix.
// Nothing here waits for what was loaded, so that all of it is on its way at once.
template <int kCount>
__device__ void load_chunks(Chunk (&chunks)[kCount], const Matrix& matrix, bool packed,
                            const int64_t (&at)[kCount], const int (&count)[kCount]) {
    UNROLL
    for (int i = 0; i < kCount; ++i) {
        chunks[i] = {};
        packed = packed && (count[i] == kChunk || count[i] <= 0);
    }
    if (matrix.dtype == DType::f32) {
        const uint32_t* source = static_cast<const uint32_t*>(matrix.data);
        UNROLL
        for (int i = 0; i < kCount; ++i) {
            if (packed) {
                if (count[i] <= 0) continue;
                const Pack<uint32_t> low = load128(source + at[i]), high = load128(source + at[i] + 4);
                UNROLL
                for (int k = 0; k < 4; ++k) chunks[i].raw[k] = low[k], chunks[i].raw[k + 4] = high[k];
            } else {
                UNROLL
                for (int k = 0; k < kChunk; ++k) {
                    if (k < count[i]) chunks[i].raw[k] = source[at[i] + k];
                }
            }
        }
    } else {
        const uint16_t* source = static_cast<const uint16_t*>(matrix.data);
        UNROLL
        for (int i = 0; i < kCount; ++i) {
            if (packed) {
                if (count[i] <= 0) continue;
                const Pack<uint32_t> pairs = load128(reinterpret_cast<const uint32_t*>(source + at[i]));
                UNROLL
                for (int k = 0; k < 4; ++k) chunks[i].raw[k] = pairs[k];
            } else {
                UNROLL
                for (int k = 0; k < kChunk; ++k) {
                    if (k < count[i]) chunks[i].raw[k / 2] |= uint32_t{source[at[i] + k]} << (k % 2 * 16);
                }
            }
        }
    }
}

// Where a block reads an operand: outer indices from `outer` to `outer_end`, inner ones up to `inner_end`.
struct OperandRange {
    int outer, outer_end, inner_end;
};

// kOuter x kInner elements of an operand, spread over the block's threads in chunks. A tile has the form of
// the memory it comes from: lines of outer or of inner indices. LinesFirst: neighbouring threads take
// neighbouring lines instead of neighbouring chunks.
template <int kOuter, int kInner, bool kByRow, int kThreads, bool kLinesFirst>
struct StagedTile {
    static constexpr int kLines = kByRow ? kOuter : kInner, kChunks = (kByRow ? kInner : kOuter) / kChunk;
    static constexpr int kPerThread = kLines * kChunks / kThreads;
    static_assert(kPerThread * kThreads == kLines * kChunks);

    Chunk chunks[kPerThread];

    __device__ static int line(int i) {
        const int index = i * kThreads + static_cast<int>(threadIdx.x);
        return kLinesFirst ? index % kLines : index / kChunks;
    }
    __device__ static int chunk(int i) {
        const int index = i * kThreads + static_cast<int>(threadIdx.x);
        return kLinesFirst ? index / kLines : index % kChunks;
    }
    // The tile at inner index `inner`; zeros outside the range.
    __device__ void load(const Operand& operand, const OperandRange& range, int inner) {
        int64_t at[kPerThread];
        int count[kPerThread];
        UNROLL
        for (int i = 0; i < kPerThread; ++i) {
            const int at_line = (kByRow ? range.outer : inner) + line(i);
            const int first = (kByRow ? inner : range.outer) + chunk(i) * kChunk;
            const int left = (kByRow ? range.inner_end : range.outer_end) - first;
            const bool exists = at_line < (kByRow ? range.outer_end : range.inner_end);
            at[i] = at_line * operand.lines.stride + first;
            count[i] = !exists ? 0 : left < kChunk ? left : kChunk;
        }
        load_chunks(chunks, operand.lines, operand.packed, at, count);
    }
};

// A tile of bf16 in shared memory. Within each line the chunks are permuted so that ldmatrix, which reads the
// same chunk of eight neighbouring lines, finds them in eight different groups of banks.
template <int kOuter, int kInner, bool kByRow>
struct SharedTile {
    static constexpr int kLineElements = kByRow ? kInner : kOuter, kChunks = kLineElements / kChunk;
    static constexpr int kElements = kOuter * kInner;
    static_assert(kChunks == 4 || kChunks % 8 == 0);

    // The element where a chunk begins. Depends on the line modulo 8 but for the line's own beginning.
    __device__ static int place(int line, int chunk) {
        const int permuted = kChunks == 4 ? chunk ^ (line / 2 % 4) : chunk ^ (line % 8);
        return line * kLineElements + permuted * kChunk;
    }
    // The elements [outer, outer + 16) x [inner, inner + 16) as four 8x8 matrices in the order of the A
    // fragment (kernels/mma.h); as B fragments, r[0] and r[2] are those of the first eight outer indices,
    // r[1] and r[3] of the others.
    __device__ static void load_fragment(uint32_t (&r)[4], const bf16* tile, int outer, int inner) {
        const int lane = static_cast<int>(threadIdx.x) % kWarp;
        if constexpr (kByRow) {
            ldmatrix_x4(r, tile + place(outer + lane % 16, inner / kChunk + lane / 16));
        } else {
            ldmatrix_x4_transposed(
                r, tile + place(inner + lane % 8 + lane / 16 * 8, outer / kChunk + lane / 8 % 2));
        }
    }
};

// Asynchronous copies of an operand's tiles, one after the other along the inner dimension. For operands that
// can_copy().
template <int kOuter, int kInner, bool kByRow, int kThreads>
class TileCopier {
public:
    using Shared = SharedTile<kOuter, kInner, kByRow>;

    __device__ TileCopier(const Operand& operand, const OperandRange& range, int inner)
        : start_(static_cast<const bf16*>(operand.lines.data)),
          inner_(inner),
          inner_end_(range.inner_end),
          outer_left_(range.outer_end - range.outer) {
        const int thread = static_cast<int>(threadIdx.x);
        line_ = thread / Shared::kChunks;
        chunk_ = thread % Shared::kChunks;
        const int at_line = (kByRow ? range.outer : inner) + line_;
        const int at = (kByRow ? inner : range.outer) + chunk_ * kChunk;
        next_ = start_ + (at_line * operand.lines.stride + at);
        stride_ = operand.lines.stride;
    }

    // The next tile; zeros where the operand ends.
    __device__ void copy(bf16* tile) {
        bf16* const to = tile + Shared::place(line_, chunk_);
        const int inner_left = inner_end_ - inner_;
        UNROLL
        for (int i = 0; i < kPerThread; ++i) {
            const int line = line_ + i * kLineStep;
            const bool exists = kByRow ? line < outer_left_ && chunk_ * kChunk < inner_left
                                       : line < inner_left && chunk_ * kChunk < outer_left_;
            cp_async16(to + i * kLineStep * Shared::kLineElements,
                       exists ? next_ + i * kLineStep * stride_ : start_, exists);
        }
        next_ += kByRow ? kInner : kInner * stride_;
        inner_ += kInner;
    }

private:
    static constexpr int kLines = Shared::kElements / Shared::kLineElements;
    static constexpr int kLineStep = kThreads / Shared::kChunks, kPerThread = kLines / kLineStep;
    static_assert(kLineStep % 8 == 0 && kPerThread * kLineStep == kLines, "see SharedTile::place");

    const bf16 *start_, *next_;
    int64_t stride_;
    int inner_, inner_end_, outer_left_, line_, chunk_;
};

}  // namespace GPU_NAMESPACE
