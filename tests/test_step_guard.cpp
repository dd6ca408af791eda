// The guard of a step: its verdicts and its scale, by formulas written out here, the same bits on every
// device; and that updates obey it.
#include "kernels/step_guard.h"

#include <limits>

#include "kernels/adamw.h"
#include "kernels/muon.h"
#include "tests/on_device.h"

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::vector<Device> all_devices() {
    std::vector<Device> devices = gpus();
    devices.push_back(Device::cpu);
    return devices;
}

StepDecision decide_on(Device device, double loss_sum, double squares, const GuardLimits& limits) {
    Guarded<uint8_t> decision(kDecisionBytes);
    Guarded<double> loss(Values{loss_sum}), sum(Values{squares});
    OnDevice on(device);
    guard_step(on(decision.tensor()), on(loss.tensor()), on(sum.tensor()), limits);
    on.fetch();
    StepDecision result;
    std::memcpy(&result, decision.data(), sizeof result);
    return result;
}

struct Case {
    double loss_sum, squares;
    GuardLimits limits;
    double grad_scale;
    Verdict verdict;
};
const Spread kLosses{.mean = 2, .deviation = 0.5}, kNorms{.mean = 1, .deviation = 0.25};
GuardLimits with_windows(double z) {
    return {.num_targets = 4, .clip = 0, .outlier_z = z, .losses = kLosses, .norms = kNorms};
}
const Case kCases[] = {
    // Clipping: off, above, below; the 1e-6 of torch's formula shows at a norm of 1e-6.
    {8, 9, {.num_targets = 4}, 1, Verdict::apply},
    {8, 9, {.num_targets = 4, .clip = 1.5}, 1.5 / (3 + 1e-6), Verdict::apply},
    {8, 9, {.num_targets = 4, .clip = 5}, 1, Verdict::apply},
    {8, 1e-12, {.num_targets = 4, .clip = 1e-6}, 0.5, Verdict::apply},
    {8, 0, {.num_targets = 4, .clip = 1}, 1, Verdict::apply},
    // What is not finite. An infinite norm is clipped to 0, and 0 times it is no number.
    {kNaN, 9, {.num_targets = 4, .clip = 1}, 1 / (3 + 1e-6), Verdict::nonfinite_loss},
    {-kInfinity, kNaN, {.num_targets = 4}, 1, Verdict::nonfinite_loss},
    {8, kNaN, {.num_targets = 4, .clip = 1}, 1, Verdict::nonfinite_gradient},
    {8, kInfinity, {.num_targets = 4, .clip = 1}, 0, Verdict::nonfinite_gradient},
    {8, 0.6 * std::numeric_limits<float>::max(), {.num_targets = 4}, 1, Verdict::nonfinite_gradient},
    {8, 0.4 * std::numeric_limits<float>::max(), {.num_targets = 4}, 1, Verdict::apply},
    {8, 1e60, {.num_targets = 4, .clip = 1}, 1e-30, Verdict::apply},
    // Outliers: 4 deviations above are allowed at z = 4, more are not; below there is no limit.
    {4 * 4.0, 1, with_windows(4), 1, Verdict::apply},
    {4 * 4.001, 1, with_windows(4), 1, Verdict::outlier_loss},
    {4 * -100.0, 1, with_windows(4), 1, Verdict::apply},
    {8, 4, with_windows(4), 1, Verdict::apply},
    {8, 4.01, with_windows(4), 1, Verdict::outlier_gradient},
    {4 * 4.001, 4.01, with_windows(4), 1, Verdict::outlier_loss},
    {4 * 1e9, 1e9, with_windows(kInfinity), 1, Verdict::apply},
    {4 * 1e9, 1e9, {.num_targets = 4, .outlier_z = 4}, 1, Verdict::apply},  // windows not full
};

}  // namespace

TEST(StepGuard, VerdictsAndScales) {
    for (Device device : all_devices()) {
        for (size_t i = 0; i < std::size(kCases); ++i) {
            SCOPED_TRACE(cat({device_name(device), " case ", i}));
            const Case& c = kCases[i];
            const StepDecision d = decide_on(device, c.loss_sum, c.squares, c.limits);
            EXPECT_EQ(static_cast<int>(d.verdict), static_cast<int>(c.verdict));
            EXPECT_EQ(d.grad_scale, static_cast<float>(c.grad_scale));
            const double loss = c.loss_sum / 4, norm = std::sqrt(c.squares);
            EXPECT_TRUE(d.loss == loss || (std::isnan(d.loss) && std::isnan(loss))) << d.loss;
            EXPECT_TRUE(d.grad_norm == norm || (std::isnan(d.grad_norm) && std::isnan(norm))) << d.grad_norm;
        }
    }
}

