// AdamW against its float64 twin over several steps; the rounding of param to the bit.
#include "kernels/adamw.h"

#include "tests/on_device.h"

namespace {

AdamWStep step_at(int64_t t, int64_t first_index = 0) {
    return {
        .lr = 1e-2f,
        .beta1 = 0.9f,
        .beta2 = 0.95f,
        .eps = 1e-8f,
        .weight_decay = 0.1f,
        .grad_scale = 0.5f,
        .step = t,
        .rounding = {.seed = 0x1234567890abcdefu, .stream = 0xfedcba0987654321u + static_cast<uint64_t>(t)},
        .first_index = first_index};
}

void twin(Values& master, Values& m, Values& v, const Values& grad, const AdamWStep& s) {
    const double b1 = s.beta1, b2 = s.beta2, t = static_cast<double>(s.step);
    for (size_t i = 0; i < master.size(); ++i) {
        const double g = grad[i] * s.grad_scale;
        m[i] = b1 * m[i] + (1 - b1) * g;
        v[i] = b2 * v[i] + (1 - b2) * g * g;
        const double direction =
            m[i] / (1 - std::pow(b1, t)) / (std::sqrt(v[i] / (1 - std::pow(b2, t))) + s.eps);
        master[i] -= s.lr * (direction + s.weight_decay * master[i]);
    }
}

// The draw of element `counter` by kernels/philox_simd.h's layout, from core/rng.h.
uint32_t draw(RandomKey key, uint64_t counter) {
    const Random4 random = random4(key, counter / 128 * 16 + counter % 16);
    const uint64_t half = counter / 16 % 8;
    return random.word[half / 2] >> (half % 2 * 16) & 0xffff;
}

void check_five_steps(Device device, int64_t n) {
    SCOPED_TRACE(cat({device_name(device), " ", n}));
    Values master = representable<float>(normal_values(n, 1)), m(master.size()), v(master.size());
    Guarded<float> master_data(master, 1), m_data(m, 1), v_data(v), with_param(master), m_again(m),
        v_again(v);
    Guarded<bf16> param(n, 3);
    for (int64_t t = 1; t <= 5; ++t) {
        const Values grad = representable<float>(normal_values(n, static_cast<uint32_t>(10 + t)));
        Guarded<float> grad_data(grad, 3);
        OnDevice on(device);
        adamw_step({}, on(master_data.tensor()), on(m_data.tensor()), on(v_data.tensor()),
                   on(grad_data.tensor()), step_at(t));
        adamw_step(on(param.tensor()), on(with_param.tensor()), on(m_again.tensor()), on(v_again.tensor()),
                   on(grad_data.tensor()), step_at(t));
        on.fetch();
        twin(master, m, v, grad, step_at(t));
    }
    expect_close(master_data.values(), master, kTolerance<float>, "master");
    expect_close(m_data.values(), m, kTolerance<float>, "m");
    expect_close(v_data.values(), v, kTolerance<float>, "v");
    EXPECT_TRUE(with_param.bytes() == master_data.bytes()) << "param changes the master";
}

void check_rounding(Device device) {
    for (int64_t first_index : {int64_t{0}, int64_t{5}, int64_t{123456789}, (int64_t{1} << 36) + 112}) {
        const int64_t n = 1000;
        Guarded<float> master(normal_values(n, 1)), m(Values(n, 0.0)), v(Values(n, 0.0)),
            grad(normal_values(n, 2));
        master[3] = std::nanf("");
        master[4] = std::numeric_limits<float>::infinity();
        Guarded<bf16> param(n);
        const AdamWStep step = step_at(1, first_index);
        OnDevice on(device);
        adamw_step(on(param.tensor()), on(master.tensor()), on(m.tensor()), on(v.tensor()), on(grad.tensor()),
                   step);
        on.fetch();
        for (int64_t i = 0; i < n; ++i) {
            const uint32_t random = draw(step.rounding, static_cast<uint64_t>(first_index + i));
            ASSERT_EQ(param[i].bits, to_bf16_stochastic(master[i], random).bits)
                << i << " from " << first_index << " on " << device_name(device);
        }
    }
}

// Three steps from zero moments; the bytes of all four.
std::vector<uint8_t> three_steps(Device device, int64_t n, int64_t first_index) {
    Guarded<float> master(normal_values(n, 1)), m(Values(n, 0.0)), v(Values(n, 0.0)),
        grad(normal_values(n, 2, 3));
    Guarded<bf16> param(n);
    OnDevice on(device);
    for (int64_t t = 1; t <= 3; ++t) {
        AdamWStep step = step_at(t, first_index);
        step.grad_scale = 0.37f;  // products with it are rounded
        adamw_step(on(param.tensor()), on(master.tensor()), on(m.tensor()), on(v.tensor()), on(grad.tensor()),
                   step);
    }
    on.fetch();
    return joined({param.bytes(), master.bytes(), m.bytes(), v.bytes()});
}

}  // namespace

