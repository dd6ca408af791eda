// AdamW for everything, or Muon for hidden matrices and AdamW for the rest; clipping by global norm; the
// guard that skips and counts non-finite and outlier steps. State lives in flat f32 arenas in the parameter
// table's order; with several ranks from ZeRO stage 1 on each has, and updates, its own part
// (model/sharding.h).
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "kernels/matmul.h"
#include "kernels/step_guard.h"
#include "model/memory_plan.h"
#include "model/params.h"
#include "model/sharding.h"

struct OptimizerConfig {
    bool muon = false;
    double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
    double grad_clip = 1.0;  // 0: off
    double muon_momentum = 0.95;
    double muon_lr_ratio = 1;  // Muon's learning rate = lr * this
    double outlier_z =
        0;  // skip when loss or grad norm lies this many standard deviations above its window; 0: off
    uint64_t seed = 0;  // stochastic rounding
};

// Mean and deviation of the last 128 finite values, refused ones included: a loss that has moved for good
// must not be refused for ever. Silent until the window is full.
class OutlierWindow {
public:
    static constexpr int kSize = 128;
    Spread spread() const;               // 0, 0 until full
    void add(double value);              // a non-finite value changes nothing
    std::vector<double> values() const;  // oldest first: state for the checkpoint
    void restore(const std::vector<double>& values);

private:
    std::vector<double> ring_;
    int next_ = 0;
};

struct StepResult {
    double loss = 0, grad_norm = 0;  // the norm before clipping
    bool applied = false;
    const char* reason =
        "";  // why not: "non-finite loss", "non-finite gradient", "outlier loss", "outlier gradient"
};

class Optimizer {
public:
    // params: the arena that the model reads, on any device; the state lies there too. With bf16 params a f32
    // master copy is kept here.
    Optimizer(const ParamTable& table, const OptimizerConfig& config, Tensor params, MatmulMath math);
    // One of several ranks: `params` has at least what the rank updates.
    Optimizer(const ParamTable& table, const OptimizerConfig& config, ArenaPart params, MatmulMath math,
              const Sharding& sharding, Comm& comm);
    ~Optimizer();
    static void plan(MemoryPlan& plan, const ParamTable& table, const OptimizerConfig& config, DType dtype,
                     MatmulMath math, Device device, const Sharding& sharding, int rank);
    static void plan(MemoryPlan& plan, const ParamTable& table, const OptimizerConfig& config, DType dtype,
                     MatmulMath math, Device device = Device::cpu) {
        Optimizer::plan(plan, table, config, dtype, math, device, Sharding(table, config.muon, 0, 1), 0);
    }

    // f32 arenas, or a rank's memory of them.
    Tensor master() const;   // the parameters themselves in f32 training
    Tensor moment1() const;  // m, and Muon's momentum
    Tensor moment2() const;  // v
    // The same as parts.
    ArenaPart params_part() const;
    ArenaPart master_part() const;
    ArenaPart moment1_part() const;
    ArenaPart moment2_part() const;
    void publish_master();  // params = round(master), after init or load (to nearest: no step has been taken)

    // Queues one update from grads (f32 arena, already averaged over all tokens; of all ranks at once), and
    // waits for nothing: the device itself decides, by the step's own norm and loss, whether it is applied
    // (kernels/step_guard.h). loss_sum: f64 [1] beside the grads, of num_targets losses. The update before
    // must have been taken.
    void queue(const ArenaPart& grads, double lr, Tensor loss_sum, int64_t num_targets);
    bool queued() const;  // and not taken yet
    bool arrived();       // whether take() would not wait
    // What became of the queued update: waits for its numbers, not for itself. Counts and windows follow.
    StepResult take();
    StepResult step(const ArenaPart& grads, double lr, double mean_loss);  // queue() and take()

    // Of the updates taken so far.
    int64_t num_updates() const;  // t of the bias correction: applied steps
    void set_num_updates(int64_t t);
    int64_t num_skipped() const;
    void set_num_skipped(int64_t n);
    int64_t skips_in_a_row() const;  // up to the last step
    void set_skips_in_a_row(int64_t n);
    bool has_second_moment(const ParamInfo& row) const;  // Muon's have none: moment2() is zero there
    OutlierWindow& loss_window();
    OutlierWindow& norm_window();

private:
    struct State;
    std::unique_ptr<State> state_;
};

// Learning rate of step s (0-based): linear warm-up (s+1)/warmup, then by name to final_frac * lr at
// num_steps.
//   cosine | linear | constant | wsd (flat until 80 % of the steps, or the end of the warm-up when that is
//   later, then 1 - sqrt(x))
// final_frac * lr is the value at num_steps, which is one past the last step: the last one taken is a little
// above it. wsd's first step of decay still has x = 0, so it shows from 6 steps on.
struct Schedule {
    std::string name = "cosine";
    double lr = 6e-4, final_frac = 0.1;
    int64_t warmup = 0, num_steps = 1;
    double at(int64_t step) const;
};
