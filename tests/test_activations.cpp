// The elementwise ops (GELU, SwiGLU, squared ReLU, residual) against float64 twins and finite differences, at
// their extremes, in place, and for any number of threads.
#include "kernels/gelu.h"
#include "kernels/relu2.h"
#include "kernels/residual.h"
#include "kernels/swiglu.h"
#include "tests/absmax_check.h"

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kSizes[] = {0,  1,    7,    16,
                              37, 1000, 5003, 70001};  // the last crosses pieces handed to different threads

double gelu_twin(double x) {
    return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
double relu2_twin(double x) { return x > 0 ? x * x : 0; }
double silu_twin(double x) { return x / (1 + std::exp(-x)); }

using Forward = void (*)(Tensor, Tensor, Tensor, Stream);
using Backward = void (*)(Tensor, Tensor, Tensor, Tensor, Stream);

// On a GPU odd_ones says which tensors are misaligned (tests/on_device.h).
template <class T>
void check_unary(double (*function)(double), Forward forward, Backward backward, Device device,
                 uint32_t odd_ones = 0) {
    for (int64_t size : kSizes) {
        SCOPED_TRACE(
            cat({device_name(device), " ", dtype_name(dtype_of<T>()), " ", size, ", odd ", odd_ones}));
        const Values x = representable<T>(normal_values(size, 1, 2)),
                     dy = representable<T>(normal_values(size, 2));
        Values y, dx;
        for (size_t i = 0; i < x.size(); ++i) {
            y.push_back(function(x[i]));
            dx.push_back(dy[i] * (function(x[i] + 1e-5) - function(x[i] - 1e-5)) / 2e-5);
        }
        const int64_t offset = device == Device::cpu;
        Guarded<T> inp(x, offset), out(size, 3 * offset), dout(dy), dinp(size);
        Guarded<T> in_place(x), gradient_in_place(dy);
        RaisedAbsmax absmax(device), gradient_absmax(device);
        OnDevice on(device, odd_ones);
        forward(on(out.tensor()), on(inp.tensor()), absmax.tensor(), {});
        backward(on(dinp.tensor()), on(inp.tensor()), on(dout.tensor()), gradient_absmax.tensor(), {});
        forward(on(in_place.tensor()), on(in_place.tensor()), {}, {});
        backward(on(gradient_in_place.tensor()), on(inp.tensor()), on(gradient_in_place.tensor()), {}, {});
        on.fetch();
        absmax.expect(out, "out");
        gradient_absmax.expect(dinp, "dinp");
        expect_close(out.values(), y, kTolerance<T>, "out");
        expect_close(dinp.values(), dx, kTolerance<T>, "dinp");
        EXPECT_TRUE(in_place.bytes() == out.bytes() && gradient_in_place.bytes() == dinp.bytes())
            << "in place";
    }
}

template <class T>
void check_swiglu(int64_t rows, int64_t width, Device device, uint32_t odd_ones = 0) {
    SCOPED_TRACE(cat(
        {device_name(device), " ", dtype_name(dtype_of<T>()), " ", rows, " x ", width, ", odd ", odd_ones}));
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
    const int64_t offset = device == Device::cpu;
    Guarded<T> gate_up(x, offset), out(rows * width), dout(dy, 3 * offset), dgate_up(2 * rows * width),
        in_place(x, offset);
    const auto halves = [&](const Guarded<T>& g) { return g.tensor(rows, width); };
    const auto both = [&](const Guarded<T>& g) { return g.tensor(rows, 2 * width); };
    RaisedAbsmax absmax(device), gradient_absmax(device);
    OnDevice on(device, odd_ones);
    swiglu_forward(on(halves(out)), on(both(gate_up)), absmax.tensor());
    swiglu_backward(on(both(dgate_up)), on(both(gate_up)), on(halves(dout)), gradient_absmax.tensor());
    swiglu_backward(on(both(in_place)), on(both(in_place)), on(halves(dout)));
    on.fetch();
    absmax.expect(out, "out");
    gradient_absmax.expect(dgate_up, "dgate_up");
    expect_close(out.values(), y, kTolerance<T>, "out");
    expect_close(dgate_up.values(), dx, kTolerance<T>, "dgate_up");
    EXPECT_TRUE(in_place.bytes() == dgate_up.bytes()) << "in place";
}

// out and d out / d inp of one element, alone in a vector and amid others alike.
template <class T>
std::pair<double, double> at(double x, Forward forward, Backward backward, Device device) {
    Guarded<T> inp(Values(35, x)), out(35), dout(Values(35, 1.0)), dinp(35);
    OnDevice on(device);
    forward(on(out.tensor()), on(inp.tensor()), {}, {});
    backward(on(dinp.tensor()), on(inp.tensor()), on(dout.tensor()), {}, {});
    on.fetch();
    EXPECT_TRUE(to_double(out[0]) == to_double(out[34]) ||
                (std::isnan(to_double(out[0])) && std::isnan(to_double(out[34]))));
    return {to_double(out[34]), to_double(dinp[34])};
}

template <class T>
void check_extremes(Device device) {
    SCOPED_TRACE(cat({device_name(device), " ", dtype_name(dtype_of<T>())}));
    const auto gelu_at = [&](double x) { return at<T>(x, gelu_forward, gelu_backward, device); };
    const auto relu2_at = [&](double x) { return at<T>(x, relu2_forward, relu2_backward, device); };
    for (double x : {100.0, 9984.0}) {
        EXPECT_EQ(gelu_at(x), std::make_pair(x, 1.0));
        EXPECT_EQ(gelu_at(-x), std::make_pair(0.0, 0.0));
        EXPECT_EQ(relu2_at(x), std::make_pair(to_double(rounded<T>(x * x)), 2 * x));
        EXPECT_EQ(relu2_at(-x), std::make_pair(0.0, 0.0));
    }
    EXPECT_EQ(gelu_at(kInfinity).first, kInfinity);
    EXPECT_EQ(relu2_at(kInfinity).first, kInfinity);
    EXPECT_EQ(relu2_at(-kInfinity).first, 0.0);
    for (double x : {std::nan(""), -kInfinity}) {  // -inf * 0: NaN by the formula, and worth stopping for
        EXPECT_TRUE(std::isnan(gelu_at(x).first));
    }
    EXPECT_TRUE(std::isnan(gelu_at(std::nan("")).second));
    EXPECT_TRUE(std::isnan(relu2_at(std::nan("")).first));
    EXPECT_TRUE(std::isnan(relu2_at(std::nan("")).second));

    Guarded<T> gates(Values{100, -100, kInfinity, std::nan(""), 2, 2, 2, 2}), out(4);
    OnDevice on(device);
    swiglu_forward(on(out.tensor(1, 4)), on(gates.tensor(1, 8)));
    on.fetch();
    EXPECT_EQ(to_double(out[0]), 200.0);
    EXPECT_EQ(to_double(out[1]), 0.0);
    EXPECT_EQ(to_double(out[2]), kInfinity);
    EXPECT_TRUE(std::isnan(to_double(out[3])));
}

void check_residual_sums(Device device, uint32_t odd_ones = 0) {
    for (int64_t size : kSizes) {
        SCOPED_TRACE(cat({device_name(device), " ", size, ", odd ", odd_ones}));
        const int64_t offset = device == Device::cpu;
        const Values a = normal_values(size, 1), b = normal_values(size, 2);
        Guarded<bf16> a16(a, offset), b16(b), out16(size), in_place(a);
        Guarded<float> a32(a), b32(b, 3 * offset), out32(size);
        OnDevice on(device, odd_ones);
        residual_forward(on(out16.tensor()), on(a16.tensor()), on(b16.tensor()));
        residual_forward(on(out32.tensor()), on(a32.tensor()), on(b32.tensor()));
        residual_forward(on(in_place.tensor()), on(in_place.tensor()), on(b16.tensor()));
        on.fetch();
        for (int64_t i = 0; i < size; ++i) {
            ASSERT_EQ(out32[i], a32[i] + b32[i]);
            ASSERT_EQ(out16[i].bits, to_bf16(to_float(a16[i]) + to_float(b16[i])).bits);
        }
        EXPECT_TRUE(in_place.bytes() == out16.bytes()) << "in place";
    }
}

struct Matrix {
    int64_t rows, width;
};
// The last three reach every path of a GPU: vectors, several blocks a row, some of them not full.
constexpr Matrix kMatrices[] = {{1, 1}, {3, 7}, {17, 67}, {300, 129}, {0, 4}, {3, 16}, {5, 600}, {2, 2568}};

}  // namespace

