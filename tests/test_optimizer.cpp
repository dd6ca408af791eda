// The update as a whole: against a plain float64 AdamW over a real parameter table, the guard, clipping, the
// outlier window, the schedule. (The kernels' own tests hold their arithmetic to account.)
#include "model/optimizer.h"

#include <gtest/gtest.h>

#include <cstring>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/error.h"
#include "core/threads.h"
#include "kernels/adamw.h"
#include "model/config.h"
#include "tests/fake_comm.h"

namespace {

struct TinyModel {
    ModelConfig config;
    ParamTable table{config};
    std::vector<float> params = std::vector<float>(static_cast<size_t>(table.arena_size()));
    std::vector<float> grads = params;

    explicit TinyModel(const char* preset = "tiny-llama") : config(config_preset(preset)) {
        init_params(table, arena(), 7);
        for (const ParamInfo& row : table.rows()) {
            for (int64_t i = 0; i < row.size(); ++i) {
                grads[static_cast<size_t>(row.offset + i)] =
                    0.01f * random_normal({11, 3}, static_cast<uint64_t>(row.offset + i));
            }
        }
    }
    Tensor arena() const { return tensor_of(params.data(), table.arena_size()); }
    Tensor grad_arena() const { return tensor_of(grads.data(), table.arena_size()); }
    double grad_norm() const {
        double sum = 0;
        for (float g : grads) sum += static_cast<double>(g) * g;
        return std::sqrt(sum);
    }
};

TEST(Optimizer, AdamWMatchesFloat64OverTheWholeTable) {
    TinyModel s;
    const OptimizerConfig config{
        .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .grad_clip = 0.25};
    std::vector<double> p(s.params.begin(), s.params.end()), m(p.size()), v(p.size());
    Optimizer optimizer(s.table, config, s.arena(), MatmulMath::f32);
    const double lr = 1e-2, scale = std::min(1.0, 0.25 / (s.grad_norm() + 1e-6));
    ASSERT_LT(scale, 1.0) << "the case must exercise clipping";
    for (int t = 1; t <= 3; ++t) {
        const StepResult result = optimizer.step(s.grad_arena(), lr, 2.0);
        ASSERT_TRUE(result.applied);
        EXPECT_NEAR(result.grad_norm, s.grad_norm(), 1e-9 * s.grad_norm());
        for (const ParamInfo& row : s.table.rows()) {
            for (int64_t i = row.offset; i < row.offset + row.size(); ++i) {
                const size_t k = static_cast<size_t>(i);
                const double g = s.grads[k] * scale;
                m[k] = 0.9 * m[k] + 0.1 * g;
                v[k] = 0.95 * v[k] + 0.05 * g * g;
                const double update =
                    m[k] / (1 - std::pow(0.9, t)) / (std::sqrt(v[k] / (1 - std::pow(0.95, t))) + 1e-8);
                p[k] -= lr * (update + (row.decay ? 0.1 : 0.0) * p[k]);
            }
        }
    }
    double worst = 0;
    for (size_t k = 0; k < p.size(); ++k) worst = std::max(worst, std::abs(p[k] - s.params[k]));
    // Three updates of size lr in f32: each rounds its own 1e-2 to about 1e-9 and the sum (below 2)
    // to 1.2e-7.
    EXPECT_LT(worst, 1e-6);
}

TEST(Optimizer, PaddingStaysZero) {
    TinyModel s;
    Optimizer optimizer(s.table, {}, s.arena(), MatmulMath::f32);
    optimizer.step(s.grad_arena(), 1e-2, 1.0);
    std::vector<bool> used(s.params.size());
    for (const ParamInfo& row : s.table.rows()) {
        for (int64_t i = 0; i < row.size(); ++i) used[static_cast<size_t>(row.offset + i)] = true;
    }
    for (size_t k = 0; k < used.size(); ++k) {
        if (!used[k]) {
            ASSERT_EQ(s.params[k], 0.0f) << k;
        }
    }
}

TEST(Optimizer, MuonTakesHiddenMatricesOnly) {
    TinyModel by_muon, by_adamw;
    Optimizer muon(by_muon.table, {.muon = true}, by_muon.arena(), MatmulMath::f32);
    Optimizer adamw(by_adamw.table, {}, by_adamw.arena(), MatmulMath::f32);
    muon.step(by_muon.grad_arena(), 1e-2, 1.0);
    adamw.step(by_adamw.grad_arena(), 1e-2, 1.0);
    int64_t matrices = 0;
    for (const ParamInfo& row : by_muon.table.rows()) {
        const auto begin = by_muon.params.begin() + row.offset;
        const bool equal = std::equal(begin, begin + row.size(), by_adamw.params.begin() + row.offset);
        EXPECT_EQ(equal, !row.muon) << row.hf_name;
        matrices += row.muon;
    }
    EXPECT_EQ(matrices, 7 * by_muon.config.num_layers);  // q k v o gate up down
}

// GPT-2's q, k and v are one tensor and three matrices.
TEST(Optimizer, MuonTakesEachBlockOfAFusedMatrix) {
    TinyModel before("tiny-gpt2"), plain("tiny-gpt2"), other_k("tiny-gpt2");
    for (const ParamInfo& row : plain.table.rows()) {
        if (row.muon_blocks != 3) continue;
        const auto k = other_k.grads.begin() + row.offset + row.size() / 3;
        std::reverse(k, k + row.size() / 3);
    }
    for (TinyModel* s : {&plain, &other_k}) {
        Optimizer optimizer(s->table, {.muon = true, .grad_clip = 0}, s->arena(), MatmulMath::f32);
        optimizer.step(s->grad_arena(), 1e-2, 1.0);
    }
    for (const ParamInfo& row : plain.table.rows()) {
        if (row.muon_blocks != 3) continue;
        for (int64_t block = 0; block < 3; ++block) {
            const int64_t size = row.size() / 3, begin = row.offset + block * size;
            const auto now = plain.params.begin() + begin;
            EXPECT_FALSE(std::equal(now, now + size, before.params.begin() + begin)) << row.hf_name << block;
            EXPECT_EQ(std::equal(now, now + size, other_k.params.begin() + begin), block != 1)
                << row.hf_name << block;
        }
    }
}

class Guard : public testing::TestWithParam<const char*> {};

TEST_P(Guard, SkippedStepChangesNothingAndIsCounted) {
    const std::string reason = GetParam();
    TinyModel s;
    Optimizer optimizer(s.table, {.outlier_z = 4}, s.arena(), MatmulMath::f32);
    for (int i = 0; i < OutlierWindow::kSize; ++i) {
        optimizer.loss_window().add(2.0 + 0.01 * (i % 5));
        optimizer.norm_window().add(s.grad_norm() * (1 + 0.01 * (i % 5)));
    }
    double loss = 2.0;
    if (reason == "non-finite loss") loss = std::numeric_limits<double>::quiet_NaN();
    if (reason == "outlier loss") loss = 3.0;
    if (reason == "non-finite gradient") s.grads[5] = std::numeric_limits<float>::infinity();
    if (reason == "outlier gradient") {
        for (float& g : s.grads) g *= 3;
    }
    const std::vector<float> before = s.params;
    std::vector<double> window = optimizer.loss_window().values();
    const StepResult result = optimizer.step(s.grad_arena(), 1e-2, loss);
    EXPECT_FALSE(result.applied);
    EXPECT_EQ(result.reason, reason);
    EXPECT_EQ(s.params, before);
    EXPECT_EQ(optimizer.num_skipped(), 1);
    EXPECT_EQ(optimizer.num_updates(), 0);
    EXPECT_EQ(optimizer.skips_in_a_row(), 1);
    if (std::isfinite(loss)) {
        window.erase(window.begin());
        window.push_back(loss);
    }
    EXPECT_EQ(optimizer.loss_window().values(), window) << "what is finite enters, so that the window moves";
    for (int64_t i = 0; i < s.table.arena_size(); ++i) ASSERT_EQ(optimizer.moment1().as<float>()[i], 0.0f);
}
INSTANTIATE_TEST_SUITE_P(Reasons, Guard,
                         testing::Values("non-finite loss", "outlier loss", "non-finite gradient",
                                         "outlier gradient"));

// A loss that has moved for good is refused at first, not for ever.
TEST(Optimizer, TheWindowFollowsALossThatHasMoved) {
    TinyModel s;
    Optimizer optimizer(s.table, {.outlier_z = 4}, s.arena(), MatmulMath::f32);
    for (int i = 0; i < OutlierWindow::kSize; ++i) {
        optimizer.loss_window().add(2.0 + 0.01 * (i % 5));
        optimizer.norm_window().add(s.grad_norm() * (1 + 0.01 * (i % 5)));
    }
    EXPECT_STREQ(optimizer.step(s.grad_arena(), 1e-6, 3.0).reason, "outlier loss");
    int64_t skipped = 1;
    while (skipped < 100 && !optimizer.step(s.grad_arena(), 1e-6, 3.0).applied) ++skipped;
    EXPECT_LT(skipped, 30);  // z of 3.0 falls below 4 once a seventeenth of the window is there
    EXPECT_EQ(optimizer.num_skipped(), skipped);
    EXPECT_EQ(optimizer.skips_in_a_row(), 0);
}

// Its square is beyond f32: the second moment would be infinite and the weight after it NaN.
TEST(Optimizer, AGradientWhoseSquareOverflowsIsNonFinite) {
    for (const float huge : {1e20f, 1.9e19f, 3e38f}) {
        TinyModel s;
        s.grads[5] = huge;
        Optimizer optimizer(s.table, {.grad_clip = 0}, s.arena(), MatmulMath::f32);
        const std::vector<float> before = s.params;
        EXPECT_STREQ(optimizer.step(s.grad_arena(), 1e-2, 2.0).reason, "non-finite gradient") << huge;
        EXPECT_EQ(s.params, before);
        // Clipped it is an ordinary direction.
        Optimizer clipped(s.table, {.grad_clip = 1}, s.arena(), MatmulMath::f32);
        EXPECT_TRUE(clipped.step(s.grad_arena(), 1e-2, 2.0).applied) << huge;
        for (const float p : s.params) ASSERT_TRUE(std::isfinite(p));
    }
    TinyModel s;
    s.grads[5] = 1e19f;
    Optimizer optimizer(s.table, {.beta2 = 0.999999, .grad_clip = 0}, s.arena(), MatmulMath::f32);
    for (int i = 0; i < 5; ++i) ASSERT_TRUE(optimizer.step(s.grad_arena(), 1e-2, 2.0).applied);
    for (int64_t i = 0; i < s.table.arena_size(); ++i) {
        ASSERT_TRUE(std::isfinite(s.params[static_cast<size_t>(i)])) << i;
        ASSERT_TRUE(std::isfinite(optimizer.moment2().as<float>()[i])) << i;
    }
}

// Initialisation draws from the streams 0, 1, 2, ... of the seed, one a tensor. Rounding must not draw the
// same numbers again.
TEST(Optimizer, RoundingHasRandomStreamsOfItsOwn) {
    TinyModel s;
    const uint64_t seed = 7;
    std::vector<bf16> params(s.params.size());
    Optimizer optimizer(s.table, {.weight_decay = 0, .grad_clip = 0, .seed = seed},
                        tensor_of(params.data(), s.table.arena_size()), MatmulMath::f32);
    std::copy(s.params.begin(), s.params.end(), optimizer.master().as<float>());
    ASSERT_TRUE(optimizer.step(s.grad_arena(), 1e-2, 2.0).applied);
    const int64_t size = s.table.rows()[0].size();
    const auto rounded_by = [&](uint64_t stream) {
        std::vector<float> master(s.params), m(s.params.size()), v(s.params.size());
        std::vector<bf16> rounded(s.params.size());
        adamw_step(tensor_of(rounded.data(), size), tensor_of(master.data(), size), tensor_of(m.data(), size),
                   tensor_of(v.data(), size), tensor_of(s.grads.data(), size),
                   {.lr = 1e-2f,
                    .beta1 = 0.9f,
                    .beta2 = 0.95f,
                    .eps = 1e-8f,
                    .weight_decay = 0,
                    .grad_scale = 1,
                    .step = 1,
                    .rounding = {seed, stream},
                    .first_index = 0});
        int64_t same = 0;
        for (int64_t i = 0; i < size; ++i)
            same += rounded[static_cast<size_t>(i)].bits == params[static_cast<size_t>(i)].bits;
        return same;
    };
    EXPECT_EQ(rounded_by((uint64_t{1} << 32) + 1), size);
    EXPECT_LT(rounded_by(1), size * 9 / 10);
}

TEST(Optimizer, SameBitsForAnyNumberOfThreads) {
    const int threads_before = num_threads();
    for (const bool muon : {false, true}) {
        std::vector<std::vector<float>> results;
        for (int threads : {1, 2, 3}) {
            set_num_threads(threads);
            TinyModel s;
            std::vector<bf16> params(s.params.size());
            Optimizer optimizer(s.table, {.muon = muon}, tensor_of(params.data(), s.table.arena_size()),
                                MatmulMath::bf16);
            std::copy(s.params.begin(), s.params.end(), optimizer.master().as<float>());
            optimizer.publish_master();
            for (int t = 0; t < 3; ++t) optimizer.step(s.grad_arena(), 1e-2, 2.0);
            std::vector<float> all(optimizer.master().as<float>(),
                                   optimizer.master().as<float>() + s.table.arena_size());
            for (bf16 p : params) all.push_back(to_float(p));
            results.push_back(all);
        }
        EXPECT_EQ(results[0], results[1]);
        EXPECT_EQ(results[0], results[2]);
    }
    set_num_threads(threads_before);
}

TEST(OutlierWindow, SilentUntilFullThenScoresAndRestores) {
    OutlierWindow window;
    for (int i = 0; i < OutlierWindow::kSize; ++i) {
        EXPECT_EQ(window.spread().deviation, 0) << "nothing is an outlier yet";
        window.add(i % 2 ? 1.0 : -1.0);
    }
    EXPECT_EQ(window.spread().mean, 0);
    EXPECT_DOUBLE_EQ(window.spread().deviation, 1);
    for (int i = 0; i < 5; ++i) window.add(0.5 * i);
    OutlierWindow restored;
    restored.restore(window.values());
    EXPECT_EQ(restored.values(), window.values());
    restored.add(9), window.add(9);
    EXPECT_EQ(restored.values(), window.values());
}

TEST(Schedule, EndsAndMiddles) {
    const Schedule cosine{.name = "cosine", .lr = 1.0, .final_frac = 0.1, .warmup = 10, .num_steps = 110};
    EXPECT_DOUBLE_EQ(cosine.at(0), 0.1);
    EXPECT_DOUBLE_EQ(cosine.at(9), 1.0);
    EXPECT_DOUBLE_EQ(cosine.at(10), 1.0);
    EXPECT_NEAR(cosine.at(60), 0.55, 1e-12);
    EXPECT_NEAR(cosine.at(110), 0.1, 1e-12);
    EXPECT_NEAR(cosine.at(500), 0.1, 1e-12) << "past the end it stays";
    const Schedule linear{.name = "linear", .lr = 2.0, .final_frac = 0, .warmup = 0, .num_steps = 100};
    EXPECT_DOUBLE_EQ(linear.at(25), 1.5);
    const Schedule wsd{.name = "wsd", .lr = 1.0, .final_frac = 0, .warmup = 0, .num_steps = 100};
    EXPECT_DOUBLE_EQ(wsd.at(79), 1.0);
    EXPECT_NEAR(wsd.at(85), 0.5, 1e-12);
    EXPECT_DOUBLE_EQ((Schedule{.name = "constant", .lr = 3.0}).at(12345), 3.0);
    // The last step that is taken is one before the value at the end.
    EXPECT_NEAR(cosine.at(109), 0.1 + 0.9 * 0.5 * (1 + std::cos(M_PI * 0.99)), 1e-12);
    EXPECT_NEAR(wsd.at(99), 1 - std::sqrt(0.95), 1e-12);
    EXPECT_NEAR(wsd.at(100), 0, 1e-12);
    EXPECT_THROW((Schedule{.name = "cosin"}).at(5), InputError);
}

// Warm-up past 80 %: the decay begins where the warm-up ends, without a jump.
TEST(Schedule, WsdWithALongWarmup) {
    const Schedule wsd{.name = "wsd", .lr = 1.0, .final_frac = 0, .warmup = 90, .num_steps = 100};
    EXPECT_DOUBLE_EQ(wsd.at(44), 0.5);
    EXPECT_DOUBLE_EQ(wsd.at(89), 1.0);
    EXPECT_DOUBLE_EQ(wsd.at(90), 1.0);
    EXPECT_NEAR(wsd.at(95), 1 - std::sqrt(0.5), 1e-12);
    const Schedule all{.name = "wsd", .lr = 1.0, .final_frac = 0.5, .warmup = 10, .num_steps = 10};
    EXPECT_DOUBLE_EQ(all.at(9), 1.0);
    EXPECT_DOUBLE_EQ(all.at(10), 0.5);
}

TEST(Schedule, FewStepsGiveRatesWithinTheirBounds) {
    for (const char* name : {"cosine", "linear", "constant", "wsd"}) {
        for (int64_t steps = 1; steps <= 10; ++steps) {
            for (int64_t warmup = 0; warmup <= steps; ++warmup) {
                const Schedule s{
                    .name = name, .lr = 1.0, .final_frac = 0.1, .warmup = warmup, .num_steps = steps};
                for (int64_t step = 0; step <= steps; ++step) {
                    EXPECT_GT(s.at(step), 0) << name << " " << step << "/" << steps << " warm-up " << warmup;
                    EXPECT_LE(s.at(step), 1) << name << " " << step << "/" << steps << " warm-up " << warmup;
                    if (step <= warmup) continue;
                    EXPECT_LE(s.at(step), s.at(step - 1)) << name << " " << step;
                }
            }
        }
    }
    const auto last = [](int64_t steps) {
        return Schedule{.name = "wsd", .lr = 1.0, .final_frac = 0, .warmup = 0, .num_steps = steps}.at(steps -
                                                                                                       1);
    };
    EXPECT_EQ(last(5), 1.0);  // as the header says: too short for a decay
    EXPECT_LT(last(6), 0.6);
}

}  // namespace

