// Shapes, views and the Buffer that owns host memory. Every mistake in a shape is a programming error
// (CHECK). Buffers come zeroed: large ones are fresh pages of the kernel, so the first thread to touch a page
// owns it.
#include "core/tensor.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/device.h"
#include "core/error.h"

const char* dtype_name(DType dtype) {
    switch (dtype) {
        case DType::f32: return "f32";
        case DType::bf16: return "bf16";
        case DType::i32: return "i32";
        case DType::u8: return "u8";
        case DType::f64: return "f64";
        case DType::e4m3: return "f8_e4m3";
        case DType::e5m2: return "f8_e5m2";
    }
    fail_check(__FILE__, __LINE__, "known dtype", cat({"dtype=", static_cast<int>(dtype)}));
}

void Tensor::wrong_dtype(DType asked) const {
    fail_check(__FILE__, __LINE__, "dtype == dtype_of<T>()",
               cat({"asked for ", dtype_name(asked), ", the tensor is ", shape_text(*this)}));
}

Tensor Tensor::rows(int64_t begin, int64_t count) const {
    CHECK(rank >= 1 && begin >= 0 && count >= 0 && begin <= dims[0] - count,
          cat({"rows [", begin, ", +", count, ") of ", shape_text(*this)}));
    int64_t row_bytes = dtype_bytes(dtype);
    for (int i = 1; i < rank; ++i) row_bytes *= dims[i];
    Tensor part = *this;
    if (data != nullptr) part.data = static_cast<char*>(data) + begin * row_bytes;
    part.dims[0] = count;
    return part;
}

Tensor Tensor::view(int64_t d0, int64_t d1, int64_t d2, int64_t d3) const {
    Tensor other = make_tensor(data, dtype, d0, d1, d2, d3);
    other.device = device;
    CHECK(other.size() == size(), cat({shape_text(*this), " viewed as ", shape_text(other)}));
    return other;
}

Tensor make_tensor(void* data, DType dtype, int64_t d0, int64_t d1, int64_t d2, int64_t d3) {
    const int64_t dims[Tensor::kMaxRank] = {d0, d1, d2, d3};
    CHECK(d0 >= 0, cat({"d0=", d0}));
    Tensor t;
    t.data = data;
    t.dtype = dtype;
    for (int i = 0; i < Tensor::kMaxRank && dims[i] >= 0; ++i) t.dims[t.rank++] = dims[i];
    for (int i = t.rank; i < Tensor::kMaxRank; ++i)
        CHECK(dims[i] == -1, cat({"dims ", d0, ",", d1, ",", d2, ",", d3}));
    return t;
}

std::string shape_text(const Tensor& t) {
    std::string text = dtype_name(t.dtype);
    text += '[';
    for (int i = 0; i < t.rank; ++i) text += (i > 0 ? "," : "") + std::to_string(t.dims[i]);
    return text + ']';
}

namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kCacheLine = 64;

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

[[noreturn]] void fail_memory(int64_t bytes) {
    fail_input({.what = "out of host memory",
                .expected = cat({"room for ", bytes, " more bytes"}),
                .actual = std::strerror(ENOMEM),
                .hint = "use a smaller model, batch or sequence length"});
}

// Zero pages, aligned to a huge page: one page too much is mapped and the ends are given back.
void* map_huge_pages(int64_t bytes) {
    const size_t length = static_cast<size_t>(round_up(bytes, kHugePage));
    void* mapped =
        mmap(nullptr, length + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) fail_memory(bytes);
    char* const begin = static_cast<char*>(mapped);
    const size_t head = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
    if (head > 0) munmap(begin, head);
    munmap(begin + head + length, kHugePage - head);
    madvise(begin + head, length, MADV_HUGEPAGE);  // a wish: small pages work as well
    return begin + head;
}

void release(void* data, int64_t bytes, Device device) {
    if (data == nullptr) return;
    if (device != Device::cpu) return device_release(device, data);
    if (bytes >= kHugePage) {
        munmap(data, static_cast<size_t>(round_up(bytes, kHugePage)));
    } else {
        std::free(data);
    }
}

}  // namespace

Buffer::Buffer(int64_t bytes, Device device) : bytes_(bytes), device_(device) {
    CHECK(bytes >= 0, cat({"bytes=", bytes}));
    if (bytes == 0) return;
    if (device != Device::cpu) {
        data_ = device_allocate(device, bytes);
        zero_tensor(tensor());
        return;
    }
    if (bytes >= kHugePage) {
        data_ = map_huge_pages(bytes);
        return;
    }
    const size_t length = static_cast<size_t>(round_up(bytes, kCacheLine));
    data_ = std::aligned_alloc(kCacheLine, length);
    if (data_ == nullptr) fail_memory(bytes);
    std::memset(data_, 0, length);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      device_(other.device_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
    if (this != &other) {
        release(data_, bytes_, device_);
        data_ = std::exchange(other.data_, nullptr);
        bytes_ = std::exchange(other.bytes_, 0);
        device_ = other.device_;
    }
    return *this;
}

Tensor Buffer::tensor(DType dtype) const {
    CHECK(bytes_ % dtype_bytes(dtype) == 0, cat({bytes_, " bytes of ", dtype_name(dtype)}));
    Tensor t = make_tensor(data_, dtype, bytes_ / dtype_bytes(dtype));
    t.device = device_;
    return t;
}

Buffer::~Buffer() { release(data_, bytes_, device_); }
