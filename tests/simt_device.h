// Device memory and launches for tests of the emulator, on CUDA's null stream and without the rest of the
// project.
#pragma once
#include <vector>

#include "kernels/gpu.h"

// A sanitizer ends the program where a plain build goes on with a wrong value.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

template <class T>
class DeviceArray {
public:
    explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
        cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice);
    }
    explicit DeviceArray(size_t count) : count_(count) { cudaMalloc(&data_, count_ * sizeof(T)); }
    ~DeviceArray() { cudaFree(data_); }
    DeviceArray(const DeviceArray&) = delete;
    DeviceArray& operator=(const DeviceArray&) = delete;
    T* data() const { return data_; }
    std::vector<T> values() const {
        std::vector<T> result(count_);
        cudaMemcpy(result.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost);
        return result;
    }

private:
    T* data_ = nullptr;
    size_t count_;
};

// The shape of a launch, and where it was written.
struct Shape {
    simt::LaunchSite site;
    Shape(dim3 grid, dim3 block, int64_t smem_bytes = 0, cudaStream_t stream = nullptr,
          const char* file = __builtin_FILE(), int line = __builtin_LINE())
        : site{grid, block, smem_bytes, stream, file, line} {}
};
template <class... Params>
void start(void (*kernel)(Params...), const Shape& shape, std::type_identity_t<Params>... arguments) {
    simt::launch(kernel, shape.site, arguments...);
}