TEST(StepGuard, TheSameBitsOnEveryDeviceAndInstructionSet) {
    const Values losses = normal_values(50, 1, 3, 10), squares = normal_values(50, 2, 3, 20);
    for (size_t i = 0; i < losses.size(); ++i) {
        const GuardLimits limits{.num_targets = 7 + static_cast<double>(i), .clip = 0.7 + losses[i] / 100};
        const StepDecision expected =
            decide_step(losses[i] / limits.num_targets, std::sqrt(squares[i]), limits);
        const auto check = [&](Device device) {
            const StepDecision d = decide_on(device, losses[i], squares[i], limits);
            EXPECT_EQ(std::memcmp(&d, &expected, sizeof d), 0) << i << " on " << device_name(device);
        };
        for_each_isa([&] { check(Device::cpu); });
        for (Device device : gpus()) check(device);
    }
}

// A refused update leaves every byte as it was; an applied one takes the decision's scale.
TEST(StepGuard, UpdatesObeyIt) {
    constexpr int64_t kRows = 24, kCols = 40, kCount = kRows * kCols;
    const Values master = normal_values(kCount, 1), grad = normal_values(kCount, 2);
    enum class Update { by_argument, applied, refused };
    const auto run = [&](Device device, bool muon, Update update) {
        Guarded<float> w(master), m(Values(kCount, 0.5)), v(Values(kCount, 0.25)), g(grad);
        Guarded<bf16> param(master);
        const MuonMatrices matrices{.rows = kRows, .cols = kCols, .offsets = {0}};
        Guarded<uint8_t> scratch(muon_scratch_bytes(matrices, MatmulMath::f32, device)),
            decision(kDecisionBytes);
        const StepDecision decided{
            .loss = 1,
            .grad_norm = 1,
            .grad_scale = 0.37f,
            .verdict = update == Update::applied ? Verdict::apply : Verdict::outlier_gradient};
        std::memcpy(decision.data(), &decided, sizeof decided);
        OnDevice on(device);
        const Tensor given = update == Update::by_argument ? Tensor{} : on(decision.tensor());
        const float scale = update == Update::by_argument ? 0.37f : 100.0f;
        if (muon) {
            const MuonStep step{.lr = 0.02f,
                                .momentum = 0.95f,
                                .weight_decay = 0.1f,
                                .grad_scale = scale,
                                .rounding = {3, 4},
                                .first_index = 21,
                                .decision = given};
            muon_step(on(param.tensor()), on(w.tensor()), on(m.tensor()), on(g.tensor()), matrices, step,
                      MatmulMath::f32, on(scratch.tensor()));
        } else {
            const AdamWStep step{.lr = 1e-2f,
                                 .beta1 = 0.9f,
                                 .beta2 = 0.95f,
                                 .eps = 1e-8f,
                                 .weight_decay = 0.1f,
                                 .grad_scale = scale,
                                 .step = 3,
                                 .rounding = {3, 4},
                                 .first_index = 21,
                                 .decision = given};
            adamw_step(on(param.tensor()), on(w.tensor()), on(m.tensor()), on(v.tensor()), on(g.tensor()),
                       step);
        }
        on.fetch();
        return joined({param.bytes(), w.bytes(), m.bytes(), v.bytes()});
    };
    const auto before =
        joined({Guarded<bf16>(master).bytes(), Guarded<float>(master).bytes(),
                Guarded<float>(Values(kCount, 0.5)).bytes(), Guarded<float>(Values(kCount, 0.25)).bytes()});
    for (Device device : all_devices()) {
        for (bool muon : {false, true}) {
            SCOPED_TRACE(cat({device_name(device), muon ? " Muon" : " AdamW"}));
            EXPECT_TRUE(run(device, muon, Update::refused) == before);
            EXPECT_TRUE(run(device, muon, Update::applied) == run(device, muon, Update::by_argument));
            EXPECT_FALSE(run(device, muon, Update::applied) == before);
        }
    }
}

TEST(StepGuard, RefusesWrongArguments) {
    Guarded<uint8_t> decision(kDecisionBytes), shorter(kDecisionBytes - 8);
    Guarded<double> one(1), two(2);
    const auto run = [&](Tensor d, Tensor loss, Tensor squares, const GuardLimits& limits) {
        return check_failure([&] { guard_step(d, loss, squares, limits); });
    };
    expect_mentions(run(shorter.tensor(), one.tensor(), one.tensor(), {}), {"guard_step", "decision"});
    expect_mentions(run(decision.tensor(), two.tensor(), one.tensor(), {}), {"loss_sum"});
    expect_mentions(run(decision.tensor(), one.tensor(), two.tensor(), {}), {"squares"});
    expect_mentions(run(decision.tensor(), one.tensor(), one.tensor(), {.num_targets = 0}), {"num_targets"});
    expect_mentions(run(decision.tensor(), one.tensor(), one.tensor(), {.outlier_z = 0}), {"outlier_z"});
    Guarded<float> a(4), b(4), c(4), d(4);
    const AdamWStep step{.lr = 1,
                         .beta1 = 0,
                         .beta2 = 0,
                         .eps = 1,
                         .weight_decay = 0,
                         .grad_scale = 1,
                         .step = 1,
                         .rounding = {},
                         .first_index = 0,
                         .decision = shorter.tensor()};
    expect_mentions(
        check_failure([&] { adamw_step({}, a.tensor(), b.tensor(), c.tensor(), d.tensor(), step); }),
        {"adamw_step", "decision"});
}
