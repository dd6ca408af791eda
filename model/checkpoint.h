// A checkpoint is a Hugging Face model directory with the trainer's state beside it:
//   OUT/step_00001000/{config.json, generation_config.json, model.safetensors, tokenizer.json, ...}
//   OUT/step_00001000/trainer/{m.safetensors, v.safetensors, master.safetensors, state.json, hashes.json}
// Trainer tensors carry HF names and logical shapes in f32, so that any rank count, ZeRO stage or dtype can
// resume. An f32 run has no master.safetensors: its model.safetensors holds the same numbers. A directory
// that exists under its final name is whole: written to a temporary name, fsynced, hashed, renamed.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "model/config.h"
#include "model/hf.h"
#include "model/optimizer.h"
#include "model/params.h"
#include "model/trainer_state.h"

// The numbers of a checkpoint, on any device: params f32 or bf16, the others f32.
struct CheckpointArenas {
    Tensor params, moment1, moment2;
    Tensor master;  // absent where the params are f32: they are it
};
CheckpointArenas checkpoint_arenas(Tensor params, const Optimizer& optimizer);

std::string checkpoint_name(int64_t step);  // "step_00001000"
// Writes OUT/step_N atomically, hashes of all its files in trainer/hashes.json. OUT must exist and belong to
// this writer alone (core/lock.h): what killed writers left in it is removed, and so is a step_N that is not
// whole. Arenas on the host may be saved by any thread, those of a device by its own.
void save_checkpoint(const std::string& out, const ParamTable& table, const ModelConfig& config,
                     const CheckpointArenas& arenas, const TrainerState& state,
                     const std::string& tokenizer_directory);
// Verifies hashes, then restores the whole optimizer (master, m, v, counts, windows) and `params`, the arena
// that the model reads. With equal dtypes params get the saved bits (a bf16 copy is rounded stochastically,
// so it does not follow from the master); else they are published from the master.
TrainerState load_checkpoint(const std::string& directory, const ParamTable& table, const ModelConfig& config,
                             Tensor params, Optimizer& optimizer);
// The newest checkpoint of OUT whose hashes hold. Damaged ones that are newer are renamed to step_N.damaged,
// in one line on stderr each; InputError, and nothing renamed, when no other is left. OUT must have one.
TrainerState load_newest_checkpoint(const std::string& out, const ParamTable& table,
                                    const ModelConfig& config, Tensor params, Optimizer& optimizer);
// The newest whole checkpoint in OUT, "" when there is none. Names decide, never modification times. Whole:
// every file of hashes.json is there with its size; the hashes themselves are verified by load_checkpoint.
std::string newest_checkpoint(const std::string& out);
// Removes all but the `keep` newest whole ones (0: all stay).
void prune_checkpoints(const std::string& out, int64_t keep);
// Hash of every parameter's f32 master bytes in table order, padding excluded (XXH3-128 of the rows'
// XXH3-128): equal runs print equal hashes.
std::string weights_hash(const ParamTable& table, Tensor master);
