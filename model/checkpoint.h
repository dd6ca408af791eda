// A checkpoint is a Hugging Face model directory with the trainer's state beside it:
//   OUT/step_00001000/{config.json, model.safetensors, tokenizer.json, tokenizer_config.json,
//   generation_config.json} OUT/step_00001000/trainer/{master.safetensors, m.safetensors, v.safetensors,
//   state.json, hashes.json}
// Trainer tensors carry HF names and logical shapes in f32, so that any rank count, ZeRO stage or dtype can
// resume. A directory that exists under its final name is whole: written to a temporary name, fsynced,
// hashed, renamed.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "model/config.h"
#include "model/optimizer.h"
#include "model/params.h"

// Loads the weights of an HF directory (model.safetensors, or the shards of model.safetensors.index.json;
// F32, BF16, F16) into an f32 arena. Missing, surplus or misshapen tensors are InputErrors naming tensor,
// expected and actual.
ModelConfig load_hf_config(const std::string& directory);
void load_hf_weights(const std::string& directory, const ParamTable& table, const ModelConfig& config,
                     float* arena);
// Writes config.json, model.safetensors (dtype f32 or bf16, from an arena of that dtype) and the tokenizer's
// files, copied from tokenizer_directory when that is not "", into `directory`, which must exist.
void save_hf_model(const std::string& directory, const ParamTable& table, const ModelConfig& config,
                   const void* arena, DType dtype, const std::string& tokenizer_directory);

// Everything a run needs to go on as if it had never stopped.
struct TrainerState {
    int64_t step = 0;         // optimizer steps done, skipped ones included
    int64_t next_sample = 0;  // global sample index: the loader's whole state
    int64_t tokens = 0;       // trained on so far
    int64_t num_updates = 0, num_skipped = 0;
    std::vector<double> loss_window, norm_window;
    double best_val_loss = 0;  // 0: none yet
    uint64_t seed = 0;
    std::string config_toml;  // resolved flags
    std::string data_hash;    // hash of the training manifest
    std::string commit;       // of the program
    std::string run_id;       // identity of the run that owns the output directory
};

std::string checkpoint_name(int64_t step);  // "step_00001000"
// Writes OUT/step_N atomically. Hashes of all its files go to trainer/hashes.json.
void save_checkpoint(const std::string& out, const ParamTable& table, const ModelConfig& config,
                     const void* params, DType dtype, const Optimizer& optimizer, const TrainerState& state,
                     const std::string& tokenizer_directory);
// Verifies hashes, fills the optimizer's arenas (master, m, v) and returns the state. Does not publish the
// master.
TrainerState load_checkpoint(const std::string& directory, const ParamTable& table, const ModelConfig& config,
                             Optimizer& optimizer);
// The newest whole checkpoint in OUT, "" when there is none. Names decide, never modification times.
std::string newest_checkpoint(const std::string& out);
// Removes all but the `keep` newest (0: all stay).
void prune_checkpoints(const std::string& out, int64_t keep);
// XXH3-128 over every parameter's f32 master bytes in table order, padding excluded: equal runs print equal
// hashes.
std::string weights_hash(const ParamTable& table, const float* master);
