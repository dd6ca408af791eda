// Philox against the published vectors, and the statistics of what is drawn. All seeds are fixed, so a bound
// that holds once holds always; the bounds are five standard deviations, which a faulty generator misses by
// far.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <vector>

#include "core/error.h"
#include "core/rng.h"

namespace {

void expect_words(const Random4& r, std::vector<uint32_t> words) {
    for (int i = 0; i < 4; ++i) EXPECT_EQ(r.word[i], words[i]) << "word " << i;
}

}  // namespace

TEST(Philox, KnownAnswers) {  // Random123's kat_vectors, philox4x32 with 10 rounds
    expect_words(random4({0, 0}, 0), {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    expect_words(random4({~0ull, ~0ull}, ~0ull), {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
    // counter 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0
    expect_words(random4({0x299f31d0a4093822, 0x0370734413198a2e}, 0x85a308d3243f6a88),
                 {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST(Rng, UniformFillsItsInterval) {
    constexpr int kDraws = 1 << 18, kBins = 64;
    std::vector<int> bins(kBins);
    double sum = 0;
    for (int i = 0; i < kDraws; ++i) {
        const float u = random_uniform({1, 2}, i);
        ASSERT_GE(u, 0.0f);
        ASSERT_LT(u, 1.0f);
        sum += u;
        ++bins[static_cast<int>(u * kBins)];
    }
    EXPECT_NEAR(sum / kDraws, 0.5, 5 * std::sqrt(1.0 / 12 / kDraws));
    double chi_square = 0;
    const double expected = static_cast<double>(kDraws) / kBins;
    for (int count : bins) chi_square += (count - expected) * (count - expected) / expected;
    EXPECT_NEAR(chi_square, kBins - 1, 5 * std::sqrt(2.0 * (kBins - 1)));
}

TEST(Rng, NormalHasItsMomentsAndTails) {
    constexpr int kDraws = 1 << 18;
    double sum = 0, squares = 0, cubes = 0, fourths = 0, neighbours = 0, last = 0;
    int beyond_two = 0;
    for (int i = 0; i < kDraws; ++i) {
        const double x = random_normal({3, 4}, i);
        sum += x, squares += x * x, cubes += x * x * x, fourths += x * x * x * x;
        neighbours += x * last;
        last = x;
        beyond_two += std::fabs(x) > 2;
    }
    const double n = kDraws;
    EXPECT_NEAR(sum / n, 0, 5 / std::sqrt(n));
    EXPECT_NEAR(squares / n, 1, 5 * std::sqrt(2 / n));
    EXPECT_NEAR(cubes / n, 0, 5 * std::sqrt(15 / n));
    EXPECT_NEAR(fourths / n, 3, 5 * std::sqrt(96 / n));
    EXPECT_NEAR(neighbours / n, 0, 5 / std::sqrt(n));
    const double p = std::erfc(std::sqrt(2.0));  // P(|x| > 2)
    EXPECT_NEAR(beyond_two / n, p, 5 * std::sqrt(p * (1 - p) / n));
}

TEST(Rng, StreamsAndSeedsDiffer) {
    int equal = 0;
    for (uint64_t i = 0; i < 1000; ++i) {
        equal += random_u32({1, 0}, i) == random_u32({1, 1}, i);
        equal += random_u32({1, 0}, i) == random_u32({2, 0}, i);
    }
    EXPECT_EQ(equal, 0);
}

TEST(Rng, BelowStaysBelowAndIsFair) {
    for (const uint64_t bound : {uint64_t{1}, uint64_t{2}, uint64_t{3}, uint64_t{1} << 63, ~uint64_t{0}})
        for (uint64_t i = 0; i < 100; ++i) ASSERT_LT(random_below({5, bound}, i, bound), bound);
    constexpr int kDraws = 1 << 18;
    std::vector<int> bins(7);
    for (int i = 0; i < kDraws; ++i) ++bins[random_below({5, 6}, i, 7)];
    for (int count : bins) EXPECT_NEAR(count, kDraws / 7.0, 5 * std::sqrt(kDraws * 6.0 / 49));
    // With 32 bits, a bound of 3 * 2^62 would leave most values out.
    double mean = 0;
    for (int i = 0; i < 1000; ++i) mean += random_below({5, 7}, i, 3ull << 62) / 0x1p64 / 1000;
    EXPECT_NEAR(mean, 0.375, 5 * 0.75 / std::sqrt(12 * 1000.0));
    EXPECT_NE(random_below({5, 7}, 0, 3ull << 62) & 0xffff, random_below({5, 7}, 1, 3ull << 62) & 0xffff);
    EXPECT_THROW(random_below({}, 0, 0), InternalError);
}

TEST(RandomPermutation, IsABijection) {
    for (uint64_t n = 1; n <= 200; ++n) {
        const RandomPermutation permutation({n, 9}, n);
        std::vector<bool> seen(n);
        for (uint64_t i = 0; i < n; ++i) {
            const uint64_t j = permutation(i);
            ASSERT_LT(j, n);
            ASSERT_FALSE(seen[j]) << "n=" << n << " i=" << i;
            seen[j] = true;
        }
        EXPECT_THROW(permutation(n), InternalError);
    }
    const uint64_t n = 100'003;
    const RandomPermutation permutation({1, 1}, n);
    std::vector<bool> seen(n);
    for (uint64_t i = 0; i < n; ++i) seen[permutation(i)] = true;
    EXPECT_EQ(std::count(seen.begin(), seen.end(), true), static_cast<int64_t>(n));
}

TEST(RandomPermutation, SpotChecksOfLargeDomains) {
    for (const uint64_t n : {uint64_t{1} << 32, (uint64_t{1} << 40) + 1, ~uint64_t{0}}) {
        const RandomPermutation permutation({2, 3}, n);
        std::map<uint64_t, uint64_t> origin;
        for (uint64_t k = 0; k < 2000; ++k) {
            const uint64_t i = n / 2000 * k;
            const uint64_t j = permutation(i);
            ASSERT_LT(j, n);
            ASSERT_TRUE(origin.emplace(j, i).second);
        }
    }
}

TEST(RandomPermutation, LooksShuffled) {
    constexpr uint64_t kSize = 10'000;
    const RandomPermutation a({1, 0}, kSize), b({1, 1}, kSize);
    int fixed = 0, followed = 0, same = 0;
    double correlation = 0;
    for (uint64_t i = 0; i < kSize; ++i) {
        fixed += a(i) == i;
        followed += i > 0 && a(i) == a(i - 1) + 1;
        same += a(i) == b(i);
        correlation +=
            (static_cast<double>(i) / kSize - 0.5) * (static_cast<double>(a(i)) / kSize - 0.5) * 12 / kSize;
    }
    // Each of the three counts is Poisson with mean 1: above 10 has probability 1e-8.
    EXPECT_LE(fixed, 10);
    EXPECT_LE(followed, 10);
    EXPECT_LE(same, 10);
    EXPECT_NEAR(correlation, 0, 5 / std::sqrt(static_cast<double>(kSize)));
}

TEST(RandomPermutation, SmallOnesReachEveryOrder) {
    std::map<std::vector<uint64_t>, int> orders;
    constexpr int kKeys = 24'000;
    for (uint64_t seed = 0; seed < kKeys; ++seed) {
        const RandomPermutation permutation({seed, 0}, 3);
        ++orders[{permutation(0), permutation(1), permutation(2)}];
    }
    EXPECT_EQ(orders.size(), 6u);
    for (const auto& [order, count] : orders)
        EXPECT_NEAR(count, kKeys / 6.0, kKeys / 60.0) << order[0] << order[1] << order[2];
}
