// Checkpoints: what is saved comes back to the bit in every dtype, and neither a killed writer, a damaged
// file nor a full disk makes a run resume from rubbish.
#include "model/checkpoint.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/io.h"
#include "core/threads.h"
#include "model/file_hashes.h"
#include "tests/tiny_model.h"

namespace {

namespace fs = std::filesystem;

class Checkpoint : public DirectoryTest {
protected:
    std::string save(TinyModel& model, const Optimizer& optimizer, int64_t step) {
        TrainerState state;
        state.step = step;
        state.num_updates = optimizer.num_updates();
        state.num_skipped = optimizer.num_skipped();
        save_checkpoint(out_, model.table, model.config, checkpoint_arenas(optimizer), state, "");
        return out_ + "/" + checkpoint_name(step);
    }
    static TrainerState load(const std::string& directory, TinyModel& model, Optimizer& optimizer) {
        return load_checkpoint(directory, model.table, model.config, optimizer);
    }
};

// ---------------------------------------------------------------------------------------------------

// Fills m and v as two steps of training would.
void take_steps(TinyModel& model, Optimizer& optimizer, int steps) {
    Buffer grads(model.table.arena_size() * 4);
    for (int step = 0; step < steps; ++step) {
        for (const ParamInfo& row : model.table.rows())
            for (int64_t i = 0; i < row.size(); ++i)
                static_cast<float*>(grads.data())[row.offset + i] =
                    random_normal({uint64_t(optimizer.num_updates()), 7}, uint64_t(row.offset + i));
        optimizer.step(grads.tensor(DType::f32), 1e-3, 3.0);
    }
}

std::string bytes_of(const void* data, int64_t bytes) {
    return std::string(static_cast<const char*>(data), static_cast<size_t>(bytes));
}

// To the bit: steps, save, load into fresh memory, steps == the same without the break.
TEST_F(Checkpoint, ResumedOptimizationIsTheSameToTheBit) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
        for (const std::string& family : kTinyFamilies) {
            TinyModel straight(family, dtype);
            Optimizer straight_optimizer = straight.optimizer();
            take_steps(straight, straight_optimizer, 2);
            const std::string path = save(straight, straight_optimizer, dtype == DType::f32 ? 1 : 2);
            take_steps(straight, straight_optimizer, 2);

            TinyModel resumed(family, dtype, 99);  // other weights: everything must come from the file
            Optimizer resumed_optimizer = resumed.optimizer();
            const TrainerState state = load(path, resumed, resumed_optimizer);
            EXPECT_EQ(state.num_updates, 2);
            take_steps(resumed, resumed_optimizer, 2);

            const int64_t bytes = straight.table.arena_size() * 4;
            EXPECT_EQ(bytes_of(straight.params().data, straight.params().bytes()),
                      bytes_of(resumed.params().data, resumed.params().bytes()));
            EXPECT_EQ(bytes_of(straight_optimizer.master().data, bytes),
                      bytes_of(resumed_optimizer.master().data, bytes));
            EXPECT_EQ(bytes_of(straight_optimizer.moment1().data, bytes),
                      bytes_of(resumed_optimizer.moment1().data, bytes));
            EXPECT_EQ(bytes_of(straight_optimizer.moment2().data, bytes),
                      bytes_of(resumed_optimizer.moment2().data, bytes));
            EXPECT_EQ(weights_hash(straight.table, straight_optimizer.master()),
                      weights_hash(resumed.table, resumed_optimizer.master()));
            fs::remove_all(path);
        }
    }
}

