// build/train, build/evaluate and build/generate with --device simt, as a user runs them.
#include "core/stop.h"
#include "tests/toy_run.h"

namespace {

class TrainDevice : public ToyRun {
protected:
    static double loss_of(const Outcome& outcome) {
        const std::string line = outcome.last_line();
        return std::stod(line.substr(line.find("loss=") + 5));
    }
};

}  // namespace

// The log of a run whose steps are written while the next one is under way: every step once, in order, the
// refused ones counted, and all of them before the evaluation and the end that follow.
TEST_F(TrainDevice, StepsAreLoggedInOrderAndRefusedOnesCounted) {
    const std::string out = fresh(), val = path("shards/val_*.bin");
    const Outcome run = train(out, {"--device", "simt", "--lr", "1000", "--weight-decay", "1000",
                                    "--schedule", "constant", "--steps", "12", "--val-data", val,
                                    "--eval-every", "5", "--eval-batches", "1", "--checkpoint-every", "4"});
    ASSERT_EQ(run.exit_code, 0) << run.err;
    int64_t last = 0, num_skipped = 0, evaluations = 0;
    for (const auto& line : log_lines(out, "")) {
        if (line["kind"] == "eval") {
            EXPECT_EQ(line["step"], last) << "not before its step's own line";
            ++evaluations;
        }
        if (line["kind"] != "step") continue;
        EXPECT_EQ(line["step"], ++last);
        EXPECT_GT(line["ms"], 0);
        if (line.contains("skipped")) {
            EXPECT_EQ(line["num_skipped"], ++num_skipped);
        }
    }
    EXPECT_EQ(last, 12);
    EXPECT_EQ(evaluations, 3);
    EXPECT_GT(num_skipped, 0) << "the case must refuse steps";
    EXPECT_LT(num_skipped, 12);
    EXPECT_EQ(log_lines(out, "end").back()["num_skipped"], num_skipped);
}

TEST_F(TrainDevice, ADeadRunOnADeviceSavesNothingMore) {
    const std::string out = fresh();
    const Outcome run = train(out, {"--device",
                                    "simt",
                                    "--lr",
                                    "1000",
                                    "--weight-decay",
                                    "1000",
                                    "--schedule",
                                    "constant",
                                    "--seq-len",
                                    "4",
                                    "--micro-batch",
                                    "1",
                                    "--steps",
                                    "300",
                                    "--checkpoint-every",
                                    "1",
                                    "--keep",
                                    "1",
                                    "--rewind-after",
                                    "0"});
    EXPECT_EQ(run.exit_code, 1) << run.err;
    EXPECT_NE(run.error_line().find("100 steps were all skipped"), std::string::npos) << run.err;
    int64_t last_applied = 0;
    const auto steps = log_lines(out, "step");
    for (const auto& step : steps)
        if (!step.contains("skipped")) last_applied = step["step"];
    EXPECT_EQ(static_cast<int64_t>(steps.size()), last_applied + 100);
    EXPECT_TRUE(path_exists(out + "/step_" + std::to_string(100000000 + last_applied).substr(1)));
}

TEST_F(TrainDevice, ASignalWritesTheStepUnderWay) {
    const std::vector<std::string> changes = {"--device",  "simt", "--steps",       "24",
                                              "--seq-len", "8",    "--micro-batch", "1"};
    const std::string whole = hash_of(fresh(), changes), out = fresh();
    const Outcome stopped =
        train(out, changes, {.signal = SIGTERM, .signal_when = log_contains(out, "\"step\":7,")});
    ASSERT_EQ(stopped.exit_code, kExitTryAgain) << stopped.err;
    const int64_t last = log_lines(out, "step").back()["step"];
    EXPECT_NE(stopped.err.find("at step " + std::to_string(last)), std::string::npos) << stopped.err;
    EXPECT_EQ(hash_of(out, changes), whole);
    EXPECT_EQ(log_lines(out, "step").size(), 24u);
}

