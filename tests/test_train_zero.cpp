// ZeRO stages 1 to 3 of build/train: the bits of one rank alone, checkpoints for any other stage and number
// of ranks, and what they are for: less memory on each rank, for bytes on the wire that follow the formulas.
#include "core/error.h"
#include "model/hf.h"
#include "model/step_gradient.h"
#include "tests/rank_run.h"
#include "tests/tiny_model.h"

namespace {

class TrainZero : public RankRun {
protected:
    static std::vector<std::string> stage(int zero, std::vector<std::string> changes = {}) {
        changes.insert(changes.end(), {"--zero", std::to_string(zero)});
        return changes;
    }
};

}  // namespace

TEST_F(TrainZero, AnyStageAndNumberGivesTheBitsOfOneRank) {
    const std::string val = path("shards/val_*.bin");
    const std::vector<std::string> cases[] = {
        {"--val-data", val, "--eval-every", "2", "--eval-batches", "5"},
        // Tied head, LayerNorm; whole matrices; the bf16 copy; a tree of every micro-batch.
        {"--init", "tiny-gpt2", "--dtype", "bf16", "--optimizer", "muon", "--deterministic-reduce", "6"},
        // One part of all micro-batches: owners add up what others compute.
        {"--init", "tiny-qwen3", "--dtype", "bf16", "--recompute", "block", "--deterministic-reduce", "4"},
    };
    for (const std::vector<std::string>& changes : cases) {
        const std::string alone = fresh();
        const Outcome expected = train_on(0, alone, changes);
        ASSERT_EQ(expected.exit_code, 0) << expected.err;
        std::vector<std::string> steps = steps_of(alone);
        for (int zero = 1; zero <= 3; ++zero) {
            for (const int ranks : {0, 2, 3, 4}) {
                SCOPED_TRACE(cat({"stage ", zero, ", ", ranks, " ranks"}));
                const std::string out = fresh();
                const Outcome outcome = train_on(ranks, out, stage(zero, changes));
                ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
                EXPECT_EQ(outcome.out, expected.out);
                std::vector<std::string> own = steps_of(out);
                if (zero == 3)
                    std::erase_if(own, [](const std::string& line) { return count(line, "sample") > 0; });
                std::vector<std::string> theirs = steps;
                if (zero == 3)
                    std::erase_if(theirs, [](const std::string& line) { return count(line, "sample") > 0; });
                EXPECT_EQ(own, theirs);
            }
        }
    }
}

// More ranks than parts: only stages 2 and 3 can.
TEST_F(TrainZero, DealtMicroBatchesNeedNoPartEach) {
    const std::vector<std::string> changes = {"--deterministic-reduce", "1"};
    const std::string expected = weights(train_on(0, fresh(), changes));
    EXPECT_EQ(weights(train_on(5, fresh(), stage(2, changes))), expected);
    const Outcome refused = train_on(2, fresh(), stage(1, changes));
    EXPECT_EQ(refused.exit_code, 2);
    EXPECT_NE(refused.err.find("--deterministic-reduce: expected at least 2, got 1"), std::string::npos);
}

TEST_F(TrainZero, ResumedAtAnyOtherStageAndNumber) {
    for (const std::vector<std::string>& changes :
         {std::vector<std::string>{}, {"--init", "tiny-gpt2", "--dtype", "bf16", "--optimizer", "muon"}}) {
        const std::string whole = weights(train_on(0, fresh(), changes));
        struct Half {
            int ranks, zero;
        };
        for (const auto& [before, after] : {std::pair<Half, Half>{{4, 3}, {0, 0}},
                                            {{4, 3}, {2, 3}},
                                            {{4, 3}, {3, 3}},
                                            {{4, 3}, {2, 1}},
                                            {{2, 2}, {4, 3}},
                                            {{0, 0}, {3, 2}},
                                            {{3, 1}, {4, 0}}}) {
            SCOPED_TRACE(cat({before.ranks, " ranks, stage ", before.zero, ", then ", after.ranks,
                              " ranks, stage ", after.zero}));
            const std::string out = fresh();
            std::vector<std::string> first = stage(before.zero, changes);
            first.insert(first.end(), {"--stop-at", "3"});
            const Outcome half = train_on(before.ranks, out, first);
            ASSERT_EQ(half.exit_code, 0) << half.err;
            const Outcome rest = train_on(after.ranks, out, stage(after.zero, changes));
            EXPECT_NE(rest.err.find("resuming from " + out + "/step_00000003"), std::string::npos)
                << rest.err;
            EXPECT_EQ(weights(rest), whole);
        }
    }
}

