// The update: global norm, guard, then one fused pass over each run of rows that share their settings. What
// the device decides comes to the host behind the next step's forward and backward pass.
#include "model/optimizer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/device.h"
#include "core/error.h"
#include "kernels/adamw.h"
#include "kernels/cast.h"
#include "kernels/muon.h"

namespace {

// Random numbers of rounding, apart from those of initialisation, whose streams are the table's row numbers.
constexpr uint64_t kRoundingStream = uint64_t{1} << 32;

// In the order of Verdict.
constexpr const char* kReasons[] = {"", "non-finite loss", "non-finite gradient", "outlier loss",
                                    "outlier gradient"};

// A stretch of a segment that one call of AdamW updates. Stretches reach over the padding between slots: its
// gradient, moments and master are zero and stay so.
struct Stretch {
    int64_t begin = 0, end = 0;  // elements of the segment
    bool decay = false;
};
struct SegmentUpdates {
    ArenaSegment segment;
    std::vector<Stretch> stretches;      // AdamW's
    std::vector<MuonMatrices> matrices;  // Muon's, by shape; offsets within the segment
};

void add_matrices(std::vector<MuonMatrices>& all, const ParamInfo& row, const ArenaSegment& segment) {
    const int64_t rows = row.rows / row.muon_blocks, size = rows * row.cols;
    auto same = std::find_if(all.begin(), all.end(),
                             [&](const MuonMatrices& m) { return m.rows == rows && m.cols == row.cols; });
    for (int64_t block = 0; block < row.muon_blocks; ++block) {
        const int64_t offset = row.offset + block * size - segment.begin;
        if (offset + size <= 0 || offset >= segment.size) continue;
        CHECK(offset >= 0 && offset + size <= segment.size, cat({row.hf_name, " is cut"}));
        if (same == all.end()) same = all.insert(all.end(), {.rows = rows, .cols = row.cols, .offsets = {}});
        same->offsets.push_back(offset);
    }
}

SegmentUpdates updates_of(const ParamTable& table, bool muon, const ArenaSegment& segment) {
    SegmentUpdates updates{.segment = segment, .stretches = {}, .matrices = {}};
    bool adjacent = false;  // to the last stretch
    for (const ParamInfo& row : table.rows()) {
        const int64_t begin = std::max<int64_t>(0, row.offset - segment.begin);
        const int64_t end = std::min(segment.size, row.offset + row.size() - segment.begin);
        if (begin >= end) continue;
        if (muon && row.muon) {
            add_matrices(updates.matrices, row, segment);
            adjacent = false;
            continue;
        }
        if (adjacent && updates.stretches.back().decay == row.decay) {
            updates.stretches.back().end = end;
        } else {
            updates.stretches.push_back({begin, end, row.decay});
        }
        adjacent = true;
    }
    return updates;
}

std::vector<SegmentUpdates> updates_of(const ParamTable& table, bool muon,
                                       const std::vector<ArenaSegment>& segments) {
    std::vector<SegmentUpdates> all;
    for (const ArenaSegment& segment : segments) all.push_back(updates_of(table, muon, segment));
    return all;
}

int64_t muon_scratch_of(const std::vector<SegmentUpdates>& updates, MatmulMath math, Device device) {
    int64_t bytes = 0;
    for (const SegmentUpdates& of_segment : updates)
        for (const MuonMatrices& m : of_segment.matrices)
            bytes = std::max(bytes, muon_scratch_bytes(m, math, device));
    return bytes;
}

// Muon has no second moment: that memory is never touched. It comes in huge pages, though, each whole as soon
// as a norm's few elements in it are; and a small buffer is zeroed whole (core/tensor.h).
int64_t second_moment_bytes(const std::vector<SegmentUpdates>& updates, int64_t arena_bytes) {
    constexpr int64_t kPage = int64_t{2} << 20;
    if (arena_bytes < kPage) return arena_bytes;
    int64_t bytes = 0, counted = 0;  // pages below `counted` are
    for (const SegmentUpdates& of_segment : updates) {
        for (const Stretch& s : of_segment.stretches) {
            const int64_t place = of_segment.segment.local * dtype_bytes(DType::f32);
            const int64_t begin = std::max(counted, (place + s.begin * dtype_bytes(DType::f32)) / kPage);
            const int64_t end = (place + s.end * dtype_bytes(DType::f32) + kPage - 1) / kPage;
            bytes += std::max<int64_t>(0, end - begin) * kPage;
            counted = std::max(counted, end);
        }
    }
    return std::min(bytes, arena_bytes);
}

double z_limit(double configured) {
    return configured > 0 ? configured : std::numeric_limits<double>::infinity();
}

}  // namespace

Spread OutlierWindow::spread() const {
    if (static_cast<int>(ring_.size()) < kSize) return {};
    double sum = 0, squares = 0;
    for (double v : ring_) sum += v;
    const double mean = sum / kSize;
    for (double v : ring_) squares += (v - mean) * (v - mean);
    return {.mean = mean, .deviation = std::sqrt(squares / kSize)};
}

