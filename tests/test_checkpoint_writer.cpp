// Checkpoints written while a device trains on: the files of a host that waits, of the state behind their own
// step, without a wait of the step's; and what becomes of them when something goes wrong.
#include "model/checkpoint_writer.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <functional>
#include <thread>

#include "core/io.h"
#include "tests/device_training.h"

namespace {

class CheckpointWriting : public DirectoryTest {
protected:
    // The options of a run that cannot be told apart in its files.
    static TrainerState state_of(int64_t step) {
        TrainerState state;
        state.step = step;
        state.last_loss = 2.5;
        return state;
    }
    CheckpointWriter writer_of(Training& training, int64_t keep = 0, bool in_background = true,
                               int64_t available_bytes = available_memory_bytes()) const {
        return CheckpointWriter({.out = out_, .tokenizer_directory = {}, .keep = keep},
                                training.model.table(), training.config, training.optimizer,
                                sharding_of(training), *alone_, in_background, available_bytes);
    }
    static Sharding sharding_of(const Training& training) { return {training.model.table(), false, 0, 1}; }
    const std::unique_ptr<Comm> alone_ = make_self_comm();
    std::string hashes(int64_t step) const {
        const std::string path = cat({out_, "/", checkpoint_name(step), "/trainer/hashes.json"});
        return path_exists(path) ? read_file(path) : "(absent)";
    }
    // The hashes of what a host that waits writes; the directory goes again.
    std::string hashes_of_waiting(Training& training, int64_t step) const {
        CheckpointWriter writer = writer_of(training, 0, false);
        EXPECT_FALSE(writer.in_background());
        writer.save(state_of(step));
        const std::string text = hashes(step);
        std::filesystem::remove_all(cat({out_, "/", checkpoint_name(step)}));
        return text;
    }
    // Until the thread is done; poll() throws what it failed with.
    void poll_until_written(CheckpointWriter& writer, int64_t step) const {
        for (int i = 0; i < 10'000 && hashes(step) == "(absent)"; ++i) {
            writer.poll();
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
    }
};

// Write failures, as of a full disk, until it goes.
class FileSizeLimit {
public:
    explicit FileSizeLimit(rlim_t bytes) : handler_(signal(SIGXFSZ, SIG_IGN)) {
        getrlimit(RLIMIT_FSIZE, &before_);
        const struct rlimit small = {bytes, before_.rlim_max};
        setrlimit(RLIMIT_FSIZE, &small);
    }
    ~FileSizeLimit() {
        setrlimit(RLIMIT_FSIZE, &before_);
        signal(SIGXFSZ, handler_);
    }

private:
    struct rlimit before_;
    sighandler_t handler_;
};

// ---------------------------------------------------------------------------------------------------

// Steps are queued behind the copies, and run before, while or after the thread writes: it must not matter.
TEST_F(CheckpointWriting, HoldsTheStateOfItsStepWhateverRunsMeanwhile) {
    std::vector<Device> devices = gpus();
    devices.push_back(Device::cpu);
    for (Device device : devices) {
        for (Precision precision : {Precision::f32, Precision::bf16}) {
            for (const bool muon : {false, true}) {
                if (muon && precision == Precision::f32) continue;  // three arenas or four, that is all
                SCOPED_TRACE(cat({device_name(device), " ", name_of(precision), muon ? " Muon" : " AdamW"}));
                Training training(config_preset("tiny-llama"), shape_on(device, precision), {.muon = muon});
                training.train_pipelined(0, 2, {1});  // one of them refused: its counts are state too
                const std::string second = hashes_of_waiting(training, 2);
                CheckpointWriter writer = writer_of(training);
                ASSERT_TRUE(writer.in_background());
                writer.save(state_of(2));
                training.train_pipelined(2, 4, {});
                const std::string fourth = hashes_of_waiting(training, 4);
                EXPECT_NE(fourth, second);
                writer.poll();
                training.train_pipelined(4, 5, {});
                const std::string fifth = hashes_of_waiting(training, 5);
                writer.save(state_of(5));  // waits for the one before
                EXPECT_EQ(hashes(2), second);
                training.train_pipelined(5, 6, {});
                writer.finish();
                EXPECT_EQ(hashes(5), fifth);
                const TrainerState state =
                    load_checkpoint(verify_newest_checkpoint(out_), training.model.table(), training.config,
                                    training.optimizer);
                EXPECT_EQ(state.step, 5);
                EXPECT_EQ(state.num_updates, 4);
                EXPECT_EQ(state.num_skipped, 1);
                EXPECT_EQ(state.loss_window.size(), 5u);
                EXPECT_EQ(state.norm_window.size(), 4u) << "the refused one's was not finite";
                for (const int64_t step : {2, 5})
                    std::filesystem::remove_all(cat({out_, "/", checkpoint_name(step)}));
            }
        }
    }
}

TEST_F(CheckpointWriting, IsQueuedWithoutAWait) {
    for (Device device : gpus()) {
        Training training(config_preset("tiny-llama"), shape_on(device, Precision::bf16), {});
        training.train_pipelined(0, 3, {});
        CheckpointWriter writer = writer_of(training);
        const int64_t before = num_device_waits();
        writer.save(state_of(3));
        writer.poll();  // too early
        EXPECT_EQ(num_device_waits(), before);
        EXPECT_EQ(hashes(3), "(absent)");
        int64_t waits = 0;
        training.train_pipelined(3, 4, {}, &waits);
        EXPECT_EQ(waits, 0) << "the step behind it";
        // The numbers of that step have come, so the copy has: neither waiting nor asking again is left.
        const int64_t then = num_device_waits();
        writer.poll();
        for (int i = 0; i < 10'000 && hashes(3) == "(absent)"; ++i)
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        EXPECT_NE(hashes(3), "(absent)") << "the thread did not get it from one poll()";
        writer.finish();
        EXPECT_EQ(num_device_waits(), then);
        std::filesystem::remove_all(cat({out_, "/", checkpoint_name(3)}));
    }
}

// A tokenizer that comes through a pipe holds the writing up for as long as the test wants.
TEST_F(CheckpointWriting, TrainingGoesOnWhileItIsWritten) {
    Training training(config_preset("tiny-llama"), shape_on(gpus().front(), Precision::f32), {});
    const std::string pipe = out_ + "/tokenizer.json";
    ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
    CheckpointWriter writer({.out = out_, .tokenizer_directory = out_}, training.model.table(),
                            training.config, training.optimizer, sharding_of(training), *alone_, true);
    std::atomic<bool> trained_on{false}, gave_up{false};
    std::thread tokenizer([&] {
        for (int i = 0; i < 30'000 && !trained_on; ++i)
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        gave_up = !trained_on;
        std::ofstream(pipe) << "{}";
    });
    writer.save(state_of(1));
    training.train_pipelined(0, 1, {});
    writer.poll();
    training.train_pipelined(1, 2, {});
    writer.poll();
    EXPECT_EQ(hashes(1), "(absent)");
    trained_on = true;
    writer.finish();
    tokenizer.join();
    EXPECT_FALSE(gave_up) << "poll() wrote by itself";
    EXPECT_NE(hashes(1), "(absent)");
}

TEST_F(CheckpointWriting, OldOnesGoWhenTheNewOneIsWhole) {
    Training training(config_preset("tiny-llama"), shape_on(gpus().front(), Precision::f32), {});
    CheckpointWriter writer = writer_of(training, 2);
    for (const int64_t step : {1, 2, 3, 4}) writer.save(state_of(step));
    writer.finish();
    EXPECT_EQ(list_directory(out_), (std::vector<std::string>{checkpoint_name(3), checkpoint_name(4)}));
    writer.finish();  // nothing to do
    writer.poll();
    // One that is under way at the end of a block is written all the same, once the thread has it.
    {
        CheckpointWriter last = writer_of(training);
        last.save(state_of(5));
        device_synchronize(training.model.params().device);
        last.poll();
    }
    EXPECT_NE(hashes(5), "(absent)");
}

TEST_F(CheckpointWriting, AFailureIsToldByWhateverComesNext) {
    Training training(config_preset("tiny-llama"), shape_on(gpus().front(), Precision::bf16), {});
    CheckpointWriter writer = writer_of(training);
    const std::string waiting = complaint([&] {
        const FileSizeLimit limit(100'000);
        writer_of(training, 0, false).save(state_of(1));
    });
    expect_phrases(waiting, {"cannot write file", "File too large", checkpoint_name(1)});
    const std::vector<std::function<void()>> nexts = {
        [&] { poll_until_written(writer, 1); }, [&] { writer.save(state_of(2)); }, [&] { writer.finish(); }};
    for (const auto& next : nexts) {
        const std::string told = complaint([&] {
            const FileSizeLimit limit(100'000);
            writer.save(state_of(1));
            next();
        });
        // Which of the files was the first to fail is not said.
        expect_phrases(told, {"cannot write file", "File too large", checkpoint_name(1)});
        EXPECT_TRUE(list_directory(out_).empty()) << "left over: " << list_directory(out_).front();
        EXPECT_EQ(complaint([&] { writer.finish(); }), "(accepted)") << "told twice";
    }
    writer.save(state_of(3));
    writer.finish();
    EXPECT_NE(hashes(3), "(absent)");
}

TEST_F(CheckpointWriting, WithoutHostMemoryTrainingWaits) {
    Training training(config_preset("tiny-llama"), shape_on(gpus().front(), Precision::bf16), {});
    const Sharding sharding = sharding_of(training);
    const int64_t bytes = CheckpointWriter::host_bytes(sharding, 0, DType::bf16);
    EXPECT_EQ(bytes, training.model.table().arena_size() * (2 + 3 * 4));
    EXPECT_EQ(CheckpointWriter::host_bytes(sharding, 0, DType::f32),
              training.model.table().arena_size() * 3 * 4);
    testing::internal::CaptureStderr();
    EXPECT_TRUE(writer_of(training, 0, true, bytes).in_background());
    EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
    testing::internal::CaptureStderr();
    CheckpointWriter writer = writer_of(training, 0, true, bytes - 1);
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_FALSE(writer.in_background());
    EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
    expect_phrases(said, {"training will wait", cat({bytes})});
    writer.save(state_of(1));
    EXPECT_NE(hashes(1), "(absent)") << "written on return";
    writer.poll();
    writer.finish();
}

}  // namespace
