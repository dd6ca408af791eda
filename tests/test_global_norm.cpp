// The sum of squares: exact where f64 is, the same bits for any number of threads, and never hiding a bad
// value.
#include "kernels/global_norm.h"

#include "tests/on_device.h"

namespace {

// By both ways to ask for it, which give the same bits.
double sum_on(Device device, const Guarded<float>& x) {
    double into = std::nan("");
    OnDevice on(device);
    sum_of_squares_into(on(tensor_of(&into, 1)), on(x.tensor()));
    const double returned = sum_of_squares(on(x.tensor()));
    on.fetch();
    EXPECT_TRUE(std::memcmp(&into, &returned, sizeof into) == 0) << into << " and " << returned;
    return returned;
}

void check_sums(Device device, std::initializer_list<int64_t> sizes, int64_t offset) {
    for (int64_t n : sizes) {
        Guarded<float> x(normal_values(n, 1, 3), offset);
        double expected = 0;
        for (int64_t i = 0; i < n; ++i) expected += to_double(x[i]) * to_double(x[i]);
        EXPECT_NEAR(sum_on(device, x), expected, 1e-12 * expected)  // both are sums in f64
            << n << " + " << offset << " on " << device_name(device);
    }
}

void check_bad_values(Device device) {
    for (double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
        for (size_t at : {size_t{0}, size_t{40000}, size_t{70000}}) {
            Values values(70001, 1.0);
            values[at] = bad;
            Guarded<float> x(values);
            EXPECT_FALSE(std::isfinite(sum_on(device, x)))
                << bad << " at " << at << " on " << device_name(device);
        }
    }
}

}  // namespace

TEST(GlobalNorm, EqualsTheSumInDouble) {
    for_each_isa([] { check_sums(Device::cpu, {0, 1, 15, 16, 33, 1000, 100003}, 1); });
    for (Device device : gpus()) {
        // The last: more than all blocks take in one turn.
        check_sums(device, {0, 1, 15, 16, 33, 1000, 5003, 1100003}, 1);
        check_sums(device, {0, 1, 15, 16, 33, 1000, 5003, 4200003}, 0);
    }
}

TEST(GlobalNorm, DoesNotOverflowWhereF32Would) {
    Guarded<float> x(Values(100, 1e30));
    for (Device device : {Device::cpu, Device::simt}) EXPECT_NEAR(sum_on(device, x) / 1e62, 1, 1e-6);
}

TEST(GlobalNorm, IsNotFiniteWhenAnyElementIsNot) {
    for_each_isa([] { check_bad_values(Device::cpu); });
    for (Device device : gpus()) check_bad_values(device);
}

TEST(GlobalNorm, SameBitsInAnyOrderOfAGpusThreads) {
    Guarded<float> x(normal_values(50001, 1));
    expect_same_bits_on_gpus([&](Device device) {
        const double sum = sum_on(device, x);
        std::vector<uint8_t> bytes(sizeof sum);
        std::memcpy(bytes.data(), &sum, sizeof sum);
        return bytes;
    });
}

TEST(GlobalNorm, SameBitsForAnyNumberOfThreads) {
    Guarded<float> x(normal_values(500001, 1));
    expect_same_bits_for_any_threads([&] {
        const double sum = sum_of_squares(x.tensor());
        std::vector<uint8_t> bytes(sizeof sum);
        std::memcpy(bytes.data(), &sum, sizeof sum);
        return bytes;
    });
}

TEST(GlobalNorm, NamesTheWrongArgument) {
    Guarded<bf16> x(Values(4, 1.0));
    expect_mentions(check_failure([&] { sum_of_squares(x.tensor()); }),
                    {"sum_of_squares", "argument x", "f32", "bf16[4]"});
    Guarded<float> f32(Values(4, 1.0));
    double two[2];
    expect_mentions(check_failure([&] { sum_of_squares_into(tensor_of(two, 2), f32.tensor()); }),
                    {"argument out", "f64 of 1 elements", "f64[2]"});
}
