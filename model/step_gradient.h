// The gradient of a step: summed over its micro-batches and over the ranks of a job, in an order that knows
// nothing of ranks. A step's micro-batches, in the order of their samples, are cut into parts. Within a part
// gradients are added up one micro-batch after another; parts are added along a tree (part_tree.h), and
// losses in the order of micro-batches and parts. So a step has the same bits on any number of ranks up to
// the number of parts, and on the CPU at any ZeRO stage.
//   stages 0 and 1: each rank has neighbouring parts, adds up what it can, and the sums of all meet where
//   each
//     range is owned, a unit at a time while the last backward pass goes on; with stage 0 everybody gets
//     them.
//   stages 2 and 3: micro-batches are dealt to ranks in turn. In each round a unit's gradients go to its
//   owners
//     as soon as the backward pass is through with it, so nobody ever has more than a few units of them.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/batch.h"
#include "core/comm.h"
#include "model/memory_plan.h"
#include "model/part_tree.h"
#include "model/sharding.h"
#include "model/transformer.h"

// Who does what in a step.
struct StepParts {
    int64_t num_micro_batches = 1, num_parts = 1;
    int num_ranks = 1;
    bool dealt = false;  // in turn, instead of neighbouring parts

    // tree: parts that gradients are added in, at most one a micro-batch; 0: one a rank, which gives other
    // roundings with every number of ranks. InputError when some rank would have nothing to do.
    static StepParts of(int64_t num_micro_batches, int64_t tree, int num_ranks, bool dealt = false);
    int64_t first_part(int rank) const { return num_parts * rank / num_ranks; }
    int64_t part_begin(int64_t part) const { return num_micro_batches * part / num_parts; }
    // The part that a micro-batch belongs to.
    int64_t part_of(int64_t micro_batch) const {
        return ((micro_batch + 1) * num_parts - 1) / num_micro_batches;
    }
    // Rank r's micro-batches are begin(r), begin(r) + stride(), .. below end(r).
    int64_t begin(int rank) const { return dealt ? rank : part_begin(first_part(rank)); }
    int64_t end(int rank) const { return dealt ? num_micro_batches : begin(rank + 1); }
    int64_t stride() const { return dealt ? num_ranks : 1; }
    int64_t count(int rank) const { return (end(rank) - begin(rank) + stride() - 1) / stride(); }
    // What a rank's sums cover when it has added what it can.
    std::vector<PartNode> sums(int rank) const;
    // Arenas beside the model's own that a rank's sums need at most: log2 of its parts, 1 more where they do
    // not begin at a power of two. Dealt: arenas of its own part, there being none of the model's.
    int64_t num_arenas(int rank) const;
};

class StepGradient final : GradientSink {
public:
    // Everything is the CPU's where there are several ranks or a stage above 1.
    StepGradient(Comm& comm, Transformer& model, const StepParts& parts, const Sharding& sharding);
    ~StepGradient() override;
    static void plan(MemoryPlan& plan, const ModelConfig& config, const ParamTable& table,
                     const StepParts& parts, const Sharding& sharding, int rank, Device device);

    // One after another this rank's micro-batches of a step: forward, and backward with gradients of
    // sum(losses) * scale.
    void add(const Batch& batch, float scale);
    // When all have been added, on all ranks: gradient() is the step's. Returns the sum of its losses, f64
    // [1], on the model's device.
    Tensor finish();
    // f32, whole with stage 0, else of this rank's ranges.
    ArenaPart gradient() const;

private:
    Tensor begin(int64_t unit) override;
    void end(int64_t unit) override;
    void merge(int64_t begin, int64_t size);
    void send(int64_t unit);
    void take(int64_t unit, int64_t begin, std::span<float* const> pieces, int64_t count);
    void take_dealt(int64_t unit, int64_t begin, std::span<float* const> pieces, int64_t count);
    void end_round();
    void gather();
    Tensor buffer_of(int64_t unit) const;
    bool begins_part() const { return next_ == parts_.part_begin(parts_.part_of(next_)); }
    bool ends_part() const { return next_ + 1 == parts_.part_begin(parts_.part_of(next_) + 1); }

    Comm& comm_;
    Transformer& model_;
    const StepParts parts_;
    const Sharding& sharding_;
    std::vector<PartNode> sums_of_all_;  // in the order of ranks; not dealt
    std::vector<int> num_sums_;          // of each rank
    // Sums, in the order of the stack: whole arenas but for the last, which lies in the model's; dealt:
    // compact arenas of the own ranges.
    std::vector<Buffer> sums_;
    PartStack stack_;
    int64_t next_ = 0, round_ = 0;  // the micro-batch that comes next; dealt: the round
    size_t num_kept_ = 0;           // dealt: arenas that hold something
    const UnitPlaces places_;
    std::vector<Buffer> buffers_;  // of units: dealt, and where a micro-batch is added to another
    std::vector<double> losses_;   // of each micro-batch
    Buffer loss_;
    std::unique_ptr<Pending> sending_;
};
