// A run's lines in order, and the search for flags that fit.
#include "model/run_memory.h"

#include "core/error.h"
#include "core/log.h"
#include "model/checkpoint_writer.h"
#include "model/generate.h"
#include "model/step_gradient.h"
#include "model/weights.h"

namespace {

// The largest micro-batch below the present one that fits, 0 when none does.
int64_t fitting_rows(const ModelConfig& config, RunNeeds needs, int64_t available_bytes) {
    for (int64_t rows = needs.shape.num_rows - 1; rows >= 1; --rows) {
        if (needs.rows_per_step > 0 && needs.rows_per_step % rows != 0) continue;
        // Without a step of given size any number will do; halving finds one soon.
        if (needs.rows_per_step == 0) rows = std::max<int64_t>(1, (rows + 1) / 2);
        needs.shape.num_rows = rows;
        if (plan_run(config, needs).needed_bytes() <= available_bytes) return rows;
    }
    return 0;
}

}  // namespace

MemoryPlan plan_run(const ModelConfig& config, const RunNeeds& needs) {
    const ParamTable table(config);
    const int64_t micro_batches = needs.rows_per_step > 0 ? needs.rows_per_step / needs.shape.num_rows : 1;
    const Sharding sharding(table, needs.optimizer.muon, needs.zero, needs.num_ranks);
    const StepParts parts = StepParts::of(micro_batches, needs.tree, needs.num_ranks, needs.zero >= 2);
    const int64_t rows = parts.count(needs.rank) * needs.shape.num_rows;
    const bool on_host = needs.shape.device == Device::cpu;
    MemoryPlan plan;
    if (on_host) plan.add("program and libraries", needs.process_bytes);
    Transformer::plan(plan, config, needs.shape);
    Weights::plan(plan, table, config, sharding, needs.shape.dtype, needs.rank);
    Optimizer::plan(plan, table, needs.optimizer, needs.shape.dtype, needs.shape.math, needs.shape.device,
                    sharding, needs.rank);
    StepGradient::plan(plan, config, table, parts, sharding, needs.rank, needs.shape.device);
    if (needs.sample_tokens > 0)
        plan.add("sampling", Decoder::memory_bytes(config, needs.shape.dtype, needs.sample_tokens));
    if (needs.background_checkpoints)
        plan.add(on_host ? "copy of a checkpoint" : "host: copy of a checkpoint",
                 CheckpointWriter::host_bytes(sharding, needs.rank, needs.shape.dtype),
                 on_host ? MemoryPlan::Kind::needed : MemoryPlan::Kind::host);
    if (!on_host) return plan;  // of the device's memory
    plan.add("the step's batches", rows * needs.shape.seq_len * 3 * dtype_bytes(DType::i32));
    plan.add("token shards (mapped)", needs.shard_bytes, MemoryPlan::Kind::reclaimable);
    return plan;
}

void check_run_memory(const ModelConfig& config, RunNeeds& needs, int64_t available_bytes) {
    if (plan_run(config, needs).needed_bytes() <= available_bytes) return;
    // Of all that is planned, training can do without this.
    needs.background_checkpoints = false;
    const int64_t needed = plan_run(config, needs).needed_bytes();
    if (needed <= available_bytes) return;
    RunNeeds recomputed = needs;
    recomputed.shape.recompute = Recompute::block;
    const bool may_recompute = needs.shape.recompute != Recompute::block;
    std::string hint;
    if (const int64_t rows = fitting_rows(config, needs, available_bytes); rows > 0)
        hint = cat({"--micro-batch ", rows});
    if (may_recompute && plan_run(config, recomputed).needed_bytes() <= available_bytes)
        hint += cat({hint.empty() ? "" : ", or ", "--recompute block"});
    if (may_recompute && hint.empty()) {
        const int64_t rows = fitting_rows(config, recomputed, available_bytes);
        if (rows > 0) hint = cat({"--micro-batch ", rows, " --recompute block"});
    }
    if (hint.empty()) hint = "a smaller --init, a shorter --seq-len or fewer --batch-tokens";
    fail_input({.what = "the run does not fit in memory",
                .where = cat({"--micro-batch ", needs.shape.num_rows}),
                .expected = cat({"at most ", human_bytes(static_cast<double>(available_bytes))}),
                .actual = human_bytes(static_cast<double>(needed)),
                .hint = hint});
}
