// The elementwise ops (GELU, SwiGLU, squared ReLU, residual) against float64 twins and finite differences, at
// their extremes, in place, and for any number of threads.
#include "kernels/gelu.h"
#include "kernels/relu2.h"
#include "kernels/residual.h"
#include "kernels/swiglu.h"
#include "tests/op_check.h"

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kSizes[] = {0,  1,    7,    16,
                              37, 1000, 70001};  // the last crosses pieces handed to different threads

double gelu_twin(double x) {
    return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
double relu2_twin(double x) { return x > 0 ? x * x : 0; }
double silu_twin(double x) { return x / (1 + std::exp(-x)); }

using Forward = void (*)(Tensor, Tensor, Stream);
using Backward = void (*)(Tensor, Tensor, Tensor, Stream);

template <class T>
void check_unary(double (*function)(double), Forward forward, Backward backward) {
    for (int64_t size : kSizes) {
        SCOPED_TRACE(cat({dtype_name(dtype_of<T>()), " ", size}));
        const Values x = representable<T>(normal_values(size, 1, 2)),
                     dy = representable<T>(normal_values(size, 2));
        Values y, dx;
        for (size_t i = 0; i < x.size(); ++i) {
            y.push_back(function(x[i]));
            dx.push_back(dy[i] * (function(x[i] + 1e-5) - function(x[i] - 1e-5)) / 2e-5);
        }
        Guarded<T> inp(x, 1), out(size, 3), dout(dy), dinp(size);
        forward(out.tensor(), inp.tensor(), {});
        backward(dinp.tensor(), inp.tensor(), dout.tensor(), {});
        expect_close(out.values(), y, kTolerance<T>, "out");
        expect_close(dinp.values(), dx, kTolerance<T>, "dinp");

        Guarded<T> in_place(x), gradient_in_place(dy);
        forward(in_place.tensor(), in_place.tensor(), {});
        backward(gradient_in_place.tensor(), inp.tensor(), gradient_in_place.tensor(), {});
        EXPECT_TRUE(in_place.bytes() == out.bytes() && gradient_in_place.bytes() == dinp.bytes())
            << "in place";
    }
}

template <class T>
void check_swiglu(int64_t rows, int64_t width) {
    SCOPED_TRACE(cat({dtype_name(dtype_of<T>()), " ", rows, " x ", width}));
    const Values x = representable<T>(normal_values(rows * 2 * width, 1, 2));
    const Values dy = representable<T>(normal_values(rows * width, 2));
    Values y, dx(x.size());
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t i = 0; i < width; ++i) {
            const auto gate = static_cast<size_t>(row * 2 * width + i),
                       up = gate + static_cast<size_t>(width);
            const double d = dy[static_cast<size_t>(row * width + i)];
            y.push_back(silu_twin(x[gate]) * x[up]);
            dx[up] = d * silu_twin(x[gate]);
            dx[gate] = d * x[up] * (silu_twin(x[gate] + 1e-5) - silu_twin(x[gate] - 1e-5)) / 2e-5;
        }
    }
    Guarded<T> gate_up(x, 1), out(rows * width), dout(dy, 3), dgate_up(2 * rows * width);
    swiglu_forward(out.tensor(rows, width), gate_up.tensor(rows, 2 * width));
    swiglu_backward(dgate_up.tensor(rows, 2 * width), gate_up.tensor(rows, 2 * width),
                    dout.tensor(rows, width));
    expect_close(out.values(), y, kTolerance<T>, "out");
    expect_close(dgate_up.values(), dx, kTolerance<T>, "dgate_up");
    swiglu_backward(gate_up.tensor(rows, 2 * width), gate_up.tensor(rows, 2 * width),
                    dout.tensor(rows, width));
    EXPECT_TRUE(gate_up.bytes() == dgate_up.bytes()) << "in place";
}

// out and d out / d inp of one element, alone in a vector and amid others alike.
std::pair<float, float> at(double x, Forward forward, Backward backward) {
    Guarded<float> inp(Values(35, x)), out(35), dout(Values(35, 1.0)), dinp(35);
    forward(out.tensor(), inp.tensor(), {});
    backward(dinp.tensor(), inp.tensor(), dout.tensor(), {});
    EXPECT_TRUE(out[0] == out[34] || (std::isnan(out[0]) && std::isnan(out[34])));
    return {out[34], dinp[34]};
}

}  // namespace

TEST(Gelu, EqualsItsTwinAndFiniteDifferences) {
    for_each_isa([] {
        check_unary<float>(gelu_twin, gelu_forward, gelu_backward);
        check_unary<bf16>(gelu_twin, gelu_forward, gelu_backward);
    });
}

TEST(Relu2, EqualsItsTwinAndFiniteDifferences) {
    for_each_isa([] {
        check_unary<float>(relu2_twin, relu2_forward, relu2_backward);
        check_unary<bf16>(relu2_twin, relu2_forward, relu2_backward);
    });
}