// A checkpoint's bytes know neither stage nor ranks.
TEST_F(TrainZero, CheckpointsAreTheSameFiles) {
    for (const std::vector<std::string>& changes :
         {std::vector<std::string>{}, {"--init", "tiny-gpt2", "--dtype", "bf16", "--optimizer", "muon"}}) {
        const auto files = [&](int ranks, int zero) {
            std::vector<std::string> all = stage(zero, changes);
            const std::string out = fresh();
            // Two of them in the background, the last one at the end.
            all.insert(all.end(), {"--checkpoint-every", "2", "--keep", "0"});
            const Outcome outcome = train_on(ranks, out, all);
            EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
            std::string hashes;
            for (const int step : {2, 4, 6}) {
                for (const char* file :
                     {"model.safetensors", "trainer/m.safetensors", "trainer/v.safetensors"})
                    hashes += sha256_file(cat({out, "/step_0000000", step, "/", file})) + "\n";
            }
            return hashes;
        };
        const std::string expected = files(0, 0);
        for (const auto& [ranks, zero] : {std::pair{3, 0}, {2, 1}, {4, 2}, {3, 3}})
            EXPECT_EQ(files(ranks, zero), expected) << ranks << " ranks, stage " << zero;
    }
}

// What rank 0 sends in a step, by the table's sizes alone.
TEST_F(TrainZero, BytesOnTheWireFollowTheFormulas) {
    constexpr int kRanks = 3;
    constexpr int64_t kMicroBatches = 6, kOthers = kRanks - 1;
    const ModelConfig config = config_preset("tiny-llama");
    const ParamTable table(config);
    const int64_t layers = config.num_layers;
    ASSERT_FALSE(config.tied_head);
    for (const std::string dtype : {"fp32", "bf16"}) {
        const int64_t weight = dtype == "bf16" ? 2 : 4;
        for (int zero = 0; zero <= 3; ++zero) {
            SCOPED_TRACE(cat({"stage ", zero, " ", dtype}));
            const std::string out = fresh();
            ASSERT_EQ(train_on(kRanks, out, stage(zero, {"--dtype", dtype})).exit_code, 0);
            const Sharding sharding(table, false, zero, kRanks);
            const auto own = [&](int64_t unit) { return sharding.split(unit).count(0); };
            int64_t all_own = 0;
            for (int64_t unit = 0; unit < table.num_units(); ++unit) all_own += own(unit);
            const int64_t of_others = table.arena_size() - all_own;
            // Four numbers that all agree on, a loss of each micro-batch, a norm of each chunk.
            int64_t expected = kOthers * 8 * (4 + kMicroBatches);
            if (zero > 0) expected += kOthers * 8 * static_cast<int64_t>(chunks_of(table, false).size());
            // Gradients to their owners: the sums of a rank's parts, or those of each of its micro-batches.
            const StepParts parts = StepParts::of(kMicroBatches, 4, kRanks, zero >= 2);
            const int64_t arrays = zero >= 2 ? parts.count(0) : static_cast<int64_t>(parts.sums(0).size());
            expected += arrays * of_others * 4;
            if (zero == 0) expected += kOthers * all_own * 4;                    // sums to everybody
            if (zero == 1 || zero == 2) expected += kOthers * all_own * weight;  // new weights to everybody
            if (zero == 3) {
                // Of each of two rounds: all units forward, and backward the layers below the last two, which
                // are still there. The second round finds the first two layers there.
                int64_t gathered = 2 * all_own - own(1) - own(2);
                for (int64_t unit = 1; unit <= layers - 2; ++unit) gathered += 2 * own(unit);
                expected += kOthers * gathered * weight;
            }
            for (const auto& line : log_lines(out, "step")) EXPECT_EQ(line["sent_bytes"], expected) << line;
        }
    }
}

// Resident memory, as the kernel counts it, beside that of the same run of a model of no size.
TEST_F(TrainZero, TwoRanksOfStageThreeHoldHalfTheStateEach) {
#if defined(__SANITIZE_ADDRESS__)
    GTEST_SKIP() << "ASan keeps freed memory";
#endif
    // Deep and narrow: what is gathered is two layers, as in a large model, and not most of it.
    ModelConfig config = config_preset("tiny-llama");
    config.num_layers = 48, config.channels = 192, config.num_heads = 12, config.num_kv_heads = 12;
    config.mlp_dim = 512;
    const TinyModel model(config, DType::f32, 1);
    const std::string directory = path("deep");
    make_directories(directory);
    save_hf_model(directory, model.table, config, model.params(), "");
    const auto resident = [&](int ranks, int zero, const std::string& init) {
        const std::string out = fresh();
        const Outcome outcome =
            train_on(ranks, out,
                     stage(zero, {"--init", init, "--steps", "2", "--batch-tokens", "64",
                                  "--deterministic-reduce", "2", "--sample-tokens", "0"}));
        EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
        const double bytes = log_lines(out, "end").back()["peak_rss_bytes"];
        std::filesystem::remove_all(out);
        return bytes;
    };
    const double alone = resident(0, 0, directory) - resident(0, 0, "tiny-llama");
    const double one_of_two = resident(2, 3, directory) - resident(2, 3, "tiny-llama");
    const double state = 16.0 * static_cast<double>(model.table.num_params());
    EXPECT_GT(alone, 0.95 * state);
    EXPECT_LE(one_of_two, 0.55 * alone);
    std::printf("state %.0f MB; alone %.0f MB, one of two ranks with stage 3 %.0f MB: %.1f %%\n", state / 1e6,
                alone / 1e6, one_of_two / 1e6, 100 * one_of_two / alone);
}
