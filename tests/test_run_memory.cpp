// The memory plan of a run: its hints are flags that fit, and what is planned is what a run takes, for a
// model that is large enough to be more than its process.
#include "model/run_memory.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "tests/toy_run.h"

namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

RunNeeds needs_of(int64_t rows, int64_t rows_per_step) {
    RunNeeds needs;
    needs.shape = {.num_rows = rows, .seq_len = 1024};
    needs.rows_per_step = rows_per_step;
    return needs;
}
int64_t needed(const ModelConfig& config, const RunNeeds& needs) {
    return plan_run(config, needs).needed_bytes();
}

// The hint of the refusal, "" when there is none.
std::string hint_of(const ModelConfig& config, RunNeeds needs, int64_t available) {
    try {
        check_run_memory(config, needs, available);
    } catch (const InputError& error) {
        const std::string line = error.what();
        EXPECT_NE(line.find("does not fit in memory"), std::string::npos) << line;
        return line.substr(line.find("hint: ") + 6);
    }
    return "";
}

// `needs` with the flags of one alternative of a hint.
RunNeeds followed(RunNeeds needs, const std::string& flags) {
    const std::string rows = "--micro-batch ";
    if (flags.find(rows) != std::string::npos)
        needs.shape.num_rows = std::stoll(flags.substr(flags.find(rows) + rows.size()));
    if (flags.find("--recompute block") != std::string::npos) needs.shape.recompute = Recompute::block;
    return needs;
}

TEST(RunMemory, HintsAreFlagsThatFit) {
    const ModelConfig config = config_preset("gpt2-124m");
    int64_t num_alternatives = 0, num_both = 0, num_none = 0;
    for (const int64_t rows_per_step : {0, 12, 30, 64}) {
        for (const int64_t rows : {2, 6, 30}) {
            if (rows_per_step > 0 && rows_per_step % rows != 0) continue;
            const RunNeeds needs = needs_of(rows, rows_per_step);
            const int64_t all = needed(config, needs);
            EXPECT_EQ(hint_of(config, needs, all), "");
            for (int64_t available = all - 1; available > all / 8; available -= all / 64) {
                const std::string hint = hint_of(config, needs, available);
                ASSERT_NE(hint, "");
                if (hint.starts_with("a smaller")) {
                    ++num_none;
                    RunNeeds least = followed(needs, "--micro-batch 1 --recompute block");
                    EXPECT_GT(needed(config, least), available) << "there was something to offer";
                    continue;
                }
                num_both += hint.find(' ', hint.find("batch ") + 6) != std::string::npos &&
                            hint.find("or") == std::string::npos;
                const size_t comma = hint.find(", or ");
                for (const std::string& flags :
                     {hint.substr(0, comma), comma == std::string::npos ? hint : hint.substr(comma + 5)}) {
                    const RunNeeds fits = followed(needs, flags);
                    EXPECT_LE(needed(config, fits), available) << hint;
                    EXPECT_EQ(rows_per_step % (rows_per_step > 0 ? fits.shape.num_rows : 1), 0) << hint;
                    EXPECT_EQ(hint_of(config, fits, available), "");
                    ++num_alternatives;
                }
            }
        }
    }
    EXPECT_GT(num_alternatives, 100);
    EXPECT_GT(num_both, 0);
    EXPECT_GT(num_none, 0);
}

TEST(RunMemory, MappedFilesAreNoReasonToRefuse) {
    const ModelConfig config = config_preset("tiny-llama");
    RunNeeds needs = needs_of(1, 1);
    needs.shape.seq_len = 32;
    const int64_t without = needed(config, needs);
    needs.shard_bytes = int64_t{1} << 40;
    EXPECT_EQ(needed(config, needs), without);
    EXPECT_EQ(plan_run(config, needs).total_bytes(), without + needs.shard_bytes);
    EXPECT_NE(plan_run(config, needs).text().find("token shards (mapped)"), std::string::npos);
}

