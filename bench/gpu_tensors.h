// Device tensors of a benchmark's row, freed with it, full of what training has in them: normal values and
// random ids. Zeros would draw less power and run faster than a model does.
#pragma once
#include <vector>

#include "core/device.h"

class GpuTensors {
public:
    explicit GpuTensors(Device device) : device_(device) {}
    Device device() const { return device_; }
    Tensor make(DType dtype, int64_t d0, int64_t d1 = -1);  // f32 or bf16: N(0, 1)
    Tensor zeros(DType dtype, int64_t d0, int64_t d1 = -1);
    Tensor bytes(int64_t count);               // scratch
    Tensor ids(int64_t count, int64_t limit);  // i32, uniform in [0, limit)
    Tensor copy_of(Tensor host);
    Tensor bounds(int64_t rows, int64_t length);  // cu_seqlens of `rows` documents
    Tensor positions(int64_t rows, int64_t length);
    int64_t allocated_bytes() const;

private:
    Device device_;
    std::vector<Buffer> buffers_;
};
