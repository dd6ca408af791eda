// How much of each kind of memory a transformer takes, before there is one. Pure.
#pragma once
#include <cstdint>

#include "model/params.h"
#include "model/transformer.h"

// InputError when the model cannot be run in this shape, on this device or in any memory.
void check_run_shape(const ModelConfig& config, const RunShape& shape);

struct ArenaBytes {
    int64_t params = 0, grads = 0;
};
ArenaBytes arena_bytes(const ParamTable& table, const RunShape& shape);
int64_t activation_bytes(const ModelConfig& config, const RunShape& shape);
int64_t fp8_bytes(const ModelConfig& config, const RunShape& shape);
int64_t scratch_bytes(const ModelConfig& config, const RunShape& shape);
