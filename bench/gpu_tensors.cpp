// Normal values are drawn once, a block of a few MB, and laid end to end on the device.
#include "bench/gpu_tensors.h"

#include <algorithm>
#include <map>

#include "core/rng.h"

namespace {

constexpr int64_t kBlock = (1 << 20) - 3;  // odd: rows of a matrix do not repeat each other

Tensor normal_block(Device device, DType dtype) {
    static std::map<std::pair<Device, DType>, Buffer> blocks;
    Buffer& block = blocks[{device, dtype}];
    if (block.data() != nullptr) return block.tensor(dtype);
    const int64_t count = device == Device::simt ? 1021 : kBlock;
    Buffer host(count * dtype_bytes(dtype));
    for (int64_t i = 0; i < count; ++i) {
        const float x = random_normal({.seed = 1, .stream = 2}, static_cast<uint64_t>(i));
        if (dtype == DType::f32) {
            host.tensor(dtype).as<float>()[i] = x;
        } else {
            host.tensor(dtype).as<bf16>()[i] = to_bf16(x);
        }
    }
    block = Buffer(host.bytes(), device);
    copy_tensor(block.tensor(dtype), host.tensor(dtype));
    return block.tensor(dtype);
}

}  // namespace

Tensor GpuTensors::zeros(DType dtype, int64_t d0, int64_t d1) {
    const int64_t count = d0 * std::max<int64_t>(d1, 1);
    buffers_.emplace_back(count * dtype_bytes(dtype), device_);
    return buffers_.back().tensor(dtype).view(d0, d1);
}

Tensor GpuTensors::make(DType dtype, int64_t d0, int64_t d1) {
    const Tensor t = zeros(dtype, d0, d1), flat = t.view(t.size());
    const Tensor block = normal_block(device_, dtype);
    for (int64_t done = 0; done < t.size(); done += block.size()) {
        const int64_t count = std::min(block.size(), t.size() - done);
        copy_tensor(flat.rows(done, count), block.rows(0, count));
    }
    return t;
}

Tensor GpuTensors::bytes(int64_t count) { return zeros(DType::u8, count); }

Tensor GpuTensors::copy_of(Tensor host) {
    const Tensor t = zeros(host.dtype, host.dims[0], host.rank > 1 ? host.dims[1] : -1);
    copy_tensor(t, host);
    return t;
}

Tensor GpuTensors::ids(int64_t count, int64_t limit) {
    std::vector<int32_t> host(static_cast<size_t>(count));
    for (size_t i = 0; i < host.size(); ++i) {
        host[i] =
            static_cast<int32_t>(random_below({.seed = 3, .stream = 4}, i, static_cast<uint64_t>(limit)));
    }
    return copy_of(tensor_of(host.data(), count));
}

Tensor GpuTensors::bounds(int64_t rows, int64_t length) {
    std::vector<int32_t> host;
    for (int64_t row = 0; row <= rows; ++row) host.push_back(static_cast<int32_t>(row * length));
    return copy_of(tensor_of(host.data(), rows + 1));
}

Tensor GpuTensors::positions(int64_t rows, int64_t length) {
    std::vector<int32_t> host;
    for (int64_t i = 0; i < rows * length; ++i) host.push_back(static_cast<int32_t>(i % length));
    return copy_of(tensor_of(host.data(), rows * length));
}

int64_t GpuTensors::allocated_bytes() const {
    int64_t sum = 0;
    for (const Buffer& buffer : buffers_) sum += buffer.bytes();
    return sum;
}