TEST_F(Checkpoint, DtypeMayChangeBetweenRuns) {
    TinyModel full("tiny-llama");
    Optimizer full_optimizer = full.optimizer();
    take_steps(full, full_optimizer, 1);
    const std::string path = save(full, full_optimizer, 1);

    TinyModel half("tiny-llama", DType::bf16, 99);
    Optimizer half_optimizer = half.optimizer();
    load(path, half, half_optimizer);
    EXPECT_EQ(weights_hash(half.table, half_optimizer.master()),
              weights_hash(full.table, full_optimizer.master()));
    const bf16* rounded = half.params().as<bf16>();
    for (int64_t i = 0; i < full.table.arena_size(); ++i)
        ASSERT_EQ(rounded[i].bits, to_bf16(full.values()[i]).bits) << i;

    take_steps(half, half_optimizer, 1);
    const std::string back = save(half, half_optimizer, 2);
    EXPECT_TRUE(path_exists(back + "/trainer/master.safetensors"));
    EXPECT_FALSE(
        path_exists(path + "/trainer/master.safetensors"));  // model.safetensors holds the same numbers
    load(back, full, full_optimizer);
    EXPECT_EQ(weights_hash(full.table, full_optimizer.master()),
              weights_hash(half.table, half_optimizer.master()));
}

TEST_F(Checkpoint, StateComesBackExactly) {
    TinyModel model("tiny-gpt2");
    Optimizer optimizer = model.optimizer();
    optimizer.set_num_updates(41);
    optimizer.set_num_skipped(1);
    TrainerState state;
    state.step = 42;
    state.next_sample = (int64_t{1} << 60) + 1;
    state.tokens = 123456789012345;
    state.num_updates = 41;
    state.num_skipped = 1;
    for (int i = 0; i < 100; ++i) {
        state.loss_window.push_back(std::exp(std::sin(i)) / 3);  // no short decimal form
        state.norm_window.push_back(std::ldexp(1.0 / (i + 3), i % 2 ? -900 : 900));
    }
    state.skips_in_a_row = 1;
    state.last_loss = std::numeric_limits<double>::infinity();
    state.seed = ~uint64_t{0};
    state.config_toml = "lr = 0.1\nname = \"\xc3\xa9 \\\"x\\\"\"\n";
    state.data_hash = "d";
    state.commit = "c";
    save_checkpoint(out_, model.table, model.config, checkpoint_arenas(optimizer), state, "");
    Optimizer other = model.optimizer();
    const TrainerState loaded = load(out_ + "/step_00000042", model, other);
    EXPECT_EQ(loaded.step, state.step);
    EXPECT_EQ(loaded.next_sample, state.next_sample);
    EXPECT_EQ(loaded.tokens, state.tokens);
    EXPECT_EQ(loaded.loss_window, state.loss_window);
    EXPECT_EQ(loaded.norm_window, state.norm_window);
    EXPECT_EQ(loaded.last_loss, state.last_loss);
    EXPECT_EQ(loaded.seed, state.seed);
    EXPECT_EQ(loaded.config_toml, state.config_toml);
    EXPECT_EQ(loaded.data_hash + loaded.commit, "dc");
    EXPECT_EQ(other.num_updates(), 41);
    EXPECT_EQ(other.num_skipped(), 1);
    EXPECT_EQ(other.skips_in_a_row(), 1);
    EXPECT_EQ(other.loss_window().values(), state.loss_window);
    EXPECT_EQ(other.norm_window().values(), state.norm_window);
}

// Version 1 had no count of skips in a row, and two fields that are gone.
TEST_F(Checkpoint, StatesOfOlderVersionsAreRead) {
    TinyModel model("tiny-llama");
    Optimizer optimizer = model.optimizer();
    take_steps(model, optimizer, 3);
    const std::string path = save(model, optimizer, 3), state_path = path + "/trainer/state.json";
    auto state = nlohmann::json::parse(read_file(state_path));
    const auto write_state = [&](int version) {
        state["version"] = version;
        write_file_atomic(state_path, state.dump());
        std::vector<FileRecord> records;
        const auto listed = nlohmann::json::parse(read_file(path + "/" + kHashesPath));
        for (const auto& [name, record] : listed.items())
            records.push_back({name, file_bytes(path + "/" + name), sha256_file(path + "/" + name)});
        write_hashes(path, records);
    };
    state.erase("skips_in_a_row");
    state["best_val_loss"] = 2.5, state["run_id"] = "";
    write_state(1);
    Optimizer other = model.optimizer();
    EXPECT_EQ(load(path, model, other).num_updates, 3);
    write_state(2);
    expect_phrases(complaint([&] { load(path, model, other); }),
                   {"malformed trainer state", "skips_in_a_row"});
    state["skips_in_a_row"] = 0;
    state.erase("stepped_over");
    write_state(2);
    EXPECT_EQ(load(path, model, other).refused_since, -1);
    write_state(3);
    expect_phrases(complaint([&] { load(path, model, other); }), {"malformed trainer state", "stepped_over"});
    write_state(4);
    expect_phrases(complaint([&] { load(path, model, other); }), {"another version", "1 to 3", "got 4"});
}

