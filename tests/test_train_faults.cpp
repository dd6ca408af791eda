// Steps that go wrong: a run goes back to a checkpoint and leaves the samples out that made it refuse steps,
// and computes a step twice on demand.
#include <map>

#include "core/error.h"
#include "model/faults.h"
#include "tests/rank_run.h"

namespace {

class TrainFaults : public RankRun {
protected:
    // Sentences of the toy grammar, and among them documents of random ids, which a model that has learnt the
    // grammar is surprised by.
    static std::string shards_with_noise(const std::string& name) {
        const std::string directory = path(name);
        make_directories(directory);
        const Tokenizer tokenizer = Tokenizer::load(path("shards/tokenizer"));
        std::filesystem::copy(path("shards/tokenizer"), directory + "/tokenizer",
                              std::filesystem::copy_options::recursive);
        ShardWriter train(directory, "train", tokenizer.vocab_size(), tokenizer.eot());
        for (uint64_t i = 0; i < 200; ++i) {
            const std::string text = toy_document(5000 + i, 20);
            std::vector<int32_t> ids = tokenizer.encode(text);
            if (i % 100 == 60) {
                for (size_t k = 0; k < ids.size(); ++k)
                    ids[k] = static_cast<int32_t>(random_below({.seed = i, .stream = 9}, k, 250));
            }
            train.add_document(ids, static_cast<int64_t>(text.size()));
        }
        train.finish(
            {.tokenizer_hash = tokenizer.hash(), .tokenizer_path = "tokenizer", .source_manifest_hash = {}});
        return directory + "/train_*.bin";
    }
};

}  // namespace

TEST_F(TrainFaults, GoesBackAndStepsOverWhatIsRefused) {
    std::vector<std::string> changes = {
        "--train-data",
        shards_with_noise("noise"),
        "--steps",
        "200",
        "--seq-len",
        "32",
        "--micro-batch",
        "1",
        "--batch-tokens",
        "64",
        "--schedule",
        "constant",
        "--outlier-z",
        "6",
        "--rewind-after",
        "1",
        "--checkpoint-every",
        "20",
        "--keep",
        "0",
    };
    const std::string out = fresh();
    const Outcome alone = train_on(0, out, changes);
    ASSERT_EQ(alone.exit_code, 0) << alone.err;
    const auto rewinds = log_lines(out, "rewind");
    ASSERT_GT(rewinds.size(), 0u) << "the case must refuse steps";
    EXPECT_EQ(count(alone.err, ", leaving out samples "), static_cast<int64_t>(rewinds.size())) << alone.err;
    for (const auto& line : rewinds) {
        EXPECT_EQ(line["skips"], 1);
        EXPECT_EQ(line["to_step"].get<int64_t>() % 20, 0);
        EXPECT_LT(line["to_step"], line["step"]);
        EXPECT_EQ(line["end_sample"].get<int64_t>() - line["first_sample"].get<int64_t>(), 2) << "a step's";
    }
    // What was refused is gone: the last line of every step is one that was applied, and steps after the last
    // rewind have later samples than their numbers.
    std::map<int64_t, bool> skipped;
    for (const auto& line : log_lines(out, "step")) skipped[line["step"]] = line.contains("skipped");
    EXPECT_EQ(skipped.size(), 200u);
    EXPECT_EQ(std::count_if(skipped.begin(), skipped.end(), [](const auto& step) { return step.second; }), 0);
    EXPECT_EQ(log_lines(out, "end").back()["num_skipped"], 0);
    const auto state = nlohmann::json::parse(read_file(out + "/step_00000200/trainer/state.json"));
    EXPECT_EQ(state["stepped_over"].size(), rewinds.size());
    EXPECT_EQ(state["next_sample"], 2 * (200 + static_cast<int64_t>(rewinds.size())));

    // The same on other ranks, and resumed.
    for (const auto& [ranks, zero] : {std::pair{2, "0"}, {2, "3"}}) {
        std::vector<std::string> sharded = changes;
        sharded.insert(sharded.end(), {"--zero", zero});
        EXPECT_EQ(weights(train_on(ranks, fresh(), sharded)), weights(alone)) << ranks << " ranks, " << zero;
    }
    const std::string halves = fresh();
    std::vector<std::string> half = changes;
    half.insert(half.end(), {"--stop-at", cat({rewinds[0]["step"].get<int64_t>() + 1})});
    EXPECT_EQ(train_on(0, halves, half).exit_code, 0);
    EXPECT_EQ(weights(train_on(0, halves, changes)), weights(alone));
}

TEST_F(TrainFaults, WithoutACheckpointARunGoesOn) {
    const std::vector<std::string> changes = {"--lr",           "1000",     "--weight-decay", "1000",
                                              "--schedule",     "constant", "--steps",        "12",
                                              "--rewind-after", "2"};
    const std::string out = fresh();
    const Outcome outcome = train_on(0, out, changes);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_EQ(count(outcome.err, "there is no checkpoint to go back to"), 1) << outcome.err;
    EXPECT_EQ(log_lines(out, "rewind").size(), 0u);
    EXPECT_GT(log_lines(out, "end").back()["num_skipped"], 1);
}

TEST_F(TrainFaults, AReplayedStepHasTheSameBitsAndChangesNothing) {
    const std::string plain = weights(train_on(0, fresh()));
    for (const auto& [ranks, zero] : {std::pair{0, "0"}, {3, "0"}, {2, "2"}}) {
        const std::string out = fresh();
        const Outcome outcome = train_on(ranks, out, {"--replay-step", "3", "--zero", zero});
        EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
        EXPECT_EQ(weights(outcome), plain);
        const auto lines = log_lines(out, "replay");
        ASSERT_EQ(lines.size(), 1u);
        EXPECT_EQ(lines[0]["step"], 3);
        EXPECT_EQ(lines[0]["gradient"].get<std::string>().size(), 32u);
    }
}

TEST_F(TrainFaults, AReplayWithOtherBitsIsAFault) {
    RunLog nowhere("");
    check_replay({2.5, "abc"}, {2.5, "abc"}, 3, nowhere);
    EXPECT_THROW(check_replay({2.5, "abc"}, {2.5, "abd"}, 3, nowhere), InternalError);
    EXPECT_THROW(check_replay({2.5, "abc"}, {2.6, "abc"}, 3, nowhere), InternalError);
}

TEST_F(TrainFaults, CheckpointsOfMultiplesStayForGood) {
    const std::string out = fresh();
    ASSERT_EQ(
        train_on(0, out, {"--steps", "13", "--checkpoint-every", "2", "--keep", "2", "--keep-every", "6"})
            .exit_code,
        0);
    std::vector<std::string> names;
    for (const std::string& name : list_directory(out))
        if (name.starts_with("step_")) names.push_back(name);
    EXPECT_EQ(names, (std::vector<std::string>{"step_00000006", "step_00000012", "step_00000013"}));
}
