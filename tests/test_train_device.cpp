// build/train, build/evaluate and build/generate with --device simt, as a user runs them.
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
    const Outcome run = train(out, {"--device", "simt", "--lr", "1000", "--weight-decay", "1000",
                                    "--schedule", "constant", "--seq-len", "4", "--micro-batch", "1",
                                    "--steps", "300", "--checkpoint-every", "1", "--keep", "1"});
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
    const std::vector<std::string> changes = {"--device",  "simt", "--steps",       "60",
                                              "--seq-len", "8",    "--micro-batch", "1"};
    const std::string whole = hash_of(fresh(), changes), out = fresh();
    const Outcome stopped =
        train(out, changes, {.signal = SIGTERM, .signal_when = log_contains(out, "\"step\":7,")});
    ASSERT_EQ(stopped.exit_code, 128 + SIGTERM) << stopped.err;
    const int64_t last = log_lines(out, "step").back()["step"];
    EXPECT_NE(stopped.err.find("at step " + std::to_string(last)), std::string::npos) << stopped.err;
    EXPECT_EQ(hash_of(out, changes), whole);
    EXPECT_EQ(log_lines(out, "step").size(), 60u);
}

TEST_F(TrainDevice, TheEmulatedGpuTrainsResumesAndIsReadByTheCpu) {
    const std::vector<std::string> four = {"--steps", "4", "--warmup", "0", "--dtype", "bf16"};
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

// As bf16, but for the products; on the CPU too, which has the same numbers.
TEST_F(TrainDevice, Fp8TrainsAndResumes) {
    const auto with = [](const char* device, std::vector<std::string> more, const char* dtype = "fp8") {
        for (const char* word : {"--steps", "4", "--warmup", "0", "--dtype", dtype, "--device", device})
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
