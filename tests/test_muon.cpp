// Muon against its float64 twin for wide, tall and square matrices, and what the iteration is for: singular
// values near 1.
#include "kernels/muon.h"

#include "tests/on_device.h"
#include "tests/op_check.h"

namespace {

struct Shape {
    int64_t rows, cols;
};
constexpr Shape kShapes[] = {{1, 1}, {1, 9}, {9, 1}, {7, 13}, {67, 33}, {24, 24}};

const MuonStep kStep{.lr = 0.02f,
                     .momentum = 0.95f,
                     .weight_decay = 0.1f,
                     .grad_scale = 0.5f,
                     .rounding = {.seed = 3, .stream = 4},
                     .first_index = 21};

// a [m,k] times b [k,n], or b [n,k] transposed
Values product(const Values& a, const Values& b, size_t m, size_t k, size_t n, bool b_transposed) {
    Values c(m * n);
    for (size_t i = 0; i < m; ++i) {
        for (size_t j = 0; j < n; ++j) {
            for (size_t l = 0; l < k; ++l)
                c[i * n + j] += a[i * k + l] * (b_transposed ? b[j * k + l] : b[l * n + j]);
        }
    }
    return c;
}

Values transposed(const Values& a, size_t rows, size_t cols) {
    Values result(a.size());
    for (size_t r = 0; r < rows; ++r) {
        for (size_t c = 0; c < cols; ++c) result[c * rows + r] = a[r * cols + c];
    }
    return result;
}

Values orthogonalised(Values x, size_t rows, size_t cols) {
    const bool tall = rows > cols;
    if (tall) {
        x = transposed(x, rows, cols);
        std::swap(rows, cols);
    }
    const double norm = std::sqrt(dot(x, x)) + 1e-7;
    for (double& v : x) v /= norm;
    for (int iteration = 0; iteration < 5; ++iteration) {
        const Values a = product(x, x, rows, cols, rows, true),
                     a_squared = product(a, a, rows, rows, rows, false);
        Values b(a.size());
        for (size_t i = 0; i < b.size(); ++i) b[i] = -4.7750 * a[i] + 2.0315 * a_squared[i];
        const Values bx = product(b, x, rows, rows, cols, false);
        for (size_t i = 0; i < x.size(); ++i) x[i] = 3.4445 * x[i] + bx[i];
    }
    return tall ? transposed(x, rows, cols) : x;
}

void twin(Values& master, Values& momentum, const Values& grad, Shape s) {
    const double mu = kStep.momentum;
    Values u(grad.size());
    for (size_t i = 0; i < u.size(); ++i) {
        const double g = grad[i] * kStep.grad_scale;
        momentum[i] = mu * momentum[i] + (1 - mu) * g;
        u[i] = (1 - mu) * g + mu * momentum[i];
    }
    const Values x = orthogonalised(u, static_cast<size_t>(s.rows), static_cast<size_t>(s.cols));
    const double stretch =
        std::sqrt(std::max(1.0, static_cast<double>(s.rows) / static_cast<double>(s.cols)));
    for (size_t i = 0; i < master.size(); ++i) {
        master[i] = master[i] * (1 - kStep.lr * kStep.weight_decay) - kStep.lr * stretch * x[i];
    }
}

struct State {
    Shape shape;
    Device device;
    int64_t offset;  // elements from the alignment that wide loads like
    Guarded<float> master, momentum;
    Guarded<bf16> param;

    State(Shape s, const Values& master_values, Device where = Device::cpu, int64_t offset_elements = 1)
        : shape(s),
          device(where),
          offset(offset_elements),
          master(master_values, offset),
          momentum(Values(master_values.size(), 0.0)),
          param(s.rows * s.cols) {}
    void step(const Values& grad, MatmulMath math = MatmulMath::f32, bool with_param = true) {
        OnDevice on(device);
        Guarded<float> grad_data(grad, 3 * offset);
        Guarded<uint8_t> scratch(muon_scratch_bytes(shape.rows, shape.cols));
        const auto matrix = [&](const auto& g) { return on(g.tensor(shape.rows, shape.cols)); };
        muon_step(with_param ? matrix(param) : Tensor{}, matrix(master), matrix(momentum), matrix(grad_data),
                  kStep, math, on(scratch.tensor()));
        on.fetch();
    }
};

void expect_rounded_stochastically(const State& state) {
    for (int64_t i = 0; i < state.shape.rows * state.shape.cols; ++i) {
        const int64_t counter = kStep.first_index + i, half = counter / 16 % 8;
        const Random4 random =
            random4(kStep.rounding, static_cast<uint64_t>(counter / 128 * 16 + counter % 16));
        ASSERT_EQ(state.param[i].bits,
                  to_bf16_stochastic(state.master[i], random.word[half / 2] >> (half % 2 * 16)).bits)
            << i;
    }
}

void check_three_steps(Shape s, double tolerance, MatmulMath math = MatmulMath::f32,
                       Device device = Device::cpu, int64_t offset = 1, double grad_scale = 1) {
    SCOPED_TRACE(cat({s.rows, " x ", s.cols, " on ", device_name(device)}));
    Values master = representable<float>(normal_values(s.rows * s.cols, 1)), momentum(master.size());
    State state(s, master, device, offset);
    for (uint32_t t = 0; t < 3; ++t) {
        const Values grad = representable<float>(normal_values(s.rows * s.cols, 10 + t, grad_scale));
        state.step(grad, math);
        twin(master, momentum, grad, s);
    }
    expect_close(state.momentum.values(), momentum, kTolerance<float>, "momentum");
    expect_close(state.master.values(), master, tolerance, "master");
    expect_rounded_stochastically(state);
}

}  // namespace

