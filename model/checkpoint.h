// A checkpoint is a Hugging Face model directory with the trainer's state beside it:
//   OUT/step_00001000/{config.json, generation_config.json, model.safetensors, tokenizer.json, ...}
//   OUT/step_00001000/trainer/{m.safetensors, v.safetensors, master.safetensors, state.json, hashes.json}
// Trainer tensors carry HF names and logical shapes in f32, so that any rank count, ZeRO stage or dtype can
// resume. An f32 run has no master.safetensors: its model.safetensors holds the same numbers. A directory
// that exists under its final name is whole: written to a temporary name, fsynced, hashed, renamed. Several
// ranks write one checkpoint, each its own bytes of every file: all must see the same OUT.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/io.h"
#include "core/tensor.h"
#include "model/config.h"
#include "model/hf.h"
#include "model/optimizer.h"
#include "model/params.h"
#include "model/trainer_state.h"

// The numbers of a checkpoint, on any device, or a rank's part of them: params f32 or bf16, the others f32.
struct CheckpointArenas {
    ArenaPart params, moment1, moment2;
    ArenaPart master;  // absent where the params are f32: they are it
};
// What the optimizer has and updates, and the params that go with it.
CheckpointArenas checkpoint_arenas(const Optimizer& optimizer);

std::string checkpoint_name(int64_t step);  // "step_00001000"

// A checkpoint on its way to OUT/step_N: begun by one rank, filled by all, finished by the one that began it.
// OUT must exist and belong to this writer alone (core/lock.h): what killed writers left in it is removed,
// and so is a step_N that is not whole.
class NewCheckpoint {
public:
    // All files are there, and their room on the disk is taken; the arenas' values are missing.
    NewCheckpoint(const std::string& out, const ParamTable& table, const ModelConfig& config, DType dtype,
                  const TrainerState& state, const std::string& tokenizer_directory);
    const std::string& temporary() const { return directory_.temporary(); }
    // hashes: of the files of arenas, in the order of arena_files(). The others are hashed here.
    void commit(const std::vector<std::string>& hashes);

private:
    AtomicDirectory directory_;
    DType dtype_;
};
// Paths within a checkpoint whose params are of `dtype`.
std::vector<std::string> arena_files(DType dtype);
// A rank's segments of all arenas, on the disk when it returns. Arenas on the host may be written by any
// thread, those of a device by its own.
void write_checkpoint_part(const std::string& temporary, const ParamTable& table,
                           const CheckpointArenas& arenas);
// All of it, by one rank.
void save_checkpoint(const std::string& out, const ParamTable& table, const ModelConfig& config,
                     const CheckpointArenas& arenas, const TrainerState& state,
                     const std::string& tokenizer_directory);
// Verifies hashes, then restores the optimizer (master, m, v, counts, windows) and its params. With equal
// dtypes params get the saved bits (a bf16 copy is rounded stochastically, so it does not follow from the
// master); else they are published from the master.
TrainerState load_checkpoint(const std::string& directory, const ParamTable& table, const ModelConfig& config,
                             Optimizer& optimizer);
// The same without a look at the hashes, for a rank whose part is loaded from what another has verified.
TrainerState load_verified_checkpoint(const std::string& directory, const ParamTable& table,
                                      const ModelConfig& config, Optimizer& optimizer);
// The newest checkpoint of OUT whose hashes hold. Damaged ones that are newer are renamed to step_N.damaged,
// in one line on stderr each; InputError, and nothing renamed, when no other is left. "" when OUT has none.
// every > 0: only those of steps that are multiples of it.
std::string verify_newest_checkpoint(const std::string& out, int64_t every = 0);
// The newest whole checkpoint in OUT, "" when there is none. Names decide, never modification times. Whole:
// every file of hashes.json is there with its size; the hashes themselves are verified by load_checkpoint.
std::string newest_checkpoint(const std::string& out);
// Removes all whole ones but the `keep` newest (0: all stay) and those whose step is a multiple of
// `keep_every` (0: no step is).
void prune_checkpoints(const std::string& out, int64_t keep, int64_t keep_every = 0);
