// The matrix products against float64 twins, on any device: what the tests of the CPU's and of the GPU's
// kernels share.
#pragma once
#include "kernels/matmul.h"
#include "kernels/matmul_plan.h"
#include "tests/on_device.h"
#include "tests/op_check.h"

namespace {

struct Shape {
    int64_t tokens, inputs, outputs;  // N, C, OC
};
// Twins. `x`, `w`, `d` are row-major as in the contract.
Values twin_forward(const Shape& s, const Values& x, const Values& w) {
    Values out(static_cast<size_t>(s.tokens * s.outputs));
    for (int64_t n = 0; n < s.tokens; ++n) {
        for (int64_t o = 0; o < s.outputs; ++o) {
            double sum = 0;
            for (int64_t c = 0; c < s.inputs; ++c) {
                sum += x[static_cast<size_t>(n * s.inputs + c)] * w[static_cast<size_t>(o * s.inputs + c)];
            }
            out[static_cast<size_t>(n * s.outputs + o)] = sum;
        }
    }
    return out;
}
Values twin_backward_input(const Shape& s, const Values& d, const Values& w) {
    Values dinp(static_cast<size_t>(s.tokens * s.inputs));
    for (int64_t n = 0; n < s.tokens; ++n) {
        for (int64_t o = 0; o < s.outputs; ++o) {
            for (int64_t c = 0; c < s.inputs; ++c) {
                dinp[static_cast<size_t>(n * s.inputs + c)] +=
                    d[static_cast<size_t>(n * s.outputs + o)] * w[static_cast<size_t>(o * s.inputs + c)];
            }
        }
    }
    return dinp;
}
Values twin_backward_weight(const Shape& s, const Values& d, const Values& x) {
    Values dweight(static_cast<size_t>(s.outputs * s.inputs));
    for (int64_t n = 0; n < s.tokens; ++n) {
        for (int64_t o = 0; o < s.outputs; ++o) {
            for (int64_t c = 0; c < s.inputs; ++c) {
                dweight[static_cast<size_t>(o * s.inputs + c)] +=
                    d[static_cast<size_t>(n * s.outputs + o)] * x[static_cast<size_t>(n * s.inputs + c)];
            }
        }
    }
    return dweight;
}
double twin_gelu(double x) {
    return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}
double twin_gelu_derivative(double x) {
    const double u = 0.7978845608028654 * (x + 0.044715 * x * x * x), t = std::tanh(u);
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608028654 * (1 + 3 * 0.044715 * x * x);
}
Values plus(Values a, const Values& b) {
    for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
    return a;
}

// What T holds of these values when the product treats operands as bf16.
template <class T>
Values seen(const Values& values, bool as_bf16) {
    return as_bf16 ? representable<bf16>(values) : representable<T>(values);
}
template <class A, class B>
constexpr bool both_bf16 = std::is_same_v<A, bf16>&& std::is_same_v<B, bf16>;

// A chain of K f32 additions of values of order 1 errs by up to about sqrt(K) * 2^-24 of the sum's rms, at
// worst a few times that for the largest of many elements; the sum of the shapes' K <= 1201 stays below 2e-5.
// A bf16 result is rounded once more, by at most 2^-8 relative.
template <class Out>
constexpr double kTolerance = std::is_same_v<Out, bf16> ? 4.1e-3 : 2e-5;

// Where a test runs. Unaligned tensors begin a few elements off; aligned ones of the right sizes take the
// GPU's fast paths.
struct Place {
    Device device = Device::cpu;
    bool aligned = false;
    int64_t offset(int64_t elements) const { return aligned ? 0 : elements; }
    std::string text() const { return cat({" on ", device_name(device), aligned ? ", aligned" : ""}); }
};

template <class Out, class A, class B>
void check_products(const Shape& s, MatmulMath math, Place place = {}) {
    const bool as_bf16 = math == MatmulMath::bf16 || both_bf16<A, B>;
    SCOPED_TRACE("N=" + std::to_string(s.tokens) + " C=" + std::to_string(s.inputs) +
                 " OC=" + std::to_string(s.outputs) + (as_bf16 ? " bf16 math" : " f32 math") + place.text());
    const Values x_values = normal_values(s.tokens * s.inputs, 1),
                 w_values = normal_values(s.outputs * s.inputs, 2),
                 d_values = normal_values(s.tokens * s.outputs, 3);
    const double tolerance = kTolerance<Out>;
    {  // Odd offsets: nothing may rely on alignment.
        OnDevice on(place.device);
        const Guarded<A> x(x_values, place.offset(1));
        const Guarded<B> w(w_values, place.offset(3));
        Guarded<Out> out(s.tokens * s.outputs, place.offset(1)), c(s.tokens * s.outputs);
        const Tensor inp = on(x.tensor(s.tokens, s.inputs)), weight = on(w.tensor(s.outputs, s.inputs));
        matmul_forward(on(out.tensor(s.tokens, s.outputs)), inp, weight, {}, math);
        matmul_general(on(c.tensor(s.tokens, s.outputs)), inp, weight, true, 1, 0, {}, math);
        on.fetch();
        expect_close(out.values(), twin_forward(s, seen<A>(x_values, as_bf16), seen<B>(w_values, as_bf16)),
                     tolerance, "out");
        EXPECT_EQ(c.bytes(), out.bytes()) << "general, transposed, is forward";
    }
    {
        OnDevice on(place.device);
        const Guarded<A> d(d_values, place.offset(1));
        const Guarded<B> w(w_values);
        Guarded<Out> dinp(s.tokens * s.inputs), c(s.tokens * s.inputs);
        const Tensor dout = on(d.tensor(s.tokens, s.outputs)), weight = on(w.tensor(s.outputs, s.inputs));
        matmul_backward_input(on(dinp.tensor(s.tokens, s.inputs)), dout, weight, false, {}, math);
        matmul_general(on(c.tensor(s.tokens, s.inputs)), dout, weight, false, 1, 0, {}, math);
        on.fetch();
        expect_close(dinp.values(),
                     twin_backward_input(s, seen<A>(d_values, as_bf16), seen<B>(w_values, as_bf16)),
                     tolerance, "dinp");
        EXPECT_EQ(c.bytes(), dinp.bytes()) << "general is backward input";
    }
    if constexpr (std::is_same_v<Out, float>) {
        OnDevice on(place.device);
        const Guarded<A> d(d_values);
        const Guarded<B> x(x_values, place.offset(1));
        Guarded<float> dweight(s.outputs * s.inputs, place.offset(1)), dbias(s.outputs);
        matmul_backward_weight(on(dweight.tensor(s.outputs, s.inputs)), on(dbias.tensor()),
                               on(d.tensor(s.tokens, s.outputs)), on(x.tensor(s.tokens, s.inputs)), false,
                               math);
        on.fetch();
        expect_close(dweight.values(),
                     twin_backward_weight(s, seen<A>(d_values, as_bf16), seen<B>(x_values, as_bf16)),
                     tolerance, "dweight");
        Values sums(static_cast<size_t>(s.outputs));
        for (int64_t i = 0; i < s.tokens * s.outputs; ++i) {
            sums[static_cast<size_t>(i % s.outputs)] += seen<A>({d_values[static_cast<size_t>(i)]}, false)[0];
        }
        expect_close(dbias.values(), sums, tolerance, "dbias");
    }
}

template <class Out>
void check_all_dtypes(const Shape& s, Place place = {}) {
    for (MatmulMath math : {MatmulMath::f32, MatmulMath::bf16}) {
        check_products<Out, float, float>(s, math, place);
        check_products<Out, float, bf16>(s, math, place);
        check_products<Out, bf16, float>(s, math, place);
        check_products<Out, bf16, bf16>(s, math, place);
    }
}

inline void check_empty_batch(Device device) {
    OnDevice on(device);
    const Guarded<float> weight(normal_values(15, 1)), none(0);
    Guarded<float> dweight(15), dbias(5), added(Values(15, 2.0)), dbias_added(Values(5, 3.0));
    const Tensor no_outputs = on(none.tensor(0, 5)), no_inputs = on(none.tensor(0, 3));
    matmul_forward(no_outputs, no_inputs, on(weight.tensor(5, 3)));
    matmul_backward_input(no_inputs, no_outputs, on(weight.tensor(5, 3)));
    matmul_backward_weight(on(dweight.tensor(5, 3)), on(dbias.tensor()), no_outputs, no_inputs, false);
    matmul_backward_weight(on(added.tensor(5, 3)), on(dbias_added.tensor()), no_outputs, no_inputs, true);
    on.fetch();
    EXPECT_EQ(dweight.values(), Values(15, 0.0)) << "a sum over nothing is set";
    EXPECT_EQ(dbias.values(), Values(5, 0.0));
    EXPECT_EQ(added.values(), Values(15, 2.0)) << "a sum over nothing is added";
    EXPECT_EQ(dbias_added.values(), Values(5, 3.0));
}
// T: inp, weight and out.   Extra: what the epilogue reads and writes besides.
template <class T, class Extra = T>
void check_epilogues(const Shape& s, Place place = {}) {
    SCOPED_TRACE(cat({"N=", s.tokens, " C=", s.inputs, " OC=", s.outputs, place.text()}));
    const int64_t n = s.tokens * s.outputs;
    const Values x = representable<T>(normal_values(s.tokens * s.inputs, 1)),
                 w = representable<T>(normal_values(s.outputs * s.inputs, 2, 0.2)),
                 bias = representable<Extra>(normal_values(s.outputs, 3)),
                 residual = representable<Extra>(normal_values(n, 4)),
                 before = representable<T>(normal_values(n, 5));
    const Guarded<T> x_data(x, place.offset(1)), w_data(w, place.offset(1));
    const Guarded<Extra> bias_data(bias, place.offset(1)), residual_data(residual, place.offset(1));
    // GELU and its derivative add errors of a few f32 roundings to the sum's.
    const double tolerance = kTolerance<T>;
    Values pre = twin_forward(s, x, w);
    for (int64_t i = 0; i < n; ++i) pre[static_cast<size_t>(i)] += bias[static_cast<size_t>(i % s.outputs)];
    Values activated = pre;
    for (double& v : activated) v = twin_gelu(v);

    Guarded<T> out(n, place.offset(1));
    Guarded<Extra> pre_out(n, place.offset(1));
    const auto run = [&](Tensor bias_tensor, Tensor residual_tensor, Tensor pre_activation) {
        OnDevice on(place.device);
        const MatmulEpilogue epilogue{.bias = on(bias_tensor),
                                      .residual = on(residual_tensor),
                                      .gelu = !pre_activation.absent(),
                                      .pre_activation = on(pre_activation)};
        matmul_forward(on(out.tensor(s.tokens, s.outputs)), on(x_data.tensor(s.tokens, s.inputs)),
                       on(w_data.tensor(s.outputs, s.inputs)), epilogue);
        on.fetch();
        return out.values();
    };
    expect_close(run(bias_data.tensor(), {}, {}), pre, tolerance, "bias");
    expect_close(run(bias_data.tensor(), residual_data.tensor(s.tokens, s.outputs),
                     pre_out.tensor(s.tokens, s.outputs)),
                 plus(activated, residual), tolerance, "bias, gelu, residual");
    expect_close(pre_out.values(), pre, kTolerance<Extra>, "pre-activation");

    Guarded<T> in_place(before, place.offset(1));
    OnDevice on(place.device);
    matmul_forward(on(in_place.tensor(s.tokens, s.outputs)), on(x_data.tensor(s.tokens, s.inputs)),
                   on(w_data.tensor(s.outputs, s.inputs)),
                   {.residual = on(in_place.tensor(s.tokens, s.outputs))});
    on.fetch();
    expect_close(in_place.values(), plus(twin_forward(s, x, w), before), tolerance, "residual in place");
}

template <class T>
void check_accumulation(const Shape& s, Place place = {}) {
    SCOPED_TRACE(cat({"N=", s.tokens, " C=", s.inputs, " OC=", s.outputs, place.text()}));
    const Values x = representable<T>(normal_values(s.tokens * s.inputs, 1)),
                 w = representable<T>(normal_values(s.outputs * s.inputs, 2)),
                 d = representable<T>(normal_values(s.tokens * s.outputs, 3)),
                 before = representable<T>(normal_values(s.tokens * s.inputs, 4)),
                 weight_before = representable<float>(normal_values(s.outputs * s.inputs, 5));
    const Guarded<T> x_data(x), w_data(w), d_data(d);
    // dinp (+)= (dout weight) * gelu'(pre): the derivative multiplies the sum, not what was there.
    Values with_gelu = twin_backward_input(s, d, w);
    for (size_t i = 0; i < with_gelu.size(); ++i) with_gelu[i] *= twin_gelu_derivative(x[i]);
    for (bool accumulate : {true, false}) {
        OnDevice on(place.device);
        Guarded<T> dinp(before, place.offset(1));
        matmul_backward_input(on(dinp.tensor(s.tokens, s.inputs)), on(d_data.tensor(s.tokens, s.outputs)),
                              on(w_data.tensor(s.outputs, s.inputs)), accumulate,
                              on(x_data.tensor(s.tokens, s.inputs)));
        on.fetch();
        expect_close(dinp.values(), accumulate ? plus(with_gelu, before) : with_gelu, kTolerance<T>,
                     accumulate ? "dinp += with gelu'" : "dinp = with gelu'");
    }
    OnDevice on(place.device);
    Guarded<float> dweight(weight_before, place.offset(1)), fresh(s.outputs * s.inputs),
        dbias(Values(static_cast<size_t>(s.outputs), 100.0));
    const Tensor dout = on(d_data.tensor(s.tokens, s.outputs)), inp = on(x_data.tensor(s.tokens, s.inputs));
    matmul_backward_weight(on(dweight.tensor(s.outputs, s.inputs)), on(dbias.tensor()), dout, inp, true);
    // An absent dbias is left out; without accumulation the old values, NaN here, do not matter.
    matmul_backward_weight(on(fresh.tensor(s.outputs, s.inputs)), {}, dout, inp, false);
    on.fetch();
    expect_close(dweight.values(), plus(twin_backward_weight(s, d, x), weight_before), kTolerance<float>,
                 "dweight +=");
    Values sums(static_cast<size_t>(s.outputs), 100.0);
    for (int64_t i = 0; i < s.tokens * s.outputs; ++i)
        sums[static_cast<size_t>(i % s.outputs)] += d[static_cast<size_t>(i)];
    expect_close(dbias.values(), sums, kTolerance<float>, "dbias +=");
    expect_close(fresh.values(), twin_backward_weight(s, d, x), kTolerance<float>, "dweight =");
}

template <class T>
void check_scaled_sum(const Shape& s, Place place = {}) {
    const Values a = representable<T>(normal_values(s.tokens * s.inputs, 1)),
                 b = representable<T>(normal_values(s.outputs * s.inputs, 2)),
                 d = representable<T>(normal_values(s.tokens * s.outputs, 3));
    Values expected = twin_forward(s, a, b);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] = -4.775 * expected[i] + 3.4445 * d[i];
    OnDevice on(place.device);
    const Guarded<T> a_data(a), b_data(b);
    Guarded<T> c(d);
    matmul_general(on(c.tensor(s.tokens, s.outputs)), on(a_data.tensor(s.tokens, s.inputs)),
                   on(b_data.tensor(s.outputs, s.inputs)), true, -4.775f, 3.4445f,
                   on(c.tensor(s.tokens, s.outputs)));
    on.fetch();
    expect_close(c.values(), expected, kTolerance<T>, "alpha a b^T + beta c");
}