// The plan of a device is of its memory: what the host keeps beside it is told, and refuses nothing.
TEST(RunMemory, ACheckpointsCopy) {
    const ModelConfig config = config_preset("tiny-llama");
    RunNeeds needs = needs_of(1, 1);
    needs.shape.seq_len = 32;
    for (const Device device : {Device::simt, Device::cpu}) {
        needs.shape.device = device;
        needs.background_checkpoints = false;
        const MemoryPlan without = plan_run(config, needs);
        needs.background_checkpoints = true;
        const MemoryPlan with = plan_run(config, needs);
        const int64_t copy = 3 * 4 * ParamTable(config).arena_size();
        EXPECT_EQ(without.text().find("copy of a checkpoint"), std::string::npos);
        EXPECT_EQ(with.needed_bytes() - without.needed_bytes(), device == Device::cpu ? copy : 0);
        EXPECT_EQ(with.total_bytes() - without.total_bytes(), device == Device::cpu ? copy : 0);
        if (device == Device::cpu) continue;
        EXPECT_GT(with.text().find("\nhost: copy of a checkpoint"), with.text().find("\ntotal"));
        EXPECT_EQ(with.lines.back().bytes, copy);
    }
    // Of all that is planned, training can do without the copy.
    needs.shape.device = Device::cpu;
    RunNeeds tight = needs, room = needs;
    needs.background_checkpoints = false;
    check_run_memory(config, tight, plan_run(config, needs).needed_bytes());
    EXPECT_FALSE(tight.background_checkpoints);
    check_run_memory(config, room, plan_run(config, room).needed_bytes());
    EXPECT_TRUE(room.background_checkpoints);
}

// The plan takes what the process holds at its start as given. AddressSanitizer holds much then that it gives
// back later, so the plan is far above the peak.
#if defined(__SANITIZE_ADDRESS__)
constexpr double kLeastShare = 0.5;
#else
constexpr double kLeastShare = 0.7;
#endif

class RunMemoryRun : public ToyRun {
protected:
    // A model directory of 20 million parameters.
    static std::string model() {
        const std::string description = fresh("description"), directory = fresh("model");
        make_directories(description);
        write_file_atomic(description + "/config.json", R"({"model_type": "llama", "vocab_size": 8192,
            "max_position_embeddings": 256, "hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6,
            "num_key_value_heads": 6, "intermediate_size": 1024, "bos_token_id": null, "eos_token_id": null})");
        const Outcome made = run_program("logits", {"--init", description, "--save", directory});
        EXPECT_EQ(made.exit_code, 0) << made.err;
        return directory;
    }
    static double peak_share(const std::string& out) {
        const auto end = log_lines(out, "end").back();
        EXPECT_GT(end["plan_bytes"], 200 * kMiB);
        return end["peak_rss_bytes"].get<double>() / end["plan_bytes"].get<double>();
    }
};

}  // namespace

TEST_F(RunMemoryRun, PeakIsWithinThePlan) {
    const std::string init = model();
    const std::pair<std::string, std::string> cases[] = {{"adamw", "fp32"}, {"muon", "bf16"}};
    for (const auto& [optimizer, dtype] : cases) {
        SCOPED_TRACE(optimizer + " " + dtype);
        const std::string out = fresh();
        std::vector<std::string> changes = {"--init",      init,      "--steps",   "2",   "--dtype",   dtype,
                                            "--optimizer", optimizer, "--seq-len", "128", "--stop-at", "1"};
        ASSERT_EQ(train(out, changes).exit_code, 0);
        EXPECT_LE(peak_share(out), 1.15) << "fresh";
        EXPECT_GE(peak_share(out), kLeastShare) << "a plan of more than is used refuses what fits";
        changes.back() = "0";
        ASSERT_EQ(train(out, changes).exit_code, 0);
        EXPECT_LE(peak_share(out), 1.15) << "resumed";
        std::filesystem::remove_all(out);
    }
}
