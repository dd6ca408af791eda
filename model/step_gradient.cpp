// Sums along the tree: this rank's as its parts come, the rest where each range of the arena is owned.
#include "model/step_gradient.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "core/device.h"
#include "core/error.h"
#include "kernels/residual.h"

StepParts StepParts::of(int64_t num_micro_batches, int64_t tree, int num_ranks, bool dealt) {
    if (num_ranks > num_micro_batches) {
        fail_input({.what = "more ranks than micro-batches in a step",
                    .where = "--batch-tokens",
                    .expected = cat({"at least ", num_ranks, " micro-batches"}),
                    .actual = cat({num_micro_batches}),
                    .hint = "more --batch-tokens, a smaller --micro-batch, or fewer ranks"});
    }
    if (tree > 0 && num_ranks > tree && !dealt) {
        fail_input({.what = "more ranks than parts that gradients are added in",
                    .where = "--deterministic-reduce",
                    .expected = cat({"at least ", num_ranks}),
                    .actual = cat({tree}),
                    .hint = cat({"--deterministic-reduce ", num_ranks,
                                 " for a new run, or 0: then roundings depend on the number of ranks"})});
    }
    return {num_micro_batches, tree > 0 ? std::min(tree, num_micro_batches) : num_ranks, num_ranks, dealt};
}

std::vector<PartNode> StepParts::sums(int rank) const {
    PartStack stack(num_parts);
    for (int64_t part = first_part(rank); part < first_part(rank + 1); ++part) stack.push({0, part}, [] {});
    return stack.nodes();
}

int64_t StepParts::num_arenas(int rank) const {
    PartStack stack(num_parts);
    int64_t most = 0;
    if (dealt) {  // what is left of each round
        for (int64_t i = 0; i < num_micro_batches; ++i) {
            const int64_t part = part_of(i);
            const bool ends = i + 1 == part_begin(part + 1);
            if (ends) stack.push({0, part}, [] {});
            if ((i + 1) % num_ranks == 0 || i + 1 == num_micro_batches)
                most = std::max(most, stack.size() + (ends ? 0 : 1));
        }
        return most;
    }
    for (int64_t part = first_part(rank); part < first_part(rank + 1); ++part) {
        most = std::max(most, stack.size());  // while the part is computed in the model's arena
        stack.push({0, part}, [] {});
    }
    return most;
}

namespace {

// Whether some micro-batch of the rank is added to another in its part, and so is computed apart.
bool adds_within_parts(const StepParts& parts, int rank) {
    return parts.count(rank) > parts.first_part(rank + 1) - parts.first_part(rank);
}

int64_t num_pieces_of_others(const StepParts& parts, int rank) {
    if (parts.dealt) return parts.num_ranks - 1;
    int64_t pieces = 0;
    for (int r = 0; r < parts.num_ranks; ++r)
        if (r != rank) pieces += static_cast<int64_t>(parts.sums(r).size());
    return pieces;
}

// sum += addend, both of one rank's range
void add_to(float* sum, const float* addend, int64_t count) {
    const Tensor out = tensor_of(sum, count);
    residual_forward(out, out, tensor_of(addend, count));
}

}  // namespace

void StepGradient::plan(MemoryPlan& plan, const ModelConfig& config, const ParamTable& table,
                        const StepParts& parts, const Sharding& sharding, int rank, Device device) {
    constexpr int64_t kElement = dtype_bytes(DType::f32);
    const int64_t arena = parts.dealt ? sharding.own_size(rank) : table.arena_size();
    if (const int64_t arenas = parts.num_arenas(rank); arenas > 0)
        plan.add(parts.dealt ? "own gradients (f32)" : "sums of gradients", arenas * arena * kElement);
    if (parts.dealt || (device == Device::cpu && adds_within_parts(parts, rank)))
        plan.add("gradients of units", UnitPlaces(table, config.tied_head).size() * kElement);
    if (parts.num_ranks == 1) return;
    int64_t largest = 0;
    for (int64_t unit = 0; unit < table.num_units(); ++unit)
        largest = std::max(largest, sharding.split(unit).count(rank));
    plan.add("exchange of gradients", Comm::exchange_bytes(largest, num_pieces_of_others(parts, rank)));
}