void OutlierWindow::add(double value) {
    if (!std::isfinite(value)) return;
    if (static_cast<int>(ring_.size()) < kSize) {
        ring_.push_back(value);
        return;
    }
    ring_[static_cast<size_t>(next_)] = value;
    next_ = (next_ + 1) % kSize;
}

std::vector<double> OutlierWindow::values() const {
    std::vector<double> oldest_first(ring_);
    std::rotate(oldest_first.begin(), oldest_first.begin() + next_, oldest_first.end());
    return oldest_first;
}

void OutlierWindow::restore(const std::vector<double>& values) {
    CHECK(static_cast<int>(values.size()) <= kSize, cat({"window of ", values.size(), " values"}));
    ring_ = values;
    next_ = 0;
}

struct Optimizer::State {
    OptimizerConfig config;
    MatmulMath math;
    ArenaPart params;
    std::vector<SegmentUpdates> updates;
    std::vector<ArenaSegment> segments;
    bool whole = true;  // the state is of the whole arena
    Buffer master, moment1, moment2, muon_scratch;
    GradientNorm norm;
    // Of the step under way, on the device: its decision, the gradient's squares, the loss of step().
    Buffer decision, squares, loss;
    Readback decided;
    bool queued = false;
    int64_t num_updates = 0, num_skipped = 0, skips_in_a_row = 0;
    OutlierWindow losses, norms;

    State(const ParamTable& table, const OptimizerConfig& c, ArenaPart p, MatmulMath m,
          const Sharding& sharding, int rank, Comm* comm)
        : config(c),
          math(m),
          params(std::move(p)),
          segments(sharding.updated(rank)),
          whole(sharding.stage() == 0),
          norm(table, c.muon, whole ? nullptr : comm),
          decision(kDecisionBytes, device()),
          squares(dtype_bytes(DType::f64), device()),
          loss(dtype_bytes(DType::f64), device()),
          decided(device(), kDecisionBytes) {
        updates = updates_of(table, c.muon, segments);
        const int64_t bytes = sharding.held_size(rank, 1) * dtype_bytes(DType::f32);
        if (!params_are_master()) master = Buffer(bytes, device());
        moment1 = Buffer(bytes, device());
        moment2 = Buffer(bytes, device());
        const int64_t scratch = muon_scratch_of(updates, math, device());
        if (scratch > 0) muon_scratch = Buffer(scratch, device());
    }

    Device device() const { return params.data.device; }
    bool params_are_master() const { return params.data.dtype == DType::f32; }
    ArenaPart part_of(const Buffer& memory) const { return {memory.tensor(DType::f32), segments, whole}; }
    ArenaPart master_part() const { return params_are_master() ? params : part_of(master); }

    // One segment of all arenas. `param` is the bf16 copy that the model reads: absent when the master itself
    // is what it reads.
    struct Segment {
        Tensor param, master, m, v, grad;
        int64_t first;  // its first element's place in the whole arena
    };
    Segment segment_of(const ArenaSegment& s, const ArenaPart& grads) const {
        return {.param = params_are_master() ? Tensor{} : params.of(s),
                .master = master_part().of(s),
                .m = part_of(moment1).of(s),
                .v = part_of(moment2).of(s),
                .grad = grads.of(s),
                .first = s.begin};
    }

    void update_adamw(const Segment& of, const Stretch& s, double lr, int64_t t, RandomKey rounding) {
        const int64_t size = s.end - s.begin;
        const AdamWStep step{.lr = static_cast<float>(lr),
                             .beta1 = static_cast<float>(config.beta1),
                             .beta2 = static_cast<float>(config.beta2),
                             .eps = static_cast<float>(config.eps),
                             .weight_decay = s.decay ? static_cast<float>(config.weight_decay) : 0.0f,
                             .grad_scale = 1,
                             .step = t,
                             .rounding = rounding,
                             .first_index = of.first + s.begin,
                             .decision = decision.tensor()};
        adamw_step(of.param.absent() ? Tensor{} : of.param.rows(s.begin, size), of.master.rows(s.begin, size),
                   of.m.rows(s.begin, size), of.v.rows(s.begin, size), of.grad.rows(s.begin, size), step);
    }

    void update_muon(const Segment& of, const MuonMatrices& matrices, double lr, RandomKey rounding) {
        const MuonStep step{.lr = static_cast<float>(lr * config.muon_lr_ratio),
                            .momentum = static_cast<float>(config.muon_momentum),
                            .weight_decay = static_cast<float>(config.weight_decay),
                            .grad_scale = 1,
                            .rounding = rounding,
                            .first_index = of.first,
                            .decision = decision.tensor()};
        muon_step(of.param, of.master, of.m, of.grad, matrices, step, math, muon_scratch.tensor());
    }
};

Optimizer::Optimizer(const ParamTable& table, const OptimizerConfig& config, Tensor params, MatmulMath math)
    : state_(std::make_unique<State>(table, config, ArenaPart(params), math,
                                     Sharding(table, config.muon, 0, 1), 0, nullptr)) {}