// The memory plan counts on it: a moment that Muon never reads stays untouched memory.
TEST_F(Checkpoint, SecondMomentsThatMuonHasNotAreNotWritten) {
    TinyModel model("tiny-llama");
    const auto muon = [&] { return Optimizer(model.table, {.muon = true}, model.params(), MatmulMath::f32); };
    Optimizer optimizer = muon(), other = muon();
    take_steps(model, optimizer, 2);
    const std::string path = save(model, optimizer, 2);
    for (int64_t i = 0; i < model.table.arena_size(); ++i) other.moment2().as<float>()[i] = 7;
    load(path, model, other);
    int64_t matrices = 0;
    for (const ParamInfo& row : model.table.rows()) {
        matrices += row.muon;
        for (int64_t i = row.offset; i < row.offset + row.size(); ++i)
            ASSERT_EQ(other.moment2().as<float>()[i], row.muon ? 7 : optimizer.moment2().as<float>()[i])
                << row.hf_name;
    }
    EXPECT_GT(matrices, 0);
}

TEST_F(Checkpoint, ADamagedNewestOneGivesWayToTheOneBefore) {
    TinyModel model("tiny-llama");
    Optimizer optimizer = model.optimizer();
    const auto damage = [](const std::string& file) {
        std::string content = read_file(file);
        content[content.size() / 2] = static_cast<char>(content[content.size() / 2] ^ 1);
        write_file_atomic(file, content);
    };
    const auto load_newest = [&] {
        return load_verified_checkpoint(verify_newest_checkpoint(out_), model.table, model.config, optimizer);
    };
    for (const int64_t step : {1, 2, 3}) save(model, optimizer, step);
    EXPECT_EQ(load_newest().step, 3);
    damage(out_ + "/step_00000003/model.safetensors");
    damage(out_ + "/step_00000002/trainer/v.safetensors");
    testing::internal::CaptureStderr();
    EXPECT_EQ(load_newest().step, 1);
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 2) << said;
    expect_phrases(said, {"step_00000003.damaged", "model.safetensors", "step_00000002.damaged", "sha256"});
    EXPECT_EQ(list_directory(out_),
              (std::vector<std::string>{"step_00000001", "step_00000002.damaged", "step_00000003.damaged"}));
    // The name is free again, and a second damage does not overwrite the first.
    save(model, optimizer, 3);
    damage(out_ + "/step_00000003/config.json");
    EXPECT_EQ(load_newest().step, 1);
    EXPECT_TRUE(path_exists(out_ + "/step_00000003.damaged-2"));
    // Nothing else to go on from: the run must not begin anew in silence.
    damage(out_ + "/step_00000001/config.json");
    expect_phrases(complaint(load_newest), {"damaged", "step_00000001/config.json", "hint:"});
    EXPECT_TRUE(path_exists(out_ + "/step_00000001"));
}

