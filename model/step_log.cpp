// One step's lines.
#include "model/step_log.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace {
double rounded(double value, int digits) {
    return std::round(value * std::pow(10.0, digits)) / std::pow(10.0, digits);
}
}  // namespace

StepLog::StepLog(RunLog& log, Progress& progress, Optimizer& optimizer, TrainerState& state,
                 const StepCost& cost)
    : log_(log), progress_(progress), optimizer_(optimizer), state_(state), cost_(cost) {}

void StepLog::queued(double lr, double start, int64_t first_sample, int64_t sent_bytes) {
    CHECK(!queued_ && optimizer_.queued(), cat({"step ", state_.step}));
    queued_ = {.step = state_.step,
               .tokens = state_.tokens,
               .lr = lr,
               .start = start,
               .sent_bytes = sent_bytes,
               .first_sample = first_sample};
}

void StepLog::finish_if_arrived() {
    if (queued_ && optimizer_.arrived()) finish();
}

void StepLog::finish() {
    if (!queued_) return;
    const Queued step = *queued_;
    queued_.reset();
    last_ = optimizer_.take();
    state_.last_loss = last_.loss;
    if (last_.applied) {
        state_.refused_since = -1;
    } else if (state_.refused_since < 0) {
        state_.refused_since = step.first_sample;
    }
    // A step that was queued while the one before it ran began when that one ended.
    const double now = seconds_now(), seconds = now - std::max(step.start, finished_);
    finished_ = now;
    const double tokens_per_s = static_cast<double>(cost_.tokens) / seconds;
    const double mfu = cost_.peak_flops > 0 ? cost_.flops / seconds / cost_.peak_flops : 0;

    JsonLine line;
    line.add("kind", "step").add("step", step.step).add("loss", last_.loss).add("lr", step.lr);
    line.add("grad_norm", last_.grad_norm).add("tokens", step.tokens).add("ms", seconds * 1e3);
    line.add("tokens_per_s", tokens_per_s).add("mfu", mfu);
    if (step.sent_bytes > 0) line.add("sent_bytes", step.sent_bytes);
    if (!last_.applied) line.add("skipped", last_.reason).add("num_skipped", optimizer_.num_skipped());
    log_.write(line);
    log_.scalar("train/loss", step.step, last_.loss);
    log_.scalar("train/grad_norm", step.step, last_.grad_norm);
    log_.scalar("train/lr", step.step, step.lr);
    log_.scalar("train/tokens_per_s", step.step, tokens_per_s);
    progress_.update(step.step * cost_.tokens, cat({"step ", step.step, "  loss ", rounded(last_.loss, 4),
                                                    "  mfu ", rounded(mfu * 100, 1), "%"}));
    if (!last_.applied && log_.anywhere()) {
        progress_.say(cat(
            {"step ", step.step, " skipped: ", last_.reason, " (", optimizer_.num_skipped(), " so far)"}));
    }
}
