// What a run knows beside its arenas: steps, samples, counts, windows; as text in checkpoints and between
// ranks.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "model/optimizer.h"

struct SampleRange {  // global sample indices
    int64_t begin = 0, end = 0;
    bool operator==(const SampleRange&) const = default;
};

// Everything a run needs to go on as if it had never stopped.
struct TrainerState {
    int64_t step = 0;         // optimizer steps done, skipped ones included
    int64_t next_sample = 0;  // global sample index: the loader's whole state
    int64_t tokens = 0;       // trained on so far
    int64_t num_updates = 0, num_skipped = 0, skips_in_a_row = 0;
    std::vector<double> loss_window, norm_window;
    int64_t refused_since = -1;             // first sample of the skips in a row; -1: the last step was none
    std::vector<SampleRange> stepped_over;  // samples that a rewind has left out
    double last_loss = 0;                   // training loss of the step just done
    uint64_t seed = 0;
    std::string config_toml;  // resolved flags
    std::string data_hash;    // hash of the training manifest
    std::string commit;       // of the program

    // Moves next_sample behind what is to be left out; whether it has moved.
    bool step_over();
};

// dtype: of the parameters that the model reads.
std::string state_to_json(const TrainerState& state, DType dtype);
// `where` is named when the text is malformed or of another version: InputError.
TrainerState state_from_json(const std::string& text, const std::string& where, DType& dtype);
// The optimizer's counts and windows.
void restore_counts(Optimizer& optimizer, const TrainerState& state);
