// Communication between the ranks of a job: MPI where a launcher started the program (mpirun, srun, the MPI
// Operator), else `self`, one rank. Every rank makes the same calls in the same order, from one thread. Sums
// are taken in the order of ranks, so equal inputs give equal bits, whatever the network does. Tensors are
// the CPU's.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>

#include "core/tensor.h"

// Who owns which elements of a flat array: contiguous ranges in the order of ranks, as even as blocks of
// kBlock elements allow. Nothing has to divide; with many ranks some may own nothing.
struct Split {
    static constexpr int64_t kBlock = 64;
    int64_t size = 0;
    int num_ranks = 1;

    int64_t begin(int rank) const {  // begin(num_ranks) is size
        const int64_t blocks = (size + kBlock - 1) / kBlock;
        return std::min(size, blocks * rank / num_ranks * kBlock);
    }
    int64_t count(int rank) const { return begin(rank + 1) - begin(rank); }
};

class Comm {
public:
    virtual ~Comm() = default;
    virtual int rank() const = 0;
    virtual int size() const = 0;
    virtual void barrier() = 0;
    // t of any rank's: f32 or f64, in place.
    virtual void all_reduce_sum(Tensor t) = 0;
    // full [split.size] f32: this rank's range becomes the sum of everybody's; the rest stays as it was.
    virtual void reduce_scatter_sum(Tensor full, const Split& split) = 0;
    // full [split.size] of any type: everybody's own range reaches everybody.
    virtual void all_gather(Tensor full, const Split& split) = 0;
    // pieces [size(), split.count(rank())] from full [split.size], same type: row s is rank s's part of the
    // range that is this rank's.
    virtual void exchange(Tensor pieces, Tensor full, const Split& split) = 0;
    virtual void broadcast(Tensor t, int root) = 0;
    // Bytes that this rank has sent to others by all of these so far.
    virtual int64_t bytes_sent() const = 0;
    // Ends the job on all ranks, with one line however many of them call.
    [[noreturn]] virtual void abort_all(const std::string& message, int exit_code) = 0;
};
std::unique_ptr<Comm> make_self_comm();
// The job's. InputError when a launcher has started several ranks and each would train alone: this build has
// no MPI, or one that the launcher does not know. Once per process.
std::unique_ptr<Comm> make_comm();

// Both backends'; they throw InternalError.
void check_sum(const char* collective, const Tensor& t);  // f32 or f64
void check_split(const char* collective, const Tensor& full, const Split& split, int num_ranks);
