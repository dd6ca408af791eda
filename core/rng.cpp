// What is drawn from Philox's words: integers, uniform and normal numbers, permutations.
#include "core/rng.h"

#include <cmath>
#include <numbers>

#include "core/error.h"

uint32_t random_u32(RandomKey key, uint64_t counter) { return random4(key, counter).word[0]; }

float random_uniform(RandomKey key, uint64_t counter) {
    return static_cast<float>(random_u32(key, counter) >> 8) * 0x1p-24f;
}

float random_normal(RandomKey key, uint64_t counter) {
    const Random4 r = random4(key, counter);
    // In double, so that the last-bit differences between math libraries vanish when rounded to float.
    const double u = (r.word[0] + 0.5) * 0x1p-32;  // never 0
    const double angle = 2.0 * std::numbers::pi * (r.word[1] * 0x1p-32);
    return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(angle));
}

uint64_t random_below(RandomKey key, uint64_t counter, uint64_t bound) {
    CHECK(bound > 0, "bound=0");
    const Random4 r = random4(key, counter);
    const uint64_t bits = uint64_t{r.word[1]} << 32 | r.word[0];
    return static_cast<uint64_t>(static_cast<unsigned __int128>(bits) * bound >> 64);
}

RandomPermutation::RandomPermutation(RandomKey key, uint64_t n) : key_(key), n_(n), half_bits_(1) {
    while (half_bits_ < 32 && (uint64_t{1} << (2 * half_bits_)) < n) ++half_bits_;
}

uint64_t RandomPermutation::operator()(uint64_t i) const {
    CHECK(i < n_, cat({"i=", i, " n=", n_}));
    const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
    // The network permutes the whole domain; walking along its cycle until it is below n permutes [0, n).
    do {
        uint64_t left = i >> half_bits_, right = i & mask;
        for (uint64_t round = 0; round < 4; ++round) {
            const uint64_t mixed = left ^ (random_u32(key_, round << 32 | right) & mask);
            left = right;
            right = mixed;
        }
        i = left << half_bits_ | right;
    } while (i >= n_);
    return i;
}