TEST(Gelu, EqualsItsTwinAndFiniteDifferences) {
    for_each_isa([] {
        check_unary<float>(gelu_twin, gelu_forward, gelu_backward, Device::cpu);
        check_unary<bf16>(gelu_twin, gelu_forward, gelu_backward, Device::cpu);
    });
    for (Device device : gpus()) {
        for (uint32_t odd_ones : misalignments(4)) {
            check_unary<float>(gelu_twin, gelu_forward, gelu_backward, device, odd_ones);
            check_unary<bf16>(gelu_twin, gelu_forward, gelu_backward, device, odd_ones);
        }
    }
}

TEST(Relu2, EqualsItsTwinAndFiniteDifferences) {
    for_each_isa([] {
        check_unary<float>(relu2_twin, relu2_forward, relu2_backward, Device::cpu);
        check_unary<bf16>(relu2_twin, relu2_forward, relu2_backward, Device::cpu);
    });
    for (Device device : gpus()) {
        for (uint32_t odd_ones : misalignments(0)) {
            check_unary<float>(relu2_twin, relu2_forward, relu2_backward, device, odd_ones);
            check_unary<bf16>(relu2_twin, relu2_forward, relu2_backward, device, odd_ones);
        }
    }
}

TEST(SwiGlu, EqualsItsTwinAndFiniteDifferences) {
    for_each_isa([] {
        for (auto [rows, width] : kMatrices) {
            check_swiglu<float>(rows, width, Device::cpu);
            check_swiglu<bf16>(rows, width, Device::cpu);
        }
    });
    for (Device device : gpus()) {
        for (auto [rows, width] : kMatrices) {
            for (uint32_t odd_ones : misalignments(4)) {
                check_swiglu<float>(rows, width, device, odd_ones);
                check_swiglu<bf16>(rows, width, device, odd_ones);
            }
        }
    }
}

TEST(Activations, ExtremesSaturateAndNaNPropagates) {
    for_each_isa([] {
        check_extremes<float>(Device::cpu);
        check_extremes<bf16>(Device::cpu);
    });
    for (Device device : gpus()) {
        check_extremes<float>(device);
        check_extremes<bf16>(device);
    }
}

TEST(Residual, AddsInF32AndRoundsOnce) {
    for_each_isa([] { check_residual_sums(Device::cpu); });
    for (Device device : gpus()) {
        for (uint32_t odd_ones : misalignments(6)) check_residual_sums(device, odd_ones);
    }
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
