// The `self` backend: one rank, for whom every collective is the identity; and which backend a program has.
#include "core/comm.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/error.h"

void check_sum(const char* collective, const Tensor& t) {
    CHECK(t.on_host() && (t.dtype == DType::f32 || t.dtype == DType::f64),
          cat({collective, ": ", shape_text(t)}));
}
void check_split(const char* collective, const Tensor& full, const Split& split, int num_ranks) {
    CHECK(full.on_host() && full.size() == split.size && split.num_ranks == num_ranks,
          cat({collective, ": ", shape_text(full), ", split of ", split.size, " for ", split.num_ranks,
               " of ", num_ranks, " ranks"}));
}

namespace {

class SelfComm final : public Comm {
public:
    int rank() const override { return 0; }
    int size() const override { return 1; }
    void barrier() override {}
    void all_reduce_sum(Tensor t) override { check_sum("all_reduce_sum", t); }
    void reduce_scatter_sum(Tensor full, const Split& split) override {
        check_split("reduce_scatter_sum", full, split, 1);
        CHECK(full.dtype == DType::f32, shape_text(full));
    }
    void all_gather(Tensor full, const Split& split) override { check_split("all_gather", full, split, 1); }
    void exchange(Tensor pieces, Tensor full, const Split& split) override {
        check_split("exchange", full, split, 1);
        CHECK(pieces.size() == full.size() && pieces.dtype == full.dtype, shape_text(pieces));
        if (full.size() > 0) std::memcpy(pieces.data, full.data, static_cast<size_t>(full.bytes()));
    }
    void broadcast(Tensor, int root) override { CHECK(root == 0, cat({"broadcast: root=", root})); }
    int64_t bytes_sent() const override { return 0; }
    void abort_all(const std::string& message, int exit_code) override {
        std::fprintf(stderr, "error: %s\n", message.c_str());
        std::fflush(nullptr);
        _exit(exit_code);  // no destructors: other threads may still be at work
    }
};

// How many ranks the launcher has started, by what it leaves in the environment; 1 without one.
int launched_ranks() {
    // Open MPI; MPICH and the Hydra launcher; srun, whose tasks need not be ranks of ours: asked last.
    for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"}) {
        if (const char* value = std::getenv(name)) return std::atoi(value);
    }
    return 1;
}

}  // namespace

std::unique_ptr<Comm> make_self_comm() { return std::make_unique<SelfComm>(); }

#if defined(INGOT_MPI)
std::unique_ptr<Comm> make_mpi_comm();  // core/comm_mpi.cpp
#endif

std::unique_ptr<Comm> make_comm() {
    const int ranks = launched_ranks();
    if (ranks <= 1) return make_self_comm();
#if defined(INGOT_MPI)
    std::unique_ptr<Comm> comm = make_mpi_comm();
    if (comm->size() != ranks) {
        fail_input({.what = "this build's MPI does not know the launcher",
                    .expected = cat({ranks, " ranks"}),
                    .actual = cat({comm->size()}),
                    .hint = "mpirun of the MPI whose mpicc the build found; srun: --mpi=pmix"});
    }
    return comm;
#else
    fail_input({.what = "this build has no MPI",
                .expected = "one rank, or mpicc on the machine that built it",
                .actual = cat({ranks, " ranks"}),
                .hint = "install libopenmpi-dev or libmpich-dev and run make"});
#endif
}
