// What the ranks of a training job tell each other beside gradients.
#pragma once
#include <cstdint>
#include <string>

#include "core/comm.h"
#include "model/checkpoint.h"
#include "model/optimizer.h"
#include "model/params.h"

// The state of a run, from where rank 0, which has locked OUT, has found it: the newest whole checkpoint of
// OUT, whose hashes it verifies while the others wait, or the model that the run begins with. Every rank
// loads its own part into the optimizer. `seed` is that of presets' weights; model_directory "": a preset.
struct RunStart {
    TrainerState state;
    std::string checkpoint;  // "" where the run begins
};
RunStart start_run(Comm& comm, const std::string& out, const std::string& model_directory,
                   const ParamTable& table, const ModelConfig& config, uint64_t seed, Optimizer& optimizer);
// InternalError on all ranks, with the first that differs, unless all have the weights of rank 0: memory or a
// processor has failed, or the ranks' programs compute differently. weights: a whole
// arena.
void check_equal_weights(Comm& comm, const ParamTable& table, Tensor weights, int64_t step);
// Changes with every build of the program: the hash of its file.
std::string program_hash();

// A few numbers that all ranks agree on before they do a step.
struct StepAgreement {
    int64_t targets = 0;   // of all ranks
    int stop_signal = 0;   // of any rank's; 0: none has been asked to stop
    int64_t num_busy = 0;  // ranks that still write a checkpoint
};
StepAgreement agree(Comm& comm, int64_t targets, int stop_signal, bool busy);
