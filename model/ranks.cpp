// Small talk between ranks.
#include "model/ranks.h"

#include <cmath>
#include <iterator>

#include "core/error.h"
#include "core/io.h"

RunStart start_run(Comm& comm, const std::string& out, const std::string& model_directory,
                   const ParamTable& table, const ModelConfig& config, uint64_t seed, Optimizer& optimizer) {
    RunStart start;
    comm.barrier();  // by now rank 0 has taken it
    const std::string lock = out + "/.lock";
    if (!path_exists(lock))
        fail_input({.what = "this rank does not see the run directory",
                    .where = cat({out, " on ", comm.host(comm.rank())}),
                    .expected = cat({lock, ", which rank 0 holds"}),
                    .hint = "--out must lie on storage that all hosts share"});
    start.checkpoint = broadcast_text(comm, comm.rank() == 0 ? verify_newest_checkpoint(out) : "", 0);
    if (!start.checkpoint.empty()) {
        start.state = load_verified_checkpoint(start.checkpoint, table, config, optimizer);
        return start;
    }
    if (!model_directory.empty()) {
        load_hf_weights(model_directory, table, config, optimizer.master_part());
    } else {
        init_params(table, optimizer.master_part(), seed);
    }
    optimizer.publish_master();
    return start;
}

void check_equal_weights(Comm& comm, const ParamTable& table, Tensor weights, int64_t step) {
    if (comm.size() == 1) return;
    const int rank = first_rank_that_differs(comm, weights_hash(table, weights));
    CHECK(rank < 0, cat({"after step ", step, " rank ", rank, " on ", rank < 0 ? "" : comm.host(rank),
                         " has other weights than rank 0 on ", comm.host(0)}));
}

std::string program_hash() { return sha256_file("/proc/self/exe"); }

StepAgreement agree(Comm& comm, int64_t targets, int stop_signal, bool busy) {
    double sums[] = {static_cast<double>(targets), static_cast<double>(stop_signal != 0),
                     static_cast<double>(stop_signal), static_cast<double>(busy)};
    comm.all_reduce_sum(tensor_of(sums, std::ssize(sums)));
    return {.targets = std::llround(sums[0]),
            .stop_signal = sums[1] > 0 ? static_cast<int>(sums[2] / sums[1]) : 0,
            .num_busy = std::llround(sums[3])};
}
