// The building blocks of CPU attention: register-tiled products, packing, masks and 2^x. Include inside
// kernels/attention*.cpp only. Packed operands are arrays of 32-bit words: one float, or (Bf16Pairs) two bf16
// that are neighbours along the inner index. Scores are kept transposed, S[key][query], so that the softmax
// of 16 queries is 16 lanes and neither keys nor values ever need a transposition.
#pragma once
#include <cmath>

#include "core/tensor.h"
#include "kernels/attention.h"
#include "kernels/simd.h"

namespace ISA_NAMESPACE {
namespace {

// A register tile is kTileRows x kTileVecs vectors: as many sums as the registers hold beside the operands.
#if defined(__AVX512F__)
constexpr int kTileVecs = 4;
#elif defined(__AVX2__)
constexpr int kTileVecs = 2;
#else
constexpr int kTileVecs = 1;
#endif
constexpr int kTileRows = 6;
// Blocks of scores: kKeyBlock x kQueryBlock floats, both multiples of kTileRows and even.
constexpr int64_t kQueryBlock = 96;
constexpr int64_t kKeyBlock = 48;
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
SIMD_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SIMD_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

SIMD_INLINE Vec round_to_bf16(Vec v) {
    bf16 rounded[kWidth];
    store(rounded, v);
    return load(rounded);
}

// How products multiply. kPair: elements of the inner index in one word. operand: what a product sees of a
// float; rounded: the part of that which storing a word does not do by itself.
struct Float32 {
    static constexpr int kPair = 1;
    SIMD_INLINE Vec operand(Vec v) { return v; }
    SIMD_INLINE Vec rounded(Vec v) { return v; }
    SIMD_INLINE Vec multiply_add(Vec a, Vec b, Vec sum) { return fma(a, b, sum); }
};
#if defined(__AVX512BF16__)
struct Bfloat16 {
    static constexpr int kPair = 2;
    SIMD_INLINE Vec operand(Vec v) { return round_to_bf16(v); }
    SIMD_INLINE Vec rounded(Vec v) { return v; }
    SIMD_INLINE Vec multiply_add(Vec a, Vec b, Vec sum) {
        return reinterpret_cast<Vec>(_mm512_dpbf16_ps(
            reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
    }
    // Words of (low, high), both rounded.
    SIMD_INLINE Vec pair_up(Vec low, Vec high) {
        const __m512bh both =
            _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low));
        const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                               23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        return reinterpret_cast<Vec>(
            _mm512_maskz_permutexvar_epi16(0xffffffff, order, reinterpret_cast<__m512i>(both)));
    }
};
#else
struct Bfloat16 {  // products of bf16-rounded floats
    static constexpr int kPair = 1;
    SIMD_INLINE Vec operand(Vec v) { return round_to_bf16(v); }
    SIMD_INLINE Vec rounded(Vec v) { return round_to_bf16(v); }
    SIMD_INLINE Vec multiply_add(Vec a, Vec b, Vec sum) { return fma(a, b, sum); }
};
#endif

// 2^t for t <= about 120, to 1 ulp; 0 below -150 (-126 without AVX-512), NaN stays NaN, 2^0 is exactly 1.
// Round to an integer, minimax polynomial of degree 5 on [-1/2, 1/2], scale.
SIMD_INLINE Vec exp2(Vec t) {
#if defined(__AVX512F__)
    t = reinterpret_cast<Vec>(
        _mm512_maskz_max_ps(0xffff, _mm512_set1_ps(-200.0f), reinterpret_cast<__m512>(t)));
#else
    const VecI tiny = t < splat(-126.0f);
    t = splat(-126.0f) > t ? splat(-126.0f) : t;
#endif
    const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Vec shifted = t + magic;
    const Vec n = shifted - magic;
    const Vec r = t - n;
    Vec p = splat(1.326472669e-3f);
    p = fma(p, r, splat(9.671512677e-3f));
    p = fma(p, r, splat(5.550733745e-2f));
    p = fma(p, r, splat(2.402224208e-1f));
    p = fma(p, r, splat(6.931469776e-1f));
    p = fma(p, r, splat(1.0f));
#if defined(__AVX512F__)
    return reinterpret_cast<Vec>(
        _mm512_maskz_scalef_ps(0xffff, reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(n)));
#else
    const Vec scaled =
        reinterpret_cast<Vec>(reinterpret_cast<VecU>(p) + (reinterpret_cast<VecU>(shifted) << 23));
    return tiny ? Vec{} : scaled;
#endif
}

// One register tile: C[i][j] = sum_k A[i,k] B[k][j] where start is Fresh, and scale[i] * C[i][j] + that sum
// where it is Rescaled. A's words are words[i * row + k * step], so that either orientation of the scores can
// stand there.
struct Left {
    const float* words;
    int64_t row, step;
};
struct Fresh {
    Vec of(const float*, int) const { return Vec{}; }
};
struct Rescaled {
    const float* scale;
    Vec of(const float* c, int i) const { return load(c) * splat(scale[i]); }
};
template <class Math, int kVecs, class Start>
SIMD_INLINE void tile_product(float* c, int64_t c_stride, Start start, Left a, const float* b,
                              int64_t b_stride, int64_t count) {
    // Everything is unrolled, and `step` opaque (else GCC makes a second loop for step 1), so that the sums
    // stay in registers. Starting from the old C leaves only stores for the end.
    Vec sum[kTileRows][kVecs];
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < kVecs; ++j) sum[i][j] = start.of(c + i * c_stride + j * kWidth, i);
    }
    int64_t step = a.step;
    asm("" : "+r"(step));
    const float* left = a.words;
    for (int64_t k = 0; k < count; ++k, left += step, b += b_stride) {
        Vec right[kVecs];
        for (int j = 0; j < kVecs; ++j) right[j] = load(b + j * kWidth);
        for (int i = 0; i < kTileRows; ++i) {
            const Vec broadcast = splat(left[i * a.row]);
            for (int j = 0; j < kVecs; ++j) sum[i][j] = Math::multiply_add(broadcast, right[j], sum[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < kVecs; ++j) store(c + i * c_stride + j * kWidth, sum[i][j]);
    }
}

// Columns come in groups of at most kTileVecs vectors, as even as possible.
struct ColumnGroups {
    int64_t vecs;
    int64_t count() const { return (vecs + kTileVecs - 1) / kTileVecs; }
    int64_t begin(int64_t group) const { return group * vecs / count(); }
    int64_t size(int64_t group) const { return begin(group + 1) - begin(group); }
};

// kTileRows rows by `vecs` <= kTileVecs vectors.
template <class Math, class Start>
void group_product(int64_t vecs, float* c, int64_t c_stride, Start start, Left a, const float* b,
                   int64_t b_stride, int64_t count) {
    if (vecs == 1) return tile_product<Math, 1>(c, c_stride, start, a, b, b_stride, count);
    if constexpr (kTileVecs > 1) {
        if (vecs == 2) return tile_product<Math, 2>(c, c_stride, start, a, b, b_stride, count);
    }
    if constexpr (kTileVecs > 2) {
        if (vecs == 3) return tile_product<Math, 3>(c, c_stride, start, a, b, b_stride, count);
        return tile_product<Math, 4>(c, c_stride, start, a, b, b_stride, count);
    }
}

// kTileRows rows by any number of vectors.
template <class Math, class Start>
void row_product(int64_t vecs, float* c, int64_t c_stride, Start start, Left a, const float* b,
                 int64_t b_stride, int64_t count) {
    const ColumnGroups groups{vecs};
    for (int64_t g = 0; g < groups.count(); ++g) {
        const int64_t column = groups.begin(g) * kWidth;
        group_product<Math>(groups.size(g), c + column, c_stride, start, a, b + column, b_stride, count);
    }
}

// Row by row into words [padded_rows][words]; the rest is zero.
template <class Math, class T>
void pack_rows(float* to, int64_t words, const T* from, int64_t stride, int64_t rows, int64_t padded_rows,
               int64_t dim) {
    for (int64_t r = 0; r < padded_rows; ++r, to += words) {
        for (int64_t c = 0; c < words * Math::kPair; c += kWidth) {
            const int64_t n = r < rows ? dim - c : 0;
            Vec v{};
            if (n >= kWidth) {
                v = load(from + r * stride + c);
            } else if (n > 0) {
                v = load_first(from + r * stride + c, n);
            }
            if constexpr (Math::kPair == 2) {
                store(reinterpret_cast<bf16*>(to) + c, v);
            } else {
                store(to + c, Math::rounded(v));
            }
        }
    }
}

// Rows paired along the inner index: word [r / kPair][c], for operands whose rows are summed over.
template <class Math, class T>
void pack_paired(float* to, int64_t words, const T* from, int64_t stride, int64_t rows, int64_t padded_rows,
                 int64_t dim) {
    if constexpr (Math::kPair == 1) {
        pack_rows<Math>(to, words, from, stride, rows, padded_rows, dim);
    } else {
        for (int64_t r = 0; r < padded_rows; r += 2, to += words) {
            for (int64_t c = 0; c < words; c += kWidth) {
                const int64_t n = smaller(larger(dim - c, 0), kWidth);
                const Vec low = load_first(from + r * stride + c, r < rows ? n : 0);
                const Vec high = load_first(from + (r + 1) * stride + c, r + 1 < rows ? n : 0);
                store(to + c, Math::pair_up(low, high));
            }
        }
    }
}

SIMD_INLINE Vec interleave(Vec a, Vec b, bool upper) {
    VecI order;
    for (int i = 0; i < kWidth; ++i) order[i] = i / 2 + (i % 2) * kWidth + (upper ? kWidth / 2 : 0);
    return shuffle(a, b, order);
}

// to[c][r] = from[r][c] for words; rows and columns are multiples of kWidth. A perfect shuffle per level.
inline void transpose(float* to, int64_t to_stride, const float* from, int64_t from_stride, int64_t rows,
                      int64_t columns) {
    for (int64_t r = 0; r < rows; r += kWidth) {
        for (int64_t c = 0; c < columns; c += kWidth) {
            Vec v[kWidth], w[kWidth];
            for (int i = 0; i < kWidth; ++i) v[i] = load(from + (r + i) * from_stride + c);
            for (int level = 1; level < kWidth; level *= 2) {
                for (int i = 0; i < kWidth / 2; ++i) {
                    w[2 * i] = interleave(v[i], v[i + kWidth / 2], false);
                    w[2 * i + 1] = interleave(v[i], v[i + kWidth / 2], true);
                }
                for (int i = 0; i < kWidth; ++i) v[i] = w[i];
            }
            for (int i = 0; i < kWidth; ++i) store(to + (c + i) * to_stride + r, v[i]);
        }
    }
}

// Positions are
// relative to the document's first token.
struct Visibility {
    int64_t window;  // 0: unlimited
    int64_t first_key(int64_t query) const { return window > 0 ? larger(0, query - window + 1) : 0; }
    // Does any pair of these ranges (both ends included) need a mask?
    bool partial(int64_t first_query, int64_t last_query, int64_t first_key, int64_t last_key) const {
        return last_key > first_query || (window > 0 && last_query - first_key >= window);
    }
    // Lanes: queries first_query, first_query + 1, ...
    VecI mask(int64_t first_query, int64_t key) const {
        VecI distance;
        for (int i = 0; i < kWidth; ++i) distance[i] = i;
        distance += static_cast<int32_t>(first_query - key);
        const VecI zero{};
        const int32_t limit = static_cast<int32_t>(window > 0 ? window : INT32_MAX);
        return (distance >= zero) & (distance < zero + limit);
    }
};

// Rows of a key block (keys first_key..) that any product may read for queries up to last_query.
constexpr int64_t score_rows(int64_t padded_rows, int64_t first_key, int64_t last_query) {
    const int64_t rows = round_up(last_query + kTileRows - first_key, kTileRows);
    return rows < padded_rows ? rows : padded_rows;
}

// Sizes of packed blocks, in words.
template <class Math>
struct Widths {
    int64_t dim;
    int64_t inner() const { return dim / Math::kPair; }                  // summed over head_dim
    int64_t row() const { return round_up(dim / Math::kPair, kWidth); }  // a packed row
    int64_t column() const { return round_up(dim, kWidth); }             // a row of sums
};

// Bump allocator over one worker's scratch.
struct Workspace {
    float* next;
    float* take(int64_t floats) {
        float* start = next;
        next += round_up(floats, 16);
        return start;
    }
};

inline float softmax_scale(const AttentionShape& shape, int64_t head_dim) {
    return shape.scale != 0 ? shape.scale : 1.0f / std::sqrt(static_cast<float>(head_dim));
}

}  // namespace
}  // namespace ISA_NAMESPACE
