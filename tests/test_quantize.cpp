// FP8 numbers, all 256 of both types; quantisation to the bit on every device, with what is not finite, tiny
// or absent.
#include "kernels/quantize.h"

#include "tests/on_device.h"

namespace {

template <class T>
T to_fp8(float x) {
    if constexpr (std::is_same_v<T, e4m3>) return to_e4m3(x);
    if constexpr (std::is_same_v<T, e5m2>) return to_e5m2(x);
}

// By the definition of the formats, in float64.
double fp8_value(uint8_t bits, int mantissa_bits, int bias) {
    const int exponent = (bits & 0x7f) >> mantissa_bits, mantissa = bits & ((1 << mantissa_bits) - 1);
    const double fraction = std::ldexp(mantissa, -mantissa_bits) + (exponent > 0);
    return std::ldexp(fraction, std::max(exponent, 1) - bias) * (bits & 0x80 ? -1 : 1);
}

template <class T>
void check_numbers(int mantissa_bits, int bias, uint8_t largest) {
    for (int sign : {0, 0x80}) {
        for (int code = 0; code <= largest; ++code) {
            const uint8_t bits = static_cast<uint8_t>(sign | code);
            const float x = to_float(T{bits});
            ASSERT_EQ(x, fp8_value(bits, mantissa_bits, bias)) << code;
            ASSERT_EQ(to_fp8<T>(x).bits, bits);
            if (code == largest) continue;
            // Halfway to the next: to the even one of the two; beside it: to the nearer.
            const float next = to_float(T{static_cast<uint8_t>(bits + 1)}), half = (x + next) / 2;
            const uint8_t even = static_cast<uint8_t>(code % 2 ? bits + 1 : bits);
            ASSERT_EQ(to_fp8<T>(half).bits, even) << half;
            ASSERT_EQ(to_fp8<T>(std::nextafterf(half, x)).bits, bits) << half;
            ASSERT_EQ(to_fp8<T>(std::nextafterf(half, next)).bits, bits + 1) << half;
        }
        for (float beyond : {to_float(T{largest}) * 1.5f, 1e30f, HUGE_VALF}) {
            EXPECT_EQ(to_fp8<T>(sign ? -beyond : beyond).bits, sign | largest);
        }
        for (int code = largest + 1; code < 128; ++code) {
            const float x = to_float(T{static_cast<uint8_t>(sign | code)});
            EXPECT_FALSE(std::isfinite(x)) << code;
        }
    }
    EXPECT_TRUE(std::isnan(to_float(to_fp8<T>(NAN)))) << "saturation must not hide a NaN";
}

template <class Out, class In>
void check_quantize_on(Device device, int64_t rows, int64_t columns, double scale) {
    SCOPED_TRACE(cat({device_name(device), " [", rows, ",", columns, "] times ", scale}));
    const DType dtype = dtype_of<Out>();
    const Guarded<In> inp(normal_values(rows * columns, 1, scale));
    const int64_t line = fp8_line(columns), transposed_line = fp8_line(rows);
    Guarded<Out> out(rows * line), transposed(columns * transposed_line);
    Guarded<float> absmax(Values{0}), inverse(1);
    OnDevice on(device);
    raise_absmax(on(absmax.tensor()), on(inp.tensor(rows, columns)));
    quantize(on(out.tensor(rows, line)), on(transposed.tensor(columns, transposed_line)),
             on(inverse.tensor()), on(inp.tensor(rows, columns)), on(absmax.tensor()));
    on.fetch();
    float largest = 0;
    for (int64_t i = 0; i < inp.size(); ++i) largest = std::max(largest, std::abs(to_float(inp[i])));
    ASSERT_EQ(absmax[0], largest);
    const float factor = fp8_scale(largest, fp8_largest(dtype));
    ASSERT_EQ(inverse[0], 1 / factor);
    for (int64_t n = 0; n < std::max(rows, transposed_line); ++n) {
        for (int64_t c = 0; c < std::max(columns, line); ++c) {
            const bool exists = n < rows && c < columns;
            const uint8_t expected = exists ? to_fp8<Out>(to_float(inp[n * columns + c]) * factor).bits : 0;
            if (n < rows && c < line) {
                ASSERT_EQ(out[n * line + c].bits, expected) << n << " " << c;
            }
            if (c < columns && n < transposed_line) {
                ASSERT_EQ(transposed[c * transposed_line + n].bits, expected) << n << " " << c;
            }
        }
    }
}

}  // namespace

TEST(Fp8, All256NumbersTiesAndOverflow) {
    check_numbers<e4m3>(3, 7, 0x7e);
    check_numbers<e5m2>(2, 15, 0x7b);
    EXPECT_EQ(to_float(e4m3{0x7e}), kLargestE4m3);
    EXPECT_EQ(to_float(e5m2{0x7b}), kLargestE5m2);
}

TEST(Quantize, BothOrientationsEqualTheScalarRuleToTheBit) {
    std::vector<Device> devices = gpus();
    devices.push_back(Device::cpu);
    for (Device device : devices) {
        for (const auto& [rows, columns] : {std::pair{1, 1}, {3, 37}, {64, 64}, {70, 136}}) {
            check_quantize_on<e4m3, bf16>(device, rows, columns, 3);
            check_quantize_on<e5m2, bf16>(device, rows, columns, 1e-6);
            check_quantize_on<e4m3, float>(device, rows, columns, 1e30);
            check_quantize_on<e5m2, float>(device, rows, columns, 0);
        }
    }
}

TEST(Quantize, WhatIsNotFiniteStaysVisible) {
    std::vector<Device> devices = gpus();
    devices.push_back(Device::cpu);
    for (Device device : devices) {
        for (double broken : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
            Values values = normal_values(48, 1);
            values[31] = broken;
            const Guarded<bf16> inp(values);
            Guarded<e4m3> out(48);
            Guarded<float> absmax(Values{0}), inverse(1);
            OnDevice on(device);
            raise_absmax(on(absmax.tensor()), on(inp.tensor(3, 16)));
            quantize(on(out.tensor(3, 16)), {}, on(inverse.tensor()), on(inp.tensor(3, 16)),
                     on(absmax.tensor()));
            on.fetch();
            EXPECT_FALSE(std::isfinite(absmax[0]));
            EXPECT_TRUE(std::isnan(inverse[0]));
            for (int64_t i = 0; i < 48; ++i) EXPECT_TRUE(std::isnan(to_float(out[i])));
        }
    }
}

// An absmax of another tensor saturates, or wastes what there is of range: on the CPU a fault is seen.
TEST(Quantize, TheAbsmaxIsTheTensorsOwn) {
    const Guarded<bf16> inp(Values{1, -3, 2, 0});
    Guarded<e4m3> out(16);
    Guarded<float> absmax(Values{3}), inverse(1);
    const auto run = [&] {
        return check_failure(
            [&] { quantize(out.tensor(1, 16), {}, inverse.tensor(), inp.tensor(1, 4), absmax.tensor()); });
    };
    EXPECT_EQ(run(), "");
    for (float other : {0.0f, 2.0f, 4.0f, NAN}) {
        absmax[0] = other;
        expect_mentions(run(), {"quantize", "argument absmax", "inp's largest magnitude"});
    }
}