TEST(Muon, EqualsItsTwinOverThreeSteps) {
    for_each_isa([] {
        for (Shape s : kShapes) check_three_steps(s, kTolerance<float>);
    });
}

// Several blocks of every kernel, several turns of each, aligned and not.
TEST(Muon, EqualsItsTwinOnEveryGpu) {
    for (Device device : gpus()) {
        for (Shape s : kShapes) check_three_steps(s, kTolerance<float>, MatmulMath::f32, device);
        check_three_steps({36, 40}, kTolerance<float>, MatmulMath::f32, device, 0);
        check_three_steps({44, 36}, kTolerance<float>, MatmulMath::f32, device, 0);
        check_three_steps({64, 32}, kTolerance<float>, MatmulMath::f32, device, 0);
        check_three_steps({5, 1301}, kTolerance<float>, MatmulMath::f32, device, 0);
        check_three_steps({1, 9001}, kTolerance<float>, MatmulMath::f32, device,
                          0);  // room for few partial sums
        // An update of lr = 0.02 times X, in which roundings of operands (2^-9) grow by up to 3.4 an
        // iteration; the CPU's update errs by as much.
        check_three_steps({40, 24}, 0.02 / 16, MatmulMath::bf16, device, 0);
    }
}

// Of the size of what keeps the norm from being zero.
TEST(Muon, TinyGradients) {
    std::vector<Device> devices = gpus();
    devices.push_back(Device::cpu);
    for (Device device : devices)
        check_three_steps({7, 13}, kTolerance<float>, MatmulMath::f32, device, 1, 1e-7);
}

TEST(Muon, WithoutParamOnEveryGpu) {
    const Shape s{9, 20};
    const Values master = normal_values(180, 1), grad = normal_values(180, 2);
    for (Device device : gpus()) {
        State with(s, master, device), without(s, master, device);
        with.step(grad);
        without.step(grad, MatmulMath::f32, false);
        EXPECT_TRUE(with.master.bytes() == without.master.bytes());
    }
}

TEST(Muon, SameBitsAgainOnEveryGpu) {
    const Shape s{70, 41};
    const Values master = normal_values(70 * 41, 1), grad = normal_values(70 * 41, 2);
    expect_same_bits_on_gpus([&](Device device) {
        State state(s, master, device);
        state.step(grad, MatmulMath::bf16);
        return joined({state.master.bytes(), state.momentum.bytes(), state.param.bytes()});
    });
}

TEST(Muon, TheUpdateIsNearlyOrthogonal) {
    const Shape s{48, 20};
    const Values zero(48 * 20, 0.0), grad = normal_values(48 * 20, 1);
    for (MatmulMath math : {MatmulMath::f32, MatmulMath::bf16}) {
        State state(s, zero);
        state.step(grad, math);
        const double scale = kStep.lr * std::sqrt(48.0 / 20.0);
        Values x = state.master.values();
        for (double& v : x) v /= -scale;
        const Values gram = product(transposed(x, 48, 20), x, 20, 48, 20, false);
        // Jordan's coefficients settle singular values in about [0.7, 1.2]: squares on the diagonal's average
        // near 1.
        double trace = 0;
        for (size_t i = 0; i < 20; ++i) trace += gram[i * 20 + i] / 20;
        EXPECT_GT(trace, 0.5);
        EXPECT_LT(trace, 1.4);
        for (size_t i = 0; i < 20; ++i) {
            for (size_t j = 0; j < i; ++j) EXPECT_LT(std::abs(gram[i * 20 + j]), 0.4);
        }
    }
}

TEST(Muon, ZeroGradientOnlyDecays) {
    std::vector<Device> devices = gpus();
    devices.push_back(Device::cpu);
    for (Device device : devices) {
        State state({3, 5}, Values(15, 2.0), device);
        state.step(Values(15, 0.0));
        for (double v : state.master.values()) EXPECT_NEAR(v, 2.0 * (1 - 0.02 * 0.1), 1e-6);
    }
}

TEST(Muon, SameBitsForAnyNumberOfThreads) {
    const Shape s{70, 41};
    const Values master = normal_values(70 * 41, 1), grad = normal_values(70 * 41, 2);
    expect_same_bits_for_any_threads([&] {
        State state(s, master);
        state.step(grad);
        return joined({state.master.bytes(), state.momentum.bytes(), state.param.bytes()});
    });
}

TEST(Muon, NamesTheWrongArgument) {
    Guarded<float> a(Values(6, 1.0)), b(Values(6, 1.0)), c(Values(6, 1.0));
    Guarded<uint8_t> scratch(10);
    const auto run = [&](Tensor grad) {
        return check_failure([&] {
            muon_step({}, a.tensor(2, 3), b.tensor(2, 3), grad, kStep, MatmulMath::f32, scratch.tensor());
        });
    };
    expect_mentions(run(c.tensor(3, 2)), {"muon_step", "argument grad", "f32[2,3]", "f32[3,2]"});
    expect_mentions(run(c.tensor(2, 3)), {"argument scratch", "at least 80 bytes"});
}
