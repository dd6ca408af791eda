// Checkpoints during a run, by all its ranks: each writes its own bytes of every file. Training stalls for a
// copy of the state only: on a device into page-locked host memory, in the order of its stream, so after the
// step that it belongs to and before whatever is queued next; on the CPU into ordinary memory. A thread then
// writes, hashes and prunes while training goes on. Without memory for the copy training waits. The files are
// the same either way, and for any number of ranks.
#pragma once
#include <cstdint>
#include <future>
#include <optional>
#include <string>
#include <vector>

#include "core/comm.h"
#include "core/device.h"
#include "core/memory.h"
#include "model/checkpoint.h"
#include "model/sharding.h"

class CheckpointWriter {
public:
    struct Target {
        std::string out, tokenizer_directory;
        int64_t keep = 0, keep_every = 0;  // as prune_checkpoints() counts
    };
    // in_background: take host_bytes() of host memory for the copy; where that is more than `available_bytes`
    // or refused, one line on stderr says so, and training waits. The arguments stay.
    CheckpointWriter(Target target, const ParamTable& table, const ModelConfig& config, Optimizer& optimizer,
                     const Sharding& sharding, Comm& comm, bool in_background,
                     int64_t available_bytes = available_memory_bytes());
    ~CheckpointWriter();  // waits, and drops what could not be written
    // Of a rank.
    static int64_t host_bytes(const Sharding& sharding, int rank, DType dtype);
    bool in_background() const { return in_background_; }

    // With several ranks all call save(), go_on() and finish() at once.
    // Saves the state as it is behind everything queued so far; counts and windows are the optimizer's, which
    // has no update under way. Waits for the checkpoint before.
    void save(TrainerState state);
    // Hands a copy that has arrived to the thread: to be called once a step, when the step's own numbers have
    // come, since the copy came before them. Throws what a write has failed with, as the others do.
    void poll();
    // Whether this rank's thread is at work; when no rank's is any more, go_on() begins what comes next.
    bool busy();
    void go_on();
    void finish();  // waits until the last one is whole, and the old ones are gone

private:
    // What the ranks are at together. Each but `none` ends when the threads of all ranks have come to its
    // end.
    enum class Stage { none, writing, hashing, ending };

    void begin();
    void copy_to_host();
    CheckpointArenas copied() const;
    void start(std::function<void()> work);
    void start_writing();
    void hash_own_files();
    void commit();
    void wait();

    const Target target_;
    const ParamTable& table_;
    const ModelConfig& config_;
    Optimizer& optimizer_;
    Comm& comm_;
    CheckpointArenas arenas_;  // the run's; what this rank writes of them
    bool in_background_ = false;
    std::vector<Readback> readbacks_;  // of a device's arenas, in the order of all_of()
    std::vector<Buffer> copies_;       // of the CPU's
    std::vector<ArenaSegment> own_;    // of copies_

    Stage stage_ = Stage::none;
    TrainerState state_;
    std::optional<NewCheckpoint> checkpoint_;  // rank 0's
    std::string temporary_;
    std::vector<std::string> hashes_;  // of arena_files(): a rank's own, and in the end all
    bool copying_ = false;             // on a device: the copies have not arrived
    std::future<void> work_;           // reads all of the above, so it must go first
};
