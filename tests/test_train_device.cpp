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
