// The memory of a training run: planned as a whole, and refused, before anything is allocated, with flags
// that make it fit.
#pragma once
#include "model/config.h"
#include "model/memory_plan.h"
#include "model/optimizer.h"
#include "model/transformer.h"

struct RunNeeds {
    RunShape shape;
    OptimizerConfig optimizer;
    int64_t rows_per_step = 0;  // of all ranks; 0: one micro-batch, whatever its size
    int64_t tree = 0;           // StepParts'
    int zero = 0;               // stage
    int rank = 0, num_ranks = 1;
    int64_t sample_tokens = 0;            // longest text that is sampled during the run, 0: none
    bool background_checkpoints = false;  // written while training goes on
    int64_t process_bytes = 0;            // resident before: program, libraries, tokenizer
    int64_t shard_bytes = 0;              // mapped
};
// On a device: of its memory; of the host's needs only the copy of a checkpoint is worth a line. On the CPU
// that copy is among the needs.
MemoryPlan plan_run(const ModelConfig& config, const RunNeeds& needs);
// InputError when the plan needs more than is available. Its hint holds flags that were planned and fit:
// a micro-batch that divides the step, recomputation, or both. background_checkpoints is given up before
// that.
void check_run_memory(const ModelConfig& config, RunNeeds& needs, int64_t available_bytes);
