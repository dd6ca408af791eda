// Muon against its float64 twin for wide, tall and square matrices, alone and many together, and what the
// iteration is for: singular values near 1.
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
    MuonMatrices matrices;
    Device device;
    int64_t offset;  // elements from the alignment that wide loads like
    Guarded<float> master, momentum;
    Guarded<bf16> param;

    State(MuonMatrices m, const Values& master_values, Device where = Device::cpu,
          int64_t offset_elements = 1)
        : matrices(std::move(m)),
          device(where),
          offset(offset_elements),
          master(master_values, offset),
          momentum(Values(master_values.size(), 0.0)),
          param(Values(master_values.size(), 7.0)) {}
    State(Shape s, const Values& master_values, Device where = Device::cpu, int64_t offset_elements = 1)
        : State(MuonMatrices{.rows = s.rows, .cols = s.cols, .offsets = {0}}, master_values, where,
                offset_elements) {}
    void step(const Values& grad, MatmulMath math = MatmulMath::f32, bool with_param = true) {
        OnDevice on(device);
        Guarded<float> grad_data(grad, 3 * offset);
        Guarded<uint8_t> scratch(muon_scratch_bytes(matrices, math, device));
        muon_step(with_param ? on(param.tensor()) : Tensor{}, on(master.tensor()), on(momentum.tensor()),
                  on(grad_data.tensor()), matrices, kStep, math, on(scratch.tensor()));
        on.fetch();
    }
    std::vector<uint8_t> bytes() const { return joined({master.bytes(), momentum.bytes(), param.bytes()}); }
};

std::vector<Device> all_devices() {
    std::vector<Device> devices = gpus();
    devices.push_back(Device::cpu);
    return devices;
}

void expect_rounded_stochastically(const State& state) {
    for (const int64_t offset : state.matrices.offsets) {
        for (int64_t i = offset; i < offset + state.matrices.size(); ++i) {
            const int64_t counter = kStep.first_index + i, half = counter / 16 % 8;
            const Random4 random =
                random4(kStep.rounding, static_cast<uint64_t>(counter / 128 * 16 + counter % 16));
            ASSERT_EQ(state.param[i].bits,
                      to_bf16_stochastic(state.master[i], random.word[half / 2] >> (half % 2 * 16)).bits)
                << i;
        }
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
        check_three_steps({1, 9001}, kTolerance<float>, MatmulMath::f32, device, 0);
        // An update of lr = 0.02 times X, in which roundings to bf16 (2^-9) grow by up to 3.4 an iteration;
        // the CPU's update, which rounds operands alone, errs by as much.
        for (Shape s : {Shape{40, 24}, {24, 40}, {67, 33}, {33, 67}})
            check_three_steps(s, 0.02 / 16, MatmulMath::bf16, device, 0);
    }
}

