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
    RaisedAbsmax out_absmax(device), added_absmax(device);
    OnDevice on(device);
    matmul_fp8(on(out.tensor(rows, columns)), a.on(on), b.on(on), {}, {}, out_absmax.tensor());
    const Tensor sum = on(added.tensor(rows, columns));
    matmul_fp8(sum, a.on(on), b.on(on), {.residual = sum}, {}, added_absmax.tensor());
    on.fetch();
    out_absmax.expect(out, "out");
    added_absmax.expect(added, "out and residual");
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
        for (const MatmulPlan& plan : {MatmulPlan{MatmulTile::large, 1},
                                       {MatmulTile::large, 3},
                                       {MatmulTile::small, 2},
                                       {MatmulTile::hopper_wide, 1}}) {
            force_matmul_plan(&plan);
            check_product<e5m2, float>(device, 130, 136, 400);
            check_product<e4m3, bf16>(device, 66, 136, 80);
            force_matmul_plan(nullptr);
        }
    }
}

TEST(MatmulFp8, Epilogues) {
    constexpr int64_t kRows = 70, kColumns = 48, kInner = 100, kCount = kRows * kColumns;
    const Quantised<e4m3> a(kRows, kInner, 1), b(kColumns, kInner, 2, 0.1);
    const Values sums = twin(a, b), magnitudes = twin(a, b, true);
    const Guarded<bf16> bias(normal_values(kColumns, 3)), addend(normal_values(kCount, 4)),
        gelu_pre(normal_values(kCount, 5));
    Values pre = sums, activated, through_gelu;
    for (int64_t i = 0; i < kCount; ++i) {
        double& x = pre[static_cast<size_t>(i)];
        x += to_float(bias[i % kColumns]);
        activated.push_back(twin_gelu(x) + to_float(addend[i]));
        through_gelu.push_back(sums[static_cast<size_t>(i)] * twin_gelu_derivative(to_float(gelu_pre[i])));
    }
    for (Device device : all_devices()) {
        SCOPED_TRACE(device_name(device));
        Guarded<bf16> out(kCount), pre_out(kCount), dinp(kCount);
        RaisedAbsmax out_absmax(device), dinp_absmax(device);
        OnDevice on(device);
        matmul_fp8(on(out.tensor(kRows, kColumns)), a.on(on), b.on(on),
                   {.bias = on(bias.tensor()),
                    .residual = on(addend.tensor(kRows, kColumns)),
                    .gelu = true,
                    .pre_activation = on(pre_out.tensor(kRows, kColumns))},
                   {}, out_absmax.tensor());
        matmul_fp8(on(dinp.tensor(kRows, kColumns)), a.on(on), b.on(on), {},
                   on(gelu_pre.tensor(kRows, kColumns)), dinp_absmax.tensor());
        on.fetch();
        out_absmax.expect(out, "out");
        dinp_absmax.expect(dinp, "dinp");
        // GELU's slope is at most 1.13: what is left is the result's rounding to bf16, 2^-8 at most.
        expect_sums(device, pre_out, pre, magnitudes, kInner);
        constexpr double kRounding = 1.05 / 256;
        expect_close(out.values(), activated, kRounding, "gelu and residual");
        expect_close(dinp.values(), through_gelu, kRounding, "gelu'");
    }
}

TEST(MatmulFp8, WhatIsNotFiniteSpoilsTheResult) {
    for (Device device : all_devices()) {
        const Quantised<e5m2> a(5, 20, 1, 1, HUGE_VAL);
        const Quantised<e4m3> b(9, 20, 2);
        Guarded<bf16> out(45);
        OnDevice on(device);
        matmul_fp8(on(out.tensor(5, 9)), a.on(on), b.on(on));
        on.fetch();
        for (int64_t i = 0; i < 45; ++i) ASSERT_TRUE(std::isnan(to_float(out[i]))) << device_name(device);
    }
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

TEST(MatmulFp8, SameBitsInEveryOrder) {
    expect_same_bits_on_gpus([](Device device) {
        const Quantised<e5m2> a(70, 300, 1);
        const Quantised<e4m3> b(40, 300, 2);
        Guarded<float> out(70 * 40);
        OnDevice on(device);
        matmul_fp8(on(out.tensor(70, 40)), a.on(on), b.on(on));
        on.fetch();
        return out.bytes();
    });
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
