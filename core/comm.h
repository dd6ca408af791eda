// Communication between the ranks of a job: MPI where a launcher started the program (mpirun, srun, the MPI
// Operator), else `self`, one rank. Every rank makes the same calls in the same order, from one thread;
// others may be made between the start of a collective and the wait for it. Sums are taken in the order of
// ranks, so equal inputs give equal bits, whatever the network does. Tensors are the CPU's.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/tensor.h"

// Who owns which elements of a flat array: contiguous ranges in the order of ranks. Nothing has to divide;
// with many ranks some may own nothing.
struct Split {
    static constexpr int64_t kBlock = 64;
    int64_t size = 0;
    int num_ranks = 1;
    std::vector<int64_t> begins = {};  // num_ranks + 1; empty: as even as blocks of kBlock elements allow

    int64_t begin(int rank) const {  // begin(num_ranks) is size
        if (!begins.empty()) return begins[static_cast<size_t>(rank)];
        const int64_t blocks = (size + kBlock - 1) / kBlock;
        return std::min(size, blocks * rank / num_ranks * kBlock);
    }
    int64_t count(int rank) const { return begin(rank + 1) - begin(rank); }
};

// A collective under way. Its tensors must stay as they are until wait() has returned; not waiting for it is
// a fault of the program.
class Pending {
public:
    virtual ~Pending() = default;
    virtual void wait() = 0;
};

class Comm {
public:
    virtual ~Comm() = default;
    virtual int rank() const = 0;
    virtual int size() const = 0;
    virtual void barrier() = 0;
    // t of any rank's: f32 or f64, in place.
    virtual void all_reduce_sum(Tensor t) = 0;
    // Everybody's arrays [split.size] f32, rank r's num_arrays[r] of them, meet where they are owned: take()
    // is called for one chunk of this rank's range after another, with `count` elements from `begin` on of
    // every array, in the order of ranks. It may overwrite the pieces; this rank's own are the arrays
    // themselves.
    // take() is called in wait(), in the thread that waits.
    using Take = std::function<void(int64_t begin, int64_t count, std::span<float* const> pieces)>;
    virtual std::unique_ptr<Pending> start_exchange(std::span<const Tensor> arrays,
                                                    std::span<const int> num_arrays, const Split& split,
                                                    Take take) = 0;
    // Memory that one exchange of a range of `count` elements takes beside the arrays, of num_pieces arrays
    // in all.
    static int64_t exchange_bytes(int64_t count, int64_t num_pieces);
    void exchange(std::span<const Tensor> arrays, std::span<const int> num_arrays, const Split& split,
                  Take take) {
        start_exchange(arrays, num_arrays, split, std::move(take))->wait();
    }
    // full [split.size] f32: this rank's range becomes the sum of everybody's; the rest stays as it was.
    void reduce_scatter_sum(Tensor full, const Split& split);
    // full [split.size] of any type: everybody's own range reaches everybody.
    virtual std::unique_ptr<Pending> start_all_gather(Tensor full, const Split& split) = 0;
    void all_gather(Tensor full, const Split& split) { start_all_gather(full, split)->wait(); }
    virtual void broadcast(Tensor t, int root) = 0;
    // May be read by any thread. Counts the beginnings and the ends of waits for others: odd during one.
    int64_t waits() const { return waits_; }
    // The rank that this one has waited for long, as far as it knows.
    static constexpr int kNobody = -1;
    int waits_for() const { return waits_for_; }
    // Bytes that this rank has sent to others by all of these so far.
    virtual int64_t bytes_sent() const = 0;
    virtual std::string host(int rank) const = 0;
    virtual int ranks_here() const = 0;  // on this rank's machine, itself included
    // Ends the job on all ranks, with one line however many of them call; which rank it is from is added
    // where that is not rank 0.
    [[noreturn]] virtual void abort_all(const std::string& line, int exit_code) = 0;

protected:
    std::atomic<int64_t> waits_{0};
    std::atomic<int> waits_for_{kNobody};
};
std::unique_ptr<Comm> make_self_comm();

// The root's text, on every rank.
std::string broadcast_text(Comm& comm, const std::string& text, int root);
// The first rank whose `value` is not rank 0's; -1: all have the same. On every rank.
int first_rank_that_differs(Comm& comm, const std::string& value);
// InputError on every rank when `value` is not the same on all: names `what`, the first rank that differs
// from rank 0, and the first line that does.
void require_same(Comm& comm, const std::string& what, const std::string& value, const std::string& hint);
// The job's. InputError when a launcher has started several ranks and each would train alone: this build has
// no MPI, or one that the launcher does not know. Once per process.
std::unique_ptr<Comm> make_comm();

// run_main() of a program of ranks: what one of them fails with ends all.
int run_main_of_ranks(int argc, char** argv, int (*body)(Comm& comm, int argc, char** argv));

// Both backends'; they throw InternalError.
void check_sum(const char* collective, const Tensor& t);  // f32 or f64
void check_split(const char* collective, const Tensor& full, const Split& split, int num_ranks);
int64_t exchange_part(int64_t num_pieces);  // elements of a piece that one call of take() gets at most
void check_exchange(std::span<const Tensor> arrays, std::span<const int> num_arrays, const Split& split,
                    int rank, int num_ranks);
