// Checkpoints during a run. On the CPU, and where there is no host memory for a copy, training waits until
// one is written. On a device the state is copied into page-locked host memory, in the order of its stream:
// after the step that it belongs to, before whatever is queued next; a thread then hashes, writes and prunes
// while training goes on. The files are the same either way.
#pragma once
#include <cstdint>
#include <future>
#include <optional>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/memory.h"
#include "model/checkpoint.h"

class CheckpointWriter {
public:
    struct Target {
        std::string out, tokenizer_directory;
        int64_t keep = 0;  // newest whole ones, as prune_checkpoints() counts
    };
    // in_background: on a device, take host_bytes() of host memory for the copy; where that is more than
    // `available_bytes` or refused, one line on stderr says so, and training waits. The arguments stay.
    CheckpointWriter(Target target, const ParamTable& table, const ModelConfig& config, Tensor params,
                     Optimizer& optimizer, bool in_background,
                     int64_t available_bytes = available_memory_bytes());
    ~CheckpointWriter();  // waits, and drops what could not be written
    static int64_t host_bytes(const ParamTable& table, DType dtype);
    bool in_background() const { return !copies_.empty(); }

    // Saves the state as it is behind everything queued so far; counts and windows are the optimizer's, which
    // has no update under way. Waits for the checkpoint before.
    void save(TrainerState state);
    // Hands a copy that has arrived to the thread: to be called once a step, when the step's own numbers have
    // come, since the copy came before them. Throws what a write has failed with, as finish() does.
    void poll();
    void finish();  // waits until the last one is whole, and the old ones are gone

private:
    void write(const CheckpointArenas& arenas, const TrainerState& state) const;
    void start_writing();

    const Target target_;
    const ParamTable& table_;
    const ModelConfig& config_;
    Optimizer& optimizer_;
    const CheckpointArenas arenas_;
    std::vector<Readback> copies_;         // of the arenas, in the order of all_of(); empty: training waits
    std::optional<TrainerState> copying_;  // the copies' state, until the thread has it
    std::future<void> writing_;            // reads the copies, so it must go first
};
