// The `self` backend: one rank, for whom every collective is the identity; and which backend a program has.
#include "core/comm.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <utility>

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
void check_exchange(std::span<const Tensor> arrays, std::span<const int> num_arrays, const Split& split,
                    int rank, int num_ranks) {
    CHECK(static_cast<int>(num_arrays.size()) == num_ranks &&
              static_cast<int>(arrays.size()) == num_arrays[static_cast<size_t>(rank)],
          cat({arrays.size(), " arrays of rank ", rank, " of ", num_ranks}));
    for (const Tensor& array : arrays) {
        check_split("exchange", array, split, num_ranks);
        CHECK(array.dtype == DType::f32, shape_text(array));
    }
}

namespace {
// Elements of one piece that go at a time: what is received from all ranks must stay small, but a part as
// large as a layer is what can be under way while something else is computed.
constexpr int64_t kStagingBytes = int64_t{256} << 20, kSmallestPartBytes = int64_t{1} << 20;
}  // namespace

int64_t exchange_part(int64_t num_pieces) {
    return std::max(kSmallestPartBytes, kStagingBytes / std::max<int64_t>(1, num_pieces)) /
           static_cast<int64_t>(sizeof(float));
}
int64_t Comm::exchange_bytes(int64_t count, int64_t num_pieces) {
    return num_pieces * std::min(count, exchange_part(num_pieces)) * static_cast<int64_t>(sizeof(float));
}

void Comm::reduce_scatter_sum(Tensor full, const Split& split) {
    const std::vector<int> one_each(static_cast<size_t>(size()), 1);
    exchange({&full, 1}, one_each, split,
             [full](int64_t begin, int64_t count, std::span<float* const> pieces) {
                 float* const sum = pieces[0];
                 for (const float* piece : pieces.subspan(1))
                     for (int64_t i = 0; i < count; ++i) sum[i] += piece[i];
                 std::copy_n(sum, count, full.as<float>() + begin);
             });
}

std::string broadcast_text(Comm& comm, const std::string& text, int root) {
    int32_t length = static_cast<int32_t>(text.size());
    comm.broadcast(tensor_of(&length, 1), root);
    std::string result = text;
    result.resize(static_cast<size_t>(length));
    if (length > 0) comm.broadcast(tensor_of(reinterpret_cast<uint8_t*>(result.data()), length), root);
    return result;
}

int first_rank_that_differs(Comm& comm, const std::string& value) {
    std::vector<double> differs(static_cast<size_t>(comm.size()));
    differs[static_cast<size_t>(comm.rank())] = value != broadcast_text(comm, value, 0);
    comm.all_reduce_sum(tensor_of(differs.data(), comm.size()));
    const auto first = std::find(differs.begin(), differs.end(), 1.0);
    return first == differs.end() ? -1 : static_cast<int>(first - differs.begin());
}

void require_same(Comm& comm, const std::string& what, const std::string& value, const std::string& hint) {
    const int rank = first_rank_that_differs(comm, value);
    if (rank < 0) return;
    std::istringstream ours(broadcast_text(comm, value, 0)), theirs(broadcast_text(comm, value, rank));
    std::string our_line, their_line;
    while (our_line == their_line && (ours || theirs)) {
        if (!std::getline(ours, our_line)) our_line = "(nothing)";
        if (!std::getline(theirs, their_line)) their_line = "(nothing)";
    }
    fail_input({.what = cat({what, " differs between ranks"}),
                .where = cat({"rank ", rank, " on ", comm.host(rank)}),
                .expected = cat({our_line, " as rank 0 on ", comm.host(0)}),
                .actual = their_line,
                .hint = hint});
}

namespace {

// Nothing is under way with one rank; what was to be done in wait() is done there all the same.
class Done final : public Pending {
public:
    explicit Done(std::function<void()> rest = {}) : rest_(std::move(rest)) {}
    void wait() override {
        if (rest_) std::exchange(rest_, {})();
    }

private:
    std::function<void()> rest_;
};

class SelfComm final : public Comm {
public:
    int rank() const override { return 0; }
    int size() const override { return 1; }
    void barrier() override {}
    void all_reduce_sum(Tensor t) override { check_sum("all_reduce_sum", t); }
    std::unique_ptr<Pending> start_all_gather(Tensor full, const Split& split) override {
        check_split("all_gather", full, split, 1);
        return std::make_unique<Done>();
    }
    std::unique_ptr<Pending> start_exchange(std::span<const Tensor> arrays, std::span<const int> num_arrays,
                                            const Split& split, Take take) override {
        check_exchange(arrays, num_arrays, split, 0, 1);
        std::vector<float*> pieces;
        for (const Tensor& array : arrays) pieces.push_back(array.as<float>());
        return std::make_unique<Done>([=, take = std::move(take), size = split.size] {
            if (size > 0) take(0, size, pieces);
        });
    }
    void broadcast(Tensor, int root) override { CHECK(root == 0, cat({"broadcast: root=", root})); }
    int64_t bytes_sent() const override { return 0; }
    std::string host(int) const override { return "this machine"; }
    int ranks_here() const override { return 1; }
    void abort_all(const std::string& line, int exit_code) override {
        std::fprintf(stderr, "%s\n", line.c_str());
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

namespace {
int (*body_of_ranks)(Comm&, int, char**);

int body_of_rank(int argc, char** argv) {
    const std::unique_ptr<Comm> comm = make_comm();
    try {
        const int exit_code = body_of_ranks(*comm, argc, argv);
        flush_stdout();
        return exit_code;
    } catch (...) {
        if (comm->size() == 1) throw;
        const Failure failure = failure_of(std::current_exception());
        comm->abort_all(failure.line, failure.exit_code);
        return failure.exit_code;
    }
}
}  // namespace

int run_main_of_ranks(int argc, char** argv, int (*body)(Comm& comm, int argc, char** argv)) {
    body_of_ranks = body;
    return run_main(argc, argv, body_of_rank);
}