TEST_F(Checkpoint, NewestIsByNameAndWhole) {
    TinyModel model("tiny-llama");
    Optimizer optimizer = model.optimizer();
    EXPECT_EQ(newest_checkpoint(out_), "");
    EXPECT_EQ(newest_checkpoint(out_ + "/nowhere"), "");
    const std::string second = save(model, optimizer, 20);
    const std::string first = save(model, optimizer, 3);  // written later, yet older
    const std::string huge = save(model, optimizer, 123456789012);
    EXPECT_EQ(huge, out_ + "/step_123456789012");
    fs::create_directories(out_ + "/step_99");        // not a name of ours
    fs::create_directories(out_ + "/step_00000099");  // not whole
    EXPECT_EQ(newest_checkpoint(out_), huge);
    fs::remove_all(huge);
    EXPECT_EQ(newest_checkpoint(out_), second);
    fs::resize_file(second + "/trainer/v.safetensors", 100);
    EXPECT_EQ(newest_checkpoint(out_), first);
    fs::remove(first + "/config.json");
    EXPECT_EQ(newest_checkpoint(out_), "");
    EXPECT_EQ(save(model, optimizer, 20), second);  // takes the place of the broken one
    EXPECT_EQ(newest_checkpoint(out_), second);
    expect_phrases(complaint([&] { save(model, optimizer, 20); }),
                   {"step_00000020", "existing"});  // but not of a whole one
}

TEST_F(Checkpoint, DamageIsNamed) {
    TinyModel model("tiny-llama");
    Optimizer optimizer = model.optimizer();
    const std::string path = save(model, optimizer, 1);
    for (const auto& entry : fs::recursive_directory_iterator(path)) {
        if (!entry.is_regular_file() || entry.path().filename() == "hashes.json") continue;
        const std::string file = entry.path();
        const std::string good = read_file(file);
        std::string bad = good;
        bad[bad.size() / 2] = static_cast<char>(bad[bad.size() / 2] ^ 1);  // one bit
        std::ofstream(file, std::ios::binary) << bad;
        expect_phrases(complaint([&] { load(path, model, optimizer); }), {"damaged", file, "sha256"});
        std::ofstream(file, std::ios::binary) << good.substr(0, good.size() - 1);
        expect_phrases(complaint([&] { load(path, model, optimizer); }), {"wrong size", file});
        std::ofstream(file, std::ios::binary) << good;
    }
    load(path, model, optimizer);
    TinyModel other("tiny-qwen2");
    Optimizer other_optimizer = other.optimizer();
    expect_phrases(complaint([&] { load(path, other, other_optimizer); }), {"another model", "config.json"});
    fs::remove(path + "/trainer/hashes.json");
    expect_phrases(complaint([&] { load(path, model, optimizer); }), {"no hashes"});
}

TEST_F(Checkpoint, PruneKeepsTheNewestWholeOnes) {
    TinyModel model("tiny-llama");
    Optimizer optimizer = model.optimizer();
    for (const int64_t step : {1, 2, 3, 4}) save(model, optimizer, step);
    fs::remove(out_ + "/step_00000004/config.json");
    prune_checkpoints(out_, 0);
    EXPECT_EQ(list_directory(out_).size(), 4u);
    prune_checkpoints(out_, 2);  // the broken one does not count, and is left to whoever wants to look at it
    EXPECT_EQ(list_directory(out_),
              (std::vector<std::string>{"step_00000002", "step_00000003", "step_00000004"}));
}

TEST_F(Checkpoint, LeftoversOfKilledWritersGo) {
    TinyModel model("tiny-llama");
    Optimizer optimizer = model.optimizer();
    const std::string living = "step_00000001.tmp-" + std::to_string(getppid());
    for (const std::string& name :
         {std::string("step_00000001.tmp-999999999"), std::string("step_00000001.tmp-1-elsewhere"),
          std::string("mine.tmp-999999999"), living})
        fs::create_directories(out_ + "/" + name + "/trainer");
    save(model, optimizer, 2);
    std::vector<std::string> kept = {"mine.tmp-999999999", "step_00000001.tmp-1-elsewhere", living,
                                     "step_00000002"};
    std::sort(kept.begin(), kept.end());
    EXPECT_EQ(list_directory(out_), kept) << "of a writer that may be alive nothing is removed";
}