TEST(SwiGlu, EqualsItsTwinAndFiniteDifferences) {
    for_each_isa([] {
        for (auto [rows, width] : {std::pair<int64_t, int64_t>{1, 1}, {3, 7}, {17, 67}, {300, 129}, {0, 4}}) {
            check_swiglu<float>(rows, width);
            check_swiglu<bf16>(rows, width);
        }
    });
}

TEST(Activations, ExtremesSaturateAndNaNPropagates) {
    for_each_isa([] {
        for (double x : {100.0, 1e4}) {
            EXPECT_EQ(at(x, gelu_forward, gelu_backward), std::make_pair(static_cast<float>(x), 1.0f));
            EXPECT_EQ(at(-x, gelu_forward, gelu_backward), std::make_pair(0.0f, 0.0f));
            EXPECT_EQ(at(x, relu2_forward, relu2_backward),
                      std::make_pair(static_cast<float>(x * x), static_cast<float>(2 * x)));
            EXPECT_EQ(at(-x, relu2_forward, relu2_backward), std::make_pair(0.0f, 0.0f));
        }
        EXPECT_EQ(at(kInfinity, gelu_forward, gelu_backward).first, kInfinity);
        EXPECT_EQ(at(kInfinity, relu2_forward, relu2_backward).first, kInfinity);
        EXPECT_EQ(at(-kInfinity, relu2_forward, relu2_backward).first, 0.0f);
        for (double x : {std::nan(""), -kInfinity}) {  // -inf * 0: NaN by the formula, and worth stopping for
            EXPECT_TRUE(std::isnan(at(x, gelu_forward, gelu_backward).first));
        }
        EXPECT_TRUE(std::isnan(at(std::nan(""), gelu_forward, gelu_backward).second));
        EXPECT_TRUE(std::isnan(at(std::nan(""), relu2_forward, relu2_backward).first));
        EXPECT_TRUE(std::isnan(at(std::nan(""), relu2_forward, relu2_backward).second));

        Guarded<float> gates(Values{100, -100, kInfinity, std::nan(""), 2, 2, 2, 2}), out(4);
        swiglu_forward(out.tensor(1, 4), gates.tensor(1, 8));
        EXPECT_EQ(out[0], 200.0f);
        EXPECT_EQ(out[1], 0.0f);
        EXPECT_EQ(out[2], kInfinity);
        EXPECT_TRUE(std::isnan(out[3]));
    });
}

TEST(Residual, AddsInF32AndRoundsOnce) {
    for_each_isa([] {
        for (int64_t size : kSizes) {
            const Values a = normal_values(size, 1), b = normal_values(size, 2);
            Guarded<bf16> a16(a, 1), b16(b), out16(size);
            Guarded<float> a32(a), b32(b, 3), out32(size);
            residual_forward(out16.tensor(), a16.tensor(), b16.tensor());
            residual_forward(out32.tensor(), a32.tensor(), b32.tensor());
            for (int64_t i = 0; i < size; ++i) {
                ASSERT_EQ(out32[i], a32[i] + b32[i]);
                ASSERT_EQ(out16[i].bits, to_bf16(to_float(a16[i]) + to_float(b16[i])).bits);
            }
            residual_forward(a16.tensor(), a16.tensor(), b16.tensor());
            EXPECT_TRUE(a16.bytes() == out16.bytes()) << "in place";
        }
    });
}

TEST(Activations, SameBitsForAnyNumberOfThreads) {
    const int64_t rows = 64, width = 1500;
    const Values values = normal_values(rows * 2 * width, 1);
    expect_same_bits_for_any_threads([&] {
        Guarded<bf16> inp(values), out(rows * 2 * width), half(rows * width), dgate_up(rows * 2 * width);
        gelu_forward(out.tensor(), inp.tensor());
        swiglu_forward(half.tensor(rows, width), inp.tensor(rows, 2 * width));
        swiglu_backward(dgate_up.tensor(rows, 2 * width), inp.tensor(rows, 2 * width),
                        half.tensor(rows, width));
        return joined({out.bytes(), half.bytes(), dgate_up.bytes()});
    });
}

TEST(Activations, NameTheWrongArgument) {
    Guarded<float> four(Values(4, 1.0)), six(Values(6, 1.0));
    expect_mentions(check_failure([&] { gelu_forward(four.tensor(), six.tensor()); }),
                    {"gelu_forward", "argument out", "f32[6]", "f32[4]"});
    expect_mentions(check_failure([&] { relu2_backward(six.tensor(), six.tensor(), four.tensor()); }),
                    {"relu2_backward", "argument dout", "f32[6]", "f32[4]"});
    expect_mentions(check_failure([&] { swiglu_forward(four.tensor(2, 2), six.tensor(1, 6)); }),
                    {"swiglu_forward", "argument out", "f32[1,3]", "f32[2,2]"});
    expect_mentions(check_failure([&] { residual_forward(four.tensor(), four.tensor(), six.tensor()); }),
                    {"residual_forward", "argument b", "f32[4]", "f32[6]"});
}
