// What a run tells of its steps: log.jsonl, TensorBoard's scalars, the progress line. A step's numbers come
// from the device while the next one is being queued, so each step is announced here when it is queued and
// written, in order, when its numbers are there.
#pragma once
#include <cstdint>
#include <optional>

#include "core/log.h"
#include "model/checkpoint.h"
#include "model/optimizer.h"

struct StepCost {
    int64_t tokens = 0;
    double flops = 0;
    double peak_flops = 0;  // of the device, a second; 0: not known
};

class StepLog {
public:
    // The optimizer's updates are taken here, and nowhere else; the state's last_loss and
    // refused_since are set. With a log that
    // is nowhere no step is spoken of.
    StepLog(RunLog& log, Progress& progress, Optimizer& optimizer, TrainerState& state, const StepCost& cost);

    // The update just given to the optimizer belongs to step `state.step`, begun at `start` (seconds_now()),
    // for which this rank has sent so many bytes to others. Its samples begin at first_sample.
    void queued(double lr, double start, int64_t first_sample, int64_t sent_bytes);
    // Waits for the queued step's numbers and writes them; nothing to do when there is none.
    void finish();
    // The same, if that is no wait: on the CPU it never is.
    void finish_if_arrived();
    const StepResult& last() const { return last_; }  // of the step written last

private:
    struct Queued {
        int64_t step, tokens;
        double lr, start;
        int64_t sent_bytes, first_sample;
    };
    RunLog& log_;
    Progress& progress_;
    Optimizer& optimizer_;
    TrainerState& state_;
    StepCost cost_;
    std::optional<Queued> queued_;
    StepResult last_;
    double finished_ = 0;  // when the step before was
};
