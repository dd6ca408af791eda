// The random bits of stochastic rounding, vectorised: Philox4x32-10, all ten rounds, equal to core/rng.h's
// random4 to the bit. One counter yields four words, that is eight draws of 16 bits, so a draw costs about
// one instruction.
//
// Element e draws 16 bits that depend on (key, e) alone. Within each block of 128 elements the draws are laid
// out so that neighbours are lanes and no transposition is needed: lane = e % 16, half-word h = e / 16 % 8,
// and
//   counter = e / 128 * 16 + lane,   bits = (h odd: upper, else lower) half of random4(key, counter).word[h /
//   2]
#pragma once
#include "core/rng.h"
#include "kernels/simd.h"

namespace ISA_NAMESPACE {

constexpr int64_t kRandomBlock = 128;  // elements

struct WideProduct {
    VecU low, high;
};
SIMD_INLINE WideProduct multiply_wide(VecU a, uint32_t b) {
#if defined(__AVX512F__)
    const __m512i x = reinterpret_cast<__m512i>(a), factor = _mm512_set1_epi64(b);
    const __m512i even = _mm512_mul_epu32(x, factor),
                  odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), factor);
    return {reinterpret_cast<VecU>(_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32))),
            reinterpret_cast<VecU>(_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd))};
#elif defined(__AVX2__)
    const __m256i x = reinterpret_cast<__m256i>(a), factor = _mm256_set1_epi64x(b);
    const __m256i even = _mm256_mul_epu32(x, factor),
                  odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), factor);
    return {reinterpret_cast<VecU>(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa)),
            reinterpret_cast<VecU>(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa))};
#else
    WideProduct product;
    for (int i = 0; i < kWidth; ++i) {
        const uint64_t wide = uint64_t{a[i]} * b;
        product.low[i] = static_cast<uint32_t>(wide);
        product.high[i] = static_cast<uint32_t>(wide >> 32);
    }
    return product;
#endif
}

// random4(key, counter + lane) for kWidth lanes; counter is a multiple of kWidth, so that no lane carries.
struct RandomWords {
    VecU word[4];
};
SIMD_INLINE RandomWords random_words(RandomKey key, uint64_t counter) {
    VecU lane;
    for (int i = 0; i < kWidth; ++i) lane[i] = static_cast<uint32_t>(i);
    const VecU zero{};
    VecU c0 = lane + static_cast<uint32_t>(counter), c1 = zero + static_cast<uint32_t>(counter >> 32);
    VecU c2 = zero + static_cast<uint32_t>(key.stream), c3 = zero + static_cast<uint32_t>(key.stream >> 32);
    uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const WideProduct p0 = multiply_wide(c0, 0xd2511f53u), p1 = multiply_wide(c2, 0xcd9e8d57u);
        c0 = p1.high ^ c1 ^ k0;
        c1 = p1.low;
        c2 = p0.high ^ c3 ^ k1;
        c3 = p0.low;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return {{c0, c1, c2, c3}};
}

SIMD_INLINE void store_halves(uint16_t* p, VecU v) {
    *reinterpret_cast<VecH*>(p) = __builtin_convertvector(v, VecH);
}

// The draws of elements [128 block, 128 block + 128).
inline void random_block(uint16_t* draws, RandomKey key, uint64_t block) {
    for (int lane = 0; lane < 16; lane += kWidth) {
        const RandomWords random = random_words(key, block * 16 + static_cast<uint64_t>(lane));
        for (int i = 0; i < 4; ++i) {
            store_halves(draws + 32 * i + lane, random.word[i] & 0xffffu);
            store_halves(draws + 32 * i + 16 + lane, random.word[i] >> 16);
        }
    }
}

// f(i, n, draws) for elements [begin, end) of a tensor whose element 0 has the counter first_index;
// draws[0..n) are theirs. Blocks follow the counter, not the memory, so any first_index gives the same
// numbers to the same counters.
template <class F>
SIMD_INLINE void for_each_random_vec(int64_t begin, int64_t end, int64_t first_index, RandomKey key, F&& f) {
    alignas(64) uint16_t draws[kRandomBlock + kWidth] = {};  // whole vectors may be read at the end
    int64_t i = begin;
    while (i < end) {
        const int64_t counter = first_index + i, within = counter % kRandomBlock;
        const int64_t stop = end - i < kRandomBlock - within ? end : i + kRandomBlock - within;
        random_block(draws, key, static_cast<uint64_t>(counter / kRandomBlock));
        const uint16_t* draw = draws + within - i;
        for (; i + kWidth <= stop; i += kWidth) f(i, int64_t{kWidth}, draw + i);
        if (i < stop) f(i, stop - i, draw + i);
        i = stop;
    }
}

// to_bf16_stochastic of every lane: adds 16 random bits below the kept ones and cuts; infinities and NaNs
// stay.
SIMD_INLINE VecH round_stochastic(Vec x, const uint16_t* draws) {
    const VecU u = reinterpret_cast<VecU>(x);
    const VecU random = __builtin_convertvector(*reinterpret_cast<const VecH*>(draws), VecU);
    const VecI finite = (u & 0x7f800000u) != 0x7f800000u;
    const VecU quiet = (u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : u >> 16;
    return __builtin_convertvector(finite ? (u + random) >> 16 : quiet, VecH);
}
SIMD_INLINE void store_first(bf16* p, VecH h, int64_t n) {
    if (n >= kWidth) {
        *reinterpret_cast<VecH*>(p) = h;
        return;
    }
    for (int i = 0; i < n; ++i) p[i].bits = h[i];
}

}  // namespace ISA_NAMESPACE
