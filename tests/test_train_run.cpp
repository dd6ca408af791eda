// build/train and build/evaluate as a user runs them: the same bits for any threads, interruption and resume;
// what a run leaves behind; and that it learns.
#include <signal.h>

#include <cmath>

#include "model/safetensors.h"
#include "tests/toy_run.h"

namespace {

using Changes = std::vector<std::string>;

Changes operator+(Changes a, const Changes& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}

class TrainRun : public ToyRun {};

struct Arithmetic {
    const char* name;
    Changes changes;
};
const Arithmetic kArithmetics[] = {
    {"AdamW fp32", {}},
    {"AdamW bf16", {"--dtype", "bf16"}},
    {"Muon fp32", {"--optimizer", "muon"}},
    {"Muon bf16", {"--optimizer", "muon", "--dtype", "bf16"}},
    {"AdamW mixed", {"--dtype", "mixed"}},
};

}  // namespace

TEST_F(TrainRun, SameBitsForAnyNumberOfThreads) {
    for (const Arithmetic& a : kArithmetics) {
        SCOPED_TRACE(a.name);
        const std::string one = hash_of(fresh(), a.changes + Changes{"--threads", "1"});
        EXPECT_EQ(hash_of(fresh(), a.changes + Changes{"--threads", "2"}), one);
        EXPECT_EQ(hash_of(fresh(), a.changes + Changes{"--threads", "3"}), one);
        EXPECT_NE(hash_of(fresh(), a.changes + Changes{"--seed", "43"}), one)
            << "the hash must tell runs apart";
    }
}

TEST_F(TrainRun, TwentyStepsEqualTenAndTen) {
    for (const Arithmetic& a : kArithmetics) {
        SCOPED_TRACE(a.name);
        const std::string whole = hash_of(fresh(), a.changes);
        const std::string out = fresh();
        const Outcome half = train(out, a.changes + Changes{"--stop-at", "10"});
        EXPECT_NE(half.last_line().find("step=10 "), std::string::npos) << half.out;
        EXPECT_NE(weights(half), whole);
        const Outcome rest = train(out, a.changes + Changes{"--threads", "3"});
        EXPECT_NE(rest.err.find("resuming from " + out + "/step_00000010"), std::string::npos) << rest.err;
        EXPECT_EQ(weights(rest), whole);
    }
}

TEST_F(TrainRun, FinishedRunMayBeStartedAgain) {
    const std::string out = fresh();
    const std::string hash = hash_of(out, {"--steps", "5"});
    const std::string checkpoint = contents_of(out + "/step_00000005");
    EXPECT_EQ(hash_of(out, {"--steps", "5"}), hash);
    EXPECT_EQ(contents_of(out + "/step_00000005"), checkpoint);
}

// One step is 8 rows, in micro-batches of 1, 2, 4 and 8. Sums over rows are grouped otherwise, so losses
// differ by rounding: 1e-4 of a loss near 5 after 20 steps is some hundred times f32's precision, far below a
// wrong scale.
TEST_F(TrainRun, MicroBatchMovesTheLossByRoundingOnly) {
    double first = 0;
    for (const char* rows : {"8", "4", "2", "1"}) {
        const std::string out = fresh();
        ASSERT_EQ(train(out, {"--batch-tokens", "256", "--micro-batch", rows}).exit_code, 0);
        const double loss = log_lines(out, "step").back()["loss"];
        if (first == 0) first = loss;
        EXPECT_NEAR(loss, first, 1e-4) << "--micro-batch " << rows;
    }
}

TEST_F(TrainRun, SignalsLeaveACheckpointToContinueFrom) {
    const Changes changes = {"--steps", "150", "--val-data", path("shards/val_*.bin")};
    const std::string whole = hash_of(fresh(), changes);
    for (const int signal : {SIGTERM, SIGINT}) {
        SCOPED_TRACE(strsignal(signal));
        const std::string out = fresh();
        const Outcome stopped =
            train(out, changes, {.signal = signal, .signal_when = log_contains(out, "\"step\":7,")});
        ASSERT_EQ(stopped.exit_code, 128 + signal) << stopped.err;
        EXPECT_NE(stopped.err.find("stopped by signal " + std::to_string(signal)), std::string::npos);
        EXPECT_EQ(stopped.out, "") << "an interrupted run is not done";
        const int64_t last = log_lines(out, "step").back()["step"];
        ASSERT_LT(last, 150);
        EXPECT_NE(stopped.err.find("at step " + std::to_string(last)), std::string::npos) << stopped.err;
        EXPECT_EQ(hash_of(out, changes), whole);
        // Not a step twice: the checkpoint is of the very step that was last.
        EXPECT_EQ(log_lines(out, "step").size(), 150u);
    }
}