TEST(AdamW, EqualsItsTwinOverFiveSteps) {
    for_each_isa([] {
        for (int64_t n : {0, 1, 7, 16, 129, 1000, 70001}) check_five_steps(Device::cpu, n);
    });
    for (Device device : gpus()) {
        for (int64_t n : {0, 1, 7, 16, 129, 1000, 5003}) check_five_steps(device, n);
    }
}

TEST(AdamW, ParamIsRoundedByTheScalarRuleToTheBit) {
    for_each_isa([] { check_rounding(Device::cpu); });
    for (Device device : gpus()) check_rounding(device);
}

// A sum with a product in it is rounded once there as here, where the instruction set can.
TEST(AdamW, GpusGiveTheBitsOfTheCpu) {
    if (best_isa() == Isa::plain) GTEST_SKIP() << "no instruction set with fused sums";
    for (Device device : gpus()) {
        for (auto [n, first_index] :
             {std::pair{int64_t{5003}, int64_t{0}}, {1000, 77}, {130, 127}, {1, 255}}) {
            EXPECT_TRUE(three_steps(device, n, first_index) == three_steps(Device::cpu, n, first_index))
                << n << " from " << first_index << " on " << device_name(device);
        }
    }
}

TEST(AdamW, TensorsCutAnywhereGiveTheSameParam) {
    const int64_t n = 500, cut = 203;
    const Values zero(n, 0.0), values = normal_values(n, 1), gradient = normal_values(n, 2);
    Guarded<float> whole(values), m(zero), v(zero), grad(gradient), parts(values), m_parts(zero),
        v_parts(zero);
    Guarded<bf16> param(n), param_parts(n);
    adamw_step(param.tensor(), whole.tensor(), m.tensor(), v.tensor(), grad.tensor(), step_at(1, 77));
    for (auto [begin, count] : {std::pair{int64_t{0}, cut}, {cut, n - cut}}) {
        const auto part = [begin = begin, count = count](const auto& g) {
            return g.tensor().rows(begin, count);
        };
        adamw_step(part(param_parts), part(parts), part(m_parts), part(v_parts), part(grad),
                   step_at(1, 77 + begin));
    }
    EXPECT_TRUE(param.bytes() == param_parts.bytes() && whole.bytes() == parts.bytes());
}

TEST(AdamW, SameBitsForAnyNumberOfThreads) {
    const int64_t n = 150001;
    const Values values = normal_values(n, 1), gradient = normal_values(n, 2),
                 zero(static_cast<size_t>(n), 0.0);
    expect_same_bits_for_any_threads([&] {
        Guarded<float> master(values), m(zero), v(zero), grad(gradient);
        Guarded<bf16> param(n);
        adamw_step(param.tensor(), master.tensor(), m.tensor(), v.tensor(), grad.tensor(), step_at(1, 9));
        return joined({param.bytes(), master.bytes(), m.bytes(), v.bytes()});
    });
}

TEST(AdamW, NamesTheWrongArgument) {
    Guarded<float> a(Values(4, 1.0)), b(Values(4, 1.0)), c(Values(4, 1.0)), wrong(Values(5, 1.0));
    Guarded<bf16> param(4);
    const auto run = [&](Tensor p, Tensor grad, AdamWStep step) {
        return check_failure([&] { adamw_step(p, a.tensor(), b.tensor(), c.tensor(), grad, step); });
    };
    expect_mentions(run({}, wrong.tensor(), step_at(1)), {"adamw_step", "argument grad", "f32[4]", "f32[5]"});
    expect_mentions(run(wrong.tensor(), a.tensor(), step_at(1)),
                    {"argument param", "bf16 of 4 elements", "f32[5]"});
    expect_mentions(run(param.tensor(), a.tensor(), step_at(0)), {"argument step", "at least 1", "got 0"});
}
