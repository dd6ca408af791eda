// The MPI backend. Everything is sent from rank to rank in rounds, each of which sends to one rank and
// receives from another: sums need a fixed order, which MPI's own reductions do not promise, and the bytes
// are countable.
#if defined(INGOT_MPI)
#define OMPI_SKIP_MPICXX 1  // no C++ bindings: MPI has dropped them
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <utility>
#include <vector>

#include "core/comm.h"
#include "core/error.h"
#include "core/log.h"
#include "core/stop.h"

namespace {

constexpr double kLongWait = 0.5;                    // seconds
constexpr int64_t kMessageBytes = int64_t{1} << 30;  // of one message: MPI counts in int

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
    void barrier() override {
        const Waiting here(*this, kNobody);
        REQUIRE(MPI_Barrier(MPI_COMM_WORLD));
    }

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

    std::unique_ptr<Pending> start_exchange(std::span<const Tensor> arrays, std::span<const int> num_arrays,
                                            const Split& split, Take take) override {
        check_exchange(arrays, num_arrays, split, rank_, size_);
        return std::make_unique<Exchange>(*this, arrays, num_arrays, split, std::move(take));
    }

    std::unique_ptr<Pending> start_all_gather(Tensor full, const Split& split) override {
        check_split("all_gather", full, split, size_);
        const int64_t element = dtype_bytes(full.dtype);
        auto gather = std::make_unique<Gather>(*this);
        for_each_round([&](int to, int from) {
            receive(gather->messages, at(full, split.begin(from)), split.count(from) * element, from);
            send(gather->messages, at(full, split.begin(rank_)), split.count(rank_) * element, to);
        });
        return gather;
    }

