// FP8 products against a float64 twin of the codes themselves, on every device: each epilogue, tiles that
// hang over every edge, split sums, operands that are not finite.
#include "kernels/matmul_fp8.h"

#include "kernels/matmul_plan.h"
#include "kernels/quantize.h"
#include "tests/absmax_check.h"
#include "tests/matmul_check.h"

namespace {

std::vector<Device> all_devices() {
    std::vector<Device> devices = gpus();
    devices.push_back(Device::cpu);
    return devices;
}

// A matrix [lines, inner] of normal values, quantised on the CPU, which test_quantize.cpp knows to be right.
template <class T>
struct Quantised {
    Quantised(int64_t lines, int64_t inner, uint32_t seed, double scale = 1, double planted = 0)
        : lines(lines), line(fp8_line(inner)), codes(lines * line), inverse(1) {
        Values values = normal_values(lines * inner, seed, scale);
        if (planted != 0) values.back() = planted;
        const Guarded<float> inp(values);
        Guarded<float> absmax(Values{0});
        raise_absmax(absmax.tensor(), inp.tensor(lines, inner));
        quantize(codes.tensor(lines, line), {}, inverse.tensor(), inp.tensor(lines, inner), absmax.tensor());
    }
    double value(int64_t l, int64_t k) const { return to_float(codes[l * line + k]); }
    Fp8Matrix on(OnDevice& device) const {
        return {device(codes.tensor(lines, line)), device(inverse.tensor())};
    }

    int64_t lines, line;
    Guarded<T> codes;
    Guarded<float> inverse;
};

// The sums, and with `magnitude` those of the products' magnitudes.
template <class A>
Values twin(const Quantised<A>& a, const Quantised<e4m3>& b, bool magnitude = false) {
    Values out(static_cast<size_t>(a.lines * b.lines));
    const double scale = double{a.inverse[0]} * b.inverse[0];
    for (int64_t m = 0; m < a.lines; ++m) {
        for (int64_t n = 0; n < b.lines; ++n) {
            double sum = 0;
            for (int64_t k = 0; k < a.line; ++k) {
                const double product = a.value(m, k) * b.value(n, k);
                sum += magnitude ? std::abs(product) : product;
            }
            out[static_cast<size_t>(m * b.lines + n)] = scale * sum;
        }
    }
    return out;
}

// Each sum of K terms errs by at most K roundings of its partial sums, which its magnitudes bound; the scale
// and each step of the epilogue add a rounding. A GPU may keep 14 bits of the partial sums of an instruction.
// `slope` is how much the epilogue can enlarge an error. A bf16 result is rounded once more.
template <class Out>
void expect_sums(Device device, const Guarded<Out>& out, const Values& expected, const Values& magnitudes,
                 int64_t inner, double slope = 1) {
    const double per_term = device == Device::cuda ? 0x1p-13 : static_cast<double>(inner + 4) * 0x1p-24;
    for (int64_t i = 0; i < out.size(); ++i) {
        const double x = expected[static_cast<size_t>(i)];
        double bound =
            slope * per_term * (magnitudes[static_cast<size_t>(i)] + std::abs(x)) + 0x1p-22 * std::abs(x);
        if (std::is_same_v<Out, bf16>) bound += 0x1p-8 * (std::abs(x) + bound);
        ASSERT_NEAR(to_float(out[i]), x, bound) << "element " << i;
    }
}

template <class A, class Out>
void check_product(Device device, int64_t rows, int64_t columns, int64_t inner) {
    SCOPED_TRACE(cat({device_name(device), " ", rows, " x ", columns, " x ", inner}));
    const Quantised<A> a(rows, inner, 1, 1e-3);
    const Quantised<e4m3> b(columns, inner, 2, 30);
    const Values sums = twin(a, b), magnitudes = twin(a, b, true);
    Guarded<Out> out(rows * columns), added(Values(static_cast<size_t>(rows * columns), 0.25));
    OnDevice on(device);
    matmul_fp8(on(out.tensor(rows, columns)), a.on(on), b.on(on));
    const Tensor sum = on(added.tensor(rows, columns));
    matmul_fp8(sum, a.on(on), b.on(on), {.residual = sum});
    on.fetch();
    expect_sums(device, out, sums, magnitudes, inner);
    Values more = sums;
    for (double& x : more) x += 0.25;
    expect_sums(device, added, more, magnitudes, inner);
}

}  // namespace

TEST(MatmulFp8, ProductsEqualTheirTwins) {
    for (Device device : all_devices()) {
        for (const auto& [rows, columns, inner] :
             {std::tuple{1, 1, 1}, {3, 37, 17}, {65, 66, 200}, {130, 72, 64}, {64, 136, 320}}) {
            check_product<e4m3, bf16>(device, rows, columns, inner);
            check_product<e5m2, bf16>(device, rows, columns, inner);
            check_product<e5m2, float>(device, rows, columns, inner);
        }
    }
}

