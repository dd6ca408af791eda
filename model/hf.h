// Hugging Face model directories: the weights' way in and out. Which tensors exist, and under which names, is
// the parameter table's knowledge; here are the forms in which the world writes them: shards, half precision,
// missing prefixes, Conv1D's transposed matrices, buffers that are no parameters, a tied head stored all the
// same.
#pragma once
#include <functional>
#include <string>

#include "core/tensor.h"
#include "model/config.h"
#include "model/params.h"

ModelConfig load_hf_config(const std::string& directory);

// What --init names: a preset, or else a model directory. Presets come first; ./demo is a directory all the
// same.
struct ModelSource {
    ModelConfig config;
    std::string directory;  // "": a preset
};
ModelSource find_model(const std::string& init);

// Loads model.safetensors, or the shards of model.safetensors.index.json (F32, BF16, F16), into an arena,
// f32 or bf16 (rounded to nearest). Missing, surplus or misshapen tensors, values that are not
// finite and files that are not what the checkpoint's own hashes say are InputErrors naming what, expected
// and actual; the arena is then undefined.
void load_hf_weights(const std::string& directory, const ParamTable& table, const ModelConfig& config,
                     const ArenaPart& arena);

// Writes config.json, generation_config.json and the tokenizer's files, copied from tokenizer_directory when
// that is not "", into `directory`, which must exist. dtype: of the weights, f32 or bf16.
void save_hf_config(const std::string& directory, const ModelConfig& config, DType dtype,
                    const std::string& tokenizer_directory);
// That, and model.safetensors from an arena.
void save_hf_model(const std::string& directory, const ParamTable& table, const ModelConfig& config,
                   Tensor arena, const std::string& tokenizer_directory);

// An arena, f32 or bf16, as one safetensors file, under HF names and in HF shapes. First the file, in its
// whole length and without values; then every rank its own part, at the same time as others; what has been
// written is on the disk on return. InputError when the disk is full.
void create_arena_file(const std::string& path, const ParamTable& table, DType dtype);
void write_arena_part(const std::string& path, const ParamTable& table, const ArenaPart& arena);
// Loading expects exactly these tensors; values of another dtype are converted, to nearest. Rows that are not
// `wanted` stay as they are.
void load_arena(const std::string& path, const ParamTable& table, const ArenaPart& arena,
                const std::function<bool(const ParamInfo&)>& wanted = {});