    void broadcast(Tensor t, int root) override {
        CHECK(t.on_host() && root >= 0 && root < size_, cat({shape_text(t), " root=", root}));
        const Waiting here(*this, rank_ == root ? kNobody : root);
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
        // The launcher ends them, first by a signal that a program may take for a wish to stop.
        const bool asked_before = stop_asked();
        for (int i = 0; rank_ != 0 && i < 50; ++i) {
            if (!asked_before && stop_signal() == SIGTERM) _exit(exit_code);
            usleep(100'000);
        }
        const std::string from = rank_ == 0 ? "" : cat({"  (rank ", rank_, " on ", host(rank_), ")"});
        std::fprintf(stderr, "%s%s\n", line.c_str(), from.c_str());
        std::fflush(nullptr);
        MPI_Abort(MPI_COMM_WORLD, exit_code);
        _exit(exit_code);
    }

private:
    struct Messages {
        std::vector<MPI_Request> requests;
        std::vector<int> peers;  // of each
    };

    class Waiting {
    public:
        Waiting(MpiComm& comm, int for_rank) : comm_(comm) {
            comm_.waits_for_ = for_rank;
            ++comm_.waits_;
        }
        ~Waiting() {
            ++comm_.waits_;
            comm_.waits_for_ = kNobody;
        }

    private:
        MpiComm& comm_;
    };

    class Gather final : public Pending {
    public:
        explicit Gather(MpiComm& comm) : comm_(comm) {}
        void wait() override { comm_.wait_for(messages); }
        Messages messages;

    private:
        MpiComm& comm_;
    };

    // One part of everybody's ranges after another; the first is under way from the start.
    class Exchange final : public Pending {
    public:
        Exchange(MpiComm& comm, std::span<const Tensor> arrays, std::span<const int> num_arrays,
                 const Split& split, Take take)
            : comm_(comm),
              arrays_(arrays.begin(), arrays.end()),
              num_arrays_(num_arrays.begin(), num_arrays.end()),
              split_(split),
              take_(std::move(take)) {
            int64_t num_pieces = 0;
            for (int r = 0; r < comm.size_; ++r) {
                longest_ = std::max(longest_, split.count(r));
                first_piece_.push_back(num_pieces);
                num_pieces += num_arrays_[static_cast<size_t>(r)];
            }
            part_ = exchange_part(num_pieces);
            pieces_.resize(static_cast<size_t>(num_pieces));
            const int64_t others = num_pieces - static_cast<int64_t>(arrays_.size());
            staging_ = comm.take_staging(std::min(split.count(comm.rank_), part_) * others);
            post();
        }
        ~Exchange() override { comm_.give_staging(std::move(staging_)); }

        void wait() override {
            while (begin_ < longest_) {
                comm_.wait_for(messages_);
                const int64_t count = length(comm_.rank_);
                if (count > 0) take_(split_.begin(comm_.rank_) + begin_, count, pieces_);
                begin_ += part_;
                post();
            }
        }

    private:
        int64_t length(int rank) const { return std::clamp<int64_t>(split_.count(rank) - begin_, 0, part_); }
        float*& piece(int rank, int64_t array) {
            return pieces_[static_cast<size_t>(first_piece_[static_cast<size_t>(rank)] + array)];
        }
        void post() {
            if (begin_ >= longest_) return;
            const int64_t mine = length(comm_.rank_);
            float* room = staging_.data();
            for (int r = 0; r < comm_.size_; ++r) {
                for (int64_t k = 0; k < num_arrays_[static_cast<size_t>(r)]; ++k) {
                    if (r == comm_.rank_) {
                        piece(r, k) = arrays_[static_cast<size_t>(k)].as<float>() + split_.begin(r) + begin_;
                    } else {
                        piece(r, k) = room;
                        room += mine;
                    }
                }
            }
            comm_.for_each_round([&](int to, int from) {
                for (int64_t k = 0; k < num_arrays_[static_cast<size_t>(from)]; ++k)
                    receive(messages_, piece(from, k), mine * int64_t{sizeof(float)}, from);
                for (const Tensor& array : arrays_)
                    comm_.send(messages_, array.as<float>() + split_.begin(to) + begin_,
                               length(to) * int64_t{sizeof(float)}, to);
            });
        }

        MpiComm& comm_;
        const std::vector<Tensor> arrays_;
        const std::vector<int> num_arrays_;
        const Split split_;
        const Take take_;
        int64_t part_ = 0, longest_ = 0, begin_ = 0;  // of the part under way, within everybody's range
        std::vector<int64_t> first_piece_;            // of each rank
        std::vector<float*> pieces_;
        std::vector<float> staging_;
        Messages messages_;
    };

    // Memory of exchanges that have ended serves the next ones.
    std::vector<float> take_staging(int64_t size) {
        std::vector<float> memory;
        if (!staging_.empty()) {
            memory = std::move(staging_.back());
            staging_.pop_back();
        }
        if (static_cast<int64_t>(memory.size()) < size)
            memory = std::vector<float>(static_cast<size_t>(size));
        return memory;
    }
    void give_staging(std::vector<float> memory) { staging_.push_back(std::move(memory)); }

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
    static void receive(Messages& messages, void* in, int64_t bytes, int from) {
        for_each_message(bytes, [&](int64_t begin, int count) {
            REQUIRE(MPI_Irecv(static_cast<uint8_t*>(in) + begin, count, MPI_BYTE, from, 0, MPI_COMM_WORLD,
                              &messages.requests.emplace_back()));
            messages.peers.push_back(from);
        });
    }
    void send(Messages& messages, const void* out, int64_t bytes, int to) {
        for_each_message(bytes, [&](int64_t begin, int count) {
            REQUIRE(MPI_Isend(static_cast<const uint8_t*>(out) + begin, count, MPI_BYTE, to, 0,
                              MPI_COMM_WORLD, &messages.requests.emplace_back()));
            messages.peers.push_back(to);
        });
        bytes_sent_ += bytes;
    }
    // As MPI_Waitall, but who is waited for can be told when it takes long.
    void wait_for(Messages& messages) {
        const Waiting here(*this, kNobody);
        const int count = static_cast<int>(messages.requests.size());
        const double begin = seconds_now();
        for (int all = 0, tries = 1;; ++tries) {
            REQUIRE(MPI_Testall(count, messages.requests.data(), &all, MPI_STATUSES_IGNORE));
            if (all) break;
            if (tries % 64 != 0) continue;
            sched_yield();
            if (seconds_now() - begin < kLongWait) continue;
            for (int i = 0, done = 1; i < count && done; ++i) {
                REQUIRE(MPI_Request_get_status(messages.requests[static_cast<size_t>(i)], &done,
                                               MPI_STATUS_IGNORE));
                if (!done) waits_for_ = messages.peers[static_cast<size_t>(i)];
            }
        }
        messages = {};
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
    std::vector<std::vector<float>> staging_;  // unused
    std::vector<std::string> hosts_;
};

}  // namespace

std::unique_ptr<Comm> make_mpi_comm() { return std::make_unique<MpiComm>(); }
#endif
