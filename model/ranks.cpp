// Small talk between ranks.
#include "model/ranks.h"

#include <cmath>

#include "core/error.h"
#include "core/io.h"

void broadcast_run(Comm& comm, TrainerState& state, Tensor params, Optimizer& optimizer) {
    if (comm.size() == 1) return;
    const CheckpointArenas arenas = checkpoint_arenas(params, optimizer);
    for (const Tensor& arena : {arenas.params, arenas.moment1, arenas.moment2, arenas.master})
        if (!arena.absent()) comm.broadcast(arena, 0);
    DType dtype = params.dtype;
    state = state_from_json(broadcast_text(comm, state_to_json(state, dtype), 0), "rank 0", dtype);
    restore_counts(optimizer, state);
}

void check_equal_weights(Comm& comm, const ParamTable& table, Tensor master, int64_t step) {
    if (comm.size() == 1) return;
    const std::string own = weights_hash(table, master), expected = broadcast_text(comm, own, 0);
    std::vector<double> differs(static_cast<size_t>(comm.size()));
    differs[static_cast<size_t>(comm.rank())] = own != expected;
    comm.all_reduce_sum(tensor_of(differs.data(), comm.size()));
    for (int rank = 0; rank < comm.size(); ++rank) {
        CHECK(differs[static_cast<size_t>(rank)] == 0,
              cat({"after step ", step, " rank ", rank, " on ", comm.host(rank),
                   " has other weights than rank 0 on ", comm.host(0)}));
    }
}

std::string program_hash() { return sha256_file("/proc/self/exe"); }

StepAgreement agree(Comm& comm, int64_t targets, int stop_signal) {
    double sums[3] = {static_cast<double>(targets), static_cast<double>(stop_signal != 0),
                      static_cast<double>(stop_signal)};
    comm.all_reduce_sum(tensor_of(sums, 3));
    return {.targets = std::llround(sums[0]),
            .stop_signal = sums[1] > 0 ? static_cast<int>(sums[2] / sums[1]) : 0};
}