TEST_F(TrainRun, KilledRunContinuesFromItsNewestCheckpoint) {
    const Changes changes = {"--steps", "120", "--checkpoint-every", "5"};
    const std::string out = fresh(), whole = hash_of(fresh(), changes);
    // Three times, at arbitrary moments: within a step, within a checkpoint.
    for (const char* step : {"\"step\":12,", "\"step\":30,", "\"step\":55,"}) {
        const Outcome killed =
            train(out, changes, {.signal = SIGKILL, .signal_when = log_contains(out, step)});
        ASSERT_EQ(killed.signal, SIGKILL) << killed.err;
    }
    make_directories(out + "/step_00000999.tmp-1-elsewhere/trainer");  // what a writer on another host left
    const Outcome rest = train(out, changes);
    EXPECT_NE(rest.err.find("resuming from"), std::string::npos) << rest.err;
    EXPECT_EQ(weights(rest), whole);
    int64_t checkpoints = 0;
    for (const std::string& name : list_directory(out)) {
        EXPECT_EQ(name.find(".tmp-"), std::string::npos) << "left over: " << name;
        checkpoints += name.starts_with("step_");
    }
    EXPECT_EQ(checkpoints, 2) << "--keep";
}

TEST_F(TrainRun, DamagedNewestCheckpointIsPassedOver) {
    const Changes changes = {"--checkpoint-every", "5"};
    const std::string out = fresh(), whole = hash_of(fresh(), changes);
    ASSERT_EQ(train(out, changes + Changes{"--stop-at", "10"}).exit_code, 0);
    std::filesystem::resize_file(out + "/step_00000010/model.safetensors", 1000);
    const Outcome rest = train(out, changes);
    EXPECT_NE(rest.err.find("resuming from " + out + "/step_00000005"), std::string::npos) << rest.err;
    EXPECT_EQ(weights(rest), whole);
}

TEST_F(TrainRun, LeavesWhatItPromises) {
    const std::string out = fresh(), val = path("shards/val_*.bin");
    const Outcome run = train(out, {"--val-data", val, "--eval-every", "5", "--eval-batches", "2",
                                    "--sample-every", "10", "--sample-prompt", "the baker"});
    ASSERT_EQ(run.exit_code, 0) << run.err;
    const std::string line = run.last_line();
    EXPECT_TRUE(line.starts_with("train: done step=20 loss=")) << line;
    EXPECT_EQ(weights(run).size(), 32u) << line;

    const auto steps = log_lines(out, "step");
    ASSERT_EQ(steps.size(), 20u);
    for (size_t i = 0; i < steps.size(); ++i) {
        EXPECT_EQ(steps[i]["step"], i + 1);
        EXPECT_EQ(steps[i]["tokens"], (i + 1) * 4 * 32);
        for (const char* key : {"loss", "lr", "grad_norm", "ms", "tokens_per_s", "mfu"})
            EXPECT_GT(steps[i].value(key, -1.0), 0) << key << " of " << steps[i];
    }
    EXPECT_NEAR(steps[0]["loss"].get<double>(), std::log(512), 0.3) << "an untrained model knows nothing";
    const auto evals = log_lines(out, "eval");
    ASSERT_EQ(evals.size(), 4u);
    for (const auto& eval : evals) {
        EXPECT_GT(eval.value("val_loss", 0.0), 0) << eval;
        EXPECT_GT(eval.value("val_bpb", 0.0), 0) << eval;
    }
    EXPECT_EQ(log_lines(out, "sample").size(), 2u);
    EXPECT_TRUE(log_lines(out, "sample")[0]["text"].get<std::string>().starts_with("the baker"));
    EXPECT_GT(log_lines(out, "end").at(0)["plan_bytes"], 1000);

    int64_t event_bytes = 0;
    for (const std::string& name : list_directory(out))
        if (name.starts_with("events.out.tfevents.")) event_bytes += file_bytes(out + "/" + name);
    EXPECT_GT(event_bytes, 20 * 4 * 30) << "four scalars a step";
    for (const char* file : {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
                             "tokenizer_config.json", "trainer/state.json", "trainer/hashes.json"})
        EXPECT_TRUE(path_exists(out + "/step_00000020/" + file)) << file;

    const std::string report = read_file(out + "/report.html");
    for (const char* part : {"Loss", "Held-out bits per byte", "Tokens per second", "Learning rate",
                             "Gradient norm", "Samples", "Configuration", "Files", "the baker"})
        EXPECT_NE(report.find(part), std::string::npos) << part;
}

