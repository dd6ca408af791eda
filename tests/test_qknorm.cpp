// QK-norm against its float64 twin and finite differences; values are left alone.
#include "kernels/qknorm.h"

#include "tests/absmax_check.h"

namespace {

constexpr double kEps = 1e-6;

struct Shape {
    int64_t tokens, heads, kv_heads, head_dim;
    int64_t width() const { return (heads + 2 * kv_heads) * head_dim; }
    int64_t normed() const { return (heads + kv_heads) * head_dim; }
};
constexpr Shape kShapes[] = {{1, 1, 1, 2},    {3, 4, 2, 8},   {17, 3, 1, 38},
                             {600, 2, 1, 64}, {5, 4, 4, 128}, {0, 2, 2, 8}};

// On a GPU a head has from one lane to all of a warp's, in vectors of memory and in single elements; more
// heads than a block has room for, and several chunks of tokens.
constexpr Shape kGpuShapes[] = {{1, 1, 1, 2},   {3, 4, 2, 8},   {17, 3, 1, 38}, {5, 4, 4, 128},
                                {0, 2, 2, 8},   {2, 70, 3, 64}, {6, 3, 1, 24},  {3, 2, 1, 256},
                                {5, 2, 2, 512}, {9, 5, 0, 16},  {3, 9, 1, 200}, {150, 1, 1, 16}};

Values twin(const Values& qkv, const Values& wq, const Values& wk, Shape s) {
    Values result = qkv;
    for (int64_t n = 0; n < s.tokens; ++n) {
        for (int64_t head = 0; head < s.heads + s.kv_heads; ++head) {
            const auto at = static_cast<size_t>(n * s.width() + head * s.head_dim);
            double square = 0;
            for (size_t i = 0; i < wq.size(); ++i) square += qkv[at + i] * qkv[at + i];
            const double rstd = 1 / std::sqrt(square / static_cast<double>(s.head_dim) + kEps);
            for (size_t i = 0; i < wq.size(); ++i) {
                result[at + i] = qkv[at + i] * rstd * (head < s.heads ? wq[i] : wk[i]);
            }
        }
    }
    return result;
}

struct Gradients {
    Values dqkv, dwq, dwk;
};
Gradients twin_backward(const Values& dy, const Values& qkv, const Values& wq, const Values& wk, Shape s) {
    Gradients g{dy, Values(wq.size()), Values(wk.size())};
    for (int64_t n = 0; n < s.tokens; ++n) {
        for (int64_t head = 0; head < s.heads + s.kv_heads; ++head) {
            const auto at = static_cast<size_t>(n * s.width() + head * s.head_dim);
            const Values& w = head < s.heads ? wq : wk;
            Values& dw = head < s.heads ? g.dwq : g.dwk;
            double square = 0, product = 0;
            for (size_t i = 0; i < w.size(); ++i) square += qkv[at + i] * qkv[at + i];
            const double rstd = 1 / std::sqrt(square / static_cast<double>(s.head_dim) + kEps);
            for (size_t i = 0; i < w.size(); ++i) product += dy[at + i] * w[i] * qkv[at + i] * rstd;
            for (size_t i = 0; i < w.size(); ++i) {
                const double xhat = qkv[at + i] * rstd;
                g.dqkv[at + i] =
                    rstd * (dy[at + i] * w[i] - xhat * product / static_cast<double>(s.head_dim));
                dw[i] += dy[at + i] * xhat;
            }
        }
    }
    return g;
}

// On a GPU odd_ones says which tensors are misaligned (tests/on_device.h).
template <class T>
void check_shape(Shape s, Device device, uint32_t odd_ones = 0) {
    SCOPED_TRACE(cat({device_name(device), " ", dtype_name(dtype_of<T>()), " ", s.tokens, " tokens, ",
                      s.heads, " heads of ", s.head_dim, ", odd ", odd_ones}));
    const int64_t offset = device == Device::cpu;
    const Values x = representable<T>(normal_values(s.tokens * s.width(), 1));
    const Values wq = representable<T>(normal_values(s.head_dim, 2, 0.5, 1)),
                 wk = representable<T>(normal_values(s.head_dim, 3));
    const Values dy = representable<T>(normal_values(s.tokens * s.width(), 4));
    const Values before = representable<float>(normal_values(s.head_dim, 5));

    Guarded<T> qkv(x, offset), raw(s.tokens * s.normed(), 3 * offset), wq_data(wq), wk_data(wk), dqkv(dy),
        unsaved(x, offset);
    Guarded<float> rstd(s.tokens * (s.heads + s.kv_heads)), dwq(before), dwk(before, 1);
    RaisedAbsmax absmax(device);
    OnDevice on(device, odd_ones);
    const auto all = [&](const Guarded<T>& g) { return on(g.tensor(s.tokens, s.width())); };
    const auto vector = [&](const auto& g) { return on(g.tensor()); };
    const Tensor rstd_tensor = on(rstd.tensor(s.tokens, s.heads + s.kv_heads));
    const Tensor raw_tensor = on(raw.tensor(s.tokens, s.normed()));
    qknorm_forward(all(qkv), rstd_tensor, raw_tensor, vector(wq_data), vector(wk_data), kEps, s.heads,
                   s.kv_heads);
    qknorm_forward(all(unsaved), rstd_tensor, {}, vector(wq_data), vector(wk_data), kEps, s.heads,
                   s.kv_heads);
    qknorm_backward(all(dqkv), vector(dwq), vector(dwk), raw_tensor, rstd_tensor, vector(wq_data),
                    vector(wk_data), s.heads, s.kv_heads, absmax.tensor());
    on.fetch();
    absmax.expect(dqkv, "dqkv");

    expect_close(qkv.values(), twin(x, wq, wk, s), kTolerance<T>, "qkv");
    expect_close(unsaved.values(), twin(x, wq, wk, s), kTolerance<T>, "qkv without raw");
    // Alike unless the two were added up in different orders.
    if (odd_ones == 0 || odd_ones == ~0u) {
        EXPECT_TRUE(unsaved.bytes() == qkv.bytes());
    }
    Gradients expected = twin_backward(dy, x, wq, wk, s);
    for (size_t i = 0; i < before.size(); ++i) {
        expected.dwq[i] += before[i];
        expected.dwk[i] += before[i];
    }
    expect_close(dqkv.values(), expected.dqkv, kTolerance<T>, "dqkv");
    expect_close(dwq.values(), expected.dwq, kTolerance<float>, "dwq");  // f32 whatever T
    expect_close(dwk.values(), expected.dwk, kTolerance<float>, "dwk");
    for (int64_t n = 0; n < s.tokens; ++n) {
        for (int64_t i = s.normed(); i < s.width(); ++i) {
            const auto at = static_cast<size_t>(n * s.width() + i);
            ASSERT_EQ(to_double(qkv[n * s.width() + i]), x[at]) << "a value changed";
            ASSERT_EQ(to_double(dqkv[n * s.width() + i]), dy[at]) << "a value's gradient changed";
        }
    }
}

}  // namespace

