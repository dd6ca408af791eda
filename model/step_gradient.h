// The gradient of a step: summed over its micro-batches and over the ranks of a job, in an order that knows
// nothing of ranks. A step's micro-batches, in the order of their samples, are cut into parts, and each rank
// has some neighbouring ones. Within a part gradients are added up one micro-batch after another; parts are
// added along a tree (part_tree.h), and losses in the order of parts. So a step has the same bits on any
// number of ranks up to the number of parts.
#pragma once
#include <cstdint>
#include <vector>

#include "core/batch.h"
#include "core/comm.h"
#include "model/memory_plan.h"
#include "model/part_tree.h"
#include "model/transformer.h"

// Who does what in a step.
struct StepParts {
    int64_t num_micro_batches = 1, num_parts = 1;
    int num_ranks = 1;

    // tree: parts that gradients are added in, at most one a micro-batch; 0: one a rank, which gives other
    // roundings with every number of ranks. InputError when some rank would have nothing to do.
    static StepParts of(int64_t num_micro_batches, int64_t tree, int num_ranks);
    int64_t first_part(int rank) const { return num_parts * rank / num_ranks; }
    int64_t part_begin(int64_t part) const { return num_micro_batches * part / num_parts; }
    // Rank r's micro-batches are [begin(r), begin(r + 1)).
    int64_t begin(int rank) const { return part_begin(first_part(rank)); }
    // What a rank's sums cover when it has added what it can.
    std::vector<PartNode> sums(int rank) const;
    // Arenas beside the model's own that a rank's sums need at most: log2 of its parts, 1 more where they do
    // not begin at a power of two.
    int64_t num_arenas(int rank) const;
};

class StepGradient {
public:
    // The model's arena of gradients is the CPU's where there are several ranks.
    StepGradient(Comm& comm, Transformer& model, const StepParts& parts);
    static void plan(MemoryPlan& plan, int64_t arena_size, const StepParts& parts, int rank);

    // One after another this rank's micro-batches of a step: forward, and backward with gradients of
    // sum(losses) * scale.
    void add(const Batch& batch, float scale);
    // When all have been added, on all ranks: model.grads() is the step's gradient. Returns the sum of its
    // losses, f64 [1], on the model's device.
    Tensor finish();

private:
    void end_part();
    void reduce();

    Comm& comm_;
    Transformer& model_;
    const StepParts parts_;
    const Split split_;
    std::vector<PartNode> sums_of_all_;  // in the order of ranks
    std::vector<int> num_sums_;          // of each rank
    std::vector<Buffer> waiting_;        // sums, but for the last, which lies in the model's arena
    PartStack stack_;
    int64_t part_, next_;         // of the micro-batch that comes next
    std::vector<double> losses_;  // of each part
    Buffer loss_;
};
