// What a run does about steps that go wrong: back to a checkpoint when it refuses one after another, and a
// step computed twice to see whether a machine still computes the same.
#pragma once
#include <string>

#include "core/comm.h"
#include "core/log.h"
#include "model/optimizer.h"
#include "model/step_gradient.h"
#include "model/trainer_state.h"

// Of all ranks at once, after skips in a row: `state`, and the optimizer, become those of the newest whole
// checkpoint of OUT, with the samples of those skips among what is stepped over. Checkpoints of multiples of
// `every` steps come first: a run that was stopped in between goes back to where it would have gone without.
// False, and nothing changed, when there is no checkpoint. Logged, and said by rank 0, either way.
bool go_back(Comm& comm, const std::string& out, int64_t every, const ParamTable& table,
             const ModelConfig& config, Optimizer& optimizer, TrainerState& state, RunLog& log);

struct GradientBits {
    double loss = 0;
    std::string hash;
};
// Of a step that has been computed. comm: where the gradient is sharded.
GradientBits bits_of(const StepGradient& gradient, Tensor loss, const ParamTable& table, Comm* comm);
// InternalError unless they are equal; logged if they are.
void check_replay(const GradientBits& first, const GradientBits& second, int64_t step, RunLog& log);