StepGradient::StepGradient(Comm& comm, Transformer& model, const StepParts& parts, const Sharding& sharding)
    : comm_(comm),
      model_(model),
      parts_(parts),
      sharding_(sharding),
      stack_(parts.num_parts),
      next_(parts.begin(comm.rank())),
      places_(model.table(), model.config().tied_head),
      losses_(static_cast<size_t>(parts.num_micro_batches)) {
    const Device device = model.shape().device;
    const bool dealt = parts.dealt;
    CHECK(parts.num_ranks == comm.size() && (device == Device::cpu || (comm.size() == 1 && !dealt)),
          cat({comm.size(), " ranks on ", device_name(device)}));
    CHECK(dealt == (sharding.stage() >= 2) && dealt == model.grads().absent(),
          cat({"stage ", sharding.stage()}));
    for (int rank = 0; rank < comm.size() && !dealt; ++rank) {
        const std::vector<PartNode> sums = parts.sums(rank);
        num_sums_.push_back(static_cast<int>(sums.size()));
        sums_of_all_.insert(sums_of_all_.end(), sums.begin(), sums.end());
    }
    const int64_t arena = dealt ? sharding.own_size(comm.rank()) : model.table().arena_size();
    for (int64_t i = 0; i < parts.num_arenas(comm.rank()); ++i)
        sums_.emplace_back(arena * dtype_bytes(DType::f32), device);
    if (dealt || (device == Device::cpu && adds_within_parts(parts, comm.rank())))
        for (const int64_t size : places_.sizes) buffers_.emplace_back(size * dtype_bytes(DType::f32));
    loss_ = Buffer(dtype_bytes(DType::f64), device);
}

StepGradient::~StepGradient() = default;

ArenaPart StepGradient::gradient() const {
    const Tensor memory = parts_.dealt ? sums_[0].tensor(DType::f32) : model_.grads();
    return sharding_.held(memory, comm_.rank(), 2);
}

void StepGradient::add(const Batch& batch, float scale) {
    CHECK(next_ < parts_.end(comm_.rank()), cat({"micro-batch ", next_}));
    const bool ends = ends_part();
    double& loss = losses_[static_cast<size_t>(next_)];
    if (model_.shape().device == Device::cpu) {
        model_.forward_backward(batch, scale, *this);
        loss = model_.total_loss();
    } else {
        const bool begins = begins_part();
        if (begins && stack_.size() > 0)
            copy_tensor(sums_[static_cast<size_t>(stack_.size() - 1)].tensor(DType::f32), model_.grads());
        model_.forward_backward(batch, scale, !begins);
        if (ends) merge(0, model_.table().arena_size());
        // Alone, a part's loss stays where it is: nobody waits for it.
        if (ends && parts_.num_parts > 1) loss = model_.total_loss();
    }
    if (parts_.dealt) return end_round();
    if (ends) stack_.push({0, parts_.part_of(next_)}, [] {});
    ++next_;
}

Tensor StepGradient::begin(int64_t unit) {
    if (parts_.dealt || !begins_part()) return buffer_of(unit);
    const int64_t first = model_.table().unit_begin(unit), size = model_.table().unit_size(unit);
    const Tensor place = model_.grads().rows(first, size);
    if (stack_.size() > 0)
        copy_tensor(sums_[static_cast<size_t>(stack_.size() - 1)].tensor(DType::f32).rows(first, size),
                    place);
    return place;
}

void StepGradient::end(int64_t unit) {
    if (!parts_.dealt) {
        const int64_t first = model_.table().unit_begin(unit), size = model_.table().unit_size(unit);
        const Tensor place = model_.grads().rows(first, size);
        if (!begins_part()) residual_forward(place, place, buffer_of(unit));
        if (ends_part()) merge(first, size);
        if (next_ + 1 < parts_.end(comm_.rank()) || comm_.size() == 1) return;
    }
    send(unit);
}

Tensor StepGradient::buffer_of(int64_t unit) const {
    return buffers_[static_cast<size_t>(places_.of(unit))]
        .tensor(DType::f32)
        .rows(0, model_.table().unit_size(unit));
}

// A piece of the part just computed joins what can be added to it.
void StepGradient::merge(int64_t begin, int64_t size) {
    PartStack stack = stack_;
    const Tensor sum = model_.grads().rows(begin, size);
    stack.push({0, parts_.part_of(next_)}, [&] {
        residual_forward(
            sum, sums_[static_cast<size_t>(stack.size() - 2)].tensor(DType::f32).rows(begin, size), sum);
    });
}

// Two units are under way at most: their memory is that of UnitPlaces.
void StepGradient::send(int64_t unit) {
    if (sending_) std::exchange(sending_, {})->wait();
    const int64_t first = model_.table().unit_begin(unit), size = model_.table().unit_size(unit);
    std::vector<Tensor> arrays;
    std::vector<int> num_arrays = num_sums_;
    if (parts_.dealt) {
        for (int rank = 0; rank < comm_.size(); ++rank)
            num_arrays.push_back(round_ * comm_.size() + rank < parts_.num_micro_batches);
        if (next_ < parts_.num_micro_batches) arrays.push_back(buffer_of(unit));
    } else {
        for (int i = 0; i + 1 < num_sums_[static_cast<size_t>(comm_.rank())]; ++i)
            arrays.push_back(sums_[static_cast<size_t>(i)].tensor(DType::f32).rows(first, size));
        arrays.push_back(model_.grads().rows(first, size));
    }
    sending_ =
        comm_.start_exchange(arrays, num_arrays, sharding_.split(unit),
                             [this, unit](int64_t begin, int64_t count, std::span<float* const> pieces) {
                                 if (parts_.dealt) return take_dealt(unit, begin, pieces, count);
                                 take(unit, begin, pieces, count);
                             });
}

