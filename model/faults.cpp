// Rewinds and replays.
#include "model/faults.h"

#include <cstdio>

#include "core/device.h"
#include "core/error.h"
#include "model/checkpoint.h"
#include "model/sharding.h"

namespace {
std::string where_to(const std::string& out, int64_t every) {
    const std::string regular = every > 0 ? verify_newest_checkpoint(out, every) : "";
    return regular.empty() ? verify_newest_checkpoint(out) : regular;
}
}  // namespace

bool go_back(Comm& comm, const std::string& out, int64_t every, const ParamTable& table,
             const ModelConfig& config, Optimizer& optimizer, TrainerState& state, RunLog& log) {
    const SampleRange refused{state.refused_since, state.next_sample};
    const int64_t from = state.step, skips = optimizer.skips_in_a_row();
    const bool leads = comm.rank() == 0;
    const std::string checkpoint = broadcast_text(comm, leads ? where_to(out, every) : "", 0);
    if (checkpoint.empty()) {
        if (leads)
            std::fprintf(stderr,
                         "%lld steps in a row were skipped, and there is no checkpoint to go back to\n",
                         static_cast<long long>(skips));
        return false;
    }
    const TrainerState now = std::move(state);
    state = load_verified_checkpoint(checkpoint, table, config, optimizer);
    // The flags and the program of now, not those of whoever wrote it; and all that was ever left out.
    state.config_toml = now.config_toml;
    state.commit = now.commit;
    state.stepped_over = now.stepped_over;
    state.stepped_over.push_back(refused);
    JsonLine line;
    line.add("kind", "rewind").add("step", from).add("to_step", state.step).add("skips", skips);
    line.add("first_sample", refused.begin).add("end_sample", refused.end);
    log.write(line);
    if (leads)
        std::fprintf(
            stderr,
            "%lld steps in a row were skipped: from step %lld back to %s, leaving out samples %lld to %lld\n",
            static_cast<long long>(skips), static_cast<long long>(from), checkpoint.c_str(),
            static_cast<long long>(refused.begin), static_cast<long long>(refused.end - 1));
    return true;
}

GradientBits bits_of(const StepGradient& gradient, Tensor loss, const ParamTable& table, Comm* comm) {
    const HostCopy sum(loss);
    return {.loss = *sum.tensor().as<double>(), .hash = weights_hash(table, gradient.gradient(), comm)};
}

void check_replay(const GradientBits& first, const GradientBits& second, int64_t step, RunLog& log) {
    CHECK(first.loss == second.loss && first.hash == second.hash,
          cat({"step ", step, " computed twice gives a loss of ", first.loss, " and ", second.loss,
               ", and gradients of hash ", first.hash, " and ", second.hash}));
    log.write(JsonLine().add("kind", "replay").add("step", step).add("gradient", first.hash));
}
