// What the ranks of a training job tell each other beside gradients.
#pragma once
#include <cstdint>
#include <string>

#include "core/comm.h"
#include "model/checkpoint.h"
#include "model/optimizer.h"
#include "model/params.h"

// Rank 0's run on all ranks: its arenas, its state, the optimizer's counts.
void broadcast_run(Comm& comm, TrainerState& state, Tensor params, Optimizer& optimizer);
// InternalError on all ranks, with the first that differs, unless all have the weights of rank 0: memory or a
// processor has failed, or the ranks' programs compute differently.
void check_equal_weights(Comm& comm, const ParamTable& table, Tensor master, int64_t step);
// Changes with every build of the program: the hash of its file.
std::string program_hash();

// A few numbers that all ranks agree on before they do a step.
struct StepAgreement {
    int64_t targets = 0;  // of all ranks
    int stop_signal = 0;  // of any rank's; 0: none has been asked to stop
};
StepAgreement agree(Comm& comm, int64_t targets, int stop_signal);