TEST(QkNorm, EqualsItsTwinOnEveryInstructionSet) {
    for_each_isa([] {
        for (Shape s : kShapes) {
            check_shape<float>(s, Device::cpu);
            check_shape<bf16>(s, Device::cpu);
        }
    });
}

TEST(QkNorm, EqualsItsTwinOnGpus) {
    for (Device device : gpus()) {
        for (Shape s : kGpuShapes) {
            for (uint32_t odd_ones : misalignments(0)) {
                check_shape<float>(s, device, odd_ones);
                check_shape<bf16>(s, device, odd_ones);
            }
        }
        for (uint32_t odd_ones : misalignments(9)) {
            check_shape<float>({3, 4, 2, 8}, device, odd_ones);
            check_shape<bf16>({3, 4, 2, 8}, device, odd_ones);
        }
    }
}

TEST(QkNorm, SameBitsInAnyOrderOfAGpusThreads) {
    const Shape s{13, 6, 2, 64};
    const Values x = normal_values(s.tokens * s.width(), 1), dy = normal_values(s.tokens * s.width(), 2);
    expect_same_bits_on_gpus([&](Device device) {
        Guarded<bf16> qkv(x), raw(s.tokens * s.normed()), w(Values(64, 1.5)), dqkv(dy);
        Guarded<float> rstd(s.tokens * 8), dwq(Values(64, 0.0)), dwk(Values(64, 0.0));
        OnDevice on(device);
        const Tensor rstd_tensor = on(rstd.tensor(s.tokens, 8)),
                     raw_tensor = on(raw.tensor(s.tokens, s.normed()));
        qknorm_forward(on(qkv.tensor(s.tokens, s.width())), rstd_tensor, raw_tensor, on(w.tensor()),
                       on(w.tensor()), kEps, 6, 2);
        qknorm_backward(on(dqkv.tensor(s.tokens, s.width())), on(dwq.tensor()), on(dwk.tensor()), raw_tensor,
                        rstd_tensor, on(w.tensor()), on(w.tensor()), 6, 2);
        on.fetch();
        return joined({qkv.bytes(), raw.bytes(), rstd.bytes(), dqkv.bytes(), dwq.bytes(), dwk.bytes()});
    });
}