// The trainer's last evaluation, its checkpoint evaluated in the same shape, and in others. Each loss comes
// from the same f32 weights; another shape changes only how rows share kernels, hence 1e-6.
TEST_F(TrainRun, EvaluateAgreesWithTheTrainer) {
    const std::string out = fresh(), val = path("shards/val_*.bin");
    ASSERT_EQ(train(out, {"--val-data", val}).exit_code, 0);
    const auto trained = log_lines(out, "eval").back();
    const auto evaluate = [&](const char* rows, const char* threads) {
        const std::string reports = fresh("report");
        const Outcome outcome =
            run_program("evaluate", {"--model", out + "/step_00000020", "--data", val, "--seq-len", "32",
                                     "--micro-batch", rows, "--threads", threads, "--out", reports});
        EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
        return nlohmann::json::parse(read_file(reports + "/report.json"));
    };
    const auto same = evaluate("4", "1");
    EXPECT_EQ(same["loss"], trained["val_loss"]);
    EXPECT_EQ(same["bits_per_byte"], trained["val_bpb"]);
    EXPECT_EQ(same["tokens"], trained["val_tokens"]);
    EXPECT_NEAR(evaluate("7", "2")["loss"], trained["val_loss"], 1e-6);
    EXPECT_NEAR(evaluate("1", "2")["loss"], trained["val_loss"], 1e-6);
}

TEST_F(TrainRun, LearnsEachFamily) {
    for (const char* family : {"tiny-gpt2", "tiny-llama", "tiny-qwen2", "tiny-qwen3"}) {
        SCOPED_TRACE(family);
        const std::string out = fresh();
        const Outcome run = train(out, {"--init", family, "--steps", "100", "--warmup", "5", "--micro-batch",
                                        "8", "--val-data", path("shards/val_*.bin")});
        ASSERT_EQ(run.exit_code, 0) << run.err;
        // ln 512 = 6.2 at first; three of four tokens follow from the grammar.
        EXPECT_LT(log_lines(out, "step").back()["loss"], 2.0);
        EXPECT_LT(log_lines(out, "eval").back()["val_loss"], 2.0);
    }
}

TEST_F(TrainRun, TrainsOnFromAModelDirectory) {
    const std::string first = fresh(), second = fresh();
    ASSERT_EQ(train(first, {"--steps", "60"}).exit_code, 0);
    const std::string checkpoint = first + "/step_00000060";
    ASSERT_EQ(train(second, {"--init", checkpoint, "--steps", "2"}).exit_code, 0);
    EXPECT_LT(log_lines(second, "step")[0]["loss"], 3.0) << "began with the trained weights";
    EXPECT_EQ(read_file(second + "/step_00000002/tokenizer.json"), read_file(checkpoint + "/tokenizer.json"));
}

TEST_F(TrainRun, ReadsItsFlagsFromAFile) {
    const std::string out = fresh(), again = fresh(), config = path("run.toml");
    const std::string hash = hash_of(out, {"--steps", "3"});
    write_file_atomic(config, read_file(out + "/config.toml"));
    const Outcome run = run_program("train", {"--config", config, "--out", again});
    EXPECT_EQ(weights(run), hash) << run.err;
}

// A learning rate and a decay beyond reason blow the weights up until a product overflows. From then on every
// step is refused: counted, logged, never applied. So what is saved stays finite and the run still ends as
// runs do.
TEST_F(TrainRun, NonFiniteStepsAreSkippedAndCounted) {
    const std::string out = fresh();
    const Outcome run = train(out, {"--lr", "1000", "--weight-decay", "1000", "--schedule", "constant",
                                    "--val-data", path("shards/val_*.bin")});
    ASSERT_EQ(run.exit_code, 0) << run.err;
    int64_t num_skipped = 0;
    for (const auto& step : log_lines(out, "step")) {
        if (!step.contains("skipped")) continue;
        EXPECT_TRUE(step["skipped"] == "non-finite loss" || step["skipped"] == "non-finite gradient") << step;
        EXPECT_EQ(step["num_skipped"], ++num_skipped);
    }
    EXPECT_GT(num_skipped, 0);
    EXPECT_LT(num_skipped, 20) << "the first steps were sound";
    EXPECT_EQ(log_lines(out, "end").at(0)["num_skipped"], num_skipped);
    EXPECT_NE(run.err.find("skipped: non-finite"), std::string::npos);
    const SafetensorsFile weights(out + "/step_00000020/model.safetensors");
    for (const auto& [name, entry] : weights.entries()) {
        const auto* values = reinterpret_cast<const float*>(entry.data);
        for (int64_t i = 0; i < entry.bytes / 4; ++i)
            ASSERT_TRUE(std::isfinite(values[i])) << name << "[" << i << "] = " << values[i];
    }
}