void StepGradient::take(int64_t unit, int64_t begin, std::span<float* const> pieces, int64_t count) {
    PartStack stack(parts_.num_parts);
    std::vector<float*> sums;
    for (size_t i = 0; i < pieces.size(); ++i) {
        sums.push_back(pieces[i]);
        stack.push(sums_of_all_[i], [&] {
            add_to(sums[sums.size() - 2], sums.back(), count);
            sums.pop_back();
        });
    }
    CHECK(sums.size() == 1, cat({sums.size(), " sums"}));
    float* const own = model_.grads().as<float>() + model_.table().unit_begin(unit) + begin;
    if (sums[0] != own) std::copy_n(sums[0], count, own);
}

void StepGradient::take_dealt(int64_t unit, int64_t begin, std::span<float* const> pieces, int64_t count) {
    const int64_t local = sharding_.own(comm_.rank())[static_cast<size_t>(unit)].local + begin -
                          sharding_.split(unit).begin(comm_.rank());
    const auto kept = [&](size_t i) { return sums_[i].tensor(DType::f32).as<float>() + local; };
    PartStack stack = stack_;
    std::vector<float*> sums;
    for (size_t i = 0; i < num_kept_; ++i) sums.push_back(kept(i));
    for (size_t i = 0; i < pieces.size(); ++i) {
        const int64_t micro_batch = round_ * comm_.size() + static_cast<int64_t>(i);
        const int64_t part = parts_.part_of(micro_batch);
        if (micro_batch == parts_.part_begin(part)) {
            sums.push_back(pieces[i]);
        } else {
            add_to(sums.back(), pieces[i], count);
        }
        if (micro_batch + 1 < parts_.part_begin(part + 1)) continue;
        stack.push({0, part}, [&] {
            add_to(sums[sums.size() - 2], sums.back(), count);
            sums.pop_back();
        });
    }
    for (size_t i = 0; i < sums.size(); ++i)
        if (sums[i] != kept(i)) std::copy_n(sums[i], count, kept(i));
}

void StepGradient::end_round() {
    if (sending_) std::exchange(sending_, {})->wait();
    bool open = false;  // the last part, at the round's end
    const int64_t begin = round_ * comm_.size();
    for (int64_t i = begin; i < std::min(begin + comm_.size(), parts_.num_micro_batches); ++i) {
        const int64_t part = parts_.part_of(i);
        open = i + 1 < parts_.part_begin(part + 1);
        if (!open) stack_.push({0, part}, [] {});
    }
    num_kept_ = static_cast<size_t>(stack_.size()) + (open ? 1 : 0);
    ++round_;
    next_ += comm_.size();
}

Tensor StepGradient::finish() {
    CHECK(next_ >= parts_.end(comm_.rank()), cat({"micro-batch ", next_}));
    // Others have a micro-batch more.
    if (parts_.dealt && round_ * comm_.size() < parts_.num_micro_batches) {
        model_.idle_step(*this);
        end_round();
    }
    if (sending_) std::exchange(sending_, {})->wait();
    if (comm_.size() > 1) {
        if (sharding_.stage() == 0) gather();
        comm_.all_reduce_sum(tensor_of(losses_.data(), parts_.num_micro_batches));  // of numbers and zeros
    }
    const Tensor loss = loss_.tensor(DType::f64);
    const bool on_host = model_.shape().device == Device::cpu;
    if (on_host || parts_.num_parts > 1) {
        double sum = 0;
        for (int64_t part = 0; part < parts_.num_parts; ++part) {
            const auto first = losses_.begin() + parts_.part_begin(part),
                       last = losses_.begin() + parts_.part_begin(part + 1);
            sum += std::accumulate(first, last, 0.0);
        }
        copy_tensor(loss, tensor_of(&sum, 1));
    }
    std::fill(losses_.begin(), losses_.end(), 0.0);
    stack_ = PartStack(parts_.num_parts);
    next_ = parts_.begin(comm_.rank());
    round_ = 0;
    num_kept_ = 0;
    return on_host || parts_.num_parts > 1 ? loss : model_.summed_loss();
}

void StepGradient::gather() {
    const ParamTable& table = model_.table();
    std::vector<std::unique_ptr<Pending>> units;
    for (int64_t unit = 0; unit < table.num_units(); ++unit)
        units.push_back(comm_.start_all_gather(
            model_.grads().rows(table.unit_begin(unit), table.unit_size(unit)), sharding_.split(unit)));
    for (const std::unique_ptr<Pending>& unit : units) unit->wait();
}