TEST(QkNorm, TwinGradientIsTheFiniteDifference) {
    const Shape s{2, 2, 1, 4};
    const Values x = normal_values(s.tokens * s.width(), 1), wq = normal_values(4, 2),
                 wk = normal_values(4, 3);
    const Values dy = normal_values(s.tokens * s.width(), 4);
    const Gradients g = twin_backward(dy, x, wq, wk, s);
    expect_close(g.dqkv, numeric_gradient([&](const Values& v) { return dot(dy, twin(v, wq, wk, s)); }, x),
                 1e-6, "dqkv");
    expect_close(g.dwq, numeric_gradient([&](const Values& v) { return dot(dy, twin(x, v, wk, s)); }, wq),
                 1e-6, "dwq");
    expect_close(g.dwk, numeric_gradient([&](const Values& v) { return dot(dy, twin(x, wq, v, s)); }, wk),
                 1e-6, "dwk");
}

TEST(QkNorm, SameBitsForAnyNumberOfThreads) {
    const Shape s{700, 3, 1, 24};
    const Values x = normal_values(s.tokens * s.width(), 1), dy = normal_values(s.tokens * s.width(), 2);
    expect_same_bits_for_any_threads([&] {
        Guarded<bf16> qkv(x), raw(s.tokens * s.normed()), w(Values(24, 1.5)), dqkv(dy);
        Guarded<float> rstd(s.tokens * 4), dwq(Values(24, 0.0)), dwk(Values(24, 0.0));
        qknorm_forward(qkv.tensor(s.tokens, s.width()), rstd.tensor(s.tokens, 4),
                       raw.tensor(s.tokens, s.normed()), w.tensor(), w.tensor(), kEps, 3, 1);
        qknorm_backward(dqkv.tensor(s.tokens, s.width()), dwq.tensor(), dwk.tensor(),
                        raw.tensor(s.tokens, s.normed()), rstd.tensor(s.tokens, 4), w.tensor(), w.tensor(), 3,
                        1);
        return joined({qkv.bytes(), rstd.bytes(), dqkv.bytes(), dwq.bytes(), dwk.bytes()});
    });
}

TEST(QkNorm, NamesTheWrongArgument) {
    Guarded<float> qkv(Values(32, 1.0)), rstd(6), w(Values(4, 1.0));
    const auto run = [&](int64_t heads) {
        return check_failure([&] {
            qknorm_forward(qkv.tensor(2, 16), rstd.tensor(2, 3), {}, w.tensor(), w.tensor(), kEps, heads, 1);
        });
    };
    EXPECT_EQ(run(2), "");
    expect_mentions(run(3), {"qknorm_forward", "argument qkv", "f32[*,20]", "f32[2,16]"});
}

TEST(QkNorm, AGpuRefusesHeadsThatAWarpCannotHold) {
    Guarded<float> qkv(Values(3 * 516, 1.0)), rstd(2), w(Values(516, 1.0));
    OnDevice on(Device::simt);
    const std::string message = check_failure([&] {
        qknorm_forward(on(qkv.tensor(1, 3 * 516)), on(rstd.tensor(1, 2)), {}, on(w.tensor()), on(w.tensor()),
                       kEps, 1, 1);
    });
    expect_mentions(message, {"qknorm_forward", "argument wq", "got 516"});
}
