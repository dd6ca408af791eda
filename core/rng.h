// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011). Every draw is a pure function of
// (key, counter), so any element can be drawn alone, in any order, on any number of threads, and nothing has
// to be saved to resume.
#pragma once
#include <cstdint>

struct RandomKey {
    uint64_t seed = 0;
    uint64_t stream = 0;  // what the numbers are for: a parameter's index, a step, an epoch
};

struct Random4 {
    uint32_t word[4];
};
// The key holds the seed, the counter's upper half the stream, so that no two streams of one seed ever share
// a block. constexpr: GPUs draw by the same lines.
constexpr Random4 random4(RandomKey key, uint64_t counter) {
    constexpr uint32_t kMultiplier0 = 0xd2511f53u, kMultiplier1 = 0xcd9e8d57u;
    constexpr uint32_t kWeyl0 = 0x9e3779b9u, kWeyl1 = 0xbb67ae85u;  // golden ratio, sqrt(3) - 1
    uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32);
    uint32_t c2 = static_cast<uint32_t>(key.stream), c3 = static_cast<uint32_t>(key.stream >> 32);
    uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t{kMultiplier0} * c0;
        const uint64_t product1 = uint64_t{kMultiplier1} * c2;
        c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(product1);
        c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(product0);
        k0 += kWeyl0;
        k1 += kWeyl1;
    }
    return {{c0, c1, c2, c3}};
}

uint32_t random_u32(RandomKey key, uint64_t counter);
float random_uniform(RandomKey key, uint64_t counter);  // [0, 1), 24 bits
float random_normal(RandomKey key, uint64_t counter);   // N(0, 1), Box-Muller of the counter's own two words
uint64_t random_below(RandomKey key, uint64_t counter, uint64_t bound);  // [0, bound), unbiased to 2^-64

// A permutation of [0, n) of which any element can be computed alone: a four-round Feistel network over the
// smallest even-bit domain >= n with cycle walking. The same (key, n) gives the same permutation everywhere.
class RandomPermutation {
public:
    RandomPermutation(RandomKey key, uint64_t n);
    uint64_t operator()(uint64_t i) const;

private:
    RandomKey key_;
    uint64_t n_;
    int half_bits_;
};
