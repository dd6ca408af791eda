// Sizes from layouts, limits from devices.
#include "model/transformer_memory.h"

#include "core/device.h"
#include "core/error.h"
#include "core/threads.h"
#include "kernels/matmul_scratch.h"
#include "model/activations.h"
#include "model/batch_tensors.h"
#include "model/fp8.h"

void check_run_shape(const ModelConfig& config, const RunShape& shape) {
    check_config(config, "model configuration");
    CHECK(shape.num_rows > 0 && shape.seq_len > 0, cat({"B=", shape.num_rows, " T=", shape.seq_len}));
    CHECK(shape.dtype == DType::f32 || shape.dtype == DType::bf16, dtype_name(shape.dtype));
    CHECK(!shape.fp8 || shape.dtype == DType::bf16, dtype_name(shape.dtype));
    constexpr int kOldestWithFp8 = 89;
    if (shape.fp8 && shape.device != Device::cpu) {
        const DeviceInfo gpu = device_info(shape.device);
        if (gpu.capability < kOldestWithFp8) {
            fail_input({.what = "this GPU has no FP8 arithmetic",
                        .where = gpu.name,
                        .expected = "compute capability 8.9 or later for --dtype fp8",
                        .actual = cat({gpu.capability / 10, ".", gpu.capability % 10}),
                        .hint = "--dtype bf16"});
        }
    }
    if (shape.seq_len > config.max_position) {
        fail_input({.what = "sequences are longer than the model's positions reach",
                    .expected = cat({"at most ", config.max_position, " tokens"}),
                    .actual = cat({shape.seq_len}),
                    .hint = cat({"--seq-len ", config.max_position})});
    }
    // In double, before any product can overflow: tokens are counted in 32 bits, bytes in 64.
    const double tokens = double(shape.num_rows) * double(shape.seq_len);
    const double layer_width =
        8 * double(config.channels) + 4 * double(config.qkv_dim()) + 4 * double(config.mlp_dim);
    if (tokens > double(INT32_MAX) || tokens * layer_width * double(config.num_layers + 1) > 0x1p58) {
        fail_input({.what = "the micro-batch is larger than any memory",
                    .expected = cat({"at most ", INT32_MAX, " tokens, and far fewer for a large model"}),
                    .actual = cat({tokens, " tokens"}),
                    .hint = "a smaller --micro-batch or --seq-len"});
    }
}

ArenaBytes arena_bytes(const ParamTable& table, const RunShape& shape) {
    return {.params = shape.has_params ? table.arena_size() * dtype_bytes(shape.dtype) : 0,
            .grads = shape.backward && shape.has_grads ? table.arena_size() * dtype_bytes(DType::f32) : 0};
}

int64_t activation_bytes(const ModelConfig& config, const RunShape& shape) {
    Arena arena;
    layout_forward(arena, config, shape, shape.num_rows * shape.seq_len);
    return arena.bytes();
}

int64_t fp8_bytes(const ModelConfig& config, const RunShape& shape) {
    Arena arena;
    if (shape.fp8 && shape.backward) layout_fp8(arena, config, shape.num_rows * shape.seq_len);
    return arena.bytes();
}

int64_t scratch_bytes(const ModelConfig& config, const RunShape& shape) {
    Arena arena;
    layout_scratch(arena, config, shape, shape.num_rows * shape.seq_len);
    return arena.bytes();
}

namespace {
// What attention's tiles take of a thread, at most: heads of 256, the largest (kernels/attention_forward.h).
constexpr int64_t kAttentionWorkerBytes = 640 << 10;
}  // namespace

void Transformer::plan(MemoryPlan& plan, const ModelConfig& config, const RunShape& shape) {
    check_run_shape(config, shape);
    const ParamTable table(config);
    if (shape.has_params)
        plan.add(cat({"parameters (", dtype_name(shape.dtype), ")"}), arena_bytes(table, shape).params);
    if (shape.backward && shape.has_grads) plan.add("gradients (f32)", arena_bytes(table, shape).grads);
    plan.add("activations", activation_bytes(config, shape));
    plan.add("scratch", scratch_bytes(config, shape));
    if (shape.fp8 && shape.backward) plan.add("FP8 weights and operands", fp8_bytes(config, shape));
    if (shape.device != Device::cpu) {
        plan.add("batch", BatchTensors::device_bytes(shape.num_rows * shape.seq_len));
        plan.add("device workspaces", workspace_sizes(config, shape).total());
        return;
    }
    plan.add("matmul scratch", matmul_scratch_bytes(num_threads()));
    plan.add("attention scratch", num_threads() * kAttentionWorkerBytes);
}