// Each of three ranks updates its own part, cut in the middle of rows, to the bits that one alone gives it.
TEST(ShardedOptimizer, PartsHaveTheBitsOfTheWhole) {
    ModelConfig config = config_preset("tiny-gpt2");
    config.vocab_size = 5000;  // rows of several chunks
    for (const bool muon : {false, true}) {
        for (const DType dtype : {DType::f32, DType::bf16}) {
            const ParamTable table(config);
            const int64_t size = table.arena_size();
            const OptimizerConfig optimizing{.muon = muon, .grad_clip = 0, .seed = 3};
            const auto grads_of = [&](uint64_t step) {
                std::vector<float> grads(static_cast<size_t>(size));
                for (const ParamInfo& row : table.rows())
                    for (int64_t i = row.offset; i < row.offset + row.size(); ++i)
                        grads[static_cast<size_t>(i)] = random_normal({step, 7}, static_cast<uint64_t>(i));
                return grads;
            };
            Buffer params(size * dtype_bytes(dtype));
            Optimizer whole(table, optimizing, params.tensor(dtype), MatmulMath::f32);
            init_params(table, whole.master(), 1);
            whole.publish_master();
            for (uint64_t step = 0; step < 3; ++step) {
                const std::vector<float> grads = grads_of(step);
                whole.step(tensor_of(grads.data(), size), 1e-2, 3.0);
            }
            for (int rank = 0; rank < 3; ++rank) {
                SCOPED_TRACE(cat({muon ? "Muon " : "AdamW ", dtype_name(dtype), " rank ", rank}));
                const Sharding sharding(table, muon, 3, 3);
                FakeComm comm(rank, 3);
                Buffer own(sharding.own_size(rank) * dtype_bytes(dtype));
                Optimizer part(table, optimizing, sharding.held(own.tensor(dtype), rank, 3), MatmulMath::f32,
                               sharding, comm);
                init_params(table, part.master_part(), 1);
                part.publish_master();
                for (uint64_t step = 0; step < 3; ++step) {
                    const std::vector<float> grads = grads_of(step);
                    part.step(ArenaPart(tensor_of(grads.data(), size), sharding.own(rank), true), 1e-2, 3.0);
                }
                const std::pair<ArenaPart, Tensor> pairs[] = {{part.params_part(), params.tensor(dtype)},
                                                              {part.master_part(), whole.master()},
                                                              {part.moment1_part(), whole.moment1()},
                                                              {part.moment2_part(), whole.moment2()}};
                bool cut = false;
                for (const ParamInfo& row : table.rows()) {
                    for (const auto& [parts, all] : pairs) {
                        parts.for_each_piece(row.offset, row.offset + row.size(),
                                             [&](Tensor piece, int64_t at) {
                                                 const Tensor expected = all.rows(at, piece.size());
                                                 EXPECT_EQ(std::memcmp(piece.data, expected.data,
                                                                       static_cast<size_t>(piece.bytes())),
                                                           0)
                                                     << row.hf_name << " from " << at;
                                                 cut = cut || piece.size() < row.size();
                                             });
                    }
                }
                EXPECT_TRUE(cut) << "the case must cut a row";
            }
        }
    }
}
