// build/train and build/evaluate as a user runs them: the same bits for any threads, interruption and resume;
// what a run leaves behind; and that it learns.
#include <signal.h>

#include <cmath>

#include "core/stop.h"
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
    // 75 asks a batch system for the same command again; the user's own signals end the run for good.
    for (const auto& [signal, exit_code] :
         {std::pair{SIGTERM, 75}, {SIGUSR1, 75}, {SIGINT, 130}, {SIGHUP, 129}}) {
        SCOPED_TRACE(strsignal(signal));
        const std::string out = fresh();
        const Outcome stopped =
            train(out, changes, {.signal = signal, .signal_when = log_contains(out, "\"step\":7,")});
        ASSERT_EQ(stopped.exit_code, exit_code) << stopped.err;
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

// `build/train 2>&1 | tee log` and Ctrl-C: tee is gone first. Its death must not cost the checkpoint.
TEST_F(TrainRun, ADeadReaderOfTheMessagesCostsNothing) {
    const Changes changes = {"--steps", "150"};
    const std::string whole = hash_of(fresh(), changes), out = fresh();
    RunOptions options{.signal = SIGINT, .signal_when = log_contains(out, "\"step\":7,")};
    options.dead_reader = true;
    EXPECT_EQ(train(out, changes, options).exit_code, 128 + SIGINT);
    const int64_t last = log_lines(out, "step").back()["step"];
    EXPECT_TRUE(path_exists(out + "/step_" + std::to_string(100000000 + last).substr(1)));
    EXPECT_EQ(hash_of(out, changes), whole);
}

TEST_F(TrainRun, WhatIsIgnoredAtTheStartStaysIgnored) {
    const std::string out = fresh();
    RunOptions options{.signal = SIGHUP, .signal_when = log_contains(out, "\"step\":3,")};
    options.ignored_signal = SIGHUP;
    const Outcome run = train(out, {"--steps", "60"}, options);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    EXPECT_NE(run.last_line().find("step=60 "), std::string::npos);
}

// A step of a hundred thousand micro-batches is not waited for, and leaves no trace.
TEST_F(TrainRun, SignalsAreSeenWithinAStep) {
    const std::string out = fresh();
    const Changes few = {"--micro-batch", "1", "--batch-tokens", "64", "--steps", "4"};
    const std::string whole = hash_of(fresh(), few);
    ASSERT_EQ(train(out, few + Changes{"--stop-at", "2"}).exit_code, 0);
    const std::string before = contents_of(out + "/step_00000002");
    const Changes long_step = {"--micro-batch", "1", "--batch-tokens", "3200000", "--steps", "4"};
    const std::string other = fresh();
    const auto begun = [&] {
        for (const std::string& name : is_directory(other) ? list_directory(other) : Changes())
            if (name.starts_with("events.")) return true;
        return false;
    };
    const Outcome stopped = train(other, long_step, {.limit_s = 30, .signal = SIGTERM, .signal_when = begun});
    EXPECT_EQ(stopped.exit_code, kExitTryAgain) << stopped.err;
    EXPECT_NE(stopped.err.find("at step 0"), std::string::npos) << stopped.err;
    EXPECT_TRUE(path_exists(other + "/step_00000000"));
    EXPECT_FALSE(path_exists(other + "/log.jsonl")) << "not one step was done";
    EXPECT_EQ(contents_of(out + "/step_00000002"), before);
    EXPECT_EQ(hash_of(out, few), whole);
}

TEST_F(TrainRun, ASignalInTheLastEvaluationIsNotSuccess) {
    const std::string out = fresh();
    // The larger split is the one that takes a while to evaluate.
    const Changes changes = {"--steps",       "1",
                             "--seq-len",     "2",
                             "--micro-batch", "1",
                             "--train-data",  path("shards/val_*.bin"),
                             "--val-data",    path("shards/train_*.bin")};
    const Outcome stopped =
        train(out, changes,
              {.signal = SIGTERM, .signal_when = [&] { return path_exists(out + "/step_00000001"); }});
    EXPECT_EQ(stopped.exit_code, kExitTryAgain) << stopped.err;
    EXPECT_EQ(stopped.out, "");
    EXPECT_TRUE(log_lines(out, "eval").empty()) << "half an evaluation says nothing";
    const Outcome rest = train(out, changes);
    EXPECT_EQ(rest.exit_code, 0) << rest.err;
    EXPECT_EQ(log_lines(out, "eval").size(), 1u);
}

TEST_F(TrainRun, OneWriterADirectory) {
    const Changes changes = {"--steps", "400"};
    const std::string whole = hash_of(fresh(), changes), out = fresh();
    Outcome second;
    std::string before, after;
    const auto meanwhile = [&] {  // never signals: it is asked while the first run is at work
        if (second.exit_code < 0 && log_contains(out, "\"step\":5,")()) second = train(out, changes);
        return false;
    };
    const Outcome first = train(out, changes, {.signal = SIGTERM, .signal_when = meanwhile});
    EXPECT_EQ(second.exit_code, 2) << second.err;
    EXPECT_NE(second.error_line().find("another process is writing"), std::string::npos) << second.err;
    EXPECT_NE(second.error_line().find(out), std::string::npos) << second.err;
    EXPECT_NE(second.error_line().find("hint:"), std::string::npos) << second.err;
    EXPECT_EQ(weights(first), whole);
    EXPECT_EQ(log_lines(out, "step").size(), 400u);
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
    make_directories(out + "/step_00000999.tmp-999999999/trainer");  // what a writer long dead left
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

// The same size, one bit: only the hash tells.
TEST_F(TrainRun, ACheckpointWithAFlippedBitIsSetAside) {
    const Changes changes = {"--checkpoint-every", "5"};
    const std::string out = fresh(), whole = hash_of(fresh(), changes);
    ASSERT_EQ(train(out, changes + Changes{"--stop-at", "10"}).exit_code, 0);
    std::string content = read_file(out + "/step_00000010/model.safetensors");
    content[content.size() / 2] ^= 1;
    write_file_atomic(out + "/step_00000010/model.safetensors", content);
    const Outcome rest = train(out, changes);
    EXPECT_NE(rest.err.find("set aside as " + out + "/step_00000010.damaged"), std::string::npos) << rest.err;
    EXPECT_NE(rest.err.find("resuming from " + out + "/step_00000005"), std::string::npos) << rest.err;
    EXPECT_EQ(weights(rest), whole);
}

// The guard's window, full and moved, is part of the state: a run that refused steps before the break goes on
// as if there had been none.
TEST_F(TrainRun, ResumeWithAMovedGuard) {
    for (const char* dtype : {"fp32", "bf16"}) {
        const Changes changes = {"--steps", "200", "--outlier-z", "1", "--lr", "1e-5", "--dtype", dtype};
        const std::string straight = fresh(), broken = fresh(), whole = hash_of(straight, changes);
        ASSERT_EQ(train(broken, changes + Changes{"--stop-at", "150"}).exit_code, 0);
        EXPECT_GT(log_lines(broken, "end").back()["num_skipped"], 0) << "the case must move the guard";
        EXPECT_EQ(hash_of(broken, changes), whole);
        EXPECT_EQ(log_lines(broken, "end").back()["num_skipped"],
                  log_lines(straight, "end").back()["num_skipped"]);
    }
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
    const std::string silent = fresh();
    ASSERT_EQ(train(silent, {"--sample-tokens", "0", "--steps", "2"}).exit_code, 0);
    EXPECT_TRUE(log_lines(silent, "sample").empty());
    EXPECT_GT(log_lines(out, "end").at(0)["plan_bytes"], 1000);

    int64_t event_bytes = 0;
    for (const std::string& name : list_directory(out))
        if (name.starts_with("events.out.tfevents.")) event_bytes += file_bytes(out + "/" + name);
    EXPECT_GT(event_bytes, 20 * 4 * 30) << "four scalars a step";
    for (const char* file : {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
                             "tokenizer_config.json", "trainer/state.json", "trainer/hashes.json"})
        EXPECT_TRUE(path_exists(out + "/step_00000020/" + file)) << file;

    const auto state = nlohmann::json::parse(read_file(out + "/step_00000020/trainer/state.json"));
    EXPECT_GE(state["commit"].get<std::string>().size(), 7u) << "the program's commit, or \"unknown\"";

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

// A run whose weights have stopped moving for good says so, with exit code 1, and saves nothing more.
TEST_F(TrainRun, ADeadRunIsNotSuccess) {
    const std::string out = fresh();
    const Outcome run = train(out, {"--lr", "1000", "--weight-decay", "1000", "--schedule", "constant",
                                    "--steps", "600", "--checkpoint-every", "1", "--keep", "3"});
    EXPECT_EQ(run.exit_code, 1) << run.err;
    EXPECT_EQ(run.out, "");
    EXPECT_NE(run.error_line().find("100 steps were all skipped"), std::string::npos) << run.err;
    EXPECT_NE(run.error_line().find("hint:"), std::string::npos) << run.err;
    int64_t last_applied = 0;
    const auto steps = log_lines(out, "step");
    for (const auto& step : steps)
        if (!step.contains("skipped")) last_applied = step["step"];
    // Each time the run goes back it tries the steps that it is refused anew, with other samples.
    EXPECT_EQ(log_lines(out, "rewind").size(), 3u);
    EXPECT_EQ(static_cast<int64_t>(steps.size()), last_applied + 3 * 20 + 100);
    // The newest checkpoint is of the last step that changed anything, and those before it are still there.
    std::vector<std::string> kept;
    for (const std::string& name : list_directory(out))
        if (name.starts_with("step_")) kept.push_back(name);
    ASSERT_EQ(kept.size(), static_cast<size_t>(std::min<int64_t>(3, last_applied)));
    EXPECT_EQ(kept.back(), "step_" + std::to_string(100000000 + last_applied).substr(1));
}

// FineWeb-style shards say nothing of documents: the model's end of text does, or a line says that nobody
// does.
TEST_F(TrainRun, DocumentsOfShardsWithoutAManifest) {
    const std::string shards = fresh("bare");
    make_directories(shards);
    for (const std::string& name : list_directory(path("shards")))
        if (name.ends_with(".bin")) std::filesystem::copy_file(path("shards/" + name), shards + "/" + name);
    const int64_t end = ShardSet(path("shards/train_*.bin"), "").eot();
    const std::string model = fresh("model");
    ASSERT_EQ(run_program("logits", {"--init", "tiny-gpt2", "--save", model}).exit_code, 0);
    auto config = nlohmann::json::parse(read_file(model + "/config.json"));
    config["eos_token_id"] = end;
    write_file_atomic(model + "/config.json", config.dump());
    const Changes bare = {"--train-data", shards + "/train_*.bin", "--steps", "6"};
    const auto run = [&](const Changes& changes) { return train(fresh(), bare + changes); };

    const std::string id = std::to_string(end);
    const Outcome by_model = run({"--init", model});
    EXPECT_NE(by_model.err.find("documents end at token " + id + ", the model's end of text"),
              std::string::npos)
        << by_model.err;
    EXPECT_EQ(weights(by_model), weights(run({"--init", model, "--eot", id}))) << "the same id, given";
    EXPECT_NE(weights(by_model), weights(run({"--init", model, "--eot", "511"}))) << "an id that no text has";

    const Outcome by_nobody = run({});
    EXPECT_NE(by_nobody.err.find("not masked from each other  hint: --eot ID"), std::string::npos);
    const Outcome given = run({"--eot", id});
    EXPECT_EQ(given.err.find("manifest"), std::string::npos) << given.err;
    EXPECT_NE(weights(given), weights(by_nobody));
    EXPECT_EQ(train(fresh(), {"--steps", "2"}).err.find("manifest"), std::string::npos) << "those have one";
}

TEST_F(TrainRun, GenerateTakesAnyLength) {
    const std::string out = fresh();
    ASSERT_EQ(train(out, {"--steps", "2"}).exit_code, 0);
    const Outcome text = run_program("generate", {"--model", out + "/step_00000002", "--prompt", "the baker",
                                                  "--max-new-tokens", "9223372036854775807"});
    EXPECT_EQ(text.exit_code, 0) << text.err;
    EXPECT_TRUE(text.out.starts_with("the baker"));
}
