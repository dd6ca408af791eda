// The update: global norm, guard, then one fused pass over each run of rows that share their settings. What
// the device decides comes to the host behind the next step's forward and backward pass.
#include "model/optimizer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/device.h"
#include "core/error.h"
#include "kernels/adamw.h"
#include "kernels/cast.h"
#include "kernels/global_norm.h"
#include "kernels/muon.h"

namespace {

// Random numbers of rounding, apart from those of initialisation, whose streams are the table's row numbers.
constexpr uint64_t kRoundingStream = uint64_t{1} << 32;

// In the order of Verdict.
constexpr const char* kReasons[] = {"", "non-finite loss", "non-finite gradient", "outlier loss",
                                    "outlier gradient"};

// A stretch of the arena that one call of AdamW updates. Stretches reach over the padding between slots: its
// gradient, moments and master are zero and stay so.
struct Stretch {
    int64_t begin = 0, end = 0;  // elements
    bool decay = false;
};
struct Updates {
    std::vector<Stretch> stretches;      // AdamW's
    std::vector<MuonMatrices> matrices;  // Muon's, by shape
};

void add_matrices(std::vector<MuonMatrices>& all, const ParamInfo& row) {
    const int64_t rows = row.rows / row.muon_blocks;
    auto same = std::find_if(all.begin(), all.end(),
                             [&](const MuonMatrices& m) { return m.rows == rows && m.cols == row.cols; });
    if (same == all.end()) same = all.insert(all.end(), {.rows = rows, .cols = row.cols, .offsets = {}});
    for (int64_t block = 0; block < row.muon_blocks; ++block)
        same->offsets.push_back(row.offset + block * same->size());
}

Updates updates_of(const ParamTable& table, bool muon) {
    Updates updates;
    bool adjacent = false;  // to the last stretch
    for (const ParamInfo& row : table.rows()) {
        if (muon && row.muon) {
            add_matrices(updates.matrices, row);
            adjacent = false;
            continue;
        }
        if (adjacent && updates.stretches.back().decay == row.decay) {
            updates.stretches.back().end = row.offset + row.size();
        } else {
            updates.stretches.push_back({row.offset, row.offset + row.size(), row.decay});
        }
        adjacent = true;
    }
    return updates;
}

int64_t muon_scratch_of(const Updates& updates, MatmulMath math, Device device) {
    int64_t bytes = 0;
    for (const MuonMatrices& m : updates.matrices)
        bytes = std::max(bytes, muon_scratch_bytes(m, math, device));
    return bytes;
}

// Muon has no second moment: that memory is never touched. It comes in huge pages, though, each whole as soon
// as a norm's few elements in it are; and a small buffer is zeroed whole (core/tensor.h).
int64_t second_moment_bytes(const std::vector<Stretch>& stretches, int64_t arena_bytes) {
    constexpr int64_t kPage = int64_t{2} << 20;
    if (arena_bytes < kPage) return arena_bytes;
    int64_t bytes = 0, counted = 0;  // pages below `counted` are
    for (const Stretch& s : stretches) {
        const int64_t begin = std::max(counted, s.begin * dtype_bytes(DType::f32) / kPage);
        const int64_t end = (s.end * dtype_bytes(DType::f32) + kPage - 1) / kPage;
        bytes += std::max<int64_t>(0, end - begin) * kPage;
        counted = std::max(counted, end);
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
    const ParamTable* table;
    OptimizerConfig config;
    MatmulMath math;
    Tensor params;
    Updates updates;
    Buffer master, moment1, moment2, muon_scratch;
    // Of the step under way, on the device: its decision, the gradient's squares, the loss of step().
    Buffer decision, squares, loss;
    Readback decided;
    bool queued = false;
    int64_t num_updates = 0, num_skipped = 0, skips_in_a_row = 0;
    OutlierWindow losses, norms;

    State(Device device)
        : decision(kDecisionBytes, device),
          squares(dtype_bytes(DType::f64), device),
          loss(dtype_bytes(DType::f64), device),
          decided(device, kDecisionBytes) {}

    bool params_are_master() const { return params.dtype == DType::f32; }
    Tensor master_arena() const { return params_are_master() ? params : master.tensor(DType::f32); }
    Tensor moment1_arena() const { return moment1.tensor(DType::f32); }
    Tensor moment2_arena() const { return moment2.tensor(DType::f32); }
    // The bf16 copy that the model reads; absent when the master itself is what it reads.
    Tensor rounded(int64_t begin, int64_t size) const {
        return params_are_master() ? Tensor{} : params.rows(begin, size);
    }

    void update_adamw(const Stretch& s, Tensor grads, double lr, int64_t t, RandomKey rounding) {
        const int64_t size = s.end - s.begin;
        const AdamWStep step{.lr = static_cast<float>(lr),
                             .beta1 = static_cast<float>(config.beta1),
                             .beta2 = static_cast<float>(config.beta2),
                             .eps = static_cast<float>(config.eps),
                             .weight_decay = s.decay ? static_cast<float>(config.weight_decay) : 0.0f,
                             .grad_scale = 1,
                             .step = t,
                             .rounding = rounding,
                             .first_index = s.begin,
                             .decision = decision.tensor()};
        adamw_step(rounded(s.begin, size), master_arena().rows(s.begin, size),
                   moment1_arena().rows(s.begin, size), moment2_arena().rows(s.begin, size),
                   grads.rows(s.begin, size), step);
    }

    void update_muon(const MuonMatrices& matrices, Tensor grads, double lr, RandomKey rounding) {
        const MuonStep step{.lr = static_cast<float>(lr * config.muon_lr_ratio),
                            .momentum = static_cast<float>(config.muon_momentum),
                            .weight_decay = static_cast<float>(config.weight_decay),
                            .grad_scale = 1,
                            .rounding = rounding,
                            .first_index = 0,
                            .decision = decision.tensor()};
        muon_step(params_are_master() ? Tensor{} : params, master_arena(), moment1_arena(), grads, matrices,
                  step, math, muon_scratch.tensor());
    }
};

Optimizer::Optimizer(const ParamTable& table, const OptimizerConfig& config, Tensor params, MatmulMath math)
    : state_(std::make_unique<State>(params.device)) {
    const int64_t arena_bytes = table.arena_size() * dtype_bytes(DType::f32);
    state_->table = &table;
    state_->config = config;
    state_->math = math;
    state_->params = params;
    state_->updates = updates_of(table, config.muon);
    const Device device = params.device;
    if (!state_->params_are_master()) state_->master = Buffer(arena_bytes, device);
    state_->moment1 = Buffer(arena_bytes, device);
    state_->moment2 = Buffer(arena_bytes, device);
    const int64_t scratch = muon_scratch_of(state_->updates, math, device);
    if (scratch > 0) state_->muon_scratch = Buffer(scratch, device);
}

Optimizer::~Optimizer() = default;

void Optimizer::plan(MemoryPlan& plan, const ParamTable& table, const OptimizerConfig& config, DType dtype,
                     MatmulMath math, Device device) {
    const int64_t arena_bytes = table.arena_size() * dtype_bytes(DType::f32);
    const Updates updates = updates_of(table, config.muon);
    if (dtype != DType::f32) plan.add("master weights", arena_bytes);
    plan.add("first moments", arena_bytes);
    plan.add("second moments",
             device == Device::cpu ? second_moment_bytes(updates.stretches, arena_bytes) : arena_bytes);
    if (const int64_t scratch = muon_scratch_of(updates, math, device); scratch > 0)
        plan.add("Muon scratch", scratch);
}

Tensor Optimizer::master() const { return state_->master_arena(); }
Tensor Optimizer::moment1() const { return state_->moment1_arena(); }
Tensor Optimizer::moment2() const { return state_->moment2_arena(); }

void Optimizer::publish_master() {
    if (!state_->params_are_master()) cast(state_->params, state_->master_arena());
}

void Optimizer::queue(Tensor grads, double lr, Tensor loss_sum, int64_t num_targets) {
    State& s = *state_;
    CHECK(!s.queued, "the update before has not been taken");
    sum_of_squares_into(s.squares.tensor(DType::f64), grads);
    guard_step(s.decision.tensor(), loss_sum, s.squares.tensor(DType::f64),
               {.num_targets = static_cast<double>(num_targets),
                .clip = s.config.grad_clip,
                .outlier_z = z_limit(s.config.outlier_z),
                .losses = s.losses.spread(),
                .norms = s.norms.spread()});
    s.decided.start(s.decision.tensor());
    const int64_t t = s.num_updates + 1;  // if it is applied; else the device does not look at it
    const RandomKey rounding{s.config.seed, kRoundingStream + static_cast<uint64_t>(t)};
    for (const Stretch& stretch : s.updates.stretches) s.update_adamw(stretch, grads, lr, t, rounding);
    for (const MuonMatrices& matrices : s.updates.matrices) s.update_muon(matrices, grads, lr, rounding);
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

StepResult Optimizer::step(Tensor grads, double lr, double mean_loss) {
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
