// The trainer's options: as flags, and as what the model, the optimizer and the memory plan are made from.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/flags.h"
#include "model/optimizer.h"
#include "model/transformer.h"

struct TrainOptions {
    std::string init = "demo", train_data, val_data, out;
    int64_t steps = 1000, stop_at = 0, batch_tokens = 0, micro_batch = 4, seq_len = 256;
    std::string optimizer = "adamw", schedule = "cosine";
    double lr = 6e-4, lr_final_frac = 0.1, weight_decay = 0.1, beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
    double grad_clip = 1.0, muon_lr_ratio = 1.0, outlier_z = 0;
    int64_t warmup = 0, deterministic_reduce = -1, zero = 0;
    std::string dtype = "fp32", recompute = "none", device = "auto", isa = "auto";
    int64_t threads = 0, eval_every = 0, eval_batches = 0, checkpoint_every = 0, keep = 2, keep_every = 0;
    int64_t rewind_after = 20, replay_step = 0;
    int64_t sample_every = 0, sample_tokens = 100;
    std::string sample_prompt;
    int64_t seed = 42, eot = -1;
    bool mask_documents = true, quiet = false;
    double watchdog = 20;

    // What the model and the optimizer are built with; `on` is where.
    RunShape shape(Device on) const;
    OptimizerConfig optimizing() const;
    Schedule schedule_of_lr() const;
    // Parts of a step whose gradients are added in a tree (model/step_gradient.h); 0: none.
    int64_t tree(Device on) const;
    // The micro-batches of a step, of all ranks. Sets batch_tokens where it was left out: one micro-batch.
    int64_t num_micro_batches();
};

void declare(Flags& flags, TrainOptions& options);
// Options that a resumed run may change. Only micro-batch and isa can move a weight at all, by rounding.
extern const std::vector<std::string> kFreeOptions;