template <class T>
std::vector<uint8_t> all_products(const Shape& s, Device device = Device::cpu, int64_t offset = 0) {
    OnDevice on(device);
    const Guarded<T> x(normal_values(s.tokens * s.inputs, 1), offset),
        w(normal_values(s.outputs * s.inputs, 2), offset), d(normal_values(s.tokens * s.outputs, 3), offset);
    Guarded<T> out(s.tokens * s.outputs), dinp(s.tokens * s.inputs);
    Guarded<float> dweight(s.outputs * s.inputs), dbias(s.outputs);
    const Tensor inp = on(x.tensor(s.tokens, s.inputs)), weight = on(w.tensor(s.outputs, s.inputs)),
                 dout = on(d.tensor(s.tokens, s.outputs));
    matmul_forward(on(out.tensor(s.tokens, s.outputs)), inp, weight);
    matmul_backward_input(on(dinp.tensor(s.tokens, s.inputs)), dout, weight);
    matmul_backward_weight(on(dweight.tensor(s.outputs, s.inputs)), on(dbias.tensor()), dout, inp, false);
    on.fetch();
    return joined({out.bytes(), dinp.bytes(), dweight.bytes(), dbias.bytes()});
}

// Each token alone, and the batch backwards, give the bits of the whole batch.
template <class T>
void check_row_placement(const Shape& s, Device device = Device::cpu, int64_t step = 1) {
    const Guarded<T> x(normal_values(s.tokens * s.inputs, 1)), w(normal_values(s.outputs * s.inputs, 2)),
        bias(normal_values(s.outputs, 3));
    Guarded<T> reversed(s.tokens * s.inputs), out(s.tokens * s.outputs), out_reversed(s.tokens * s.outputs),
        alone(s.outputs);
    const size_t row_bytes = sizeof(T) * static_cast<size_t>(s.inputs),
                 out_bytes = sizeof(T) * static_cast<size_t>(s.outputs);
    for (int64_t n = 0; n < s.tokens; ++n) {
        std::memcpy(reversed.data() + n * s.inputs, x.data() + (s.tokens - 1 - n) * s.inputs, row_bytes);
    }
    OnDevice on(device);
    const MatmulEpilogue epilogue{.bias = on(bias.tensor())};
    const Tensor weight = on(w.tensor(s.outputs, s.inputs)), inp = on(x.tensor(s.tokens, s.inputs));
    matmul_forward(on(out.tensor(s.tokens, s.outputs)), inp, weight, epilogue);
    matmul_forward(on(out_reversed.tensor(s.tokens, s.outputs)), on(reversed.tensor(s.tokens, s.inputs)),
                   weight, epilogue);
    on.fetch();
    for (int64_t n = 0; n < s.tokens; n += step) {
        const T* row = out.data() + n * s.outputs;
        EXPECT_EQ(std::memcmp(row, out_reversed.data() + (s.tokens - 1 - n) * s.outputs, out_bytes), 0)
            << "row " << n;
        OnDevice there(device);
        matmul_forward(there(alone.tensor(1, s.outputs)), inp.rows(n, 1), weight, epilogue);
        there.fetch();
        EXPECT_EQ(std::memcmp(row, alone.data(), out_bytes), 0) << "row " << n << " alone";
    }
}

// This plan for all products while it lives.
class ForcedPlan {
public:
    explicit ForcedPlan(const MatmulPlan& plan) { force_matmul_plan(&plan); }
    ForcedPlan(const ForcedPlan&) = delete;
    ForcedPlan& operator=(const ForcedPlan&) = delete;
    ~ForcedPlan() { force_matmul_plan(nullptr); }
};

// run(device) with each of the tiles on every device; one that is no Hopper runs its own kernels for
// Hopper's.
template <class Run>
void for_each_tile(std::initializer_list<MatmulTile> tiles, Run&& run) {
    for (Device device : gpus()) {
        for (MatmulTile tile : tiles) {
            const MatmulTileShape shape = shape_of(tile);
            SCOPED_TRACE(cat({"tiles of ", shape.rows, " x ", shape.columns}));
            const ForcedPlan forced({tile, 1});
            run(device);
        }
    }
}
template <class Run>
void for_each_hopper_tile(Run&& run) {
    for_each_tile({MatmulTile::hopper_square, MatmulTile::hopper_wide}, run);
}

}  // namespace