TEST(MatmulFp8, LargeTilesAndSplitSums) {
    for (Device device : gpus()) {
        for (const MatmulPlan& plan :
             {MatmulPlan{MatmulTile::large, 1}, {MatmulTile::large, 3}, {MatmulTile::small, 2}}) {
            const ForcedPlan forced(plan);
            check_product<e5m2, float>(device, 130, 136, 400);
            check_product<e4m3, bf16>(device, 66, 136, 80);
        }
    }
}

// A result of more tiles than the emulator has multiprocessors, edges of tiles and one more or less, inner
// dimensions of less than a stage (128), of a stage and a bit, of more stages than a ring has.
TEST(MatmulFp8, HopperTilesEqualTheirTwins) {
    for_each_hopper_tile([](Device device) {
        for (const auto& [rows, columns, inner] :
             {std::tuple{1, 8, 16}, {127, 257, 130}, {264, 520, 100}, {65, 37, 1040}}) {
            check_product<e4m3, bf16>(device, rows, columns, inner);
            check_product<e5m2, float>(device, rows, columns, inner);
        }
        check_product<e5m2, bf16>(device, 129, 255, 256);
        check_product<e4m3, float>(device, 129, 255, 256);
    });
}

TEST(MatmulFp8, HopperSplitSums) {
    for (Device device : gpus()) {
        for (MatmulTile tile : {MatmulTile::hopper_square, MatmulTile::hopper_wide}) {
            for (int64_t splits : {2, 7}) {  // of 400 inner indices: 256 and 144, and 4 parts, the last of 16
                SCOPED_TRACE(splits);
                const ForcedPlan forced({tile, splits});
                check_product<e5m2, float>(device, 130, 264, 400);
            }
        }
    }
}

// A block's tiles take more turns than the ring has stages, so that who waits for his own tile's stages sees
// them full of others' before.
TEST(MatmulFp8, HopperLongTilesInTurn) {
    for_each_hopper_tile([](Device device) { check_product<e5m2, float>(device, 1100, 8, 8 * 128); });
}

// Four ones in different instructions of a stage, behind stages that sum to 2^24: one after the other they
// would be lost in f32, and what tensor cores keep is less. Every partial sum is exact.
TEST(MatmulFp8, HopperAddsUpStagesInF32) {
    constexpr int64_t kInner = 384;
    Guarded<e4m3> a(kInner), b(Values(static_cast<size_t>(8 * kInner), 0.0));
    for (int64_t k = 0; k < kInner; ++k) {
        a[k] = to_e4m3(k < 256 ? 256.0f : k % 32 == 0 ? 1.0f : 0.0f);
        for (int64_t n = 0; n < 8; ++n) b[n * kInner + k] = to_e4m3(k < 256 ? 256.0f : 1.0f);
    }
    const Guarded<float> one(Values{1});
    for_each_hopper_tile([&](Device device) {
        if (device_info(device).capability != 90) return;
        Guarded<float> out(8);
        OnDevice on(device);
        const Tensor inverse = on(one.tensor());
        matmul_fp8(on(out.tensor(1, 8)), {on(a.tensor(1, kInner)), inverse},
                   {on(b.tensor(8, kInner)), inverse});
        on.fetch();
        for (int64_t n = 0; n < 8; ++n) EXPECT_EQ(out[n], 0x1p24f + 4) << n << " on " << device_name(device);
    });
}

namespace {

void check_fp8_epilogues(Device device, int64_t rows, int64_t columns, int64_t inner) {
    SCOPED_TRACE(device_name(device));
    const int64_t count = rows * columns;
    const Quantised<e4m3> a(rows, inner, 1), b(columns, inner, 2, 0.1);
    const Values sums = twin(a, b), magnitudes = twin(a, b, true);
    const Guarded<bf16> bias(normal_values(columns, 3)), addend(normal_values(count, 4)),
        gelu_pre(normal_values(count, 5));
    Values pre = sums, activated, through_gelu;
    for (int64_t i = 0; i < count; ++i) {
        double& x = pre[static_cast<size_t>(i)];
        x += to_float(bias[i % columns]);
        activated.push_back(twin_gelu(x) + to_float(addend[i]));
        through_gelu.push_back(sums[static_cast<size_t>(i)] * twin_gelu_derivative(to_float(gelu_pre[i])));
    }
    Guarded<bf16> out(count), pre_out(count), dinp(count);
    RaisedAbsmax out_absmax(device), dinp_absmax(device);
    OnDevice on(device);
    matmul_fp8(on(out.tensor(rows, columns)), a.on(on), b.on(on),
               {.bias = on(bias.tensor()),
                .residual = on(addend.tensor(rows, columns)),
                .gelu = true,
                .pre_activation = on(pre_out.tensor(rows, columns))},
               {}, out_absmax.tensor());
    matmul_fp8(on(dinp.tensor(rows, columns)), a.on(on), b.on(on), {}, on(gelu_pre.tensor(rows, columns)),
               dinp_absmax.tensor());
    on.fetch();
    out_absmax.expect(out, "out");
    dinp_absmax.expect(dinp, "dinp");
    // GELU's slope is at most 1.13: what is left is the result's rounding to bf16, 2^-8 at most.
    expect_sums(device, pre_out, pre, magnitudes, inner);
    constexpr double kRounding = 1.05 / 256;
    expect_close(out.values(), activated, kRounding, "gelu and residual");
    expect_close(dinp.values(), through_gelu, kRounding, "gelu'");
}

}  // namespace

