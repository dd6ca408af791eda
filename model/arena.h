// Hands out tensors one behind another from a block of memory. Without a block it only counts, so that one
// layout function both plans memory and places tensors in it: the plan cannot differ from what is allocated.
#pragma once
#include "core/tensor.h"

class Arena {
public:
    Arena() = default;
    explicit Arena(const Buffer& memory)
        : base_(static_cast<char*>(memory.data())), device_(memory.device()) {}

    // Uninitialised. Every tensor begins at a multiple of 64 bytes: a cache line, and the widest vector.
    Tensor take(DType dtype, int64_t d0, int64_t d1 = -1) {
        Tensor t = make_tensor(base_ ? base_ + bytes_ : nullptr, dtype, d0, d1);
        t.device = device_;
        bytes_ += (t.bytes() + 63) / 64 * 64;
        return t;
    }
    int64_t bytes() const { return bytes_; }

private:
    char* base_ = nullptr;
    Device device_ = Device::cpu;
    int64_t bytes_ = 0;
};
