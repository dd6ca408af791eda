// The MPI backend. Everything is sent from rank to rank in rounds, each of which sends to one rank and
// receives from another: sums need a fixed order, which MPI's own reductions do not promise, and the bytes
// are countable.
#if defined(INGOT_MPI)
#define OMPI_SKIP_MPICXX 1  // no C++ bindings: MPI has dropped them
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>
#include <unistd.h>

#include <cstdio>
#include <vector>

#include "core/comm.h"
#include "core/error.h"

namespace {

constexpr int64_t kMessageBytes = int64_t{1} << 30;  // of one message: MPI counts in int
constexpr int64_t kStagingBytes = int64_t{4} << 20;  // of one rank's part of a sum

void require(int code, const char* call) {
    if (code == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(code, text, &length);
    fail_check(__FILE__, __LINE__, call, std::string(text, static_cast<size_t>(length)));
}
#define REQUIRE(call) require(call, #call)

template <class T>
void add(T* sum, const T* addend, int64_t count) {
    for (int64_t i = 0; i < count; ++i) sum[i] += addend[i];
}

class MpiComm final : public Comm {
public:
    MpiComm() {
        int provided = 0;
        // The thread that makes the Comm makes all calls; others of the process never do.
        require(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
        REQUIRE(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
        REQUIRE(MPI_Comm_rank(MPI_COMM_WORLD, &rank_));
        REQUIRE(MPI_Comm_size(MPI_COMM_WORLD, &size_));
        collect_hosts();
    }
    ~MpiComm() override { MPI_Finalize(); }

    int rank() const override { return rank_; }
    int size() const override { return size_; }
    void barrier() override { REQUIRE(MPI_Barrier(MPI_COMM_WORLD)); }

    void all_reduce_sum(Tensor t) override {
        check_sum("all_reduce_sum", t);
        // Everybody adds up everything: for a step's few numbers, whose latency is what counts.
        const int64_t bytes = t.bytes();
        std::vector<uint8_t> all(static_cast<size_t>(bytes * size_));
        for_each_round(
            [&](int to, int from) { swap(t.data, bytes, to, all.data() + from * bytes, bytes, from); });
        std::copy_n(static_cast<const uint8_t*>(t.data), bytes, all.data() + rank_ * bytes);
        std::copy_n(all.data(), bytes, static_cast<uint8_t*>(t.data));
        for (int r = 1; r < size_; ++r) {
            const void* const addend = all.data() + r * bytes;
            if (t.dtype == DType::f32) add(t.as<float>(), static_cast<const float*>(addend), t.size());
            if (t.dtype == DType::f64) add(t.as<double>(), static_cast<const double*>(addend), t.size());
        }
    }

    void exchange(std::span<const Tensor> arrays, std::span<const int> num_arrays, const Split& split,
                  const Take& take) override {
        check_exchange(arrays, num_arrays, split, rank_, size_);
        // In parts, so that what is received from all ranks stays small.
        int64_t longest = 0, num_pieces = 0;
        std::vector<int64_t> first_piece;  // of each rank
        for (int r = 0; r < size_; ++r) {
            longest = std::max(longest, split.count(r));
            first_piece.push_back(num_pieces);
            num_pieces += num_arrays[static_cast<size_t>(r)];
        }
        constexpr int64_t kPart = kStagingBytes / static_cast<int64_t>(sizeof(float));
        staging_.resize(static_cast<size_t>(std::min(longest, kPart) * num_pieces));
        const auto length = [&](int rank, int64_t part) {
            return std::clamp<int64_t>(split.count(rank) - part, 0, kPart);
        };
        std::vector<float*> pieces(static_cast<size_t>(num_pieces));
        for (int64_t part = 0; part < longest; part += kPart) {
            const int64_t mine = length(rank_, part);
            for (int64_t p = 0; p < num_pieces; ++p)
                pieces[static_cast<size_t>(p)] = staging_.data() + p * mine;
            const auto piece = [&](int rank, int64_t array) -> float*& {
                return pieces[static_cast<size_t>(first_piece[static_cast<size_t>(rank)] + array)];
            };
            for_each_round([&](int to, int from) {
                Messages messages;
                for (int64_t k = 0; k < num_arrays[static_cast<size_t>(from)]; ++k)
                    receive(messages, piece(from, k), mine * int64_t{sizeof(float)}, from);
                for (const Tensor& array : arrays)
                    send(messages, array.as<float>() + split.begin(to) + part,
                         length(to, part) * int64_t{sizeof(float)}, to);
                wait_for(messages);
            });
            const int64_t begin = split.begin(rank_) + part;
            for (size_t k = 0; k < arrays.size(); ++k)
                piece(rank_, static_cast<int64_t>(k)) = arrays[k].as<float>() + begin;
            if (mine > 0) take(begin, mine, pieces);
        }
    }

    void all_gather(Tensor full, const Split& split) override {
        check_split("all_gather", full, split, size_);
        for_each_round([&](int to, int from) {
            swap(at(full, split.begin(rank_)), split.count(rank_) * dtype_bytes(full.dtype), to,
                 at(full, split.begin(from)), split.count(from) * dtype_bytes(full.dtype), from);
        });
    }

    void broadcast(Tensor t, int root) override {
        CHECK(t.on_host() && root >= 0 && root < size_, cat({shape_text(t), " root=", root}));
        for_each_message(t.bytes(), [&](int64_t begin, int count) {
            REQUIRE(MPI_Bcast(static_cast<uint8_t*>(t.data) + begin, count, MPI_BYTE, root, MPI_COMM_WORLD));
        });
        if (rank_ == root) bytes_sent_ += t.bytes() * (size_ - 1);
    }

    int64_t bytes_sent() const override { return bytes_sent_; }
    int ranks_here() const override { return ranks_here_; }
    std::string host(int rank) const override { return hosts_.at(static_cast<size_t>(rank)); }

    void abort_all(const std::string& line, int exit_code) override {
        // All ranks see most mistakes at once. One line is enough: the others would be late with theirs.
        if (rank_ != 0) usleep(2'000'000);
        const std::string from = rank_ == 0 ? "" : cat({"  (rank ", rank_, " on ", host(rank_), ")"});
        std::fprintf(stderr, "%s%s\n", line.c_str(), from.c_str());
        std::fflush(nullptr);
        MPI_Abort(MPI_COMM_WORLD, exit_code);
        _exit(exit_code);
    }

private:
    static uint8_t* at(const Tensor& t, int64_t element) {
        return static_cast<uint8_t*>(t.data) + element * dtype_bytes(t.dtype);
    }
    // Every pair of ranks once in each direction; in a round everybody sends to one and receives from one.
    template <class Round>
    void for_each_round(const Round& round) const {
        for (int step = 1; step < size_; ++step)
            round((rank_ + step) % size_, (rank_ - step + size_) % size_);
    }
    template <class Message>
    static void for_each_message(int64_t bytes, const Message& message) {
        for (int64_t begin = 0; begin < bytes; begin += kMessageBytes)
            message(begin, static_cast<int>(std::min(bytes - begin, kMessageBytes)));
    }
    using Messages = std::vector<MPI_Request>;
    static void receive(Messages& messages, void* in, int64_t bytes, int from) {
        for_each_message(bytes, [&](int64_t begin, int count) {
            REQUIRE(MPI_Irecv(static_cast<uint8_t*>(in) + begin, count, MPI_BYTE, from, 0, MPI_COMM_WORLD,
                              &messages.emplace_back()));
        });
    }
    void send(Messages& messages, const void* out, int64_t bytes, int to) {
        for_each_message(bytes, [&](int64_t begin, int count) {
            REQUIRE(MPI_Isend(static_cast<const uint8_t*>(out) + begin, count, MPI_BYTE, to, 0,
                              MPI_COMM_WORLD, &messages.emplace_back()));
        });
        bytes_sent_ += bytes;
    }
    static void wait_for(Messages& messages) {
        REQUIRE(MPI_Waitall(static_cast<int>(messages.size()), messages.data(), MPI_STATUSES_IGNORE));
    }
    void swap(const void* out, int64_t out_bytes, int to, void* in, int64_t in_bytes, int from) {
        Messages messages;
        receive(messages, in, in_bytes, from);
        send(messages, out, out_bytes, to);
        wait_for(messages);
    }
    void collect_hosts() {
        char name[MPI_MAX_PROCESSOR_NAME] = {};
        int length = 0;
        REQUIRE(MPI_Get_processor_name(name, &length));
        std::vector<char> all(static_cast<size_t>(size_) * sizeof name);
        REQUIRE(
            MPI_Allgather(name, sizeof name, MPI_CHAR, all.data(), sizeof name, MPI_CHAR, MPI_COMM_WORLD));
        for (int r = 0; r < size_; ++r)
            hosts_.emplace_back(all.data() + static_cast<size_t>(r) * sizeof name);
        // By memory: hosts may have equal names.
        MPI_Comm here = MPI_COMM_NULL;
        REQUIRE(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &here));
        REQUIRE(MPI_Comm_size(here, &ranks_here_));
        REQUIRE(MPI_Comm_free(&here));
    }

    int rank_ = 0, size_ = 1, ranks_here_ = 1;
    int64_t bytes_sent_ = 0;
    std::vector<float> staging_;
    std::vector<std::string> hosts_;
};

}  // namespace

std::unique_ptr<Comm> make_mpi_comm() { return std::make_unique<MpiComm>(); }
#endif
