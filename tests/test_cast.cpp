// Conversions to the bit, stochastic rounding to the bit and in the mean, filling, scaling.
#include "kernels/cast.h"

#include "tests/op_check.h"

namespace {

constexpr int64_t kSizes[] = {0, 1, 7, 16, 37, 70001};

// Ordinary values with every kind of float among them.
Values awkward_values(int64_t n) {
    Values values = normal_values(n, 1, 100);
    const double special[] = {0.0,    -0.0,    HUGE_VAL, -HUGE_VAL,  std::nan(""),
                              3.4e38, -3.4e38, 1e-40,    1.00390625, 1.01171875};
    for (size_t i = 0; i < std::size(special) && static_cast<int64_t>(i) < n; ++i) values[i] = special[i];
    return values;
}

}  // namespace

TEST(Cast, EveryPairEqualsTheScalarRuleToTheBit) {
    for_each_isa([] {
        for (int64_t n : kSizes) {
            Guarded<float> x32(awkward_values(n), 1), from16(n), copy32(n);
            Guarded<bf16> from32(n, 3), copy16(n);
            cast(from32.tensor(), x32.tensor());
            cast(from16.tensor(), from32.tensor());
            cast(copy32.tensor(), x32.tensor());
            cast(copy16.tensor(), from32.tensor());
            EXPECT_TRUE(copy32.bytes() == x32.bytes() && copy16.bytes() == from32.bytes());
            for (int64_t i = 0; i < n; ++i) {
                if (std::isnan(x32[i])) {  // which NaN it is may differ
                    ASSERT_TRUE(std::isnan(to_float(from32[i])) && std::isnan(from16[i]));
                    continue;
                }
                // vdpbf16's family treats subnormals as zero.
                if (std::fpclassify(x32[i]) == FP_SUBNORMAL) continue;
                ASSERT_EQ(from32[i].bits, to_bf16(x32[i]).bits) << x32[i];
                ASSERT_EQ(from16[i], to_float(from32[i]));
            }
        }
    });
}

TEST(Cast, StochasticRoundingDependsOnKeyAndCounterAlone) {
    const RandomKey key{.seed = 7, .stream = 9};
    std::vector<uint8_t> first;
    for_each_isa([&] {
        Guarded<float> x(awkward_values(1001), 1);
        Guarded<bf16> whole(1001), parts(1001);
        cast_stochastic(whole.tensor(), x.tensor(), key, 50);
        for (int64_t begin = 0; begin < 1001; begin += 91) {
            cast_stochastic(parts.tensor().rows(begin, 91), x.tensor().rows(begin, 91), key, 50 + begin);
        }
        EXPECT_TRUE(whole.bytes() == parts.bytes());
        if (first.empty()) first = whole.bytes();
        EXPECT_TRUE(whole.bytes() == first) << "differs from the plain instruction set";
        for (int64_t i = 0; i < 1001; ++i) {
            const Random4 random = random4(key, static_cast<uint64_t>((50 + i) / 128 * 16 + (50 + i) % 16));
            const int64_t half = (50 + i) / 16 % 8;
            ASSERT_EQ(whole[i].bits, to_bf16_stochastic(x[i], random.word[half / 2] >> (half % 2 * 16)).bits);
        }
    });
}

TEST(Cast, StochasticRoundingIsUnbiased) {
    const int64_t n = 200000;
    const double value = 1 + 0.3 / 128;  // three tenths of the way between two bf16 neighbours
    Guarded<float> x(Values(n, value));
    Guarded<bf16> out(n);
    cast_stochastic(out.tensor(), x.tensor(), {.seed = 1, .stream = 2}, 0);
    double ups = 0;
    for (double v : out.values()) ups += v > value;
    EXPECT_NEAR(ups / static_cast<double>(n), 0.3,
                5 * std::sqrt(0.3 * 0.7 / static_cast<double>(n)));  // 5 sigma
}

TEST(Cast, FillsAndScales) {
    for_each_isa([] {
        for (int64_t n : kSizes) {
            Guarded<bf16> zero(Values(n, 3.0), 1);
            fill_zero(zero.tensor());
            EXPECT_TRUE(zero.values() == Values(n, 0.0));
            Guarded<float> x(normal_values(n, 1), 3), scaled(normal_values(n, 1));
            scale_in_place(scaled.tensor(), 0.3f);
            for (int64_t i = 0; i < n; ++i) ASSERT_EQ(scaled[i], x[i] * 0.3f);
        }
    });
}

TEST(Cast, SameBitsForAnyNumberOfThreads) {
    Guarded<float> x(normal_values(200001, 1));
    expect_same_bits_for_any_threads([&] {
        Guarded<bf16> nearest(x.size()), stochastic(x.size());
        cast(nearest.tensor(), x.tensor());
        cast_stochastic(stochastic.tensor(), x.tensor(), {.seed = 1, .stream = 2}, 3);
        return joined({nearest.bytes(), stochastic.bytes()});
    });
}

TEST(Cast, NamesTheWrongArgument) {
    Guarded<float> four(Values(4, 1.0)), five(Values(5, 1.0));
    expect_mentions(check_failure([&] { cast(four.tensor(), five.tensor()); }),
                    {"argument out", "as many elements", "got 4"});
    Guarded<int32_t> ids(Values(4, 1.0));
    expect_mentions(check_failure([&] { cast(four.tensor(), ids.tensor()); }),
                    {"argument inp", "f32|bf16", "i32[4]"});
}
