// One rank of several without the others: collectives leave everything as it is, unless a test overrides
// them.
#pragma once
#include <cstdlib>

#include "core/comm.h"

class FakeComm : public Comm {
public:
    FakeComm(int rank, int size) : rank_(rank), size_(size) {}
    int rank() const override { return rank_; }
    int size() const override { return size_; }
    void barrier() override {}
    void all_reduce_sum(Tensor) override {}
    std::unique_ptr<Pending> start_exchange(std::span<const Tensor>, std::span<const int>, const Split&,
                                            Take) override {
        return std::make_unique<Nothing>();
    }
    std::unique_ptr<Pending> start_all_gather(Tensor, const Split&) override {
        return std::make_unique<Nothing>();
    }
    void broadcast(Tensor, int) override {}
    int64_t bytes_sent() const override { return 0; }
    std::string host(int) const override { return "nowhere"; }
    int ranks_here() const override { return 1; }
    void abort_all(const std::string&, int) override { std::abort(); }

private:
    struct Nothing final : Pending {
        void wait() override {}
    };
    int rank_, size_;
};
