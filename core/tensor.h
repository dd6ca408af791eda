// Tensor: a non-owning view of contiguous row-major memory. It knows its element type, its shape and where it
// lies; it never allocates. Owners are Arena (model/) and Buffer (below).
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "core/bf16.h"
#include "core/fp8.h"

enum class DType : uint8_t { f32, bf16, i32, u8, f64, e4m3, e5m2 };
// cuda: an NVIDIA GPU.   simt: the emulator of one, which runs the same kernels on the CPU (kernels/simt/).
enum class Device : uint8_t { cpu, cuda, simt };

constexpr bool is_fp8(DType dtype) { return dtype == DType::e4m3 || dtype == DType::e5m2; }
constexpr int64_t dtype_bytes(DType dtype) {
    return dtype == DType::u8 || is_fp8(dtype) ? 1 : dtype == DType::bf16 ? 2 : dtype == DType::f64 ? 8 : 4;
}
const char* dtype_name(DType dtype);

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
    return DType::f32;
}
template <>
constexpr DType dtype_of<bf16>() {
    return DType::bf16;
}
template <>
constexpr DType dtype_of<int32_t>() {
    return DType::i32;
}
template <>
constexpr DType dtype_of<uint8_t>() {
    return DType::u8;
}
template <>
constexpr DType dtype_of<double>() {
    return DType::f64;
}
template <>
constexpr DType dtype_of<e4m3>() {
    return DType::e4m3;
}
template <>
constexpr DType dtype_of<e5m2>() {
    return DType::e5m2;
}

struct Tensor {
    static constexpr int kMaxRank = 4;

    void* data = nullptr;
    int64_t dims[kMaxRank] = {0, 0, 0, 0};
    int rank = 0;
    DType dtype = DType::f32;
    Device device = Device::cpu;

    // An absent tensor stands for an optional argument that is not given.
    bool absent() const { return rank == 0; }
    bool on_host() const { return device == Device::cpu; }
    int64_t size() const {
        int64_t n = rank > 0;
        for (int i = 0; i < rank; ++i) n *= dims[i];
        return n;
    }
    int64_t bytes() const { return size() * dtype_bytes(dtype); }

    // The data as T. Throws InternalError when T is not this tensor's dtype.
    template <class T>
    T* as() const {
        if (dtype != dtype_of<T>()) wrong_dtype(dtype_of<T>());
        return static_cast<T*>(data);
    }
    // Rows [begin, begin + count) of the first dimension.
    Tensor rows(int64_t begin, int64_t count) const;
    // The same memory under another shape of equal size.
    Tensor view(int64_t d0, int64_t d1 = -1, int64_t d2 = -1, int64_t d3 = -1) const;

private:
    [[noreturn]] void wrong_dtype(DType asked) const;
};

Tensor make_tensor(void* data, DType dtype, int64_t d0, int64_t d1 = -1, int64_t d2 = -1, int64_t d3 = -1);
template <class T>
Tensor tensor_of(T* data, int64_t d0, int64_t d1 = -1, int64_t d2 = -1, int64_t d3 = -1) {
    return make_tensor(const_cast<void*>(static_cast<const void*>(data)), dtype_of<std::remove_const_t<T>>(),
                       d0, d1, d2, d3);
}
std::string shape_text(const Tensor& t);  // "f32[4,768]"

// Work queue of a device; {} is the device's own (core/device.h). The CPU backend runs everything in program
// order and ignores it.
struct Stream {
    void* handle = nullptr;
};

// Owning, zeroed memory: on the CPU 64-byte aligned, where large blocks ask the kernel for huge pages; on a
// device 256-byte aligned.
class Buffer {
public:
    Buffer() = default;
    explicit Buffer(int64_t bytes, Device device = Device::cpu);
    Buffer(Buffer&& other) noexcept;
    Buffer& operator=(Buffer&& other) noexcept;
    ~Buffer();
    void* data() const { return data_; }
    int64_t bytes() const { return bytes_; }
    // The whole buffer as elements of `dtype`.
    Tensor tensor(DType dtype = DType::u8) const;
    Device device() const { return device_; }

private:
    void* data_ = nullptr;
    int64_t bytes_ = 0;
    Device device_ = Device::cpu;
};
