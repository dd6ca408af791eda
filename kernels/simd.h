// A float vector as wide as the instruction set of this compilation, on GCC's vector extension: + - * / and
// comparisons come from the compiler, the rest is here. Include inside kernels/*.cpp only; everything lives
// in ISA_NAMESPACE. Reductions add in a fixed tree, so a result depends on the instruction set but never on
// alignment or threads.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#pragma GCC diagnostic push  // GCC 12 takes its own _mm512_undefined_epi32() for a mistake
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include "core/bf16.h"
#include "kernels/isa.h"

namespace ISA_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#else
constexpr int kWidth = 8;
#endif
// Unaligned, and free to alias: a load or store through them is one vector instruction (a memcpy is not).
typedef float Vec __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef int32_t VecI __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef uint32_t VecU __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef uint16_t VecH __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));

#define SIMD_INLINE static inline __attribute__((always_inline))

SIMD_INLINE Vec splat(float x) { return x - Vec{}; }  // x - 0 is x, -0 too: a plain broadcast
SIMD_INLINE Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
SIMD_INLINE void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }

SIMD_INLINE Vec load(const bf16* p) {
#if defined(__AVX512F__)  // __builtin_convertvector widens in halves; maskz: GCC 12 warns of the plain form
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return reinterpret_cast<Vec>(reinterpret_cast<VecU>(_mm512_maskz_cvtepu16_epi32(0xffff, half)) << 16);
#elif defined(__AVX2__)
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return reinterpret_cast<Vec>(reinterpret_cast<VecU>(_mm256_cvtepu16_epi32(half)) << 16);
#else
    const VecH h = *reinterpret_cast<const VecH*>(p);
    return reinterpret_cast<Vec>(__builtin_convertvector(h, VecU) << 16);
#endif
}
SIMD_INLINE void store(bf16* p, Vec v) {
#if defined(__AVX512BF16__)
    const __m256bh h = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
    std::memcpy(p, &h, sizeof h);
#else
    const VecU u = reinterpret_cast<VecU>(v);
    const VecU rounded = u + 0x7fffu + ((u >> 16) & 1u);
    const VecU nan = (u >> 16) | 0x40u;  // keep NaN a NaN
    const VecI is_nan = v != v;
    const VecU bits =
        (reinterpret_cast<VecU>(is_nan) & (nan << 16)) | (~reinterpret_cast<VecU>(is_nan) & rounded);
    *reinterpret_cast<VecH*>(p) = __builtin_convertvector(bits >> 16, VecH);
#endif
}

// Lane i is lane index[i] of a, or lane index[i] - kWidth of b.
template <class V>
SIMD_INLINE V shuffle(V a, V b, VecI index) {
#if defined(__clang__)  // MemorySanitizer's build; clang shuffles by constants only
    V out;
    for (int i = 0; i < kWidth; ++i) out[i] = index[i] < kWidth ? a[index[i]] : b[index[i] - kWidth];
    return out;
#else
    return __builtin_shuffle(a, b, index);
#endif
}

// The first n (0..kWidth) elements; the others read as `fill` and are not touched in memory.
template <class T>
SIMD_INLINE Vec load_first(const T* p, int64_t n, float fill = 0) {
    if (n >= kWidth) return load(p);
    float part[kWidth];
    for (int i = 0; i < kWidth; ++i) part[i] = i < n ? to_float(p[i]) : fill;
    return load(part);
}
SIMD_INLINE void store_first(float* p, Vec v, int64_t n) {
    if (n >= kWidth) return store(p, v);
    for (int i = 0; i < n; ++i) p[i] = v[i];
}
SIMD_INLINE void store_first(bf16* p, Vec v, int64_t n) {
    if (n >= kWidth) return store(p, v);
    bf16 part[kWidth];
    store(part, v);
    for (int i = 0; i < n; ++i) p[i] = part[i];
}

SIMD_INLINE Vec fma(Vec a, Vec b, Vec c) {
    return a * b + c;
}  // contracted: kernels are built with -ffp-contract=fast
SIMD_INLINE Vec select(VecI mask, Vec a, Vec b) { return mask ? a : b; }
SIMD_INLINE Vec sqrt(Vec v) {
#if defined(__AVX512F__)
    return reinterpret_cast<Vec>(_mm512_sqrt_ps(reinterpret_cast<__m512>(v)));
#elif defined(__AVX2__)
    return reinterpret_cast<Vec>(_mm256_sqrt_ps(reinterpret_cast<__m256>(v)));
#else
    for (int i = 0; i < kWidth; ++i) v[i] = __builtin_sqrtf(v[i]);
    return v;
#endif
}
SIMD_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }  // b where either is NaN
SIMD_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }

SIMD_INLINE float reduce_add(Vec v) {
    float part[kWidth];
    store(part, v);
    for (int half = kWidth / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) part[i] += part[i + half];
    }
    return part[0];
}
SIMD_INLINE float reduce_max(Vec v) {
    float part[kWidth];
    store(part, v);
    for (int half = kWidth / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) part[i] = part[i] > part[i + half] ? part[i] : part[i + half];
    }
    return part[0];
}

// e^x to about 1 ulp over the normal range; 0 below -87.3, +inf above 88.7, NaN stays NaN.
// Range reduction by ln 2 in two parts, then a polynomial of degree 6 on [-ln2/2, ln2/2] (Cephes expf).
SIMD_INLINE Vec exp(Vec x) {
    const Vec clamped = min(max(x, splat(-88.0f)), splat(89.0f));
    const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Vec shifted = fma(clamped, splat(1.44269504088896341f), magic);
    const Vec n = shifted - magic;
    Vec r = fma(n, splat(-0.693359375f), clamped);
    r = fma(n, splat(2.12194440e-4f), r);
    Vec p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p * r, r, r) + 1.0f;
    // 2^n in two factors, so that n = 128 and n = -127 do not wrap the exponent.
    const VecI k = __builtin_convertvector(n, VecI);
    const VecI k1 = k >> 1, k2 = k - k1;
    Vec y = p * reinterpret_cast<Vec>((k1 + 127) << 23) * reinterpret_cast<Vec>((k2 + 127) << 23);
    y = select(x < splat(-87.33654f), splat(0.0f), y);
    y = select(x > splat(88.72283f), splat(__builtin_inff()), y);
    return select(x != x, x, y);
}
SIMD_INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }
SIMD_INLINE Vec tanh(Vec x) { return 1.0f - 2.0f / (1.0f + exp(2.0f * x)); }  // absolute error ~1e-7

constexpr float kGeluScale = 0.7978845608028654f;  // sqrt(2/pi)
constexpr float kGeluCube = 0.044715f;
SIMD_INLINE Vec gelu(Vec x) {
    // x/2 (1 + tanh u) = x sigmoid(2u)
    return x * sigmoid(2.0f * kGeluScale * (x + kGeluCube * x * x * x));
}
SIMD_INLINE Vec gelu_derivative(Vec x) {
    const Vec s = sigmoid(2.0f * kGeluScale * (x + kGeluCube * x * x * x));
    return s + x * s * (1.0f - s) * (2.0f * kGeluScale * (1.0f + 3.0f * kGeluCube * x * x));
}

}  // namespace ISA_NAMESPACE