TEST_F(TrainDevice, TheEmulatedGpuTrainsResumesAndIsReadByTheCpu) {
    const std::vector<std::string> four = {"--steps",   "4", "--warmup",      "0", "--dtype", "bf16",
                                           "--seq-len", "8", "--micro-batch", "2"};
    const auto with = [&](std::vector<std::string> more) {
        more.insert(more.begin(), four.begin(), four.end());
        return more;
    };
    const std::string straight = fresh(), broken = fresh();
    const Outcome on_cpu = train(fresh(), with({"--device", "cpu"})),
                  on_simt = train(straight, with({"--device", "simt"}));
    ASSERT_EQ(on_simt.exit_code, 0) << on_simt.err;
    EXPECT_NE(on_simt.err.find("emulated GPU"), std::string::npos) << on_simt.err;
    EXPECT_NEAR(loss_of(on_simt), loss_of(on_cpu), 5e-3 * loss_of(on_cpu));
    ASSERT_EQ(train(broken, with({"--device", "simt", "--stop-at", "2"})).exit_code, 0);
    EXPECT_EQ(weights(train(broken, with({"--device", "simt"}))), weights(on_simt));

    const std::string checkpoint = straight + "/step_00000004", val = path("shards/val_*.bin");
    std::string bits[2];
    double losses[2];
    for (const char* device : {"cpu", "simt"}) {
        const int i = device[0] == 's';
        const Outcome outcome = run_program("evaluate", {"--model", checkpoint, "--data", val, "--seq-len",
                                                         "32", "--device", device, "--max-batches", "2"});
        ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
        losses[i] = loss_of(outcome);
        const Outcome text =
            run_program("generate", {"--model", checkpoint, "--prompt", "the old", "--dtype", "fp32",
                                     "--max-new-tokens", "5", "--temperature", "0", "--device", device});
        ASSERT_EQ(text.exit_code, 0) << text.err;
        bits[i] = text.out;
    }
    EXPECT_NEAR(losses[1], losses[0], 1e-5 * losses[0]);
    EXPECT_EQ(bits[1], bits[0]);
}

// The steps that follow one are queued before it is written: it is a waiting host's all the same.
TEST_F(TrainDevice, CheckpointsWrittenMeanwhileAreThoseOfTheirSteps) {
    const std::vector<std::string> changes = {"--device", "simt",      "--dtype", "bf16",          "--steps",
                                              "5",        "--seq-len", "8",       "--micro-batch", "1"};
    const auto with = [&](std::vector<std::string> more) {
        more.insert(more.begin(), changes.begin(), changes.end());
        return more;
    };
    const std::string meanwhile = fresh(), waiting = fresh(), line = "host: copy of a checkpoint";
    const Outcome run = train(meanwhile, with({"--checkpoint-every", "2", "--keep", "0"}));
    ASSERT_EQ(run.exit_code, 0) << run.err;
    EXPECT_NE(run.err.find(line), std::string::npos) << run.err;
    for (const char* step : {"2", "4", "5"}) {
        SCOPED_TRACE(step);
        const Outcome part = train(waiting, with({"--stop-at", step, "--keep", "0"}));
        ASSERT_EQ(part.exit_code, 0) << part.err;
        EXPECT_EQ(part.err.find(line), std::string::npos) << part.err;
        for (const char* file : {"model", "trainer/m", "trainer/v", "trainer/master"}) {
            const std::string name = std::string("/step_0000000") + step + "/" + file + ".safetensors";
            EXPECT_EQ(sha256_file(meanwhile + name), sha256_file(waiting + name)) << file;
        }
    }
}