// A writer killed at any moment: what is left under a checkpoint's name loads, and the next save cleans up.
TEST_F(Checkpoint, AKilledWriterLeavesWholeCheckpointsOnly) {
    TinyModel model("tiny-llama");
    Optimizer optimizer = model.optimizer();
    set_num_threads(1);  // threads do not survive fork(); with one, everything runs in the caller
    const auto temporaries = [&] {
        const std::vector<std::string> names = list_directory(out_);
        return std::count_if(names.begin(), names.end(), [](const std::string& name) {
            return name.find(kTemporaryMark) != std::string::npos;
        });
    };
    // A save takes as long as the disk lets it: the moments of killing are shares of three saves.
    const auto start = std::chrono::steady_clock::now();
    save(model, optimizer, 1);
    const auto one_save = std::chrono::steady_clock::now() - start;
    int64_t step = 1, num_loaded = 0, num_interrupted = 0;
    // Until both have been seen: a kill within a save, and checkpoints that a killed writer had finished.
    for (int round = 0; round < 200 && (round < 20 || num_interrupted < 3 || num_loaded < 3); ++round) {
        const pid_t writer = fork();
        if (writer == 0) {
            for (int64_t next = step + 1;; ++next) save(model, optimizer, next);
        }
        std::this_thread::sleep_for(one_save * 3 * (round % 20 + 1) / 20);
        kill(writer, SIGKILL);
        int status = 0;
        ASSERT_EQ(waitpid(writer, &status, 0), writer);
        ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << "the writer ended by itself";
        num_interrupted += temporaries();
        for (const std::string& name : list_directory(out_)) {
            if (name.find(kTemporaryMark) != std::string::npos) continue;
            const int64_t loaded = load(out_ + "/" + name, model, optimizer).step;
            EXPECT_EQ(checkpoint_name(loaded), name);
            num_loaded += loaded > step;
        }
        const std::string newest = newest_checkpoint(out_);
        step = load(newest, model, optimizer).step;
        prune_checkpoints(out_, 1);  // else every round would load all of them
    }
    EXPECT_GE(num_interrupted, 3);
    EXPECT_GE(num_loaded, 3);
    save(model, optimizer, ++step);
    EXPECT_EQ(temporaries(), 0);
    set_num_threads(hardware_threads());
}

// A limit on file sizes stands for the full disk: write(2) fails in the same place.
TEST_F(Checkpoint, AFullDiskLeavesNothingHalfWritten) {
    TinyModel model("tiny-llama");
    Optimizer optimizer = model.optimizer();
    const std::string first = save(model, optimizer, 1);
    struct rlimit before;
    getrlimit(RLIMIT_FSIZE, &before);
    const auto old_handler = signal(SIGXFSZ, SIG_IGN);
    for (const rlim_t limit : {rlim_t{100}, rlim_t{100'000}}) {  // in config.json; in model.safetensors
        const struct rlimit small = {limit, before.rlim_max};
        setrlimit(RLIMIT_FSIZE, &small);
        const std::string text = complaint([&] { save(model, optimizer, 2); });
        setrlimit(RLIMIT_FSIZE, &before);
        expect_phrases(text, {"cannot write file", "step_00000002"});
        EXPECT_EQ(list_directory(out_), (std::vector<std::string>{"step_00000001"}));
    }
    signal(SIGXFSZ, old_handler);
    EXPECT_EQ(newest_checkpoint(out_), first);
    load(first, model, optimizer);
}

TEST(WeightsHash, SeesEveryParameterAndNoPadding) {
    TinyModel model("tiny-gpt2");
    const std::string before = weights_hash(model.table, model.params());
    EXPECT_EQ(before.size(), 32u);
    std::vector<bool> is_param(static_cast<size_t>(model.table.arena_size()));
    for (const ParamInfo& row : model.table.rows())
        std::fill_n(is_param.begin() + row.offset, row.size(), true);
    for (int64_t i = 0; i < model.table.arena_size(); i += 997) {
        model.values()[i] += 1;
        EXPECT_EQ(weights_hash(model.table, model.params()) != before, is_param[static_cast<size_t>(i)]) << i;
        model.values()[i] -= 1;
    }
    TinyModel again("tiny-gpt2");
    EXPECT_EQ(weights_hash(again.table, again.params()), before);
}

}  // namespace
