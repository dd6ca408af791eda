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
Random4 random4(RandomKey key, uint64_t counter);

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