TEST(MatmulFp8, Epilogues) {
    for (Device device : all_devices()) check_fp8_epilogues(device, 70, 48, 100);
    for_each_hopper_tile([](Device device) {
        check_fp8_epilogues(device, 131, 264, 136);
        check_fp8_epilogues(device, 67, 41, 72);
    });
}

namespace {

void expect_nothing_but_nans(Device device) {
    const Quantised<e5m2> a(5, 20, 1, 1, HUGE_VAL);
    const Quantised<e4m3> b(9, 20, 2);
    Guarded<bf16> out(45);
    OnDevice on(device);
    matmul_fp8(on(out.tensor(5, 9)), a.on(on), b.on(on));
    on.fetch();
    for (int64_t i = 0; i < 45; ++i) ASSERT_TRUE(std::isnan(to_float(out[i]))) << device_name(device);
}

}  // namespace

TEST(MatmulFp8, WhatIsNotFiniteSpoilsTheResult) {
    for (Device device : all_devices()) expect_nothing_but_nans(device);
    for_each_hopper_tile(expect_nothing_but_nans);
}

TEST(MatmulFp8, BiasGradientAlone) {
    for (Device device : all_devices()) {
        const Guarded<bf16> dout(normal_values(77 * 40, 1));
        Guarded<float> dbias(Values(40, 1.0));
        OnDevice on(device);
        matmul_backward_bias(on(dbias.tensor()), on(dout.tensor(77, 40)), true);
        on.fetch();
        Values sums(40, 1.0);
        for (int64_t i = 0; i < 77 * 40; ++i) sums[static_cast<size_t>(i % 40)] += to_float(dout[i]);
        expect_close(dbias.values(), sums, 2e-5, device_name(device));
    }
}

namespace {

std::vector<uint8_t> some_product(Device device) {
    const Quantised<e5m2> a(70, 300, 1);
    const Quantised<e4m3> b(40, 300, 2);
    Guarded<float> out(70 * 40);
    OnDevice on(device);
    matmul_fp8(on(out.tensor(70, 40)), a.on(on), b.on(on));
    on.fetch();
    return out.bytes();
}

}  // namespace

TEST(MatmulFp8, SameBitsInEveryOrder) {
    expect_same_bits_on_gpus(some_product);
    std::vector<std::vector<uint8_t>> of_tiles;
    for (MatmulTile tile : {MatmulTile::hopper_square, MatmulTile::hopper_wide}) {
        const ForcedPlan forced({tile, 1});
        expect_same_bits_on_gpus(some_product);
        for (Device device : gpus()) of_tiles.push_back(some_product(device));
    }
    for (size_t i = 0, count = of_tiles.size() / 2; i < count; ++i)
        EXPECT_EQ(of_tiles[i], of_tiles[count + i]) << "square and wide tiles on " << device_name(gpus()[i]);
}

TEST(MatmulFp8, WrongArgumentsAreFaultsOfTheProgram) {
    const Quantised<e4m3> a(4, 16, 1), other(4, 32, 2);
    const Quantised<e5m2> wide(4, 16, 3);
    Guarded<float> out(16);
    OnDevice on(Device::cpu);
    EXPECT_THROW(matmul_fp8(out.tensor(4, 4), a.on(on), other.on(on)), InternalError) << "inner sizes";
    EXPECT_THROW(matmul_fp8(out.tensor(4, 4), a.on(on), wide.on(on)), InternalError) << "b is e5m2";
    EXPECT_THROW(matmul_fp8(out.tensor(2, 8), a.on(on), a.on(on)), InternalError) << "rows";
    matmul_fp8(out.tensor(4, 4), a.on(on), a.on(on));
}
