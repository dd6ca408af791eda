// Communication between ranks. Only the `self` backend exists today: one rank, every collective is the
// identity.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "core/tensor.h"

class Comm {
public:
    virtual ~Comm() = default;
    virtual int rank() const = 0;
    virtual int size() const = 0;
    virtual void barrier() = 0;
    virtual void all_reduce_sum(Tensor t, Stream stream = {}) = 0;  // f32, in place
    virtual void reduce_scatter_sum(Tensor shard, Tensor full,
                                    Stream stream = {}) = 0;  // full = size() shards
    virtual void all_gather(Tensor full, Tensor shard, Stream stream = {}) = 0;
    virtual void broadcast(Tensor t, int root, Stream stream = {}) = 0;
    [[noreturn]] virtual void abort_all(const std::string& message, int exit_code) = 0;
};
std::unique_ptr<Comm> make_self_comm();
