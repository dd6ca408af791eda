// AdamW for everything, or Muon for hidden matrices and AdamW for the rest; clipping by global norm; the
// guard that skips and counts non-finite and outlier steps. State lives in flat f32 arenas in the parameter
// table's order.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "kernels/matmul.h"
#include "model/params.h"
#include "model/transformer.h"  // MemoryPlan

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

// Mean and deviation of the last 128 accepted values; silent until the window is full. A non-finite value is
// never accepted.
class OutlierWindow {
public:
    static constexpr int kSize = 128;
    double z_score(double value) const;  // NaN until full
    void accept(double value);
    std::vector<double> values() const;  // oldest first: state for the checkpoint
    void restore(const std::vector<double>& values);

private:
    std::vector<double> ring_;
    int next_ = 0;
};

struct StepResult {
    double grad_norm = 0;  // before clipping
    bool applied = false;
    const char* reason =
        "";  // why not: "non-finite loss", "non-finite gradient", "outlier loss", "outlier gradient"
};

class Optimizer {
public:
    // params: the arena that the model reads; with bf16 params a f32 master copy is kept here.
    Optimizer(const ParamTable& table, const OptimizerConfig& config, void* params, DType dtype,
              MatmulMath math);
    ~Optimizer();
    static void plan(MemoryPlan& plan, const ParamTable& table, const OptimizerConfig& config, DType dtype);

    float* master() const;   // f32 arena: the parameters themselves in f32 training
    float* moment1() const;  // m, and Muon's momentum
    float* moment2() const;  // v
    void publish_master();  // params = round(master), after init or load (to nearest: no step has been taken)

    // One update from grads (f32 arena, already averaged over all tokens). `mean_loss` only feeds the guard.
    StepResult step(float* grads, double lr, double mean_loss);

    int64_t num_updates() const;  // t of the bias correction: applied steps
    void set_num_updates(int64_t t);
    int64_t num_skipped() const;
    void set_num_skipped(int64_t n);
    OutlierWindow& loss_window();
    OutlierWindow& norm_window();

private:
    struct State;
    std::unique_ptr<State> state_;
};

// Learning rate of step s (0-based): linear warm-up (s+1)/warmup, then by name to final_frac * lr at
// num_steps.
//   cosine | linear | constant | wsd (flat until 80 % of the steps, then 1 - sqrt(x))
struct Schedule {
    std::string name = "cosine";
    double lr = 6e-4, final_frac = 0.1;
    int64_t warmup = 0, num_steps = 1;
    double at(int64_t step) const;
};