// Of the size of what keeps the norm from being zero.
TEST(Muon, TinyGradients) {
    for (Device device : all_devices())
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

// Matrices apart from each other and in no order: a row of them and what lies between.
MuonMatrices scattered(Shape s, int64_t count, int64_t gap) {
    MuonMatrices matrices{.rows = s.rows, .cols = s.cols, .offsets = {}};
    for (int64_t i = 0; i < count; ++i)
        matrices.offsets.push_back(gap + (i + 1) % count * (s.rows * s.cols + gap));
    return matrices;
}

// Together, in several batches if need be, each gets the bits that it gets alone, and nothing else changes.
void expect_each_as_alone(Shape s, int64_t count, int64_t gap, MatmulMath math, Device device) {
    SCOPED_TRACE(cat({count, " of ", s.rows, " x ", s.cols, math == MatmulMath::bf16 ? " bf16" : " f32",
                      " on ", device_name(device)}));
    const MuonMatrices matrices = scattered(s, count, gap);
    const int64_t size = gap + count * (matrices.size() + gap);
    const Values master = normal_values(size, 1), grad = normal_values(size, 2);
    // The arenas are aligned; by an odd gap the matrices are not.
    State together(matrices, master, device, 0), alone(matrices, master, device, 0);
    together.step(grad, math);
    expect_rounded_stochastically(together);
    for (const int64_t offset : matrices.offsets) {
        alone.matrices.offsets = {offset};
        alone.step(grad, math);
    }
    EXPECT_TRUE(together.bytes() == alone.bytes());
    const Guarded<float> before(master);
    std::vector<bool> inside(static_cast<size_t>(size));
    for (const int64_t offset : matrices.offsets) std::fill_n(inside.begin() + offset, matrices.size(), true);
    for (int64_t i = 0; i < size; ++i) {
        const bool mine = inside[static_cast<size_t>(i)];
        ASSERT_TRUE(mine || together.master[i] == before[i]) << i;
        ASSERT_EQ(together.momentum[i] != 0, mine) << i;
        ASSERT_EQ(to_float(together.param[i]) != 7, mine) << i;
    }
}

TEST(Muon, ManyAreEachAlone) {
    for (Device device : all_devices()) {
        for (MatmulMath math : {MatmulMath::f32, MatmulMath::bf16}) {
            for (Shape s : {Shape{1, 13}, {13, 1}, {5, 67}, {67, 5}, {33, 33}})
                expect_each_as_alone(s, 3, 5, math, device);
            expect_each_as_alone({72, 136}, 2, 8, math, device);
            expect_each_as_alone({136, 72}, 2, 8, math, device);
        }
        expect_each_as_alone({2, 3}, kMuonMostMatrices + 3, 1, MatmulMath::bf16, device);
    }
}

TEST(Muon, BatchesAreBounded) {
    const auto batch = [](int64_t rows, int64_t cols, int64_t count, Device device) {
        const MuonMatrices matrices{
            .rows = rows, .cols = cols, .offsets = std::vector<int64_t>(static_cast<size_t>(count))};
        const int64_t together = muon_batch(matrices, MatmulMath::bf16, device);
        const int64_t bytes = muon_scratch_bytes(matrices, MatmulMath::bf16, device);
        EXPECT_TRUE(together == 1 || bytes <= kMuonScratchBytes) << rows << " x " << cols << ": " << bytes;
        return together;
    };
    EXPECT_EQ(batch(768, 768, 48, Device::cpu), 1);
    EXPECT_EQ(batch(768, 768, 48, Device::simt), 48);   // 21 tiles each: four waves are 51
    EXPECT_EQ(batch(768, 768, 144, Device::simt), 48);  // three equal ones
    EXPECT_EQ(batch(3072, 768, 24, Device::simt), 12);  // 22 would fit 256 MiB
    EXPECT_EQ(batch(64, 64, 100, Device::simt), 50);
    EXPECT_EQ(batch(2048, 2048, 32, Device::simt), 7);  // 32 MiB each, and their sums
    EXPECT_EQ(batch(11008, 4096, 32, Device::simt), 1);
    EXPECT_EQ(batch(3, 5, 0, Device::simt), 1);
}

TEST(Muon, SameBitsAgainOnEveryGpu) {
    const MuonMatrices matrices = scattered({70, 41}, 2, 3);
    const int64_t size = 2 * 70 * 41 + 9;
    const Values master = normal_values(size, 1), grad = normal_values(size, 2);
    expect_same_bits_on_gpus([&](Device device) {
        State state(matrices, master, device);
        state.step(grad, MatmulMath::bf16);
        return state.bytes();
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
    for (Device device : all_devices()) {
        State state(Shape{3, 5}, Values(15, 2.0), device);
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
        return state.bytes();
    });
}

TEST(Muon, NamesTheWrongArgument) {
    Guarded<float> a(Values(6, 1.0)), b(Values(6, 1.0)), c(Values(6, 1.0));
    Guarded<uint8_t> scratch(10);
    const auto run = [&](Tensor grad, int64_t offset) {
        const MuonMatrices matrices{.rows = 2, .cols = 3, .offsets = {offset}};
        return check_failure([&] {
            muon_step({}, a.tensor(), b.tensor(), grad, matrices, kStep, MatmulMath::f32, scratch.tensor());
        });
    };
    expect_mentions(run(c.tensor(5), 0), {"muon_step", "argument grad", "f32[6]", "f32[5]"});
    expect_mentions(run(c.tensor(), 1), {"argument offsets", "inside the arenas", "got 1"});
    expect_mentions(run(c.tensor(), -1), {"argument offsets", "inside the arenas", "got -1"});
    expect_mentions(run(c.tensor(), 0), {"argument scratch", "at least 80 bytes"});
}
