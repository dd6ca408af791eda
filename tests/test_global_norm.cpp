// The sum of squares: exact where f64 is, the same bits for any number of threads, and never hiding a bad
// value.
#include "kernels/global_norm.h"

#include "tests/op_check.h"

TEST(GlobalNorm, EqualsTheSumInDouble) {
    for_each_isa([] {
        for (int64_t n : {0, 1, 15, 16, 33, 1000, 100003}) {
            Guarded<float> x(normal_values(n, 1, 3), 1);
            double expected = 0;
            for (double v : x.values()) expected += v * v;
            EXPECT_NEAR(sum_of_squares(x.tensor()), expected, 1e-12 * expected) << n;  // both are sums in f64
        }
    });
}

TEST(GlobalNorm, DoesNotOverflowWhereF32Would) {
    Guarded<float> x(Values(100, 1e30));
    EXPECT_NEAR(sum_of_squares(x.tensor()) / 1e62, 1, 1e-6);
}

TEST(GlobalNorm, IsNotFiniteWhenAnyElementIsNot) {
    for_each_isa([] {
        for (double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
            for (size_t at : {size_t{0}, size_t{40000}, size_t{70000}}) {
                Values values(70001, 1.0);
                values[at] = bad;
                Guarded<float> x(values);
                EXPECT_FALSE(std::isfinite(sum_of_squares(x.tensor()))) << bad << " at " << at;
            }
        }
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
}
