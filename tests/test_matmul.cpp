// The matrix products against double twins: every layout, every mix of dtypes, every instruction set, shapes
// that divide nothing; epilogues, accumulation, gradients, and the promise of equal bits.
#include "kernels/matmul.h"

#include "kernels/fma_peak.h"
#include "kernels/matmul_scratch.h"
#include "tests/op_check.h"

namespace {

struct Shape {
    int64_t tokens, inputs, outputs;  // N, C, OC
};
// One of everything; primes below and above a tile; several blocks of the inner dimension in each of the
// three products; several strips; a batch wider than one shared chunk.
constexpr Shape kShapes[] = {{1, 1, 1},    {1, 7, 5},    {5, 1, 3},    {3, 67, 1},
                             {8, 48, 48},  {17, 31, 53}, {97, 131, 2}, {1, 801, 211},
                             {50, 803, 7}, {7, 13, 809}, {800, 9, 51}, {1201, 5, 7}};

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

template <class Out, class A, class B>
void check_products(const Shape& s, MatmulMath math) {
    const bool as_bf16 = math == MatmulMath::bf16 || both_bf16<A, B>;
    SCOPED_TRACE("N=" + std::to_string(s.tokens) + " C=" + std::to_string(s.inputs) +
                 " OC=" + std::to_string(s.outputs) + (as_bf16 ? " bf16 math" : " f32 math"));
    const Values x_values = normal_values(s.tokens * s.inputs, 1),
                 w_values = normal_values(s.outputs * s.inputs, 2),
                 d_values = normal_values(s.tokens * s.outputs, 3);
    const double tolerance = kTolerance<Out>;
    {  // Odd offsets: nothing may rely on alignment.
        const Guarded<A> x(x_values, 1);
        const Guarded<B> w(w_values, 3);
        Guarded<Out> out(s.tokens * s.outputs, 1);
        matmul_forward(out.tensor(s.tokens, s.outputs), x.tensor(s.tokens, s.inputs),
                       w.tensor(s.outputs, s.inputs), {}, math);
        expect_close(out.values(), twin_forward(s, seen<A>(x_values, as_bf16), seen<B>(w_values, as_bf16)),
                     tolerance, "out");
        Guarded<Out> c(s.tokens * s.outputs);
        matmul_general(c.tensor(s.tokens, s.outputs), x.tensor(s.tokens, s.inputs),
                       w.tensor(s.outputs, s.inputs), true, 1, 0, {}, math);
        EXPECT_EQ(c.bytes(), out.bytes()) << "general, transposed, is forward";
    }
    {
        const Guarded<A> d(d_values, 1);
        const Guarded<B> w(w_values);
        Guarded<Out> dinp(s.tokens * s.inputs);
        matmul_backward_input(dinp.tensor(s.tokens, s.inputs), d.tensor(s.tokens, s.outputs),
                              w.tensor(s.outputs, s.inputs), false, {}, math);
        expect_close(dinp.values(),
                     twin_backward_input(s, seen<A>(d_values, as_bf16), seen<B>(w_values, as_bf16)),
                     tolerance, "dinp");
        Guarded<Out> c(s.tokens * s.inputs);
        matmul_general(c.tensor(s.tokens, s.inputs), d.tensor(s.tokens, s.outputs),
                       w.tensor(s.outputs, s.inputs), false, 1, 0, {}, math);
        EXPECT_EQ(c.bytes(), dinp.bytes()) << "general is backward input";
    }
    if constexpr (std::is_same_v<Out, float>) {
        const Guarded<A> d(d_values);
        const Guarded<B> x(x_values, 1);
        Guarded<float> dweight(s.outputs * s.inputs, 1), dbias(s.outputs);
        matmul_backward_weight(dweight.tensor(s.outputs, s.inputs), dbias.tensor(),
                               d.tensor(s.tokens, s.outputs), x.tensor(s.tokens, s.inputs), false, math);
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
void check_all_dtypes(const Shape& s) {
    for (MatmulMath math : {MatmulMath::f32, MatmulMath::bf16}) {
        check_products<Out, float, float>(s, math);
        check_products<Out, float, bf16>(s, math);
        check_products<Out, bf16, float>(s, math);
        check_products<Out, bf16, bf16>(s, math);
    }
}

TEST(Matmul, EveryLayoutDtypeAndShapeEqualsItsTwin) {
    for_each_isa([] {
        for (const Shape& s : kShapes) {
            check_all_dtypes<float>(s);
            check_all_dtypes<bf16>(s);
        }
    });
}

// The inner dimension does not fit the scratch at once: operands come in phases and sums are kept between.
template <class T>
void check_phases(const Shape& s, const Values& x, const Values& w, const Values& expected) {
    const Guarded<T> x_data(x), w_data(w);
    Guarded<T> out(s.tokens * s.outputs);
    matmul_forward(out.tensor(s.tokens, s.outputs), x_data.tensor(s.tokens, s.inputs),
                   w_data.tensor(s.outputs, s.inputs));
    // 1e-4: the chain of additions is up to 50 times longer than in the other tests, see kTolerance.
    expect_close(out.values(), expected, std::max(kTolerance<T>, 1e-4), dtype_name(dtype_of<T>()));
}
TEST(Matmul, LongInnerDimensionGoesInPhases) {
    const Shape s{50, 44'501, 51};
    const Values x = representable<bf16>(normal_values(s.tokens * s.inputs, 1)),
                 w = representable<bf16>(normal_values(s.outputs * s.inputs, 2)),
                 expected = twin_forward(s, x, w);
    for_each_isa([&] {
        check_phases<float>(s, x, w, expected);
        check_phases<bf16>(s, x, w, expected);
    });
}

// Wider and longer than everything that is packed or kept at once, against the same product in pieces that
// are not (those equal their twins above). Bit for bit.
TEST(Matmul, LargeProductEqualsItsPieces) {
    for (const Shape& s : {Shape{1201, 2001, 1213}, Shape{1201, 5, 1213}}) {
        const Guarded<float> x(normal_values(s.tokens * s.inputs, 1)),
            w(normal_values(s.outputs * s.inputs, 2));
        Guarded<float> whole(s.tokens * s.outputs), pieces(s.tokens * s.outputs);
        const Tensor x_all = x.tensor(s.tokens, s.inputs), weight = w.tensor(s.outputs, s.inputs);
        matmul_forward(whole.tensor(s.tokens, s.outputs), x_all, weight);
        for (int64_t n = 0; n < s.tokens; n += 50) {
            const int64_t count = std::min<int64_t>(50, s.tokens - n);
            matmul_forward(pieces.tensor(s.tokens, s.outputs).rows(n, count), x_all.rows(n, count), weight);
        }
        EXPECT_TRUE(whole.bytes() == pieces.bytes());
    }
}

// A large aligned weight gradient is written past the caches, an unaligned one is not.
TEST(Matmul, LargeWeightGradient) {
    const Shape s{19, 800, 1003};
    for_each_isa([&] {
        const Guarded<float> d(normal_values(s.tokens * s.outputs, 1)),
            x(normal_values(s.tokens * s.inputs, 2));
        Guarded<float> aligned(s.outputs * s.inputs), unaligned(s.outputs * s.inputs, 1);
        for (Guarded<float>* dweight : {&aligned, &unaligned}) {
            matmul_backward_weight(dweight->tensor(s.outputs, s.inputs), {}, d.tensor(s.tokens, s.outputs),
                                   x.tensor(s.tokens, s.inputs), false);
        }
        EXPECT_TRUE(aligned.bytes() == unaligned.bytes());
        expect_close(aligned.values(), twin_backward_weight(s, d.values(), x.values()), kTolerance<float>,
                     "dweight");
    });
}

TEST(Matmul, EmptyBatch) {
    for_each_isa([] {
        const Guarded<float> weight(normal_values(15, 1)), none(0);
        Guarded<float> dweight(15), dbias(5);
        matmul_forward(none.tensor(0, 5), none.tensor(0, 3), weight.tensor(5, 3));
        matmul_backward_input(none.tensor(0, 3), none.tensor(0, 5), weight.tensor(5, 3));
        matmul_backward_weight(dweight.tensor(5, 3), dbias.tensor(), none.tensor(0, 5), none.tensor(0, 3),
                               false);
        EXPECT_EQ(dweight.values(), Values(15, 0.0)) << "a sum over nothing is set";
        EXPECT_EQ(dbias.values(), Values(5, 0.0));
    });
}

template <class T>
void check_epilogues(const Shape& s) {
    const int64_t n = s.tokens * s.outputs;
    const Values x = representable<T>(normal_values(s.tokens * s.inputs, 1)),
                 w = representable<T>(normal_values(s.outputs * s.inputs, 2, 0.2)),
                 bias = representable<T>(normal_values(s.outputs, 3)),
                 residual = representable<T>(normal_values(n, 4));
    const Guarded<T> x_data(x, 1), w_data(w, 1), bias_data(bias, 1), residual_data(residual, 1);
    // GELU and its derivative add errors of a few f32 roundings to the sum's.
    const double tolerance = kTolerance<T>;
    Values pre = twin_forward(s, x, w);
    for (int64_t i = 0; i < n; ++i) pre[static_cast<size_t>(i)] += bias[static_cast<size_t>(i % s.outputs)];
    Values activated = pre;
    for (double& v : activated) v = twin_gelu(v);

    Guarded<T> out(n, 1), pre_out(n, 1);
    const auto run = [&](const MatmulEpilogue& epilogue) {
        matmul_forward(out.tensor(s.tokens, s.outputs), x_data.tensor(s.tokens, s.inputs),
                       w_data.tensor(s.outputs, s.inputs), epilogue);
        return out.values();
    };
    expect_close(run({.bias = bias_data.tensor()}), pre, tolerance, "bias");
    const MatmulEpilogue with_gelu{.bias = bias_data.tensor(),
                                   .residual = residual_data.tensor(s.tokens, s.outputs),
                                   .gelu = true,
                                   .pre_activation = pre_out.tensor(s.tokens, s.outputs)};
    expect_close(run(with_gelu), plus(activated, residual), tolerance, "bias, gelu, residual");
    expect_close(pre_out.values(), pre, tolerance, "pre-activation");

    Guarded<T> in_place(residual, 1);
    matmul_forward(in_place.tensor(s.tokens, s.outputs), x_data.tensor(s.tokens, s.inputs),
                   w_data.tensor(s.outputs, s.inputs), {.residual = in_place.tensor(s.tokens, s.outputs)});
    expect_close(in_place.values(), plus(twin_forward(s, x, w), residual), tolerance, "residual in place");
}

TEST(Matmul, Epilogues) {
    for_each_isa([] {
        for (const Shape& s : {Shape{1, 7, 5}, Shape{17, 31, 53}, Shape{10, 803, 100}, Shape{64, 48, 96}}) {
            check_epilogues<float>(s);
            check_epilogues<bf16>(s);
        }
    });
}

template <class T>
void check_accumulation(const Shape& s) {
    const Values x = representable<T>(normal_values(s.tokens * s.inputs, 1)),
                 w = representable<T>(normal_values(s.outputs * s.inputs, 2)),
                 d = representable<T>(normal_values(s.tokens * s.outputs, 3)),
                 before = representable<T>(normal_values(s.tokens * s.inputs, 4)),
                 weight_before = representable<float>(normal_values(s.outputs * s.inputs, 5));
    const Guarded<T> x_data(x), w_data(w), d_data(d);
    {  // dinp += (dout weight) * gelu'(pre): the derivative multiplies the sum, not what was there.
        Guarded<T> dinp(before, 1);
        matmul_backward_input(dinp.tensor(s.tokens, s.inputs), d_data.tensor(s.tokens, s.outputs),
                              w_data.tensor(s.outputs, s.inputs), true, x_data.tensor(s.tokens, s.inputs));
        Values expected = twin_backward_input(s, d, w);
        for (size_t i = 0; i < expected.size(); ++i) expected[i] *= twin_gelu_derivative(x[i]);
        expect_close(dinp.values(), plus(expected, before), kTolerance<T>, "dinp += with gelu'");
    }
    Guarded<float> dweight(weight_before, 1), dbias(Values(static_cast<size_t>(s.outputs), 100.0));
    matmul_backward_weight(dweight.tensor(s.outputs, s.inputs), dbias.tensor(),
                           d_data.tensor(s.tokens, s.outputs), x_data.tensor(s.tokens, s.inputs), true);
    expect_close(dweight.values(), plus(twin_backward_weight(s, d, x), weight_before), kTolerance<float>,
                 "dweight +=");
    Values sums(static_cast<size_t>(s.outputs), 100.0);
    for (int64_t i = 0; i < s.tokens * s.outputs; ++i)
        sums[static_cast<size_t>(i % s.outputs)] += d[static_cast<size_t>(i)];
    expect_close(dbias.values(), sums, kTolerance<float>, "dbias +=");
    // An absent dbias is left out; without accumulation the old values, NaN here, do not matter.
    Guarded<float> fresh(s.outputs * s.inputs);
    matmul_backward_weight(fresh.tensor(s.outputs, s.inputs), {}, d_data.tensor(s.tokens, s.outputs),
                           x_data.tensor(s.tokens, s.inputs), false);
    expect_close(fresh.values(), twin_backward_weight(s, d, x), kTolerance<float>, "dweight =");
}

TEST(Matmul, Accumulation) {
    for_each_isa([] {
        for (const Shape& s : {Shape{5, 7, 3}, Shape{17, 53, 31}, Shape{803, 10, 100}, Shape{64, 96, 48}}) {
            check_accumulation<float>(s);
            check_accumulation<bf16>(s);
        }
    });
}

TEST(Matmul, GeneralScalesAndAdds) {
    const Shape s{19, 23, 101};
    const Values a = representable<float>(normal_values(s.tokens * s.inputs, 1)),
                 b = representable<float>(normal_values(s.outputs * s.inputs, 2)),
                 d = representable<float>(normal_values(s.tokens * s.outputs, 3));
    Values expected = twin_forward(s, a, b);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] = -4.775 * expected[i] + 3.4445 * d[i];
    for_each_isa([&] {
        const Guarded<float> a_data(a), b_data(b);
        Guarded<float> c(d);
        matmul_general(c.tensor(s.tokens, s.outputs), a_data.tensor(s.tokens, s.inputs),
                       b_data.tensor(s.outputs, s.inputs), true, -4.775f, 3.4445f,
                       c.tensor(s.tokens, s.outputs));
        expect_close(c.values(), expected, kTolerance<float>, "alpha a b^T + beta c");
    });
}

// loss = sum(dout * (x w^T + b)): its numeric gradients against the backward products.
TEST(Matmul, GradientsAreThoseOfForward) {
    const Shape s{3, 5, 4};
    const Values x = representable<float>(normal_values(s.tokens * s.inputs, 1)),
                 w = representable<float>(normal_values(s.outputs * s.inputs, 2)),
                 d = representable<float>(normal_values(s.tokens * s.outputs, 3)),
                 bias = representable<float>(normal_values(s.outputs, 4));
    const auto loss = [&](const Values& x_, const Values& w_, const Values& bias_) {
        Values out = twin_forward(s, x_, w_);
        for (size_t i = 0; i < out.size(); ++i) out[i] += bias_[i % bias_.size()];
        return dot(d, out);
    };
    const Guarded<float> x_data(x), w_data(w), d_data(d);
    Guarded<float> dinp(s.tokens * s.inputs), dweight(s.outputs * s.inputs), dbias(s.outputs);
    matmul_backward_input(dinp.tensor(s.tokens, s.inputs), d_data.tensor(s.tokens, s.outputs),
                          w_data.tensor(s.outputs, s.inputs));
    matmul_backward_weight(dweight.tensor(s.outputs, s.inputs), dbias.tensor(),
                           d_data.tensor(s.tokens, s.outputs), x_data.tensor(s.tokens, s.inputs), false);
    // f32 rounding of sums of five terms; the loss is linear, so the differences are exact to ~1e-11.
    const double tolerance = 1e-6;
    expect_close(dinp.values(), numeric_gradient([&](const Values& v) { return loss(v, w, bias); }, x),
                 tolerance, "dinp");
    expect_close(dweight.values(), numeric_gradient([&](const Values& v) { return loss(x, v, bias); }, w),
                 tolerance, "dweight");
    expect_close(dbias.values(), numeric_gradient([&](const Values& v) { return loss(x, w, v); }, bias),
                 tolerance, "dbias");
}

// And through the fused GELU: gelu(x) enters a product, gelu_pre = x comes back out of it.
TEST(Matmul, FusedGeluGradient) {
    const Shape s{3, 5, 4};
    const Values pre = representable<float>(normal_values(s.tokens * s.inputs, 1)),
                 w = representable<float>(normal_values(s.outputs * s.inputs, 2)),
                 d = representable<float>(normal_values(s.tokens * s.outputs, 3));
    const auto loss = [&](Values x) {
        for (double& v : x) v = twin_gelu(v);
        return dot(d, twin_forward(s, x, w));
    };
    for_each_isa([&] {
        const Guarded<float> pre_data(pre), w_data(w), d_data(d);
        Guarded<float> dpre(s.tokens * s.inputs);
        matmul_backward_input(dpre.tensor(s.tokens, s.inputs), d_data.tensor(s.tokens, s.outputs),
                              w_data.tensor(s.outputs, s.inputs), false, pre_data.tensor(s.tokens, s.inputs));
        expect_close(dpre.values(), numeric_gradient(loss, pre), 2e-6,
                     "dpre");  // gelu' errs by a few roundings
    });
}

template <class T>
std::vector<uint8_t> all_products(const Shape& s) {
    const Guarded<T> x(normal_values(s.tokens * s.inputs, 1)), w(normal_values(s.outputs * s.inputs, 2)),
        d(normal_values(s.tokens * s.outputs, 3));
    Guarded<T> out(s.tokens * s.outputs), dinp(s.tokens * s.inputs);
    Guarded<float> dweight(s.outputs * s.inputs), dbias(s.outputs);
    matmul_forward(out.tensor(s.tokens, s.outputs), x.tensor(s.tokens, s.inputs),
                   w.tensor(s.outputs, s.inputs));
    matmul_backward_input(dinp.tensor(s.tokens, s.inputs), d.tensor(s.tokens, s.outputs),
                          w.tensor(s.outputs, s.inputs));
    matmul_backward_weight(dweight.tensor(s.outputs, s.inputs), dbias.tensor(), d.tensor(s.tokens, s.outputs),
                           x.tensor(s.tokens, s.inputs), false);
    return joined({out.bytes(), dinp.bytes(), dweight.bytes(), dbias.bytes()});
}

TEST(Matmul, SameBitsForAnyNumberOfThreads) {
    for_each_isa([] {
        for (const Shape& s :
             {Shape{37, 101, 515}, Shape{2, 811, 30}, Shape{811, 64, 96}, Shape{50, 23'001, 51}}) {
            expect_same_bits_for_any_threads([&] { return all_products<float>(s); });
            expect_same_bits_for_any_threads([&] { return all_products<bf16>(s); });
        }
    });
}

// Each token alone, and the batch backwards, give the bits of the whole batch.
template <class T>
void check_row_placement(const Shape& s) {
    const Guarded<T> x(normal_values(s.tokens * s.inputs, 1)), w(normal_values(s.outputs * s.inputs, 2)),
        bias(normal_values(s.outputs, 3));
    Guarded<T> reversed(s.tokens * s.inputs), out(s.tokens * s.outputs), out_reversed(s.tokens * s.outputs),
        alone(s.outputs), general(s.tokens * s.outputs);
    const size_t row_bytes = sizeof(T) * static_cast<size_t>(s.inputs),
                 out_bytes = sizeof(T) * static_cast<size_t>(s.outputs);
    for (int64_t n = 0; n < s.tokens; ++n) {
        std::memcpy(reversed.data() + n * s.inputs, x.data() + (s.tokens - 1 - n) * s.inputs, row_bytes);
    }
    const MatmulEpilogue epilogue{.bias = bias.tensor()};
    const Tensor weight = w.tensor(s.outputs, s.inputs);
    matmul_forward(out.tensor(s.tokens, s.outputs), x.tensor(s.tokens, s.inputs), weight, epilogue);
    matmul_forward(out_reversed.tensor(s.tokens, s.outputs), reversed.tensor(s.tokens, s.inputs), weight,
                   epilogue);
    for (int64_t n = 0; n < s.tokens; ++n) {
        const T* row = out.data() + n * s.outputs;
        EXPECT_EQ(std::memcmp(row, out_reversed.data() + (s.tokens - 1 - n) * s.outputs, out_bytes), 0)
            << "row " << n;
        matmul_forward(alone.tensor(1, s.outputs), x.tensor(s.tokens, s.inputs).rows(n, 1), weight, epilogue);
        EXPECT_EQ(std::memcmp(row, alone.data(), out_bytes), 0) << "row " << n << " alone";
    }
}

TEST(Matmul, RowsDoNotDependOnTheirPlace) {
    for_each_isa([] {
        for (const Shape& s : {Shape{21, 35, 53}, Shape{61, 803, 19}}) {
            check_row_placement<float>(s);
            check_row_placement<bf16>(s);
        }
    });
}

TEST(Matmul, NotANumberStaysInItsRow) {
    const Shape s{9, 16, 5};
    for_each_isa([&] {
        Values x = normal_values(s.tokens * s.inputs, 1);
        x[static_cast<size_t>(4 * s.inputs)] = std::nan("");
        const Guarded<float> x_data(x), w_data(normal_values(s.outputs * s.inputs, 2));
        Guarded<float> out(s.tokens * s.outputs);
        matmul_forward(out.tensor(s.tokens, s.outputs), x_data.tensor(s.tokens, s.inputs),
                       w_data.tensor(s.outputs, s.inputs));
        for (int64_t i = 0; i < s.tokens * s.outputs; ++i)
            EXPECT_EQ(std::isnan(out[i]), i / s.outputs == 4) << i;
    });
}

TEST(Matmul, WrongArgumentsAreNamed) {
    const Guarded<float> data(normal_values(64, 1));
    expect_mentions(
        check_failure([&] { matmul_forward(data.tensor(2, 4), data.tensor(2, 8), data.tensor(4, 7)); }),
        {"matmul_forward", "weight", "[4,8]", "[4,7]"});
    expect_mentions(check_failure([&] {
                        matmul_backward_input(data.tensor(2, 4), data.tensor(3, 8), data.tensor(8, 4));
                    }),
                    {"matmul_backward_input", "dout", "[2,*]", "[3,8]"});
    const Guarded<bf16> half(64);
    expect_mentions(check_failure([&] {
                        matmul_backward_weight(half.tensor(4, 4), {}, data.tensor(2, 4), data.tensor(2, 4),
                                               false);
                    }),
                    {"matmul_backward_weight", "dweight", "f32", "bf16"});
    expect_mentions(
        check_failure(
            [&] { matmul_forward(data.tensor(2, 4), data.tensor(2, 8), data.tensor(4, 8), {.gelu = true}); }),
        {"matmul_forward", "pre_activation", "no tensor"});
}

TEST(Matmul, ScratchGrowsAndIsAligned) {
    float* small = matmul_scratch(MatmulScratch::partial, 16);
    small[15] = 1;
    float* large = matmul_scratch(MatmulScratch::partial, 1 << 20);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(large) % 64, 0u);
    large[(1 << 20) - 1] = 1;
    EXPECT_EQ(matmul_scratch(MatmulScratch::partial, 16), large) << "kept, not allocated again";
    EXPECT_GT(matmul_scratch_bytes(2), matmul_scratch_bytes(1));
}

TEST(FmaPeak, IsASpeed) {
    for_each_isa([] {
        // Any processor that runs this multiplies at more than 0.1 GFLOP/s and less than 1000 TFLOP/s.
        for (MatmulMath math : {MatmulMath::f32, MatmulMath::bf16}) {
            const double flops = fma_peak_flops(math, 1);
            EXPECT_GT(flops, 1e8);
            EXPECT_LT(flops, 1e15);
        }
    });
}

}  // namespace
