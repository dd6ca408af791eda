// The same test on every device: host tensors are copied to the device between guard values, the op runs
// there, and what it left is fetched back into the host tensors.
//   for (Device device : gpus()) {
//       OnDevice on(device);
//       rmsnorm_forward(on(y), on(rstd), on(x), on(w), kEps);
//       on.fetch();
//   }
#pragma once
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/device.h"
#include "tests/op_check.h"

namespace simt {
void set_seed(uint64_t seed);  // the order of threads, blocks and streams (kernels/simt/simt.h)
}

// The emulator, and the GPU where there is one. INGOT_TEST_DEVICE=cuda (or simt): that one alone.
inline std::vector<Device> gpus() {
    if (const char* only = std::getenv("INGOT_TEST_DEVICE")) return {device_from_name(only)};
    std::vector<Device> devices{Device::simt};
    if (device_from_name("auto") == Device::cuda) devices.push_back(Device::cuda);
    return devices;
}

// For OnDevice: no tensor, every tensor, and each of the first `count` alone off the boundaries that vectors
// of memory want.
inline std::vector<uint32_t> misalignments(int count) {
    std::vector<uint32_t> odd_ones{0, ~0u};
    for (int i = 0; i < count; ++i) odd_ones.push_back(1u << i);
    return odd_ones;
}

class OnDevice {
public:
    // Bit i of odd_ones: the i-th tensor to come lies one element further than said below.
    explicit OnDevice(Device device, uint32_t odd_ones = 0) : device_(device), odd_ones_(odd_ones) {}
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

    // The tensor's copy on the device, as far from a 64-byte boundary as the tensor itself. The same tensor
    // again (as an op's second argument, or an alias) is the same copy; absent stays absent; on the CPU it is
    // itself.
    Tensor operator()(Tensor host) {
        if (host.absent() || device_ == Device::cpu) return host;
        for (const Copy& copy : copies_) {
            if (copy.host.data == host.data && copy.host.bytes() == host.bytes()) return place(copy, host);
        }
        const int64_t odd = copies_.size() < 32 ? odd_ones_ >> copies_.size() & 1 : 0;
        copies_.push_back({host, Buffer(host.bytes() + 2 * kGuardBytes + kAlignment, device_),
                           static_cast<int64_t>(reinterpret_cast<uintptr_t>(host.data) % kAlignment) +
                               odd * dtype_bytes(host.dtype)});
        const Copy& copy = copies_.back();
        std::vector<uint8_t> bytes = guard_bytes(copy.memory.bytes());
        if (host.bytes() > 0) {
            std::memcpy(&bytes[static_cast<size_t>(begin(copy))], host.data,
                        static_cast<size_t>(host.bytes()));
        }
        copy_tensor(whole(copy), tensor_of(bytes.data(), copy.memory.bytes()));
        return place(copy, host);
    }
    // Uninitialised memory on the device (NaNs), for scratch.
    Tensor scratch(int64_t bytes) {
        scratch_.push_back(guard_bytes(bytes + kAlignment));
        std::vector<uint8_t>& host = scratch_.back();
        auto* aligned = reinterpret_cast<uint8_t*>(
            (reinterpret_cast<uintptr_t>(host.data()) + kAlignment - 1) / kAlignment * kAlignment);
        return (*this)(tensor_of(aligned, bytes));
    }
    // Everything back into the host tensors. A guard that was overwritten fails the test.
    void fetch() {
        for (const Copy& copy : copies_) {
            std::vector<uint8_t> bytes(static_cast<size_t>(copy.memory.bytes()));
            copy_tensor(tensor_of(bytes.data(), copy.memory.bytes()), whole(copy));
            const int64_t first = begin(copy), last = first + copy.host.bytes();
            for (int64_t i = 0; i < copy.memory.bytes(); ++i) {
                if (i == first) i = last;
                if (i == copy.memory.bytes() || bytes[static_cast<size_t>(i)] == guard_byte(i)) continue;
                ADD_FAILURE() << "guard overwritten on " << device_name(device_) << ", byte "
                              << (i < first ? i - first : i - last) << " from the "
                              << (i < first ? "beginning" : "end") << " of " << shape_text(copy.host);
                break;
            }
            if (last > first) {
                std::memcpy(copy.host.data, &bytes[static_cast<size_t>(first)],
                            static_cast<size_t>(last - first));
            }
        }
    }

private:
    // Of the i-th byte: as f32 and as bf16 a signalling NaN, which spoils what reads it and does not survive
    // having something added to it.
    static constexpr uint8_t guard_byte(int64_t i) { return i % 2 == 0 ? 0xa1 : 0x7f; }
    static std::vector<uint8_t> guard_bytes(int64_t count) {
        std::vector<uint8_t> bytes(static_cast<size_t>(count));
        for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = guard_byte(static_cast<int64_t>(i));
        return bytes;
    }
    static constexpr int64_t kGuardBytes = 256, kAlignment = 64;
    struct Copy {
        Tensor host;
        Buffer memory;
        int64_t offset;
    };
    static int64_t begin(const Copy& copy) { return kGuardBytes + copy.offset; }
    Tensor place(const Copy& copy, Tensor host) const {
        host.data = static_cast<uint8_t*>(copy.memory.data()) + begin(copy);
        host.device = device_;
        return host;
    }
    Tensor whole(const Copy& copy) const {
        Tensor t = make_tensor(copy.memory.data(), DType::u8, copy.memory.bytes());
        t.device = device_;
        return t;
    }

    Device device_;
    uint32_t odd_ones_;
    std::vector<Copy> copies_;
    std::vector<std::vector<uint8_t>> scratch_;
};

// run(device) returns the bytes of every output; they must be the same every time, in whatever order the
// device lets its threads and blocks go on.
template <class Run>
void expect_same_bits_on_gpus(Run&& run) {
    for (Device device : gpus()) {
        const std::vector<uint8_t> first = run(device);
        for (uint64_t seed : {2, 3, 4}) {
            simt::set_seed(seed);
            EXPECT_TRUE(run(device) == first)
                << "other bits on " << device_name(device) << " by seed " << seed;
        }
        simt::set_seed(1);
    }
}