Optimizer::Optimizer(const ParamTable& table, const OptimizerConfig& config, ArenaPart params,
                     MatmulMath math, const Sharding& sharding, Comm& comm)
    : state_(std::make_unique<State>(table, config, std::move(params), math, sharding, comm.rank(), &comm)) {}

Optimizer::~Optimizer() = default;

void Optimizer::plan(MemoryPlan& plan, const ParamTable& table, const OptimizerConfig& config, DType dtype,
                     MatmulMath math, Device device, const Sharding& sharding, int rank) {
    const int64_t bytes = sharding.held_size(rank, 1) * dtype_bytes(DType::f32);
    const std::vector<SegmentUpdates> updates = updates_of(table, config.muon, sharding.updated(rank));
    if (dtype != DType::f32) plan.add("master weights", bytes);
    plan.add("first moments", bytes);
    plan.add("second moments", device == Device::cpu ? second_moment_bytes(updates, bytes) : bytes);
    if (const int64_t scratch = muon_scratch_of(updates, math, device); scratch > 0)
        plan.add("Muon scratch", scratch);
}

Tensor Optimizer::master() const { return state_->master_part().data; }
Tensor Optimizer::moment1() const { return state_->moment1.tensor(DType::f32); }
Tensor Optimizer::moment2() const { return state_->moment2.tensor(DType::f32); }
ArenaPart Optimizer::params_part() const { return state_->params; }
ArenaPart Optimizer::master_part() const { return state_->master_part(); }
ArenaPart Optimizer::moment1_part() const { return state_->part_of(state_->moment1); }
ArenaPart Optimizer::moment2_part() const { return state_->part_of(state_->moment2); }

void Optimizer::publish_master() {
    const State& s = *state_;
    if (s.params_are_master()) return;
    for (const ArenaSegment& segment : s.segments)
        if (segment.size > 0) cast(s.params.of(segment), s.master_part().of(segment));
}

void Optimizer::queue(const ArenaPart& grads, double lr, Tensor loss_sum, int64_t num_targets) {
    State& s = *state_;
    CHECK(!s.queued, "the update before has not been taken");
    s.norm.into(s.squares.tensor(DType::f64), grads);
    guard_step(s.decision.tensor(), loss_sum, s.squares.tensor(DType::f64),
               {.num_targets = static_cast<double>(num_targets),
                .clip = s.config.grad_clip,
                .outlier_z = z_limit(s.config.outlier_z),
                .losses = s.losses.spread(),
                .norms = s.norms.spread()});
    s.decided.start(s.decision.tensor());
    const int64_t t = s.num_updates + 1;  // if it is applied; else the device does not look at it
    const RandomKey rounding{s.config.seed, kRoundingStream + static_cast<uint64_t>(t)};
    for (const SegmentUpdates& updates : s.updates) {
        if (updates.segment.size == 0) continue;
        const State::Segment segment = s.segment_of(updates.segment, grads);
        for (const Stretch& stretch : updates.stretches) s.update_adamw(segment, stretch, lr, t, rounding);
        for (const MuonMatrices& matrices : updates.matrices) s.update_muon(segment, matrices, lr, rounding);
    }
    s.queued = true;
}

bool Optimizer::queued() const { return state_->queued; }
bool Optimizer::arrived() { return state_->decided.arrived(); }

StepResult Optimizer::take() {
    State& s = *state_;
    CHECK(s.queued, "no update has been queued");
    s.queued = false;
    const Tensor arrived = s.decided.wait();
    const StepDecision decision = *decision_data(arrived);
    s.losses.add(decision.loss);
    s.norms.add(decision.grad_norm);
    const bool applied = decision.verdict == Verdict::apply;
    s.num_updates += applied;
    s.num_skipped += !applied;
    s.skips_in_a_row = applied ? 0 : s.skips_in_a_row + 1;
    return {.loss = decision.loss,
            .grad_norm = decision.grad_norm,
            .applied = applied,
            .reason = kReasons[static_cast<int>(decision.verdict)]};
}

StepResult Optimizer::step(const ArenaPart& grads, double lr, double mean_loss) {
    const Tensor loss = state_->loss.tensor(DType::f64);
    copy_tensor(loss, tensor_of(&mean_loss, 1));
    queue(grads, lr, loss, 1);
    return take();
}

int64_t Optimizer::num_updates() const { return state_->num_updates; }
void Optimizer::set_num_updates(int64_t t) { state_->num_updates = t; }
int64_t Optimizer::num_skipped() const { return state_->num_skipped; }
void Optimizer::set_num_skipped(int64_t n) { state_->num_skipped = n; }
int64_t Optimizer::skips_in_a_row() const { return state_->skips_in_a_row; }
void Optimizer::set_skips_in_a_row(int64_t n) { state_->skips_in_a_row = n; }
bool Optimizer::has_second_moment(const ParamInfo& row) const { return !(state_->config.muon && row.muon); }
OutlierWindow& Optimizer::loss_window() { return state_->losses; }
OutlierWindow& Optimizer::norm_window() { return state_->norms; }
