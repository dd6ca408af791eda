// Conversions to the bit, stochastic rounding to the bit and in the mean, filling, scaling.
#include "kernels/cast.h"

#include "tests/on_device.h"

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

void check_pairs(Device device, uint32_t odd_ones = 0) {
    for (int64_t n : kSizes) {
        SCOPED_TRACE(cat({device_name(device), " ", n, ", odd ", odd_ones}));
        const int64_t offset = device == Device::cpu;
        Guarded<float> x32(awkward_values(n), offset), from16(n), copy32(n);
        Guarded<bf16> from32(n, 3 * offset), copy16(n);
        OnDevice on(device, odd_ones);
        cast(on(from32.tensor()), on(x32.tensor()));
        cast(on(from16.tensor()), on(from32.tensor()));
        cast(on(copy32.tensor()), on(x32.tensor()));
        cast(on(copy16.tensor()), on(from32.tensor()));
        on.fetch();
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
}

// n elements whole, and cut into 11 parts.
void check_stochastic(Device device, int64_t n, int64_t first_index) {
    SCOPED_TRACE(cat({device_name(device), " ", n, " from ", first_index}));
    const RandomKey key{.seed = 7, .stream = 9};
    Guarded<float> x(awkward_values(n), 1);
    Guarded<bf16> whole(n), parts(n);
    OnDevice on(device);
    cast_stochastic(on(whole.tensor()), on(x.tensor()), key, first_index);
    for (int64_t begin = 0; begin < n; begin += n / 11) {
        cast_stochastic(on(parts.tensor().rows(begin, n / 11)), on(x.tensor().rows(begin, n / 11)), key,
                        first_index + begin);
    }
    on.fetch();
    EXPECT_TRUE(whole.bytes() == parts.bytes());
    for (int64_t i = 0; i < n; ++i) {
        const int64_t counter = first_index + i, half = counter / 16 % 8;
        const Random4 random = random4(key, static_cast<uint64_t>(counter / 128 * 16 + counter % 16));
        ASSERT_EQ(whole[i].bits, to_bf16_stochastic(x[i], random.word[half / 2] >> (half % 2 * 16)).bits)
            << i;
    }
}

void check_filling_and_scaling(Device device, uint32_t odd_ones = 0) {
    for (int64_t n : kSizes) {
        SCOPED_TRACE(cat({device_name(device), " ", n, ", odd ", odd_ones}));
        const int64_t offset = device == Device::cpu;
        Guarded<bf16> zero(Values(n, 3.0), offset);
        Guarded<float> x(normal_values(n, 1), 3), scaled(normal_values(n, 1), offset);
        OnDevice on(device, odd_ones);
        fill_zero(on(zero.tensor()));
        scale_in_place(on(scaled.tensor()), 0.3f);
        on.fetch();
        EXPECT_TRUE(zero.values() == Values(n, 0.0));
        for (int64_t i = 0; i < n; ++i) ASSERT_EQ(scaled[i], x[i] * 0.3f);
    }
}

}  // namespace

TEST(Cast, EveryPairEqualsTheScalarRuleToTheBit) {
    for_each_isa([] { check_pairs(Device::cpu); });
    for (Device device : gpus()) {
        for (uint32_t odd_ones : misalignments(5)) check_pairs(device, odd_ones);
    }
}

TEST(Cast, StochasticRoundingDependsOnKeyAndCounterAlone) {
    const auto check = [](Device device) {
        for (int64_t first_index : {int64_t{0}, int64_t{50}, (int64_t{1} << 36) + 112}) {
            check_stochastic(device, 1001, first_index);
        }
        check_stochastic(device, 4499, 5);
        check_stochastic(device, 11, 127);
    };
    for_each_isa([&] { check(Device::cpu); });
    for (Device device : gpus()) check(device);
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
    for_each_isa([] { check_filling_and_scaling(Device::cpu); });
    for (Device device : gpus()) {
        for (uint32_t odd_ones : misalignments(0)) check_filling_and_scaling(device, odd_ones);
    }
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
