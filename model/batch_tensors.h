// A micro-batch as the kernels read it. On the CPU the tensors are views of the batch itself; on a device
// they are copies, on their way while the host goes on, and what the kernels see of their shapes depends on
// the number of tokens only, so that a recorded graph fits any batch of that size.
#pragma once
#include <vector>

#include "core/batch.h"
#include "core/device.h"

class BatchTensors {
public:
    BatchTensors(int64_t max_tokens, Device device);
    ~BatchTensors();
    BatchTensors(const BatchTensors&) = delete;
    BatchTensors& operator=(const BatchTensors&) = delete;
    static int64_t device_bytes(int64_t max_tokens);

    // On the CPU `batch` must outlive its use.
    void load(const Batch& batch, float dloss_scale);

    Tensor tokens, targets, positions;  // [N] i32
    Tensor cu_seqlens;                  // [S+1] i32; on a device [N+1], filled up with N: empty documents
    Tensor dloss_scale;                 // [1] f32

private:
    // Page-locked memory that a copy is being made from: two, so that the next batch need not wait for it.
    struct Staging {
        int32_t* words;
        DeviceEvent copied;
    };
    Device device_;
    float scale_ = 0;
    Buffer memory_;
    std::vector<Staging> stagings_;
    size_t next_ = 0;
};