TEST_F(TrainDevice, KilledOrStoppedWhileACheckpointIsWritten) {
    const std::vector<std::string> changes = {"--device",           "simt", "--steps",       "16",
                                              "--seq-len",          "8",    "--micro-batch", "1",
                                              "--checkpoint-every", "1"};
    const std::string whole = hash_of(fresh(), changes);
    const auto temporaries = [](const std::string& out) {
        int64_t count = 0;
        if (!path_exists(out)) return count;
        for (const std::string& name : list_directory(out))
            count += name.starts_with("step_") && name.find(".tmp-") != std::string::npos;
        return count;
    };
    int64_t num_interrupted = 0;
    for (int round = 0; round < 20 && num_interrupted < 2; ++round) {
        SCOPED_TRACE(round);
        const std::string out = fresh(), step = "\"step\":" + std::to_string(3 + round % 6) + ",";
        const auto writing = [&] { return log_contains(out, step)() && temporaries(out) > 0; };
        ASSERT_EQ(train(out, changes, {.signal = SIGKILL, .signal_when = writing}).signal, SIGKILL);
        num_interrupted += temporaries(out) > 0;
        const Outcome rest = train(out, changes);
        EXPECT_NE(rest.err.find("resuming from"), std::string::npos) << rest.err;
        EXPECT_EQ(weights(rest), whole);
        EXPECT_EQ(temporaries(out), 0);
        EXPECT_EQ(rest.err.find("damaged"), std::string::npos) << rest.err;
    }
    EXPECT_GE(num_interrupted, 2);

    const std::string out = fresh();
    const auto writing = [&] { return log_contains(out, "\"step\":5,")() && temporaries(out) > 0; };
    const Outcome stopped = train(out, changes, {.signal = SIGTERM, .signal_when = writing});
    ASSERT_EQ(stopped.exit_code, kExitTryAgain) << stopped.err;
    EXPECT_EQ(temporaries(out), 0);
    const Outcome rest = train(out, changes);
    const int64_t last = log_lines(out, "step").back()["step"];
    EXPECT_EQ(last, 16);
    const size_t at = stopped.err.find(" at step ") + 9;
    const std::string step = stopped.err.substr(at, stopped.err.find(';', at) - at);
    EXPECT_NE(rest.err.find("resuming from " + out + "/step_" + std::string(8 - step.size(), '0') + step),
              std::string::npos)
        << stopped.err << rest.err;
    EXPECT_EQ(weights(rest), whole);
}

TEST_F(TrainDevice, ACheckpointThatCannotBeWrittenEndsTheRun) {
    const std::vector<std::string> changes = {"--device", "simt", "--seq-len", "8", "--micro-batch", "2"};
    const std::string whole = hash_of(fresh(), changes), out = fresh();
    std::vector<std::string> three = changes, limited_run = changes;
    three.insert(three.end(), {"--stop-at", "3"});
    limited_run.insert(limited_run.end(), {"--checkpoint-every", "5"});
    ASSERT_EQ(train(out, three).exit_code, 0);
    RunOptions limited;
    limited.max_file_bytes = 100'000;  // less than the weights
    const Outcome full = train(out, limited_run, limited);
    expect_refusal(full, {"cannot write file", "step_00000005", "File too large", "hint:"},
                   "in the background");
    const int64_t last = log_lines(out, "step").back()["step"];
    EXPECT_LT(last, 10) << "not told before the next checkpoint";
    EXPECT_EQ(contents_of(out).find(".tmp-"), std::string::npos) << contents_of(out);
    EXPECT_EQ(hash_of(out, changes), whole);
}

// As bf16, but for the products; on the CPU too, which has the same numbers.
TEST_F(TrainDevice, Fp8TrainsAndResumes) {
    const auto with = [](const char* device, std::vector<std::string> more, const char* dtype = "fp8") {
        for (const char* word : {"--steps", "4", "--warmup", "0", "--seq-len", "8", "--micro-batch", "2",
                                 "--dtype", dtype, "--device", device})
            more.push_back(word);
        return more;
    };
    const std::string broken = fresh();
    const Outcome on_cpu = train(fresh(), with("cpu", {})), on_simt = train(fresh(), with("simt", {})),
                  in_bf16 = train(fresh(), with("cpu", {}, "bf16"));
    ASSERT_EQ(on_simt.exit_code, 0) << on_simt.err;
    EXPECT_NE(on_simt.err.find("FP8 weights and operands"), std::string::npos) << on_simt.err;
    EXPECT_NE(weights(on_cpu), weights(in_bf16));
    for (const Outcome& other : {on_cpu, in_bf16})
        EXPECT_NEAR(loss_of(on_simt), loss_of(other), 1e-2 * loss_of(other));
    ASSERT_EQ(train(broken, with("simt", {"--stop-at", "2"})).exit_code, 0);
    const Outcome refused = train(broken, with("simt", {}, "bf16"));
    EXPECT_EQ(refused.exit_code, 2) << "another run's options";
    EXPECT_NE(refused.error_line().find("dtype"), std::string::npos) << refused.err;
    EXPECT_EQ(weights(train(broken, with("simt", {}))), weights(on_simt));
}
