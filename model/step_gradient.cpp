// Sums along the tree: this rank's as its parts come, the rest where each range of the arena is owned.
#include "model/step_gradient.h"

#include <algorithm>
#include <numeric>

#include "core/device.h"
#include "core/error.h"
#include "kernels/residual.h"

StepParts StepParts::of(int64_t num_micro_batches, int64_t tree, int num_ranks) {
    if (num_ranks > num_micro_batches) {
        fail_input({.what = "more ranks than micro-batches in a step",
                    .where = "--batch-tokens",
                    .expected = cat({"at least ", num_ranks, " micro-batches"}),
                    .actual = cat({num_micro_batches}),
                    .hint = "more --batch-tokens, a smaller --micro-batch, or fewer ranks"});
    }
    if (tree > 0 && num_ranks > tree) {
        fail_input({.what = "more ranks than parts that gradients are added in",
                    .where = "--deterministic-reduce",
                    .expected = cat({"at least ", num_ranks}),
                    .actual = cat({tree}),
                    .hint = cat({"--deterministic-reduce ", num_ranks,
                                 " for a new run, or 0: then roundings depend on the number of ranks"})});
    }
    return {num_micro_batches, tree > 0 ? std::min(tree, num_micro_batches) : num_ranks, num_ranks};
}

std::vector<PartNode> StepParts::sums(int rank) const {
    PartStack stack(num_parts);
    for (int64_t part = first_part(rank); part < first_part(rank + 1); ++part) stack.push({0, part}, [] {});
    return stack.nodes();
}

int64_t StepParts::num_arenas(int rank) const {
    PartStack stack(num_parts);
    int64_t most = 0;
    for (int64_t part = first_part(rank); part < first_part(rank + 1); ++part) {
        most = std::max(most, stack.size());  // while the part is computed in the model's arena
        stack.push({0, part}, [] {});
    }
    return most;
}

void StepGradient::plan(MemoryPlan& plan, int64_t arena_size, const StepParts& parts, int rank) {
    const int64_t arenas = parts.num_arenas(rank);
    if (arenas > 0) plan.add("sums of gradients", arenas * arena_size * dtype_bytes(DType::f32));
}

StepGradient::StepGradient(Comm& comm, Transformer& model, const StepParts& parts)
    : comm_(comm),
      model_(model),
      parts_(parts),
      split_{model.table().arena_size(), comm.size()},
      stack_(parts.num_parts),
      part_(parts.first_part(comm.rank())),
      next_(parts.begin(comm.rank())),
      losses_(static_cast<size_t>(parts.num_parts)) {
    CHECK(parts.num_ranks == comm.size() && (comm.size() == 1 || model.grads().on_host()),
          cat({comm.size(), " ranks"}));
    for (int rank = 0; rank < comm.size(); ++rank) {
        const std::vector<PartNode> sums = parts.sums(rank);
        num_sums_.push_back(static_cast<int>(sums.size()));
        sums_of_all_.insert(sums_of_all_.end(), sums.begin(), sums.end());
    }
    const Device device = model.grads().device;
    for (int64_t i = 0; i < parts.num_arenas(comm.rank()); ++i)
        waiting_.emplace_back(split_.size * dtype_bytes(DType::f32), device);
    loss_ = Buffer(dtype_bytes(DType::f64), device);
}

void StepGradient::add(const Batch& batch, float scale) {
    CHECK(next_ < parts_.begin(comm_.rank() + 1), cat({"micro-batch ", next_}));
    const bool begins = next_ == parts_.part_begin(part_);
    if (begins && stack_.size() > 0)
        copy_tensor(waiting_[static_cast<size_t>(stack_.size() - 1)].tensor(DType::f32), model_.grads());
    model_.forward_backward(batch, scale, !begins);
    ++next_;
    if (next_ == parts_.part_begin(part_ + 1)) end_part();
}

void StepGradient::end_part() {
    // Alone, a part's loss stays where it is: nobody waits for it.
    if (parts_.num_parts > 1) losses_[static_cast<size_t>(part_)] = model_.total_loss();
    stack_.push({0, part_}, [&] {
        const Tensor left = waiting_[static_cast<size_t>(stack_.size() - 2)].tensor(DType::f32);
        residual_forward(model_.grads(), left, model_.grads());
    });
    ++part_;
}

void StepGradient::reduce() {
    const Tensor grads = model_.grads();
    std::vector<Tensor> sums;
    for (int64_t i = 0; i + 1 < stack_.size(); ++i)
        sums.push_back(waiting_[static_cast<size_t>(i)].tensor(DType::f32));
    sums.push_back(grads);
    comm_.exchange(sums, num_sums_, split_,
                   [&](int64_t begin, int64_t count, std::span<float* const> pieces) {
                       PartStack stack(parts_.num_parts);
                       std::vector<float*> added;
                       for (size_t i = 0; i < pieces.size(); ++i) {
                           added.push_back(pieces[i]);
                           stack.push(sums_of_all_[i], [&] {
                               float* const left = added[added.size() - 2];
                               const float* const right = added.back();
                               for (int64_t k = 0; k < count; ++k) left[k] += right[k];
                               added.pop_back();
                           });
                       }
                       CHECK(added.size() == 1, cat({added.size(), " sums"}));
                       float* const own = grads.as<float>() + begin;
                       if (added[0] != own) std::copy_n(added[0], count, own);
                   });
    comm_.all_gather(grads, split_);
}

Tensor StepGradient::finish() {
    CHECK(next_ == parts_.begin(comm_.rank() + 1), cat({"micro-batch ", next_}));
    if (comm_.size() > 1) {
        reduce();
        comm_.all_reduce_sum(tensor_of(losses_.data(), parts_.num_parts));  // of numbers and zeros
    }
    const Tensor loss = loss_.tensor(DType::f64);
    if (parts_.num_parts > 1) {
        const double sum = std::accumulate(losses_.begin(), losses_.end(), 0.0);
        copy_tensor(loss, tensor_of(&sum, 1));
    }
    std::fill(losses_.begin(), losses_.end(), 0.0);
    stack_ = PartStack(parts_.num_parts);
    part_ = parts_.first_part(comm_.rank());
    next_ = parts_.begin(comm_.rank());
    return parts_.num_parts > 1 ? loss : model_.summed_loss();
}
