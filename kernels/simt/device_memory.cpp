// Allocations of the emulated GPU (device_memory.h).
#include "kernels/simt/device_memory.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/simt/sanitizers.h"
#include "kernels/simt/scheduler.h"

namespace simt {
namespace {

constexpr size_t kAlignment = 256;
// Bytes on either side of an allocation that a kernel must leave as they are: signalling NaNs, which no sum
// leaves alone. AddressSanitizer has its own.
#if defined(SIMT_ASAN)
constexpr size_t kGuard = 0;
#else
constexpr size_t kGuard = 256;
#endif
std::array<unsigned char, kGuard> guard() {
    std::array<unsigned char, kGuard> bytes = {};
    for (size_t i = 0; i < kGuard; ++i) bytes[i] = i % 2 == 0 ? 0xa1 : 0x7f;
    return bytes;
}

struct Allocation {
    uintptr_t complement;  // ~address: LeakSanitizer must not take this list for an owner
    size_t bytes;
    bool pinned;
    uintptr_t begin() const { return ~complement; }
    char* memory() const { return reinterpret_cast<char*>(begin()); }
};
struct Allocations {
    std::vector<Allocation> sorted;  // by address
    size_t device_bytes = 0;
    bool open = false;
};
// Never destroyed: buffers with static lifetime are released late.
Allocations& allocations() {
    static Allocations* const only = new Allocations;
    return *only;
}

// The first one that begins beyond `address`.
std::vector<Allocation>::iterator beyond(uintptr_t address) {
    auto& sorted = allocations().sorted;
    return std::upper_bound(sorted.begin(), sorted.end(), address,
                            [](uintptr_t a, const Allocation& allocation) { return a < allocation.begin(); });
}
// The one whose bytes, or whose end, `address` points to.
const Allocation* find(const void* address) {
    const auto next = beyond(reinterpret_cast<uintptr_t>(address));
    if (next == allocations().sorted.begin()) return nullptr;
    const Allocation& before = *(next - 1);
    return reinterpret_cast<uintptr_t>(address) <= before.begin() + before.bytes ? &before : nullptr;
}

}  // namespace

void* allocate(size_t bytes, bool pinned) {
    if (!pinned && bytes > device_bytes_total() - device_bytes_used()) return nullptr;
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, bytes + 2 * kGuard) != 0) return nullptr;
    memory = static_cast<char*>(memory) + kGuard;
    std::memset(memory, 0xff, bytes);
    const auto untouched = guard();
    std::copy(untouched.begin(), untouched.end(), static_cast<unsigned char*>(memory) - kGuard);
    std::copy(untouched.begin(), untouched.end(), static_cast<unsigned char*>(memory) + bytes);
    undefine(memory, bytes);
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory);
    allocations().sorted.insert(beyond(address), {~address, bytes, pinned});
    if (!pinned) {
        allocations().device_bytes += bytes;
        if (!allocations().open) forbid(memory, bytes);
    }
    return memory;
}

void release_memory(void* memory, bool pinned, const char* what) {
    const auto next = beyond(reinterpret_cast<uintptr_t>(memory));
    if (next == allocations().sorted.begin() || (next - 1)->memory() != memory ||
        (next - 1)->pinned != pinned) {
        violation(nullptr, "%s(%p): no such memory", what, memory);
    }
    if (!pinned) {
        allow(memory, (next - 1)->bytes);
        allocations().device_bytes -= (next - 1)->bytes;
    }
    allocations().sorted.erase(next - 1);
    std::free(static_cast<char*>(memory) - kGuard);
}

size_t device_bytes_total() {
    return static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}
size_t device_bytes_used() { return allocations().device_bytes; }

Place place_of(const void* address, size_t* left) {
    const Allocation* const allocation = find(address);
    if (left) {
        *left =
            allocation ? allocation->begin() + allocation->bytes - reinterpret_cast<uintptr_t>(address) : 0;
    }
    return !allocation ? Place::host : allocation->pinned ? Place::pinned : Place::device;
}

bool is_device_memory(const void* address, size_t bytes) {
    size_t left = 0;
    return place_of(address, &left) == Place::device && bytes <= left;
}

void check_guards() {
    const auto untouched = guard();
    const auto is_untouched = [&](const char* bytes) {
        return std::equal(untouched.begin(), untouched.end(), reinterpret_cast<const unsigned char*>(bytes));
    };
    for (const Allocation& a : allocations().sorted) {
        if (!is_untouched(a.memory() + a.bytes)) {
            violation(nullptr, "a kernel wrote past the end of an allocation of %zu bytes", a.bytes);
        }
        if (!is_untouched(a.memory() - kGuard)) {
            violation(nullptr, "a kernel wrote before the begin of an allocation of %zu bytes", a.bytes);
        }
    }
}

void check_place(const void* address, size_t bytes, bool device, const char* what, const char* argument) {
    size_t left = 0;
    const Place place = place_of(address, &left);
    if (device && place != Place::device) {
        violation(nullptr, "%s: %s %p is not in device memory", what, argument, address);
    }
    if (!device && place == Place::device && left > 0) {
        violation(nullptr, "%s: %s %p is in device memory", what, argument, address);
    }
    if (place != Place::host && bytes > left && (left > 0 || device)) {
        violation(nullptr, "%s: %s: %zu bytes, %zu are left of its allocation", what, argument, bytes, left);
    }
}

OpenDeviceMemory::OpenDeviceMemory() {
    allocations().open = true;
    for (const Allocation& a : allocations().sorted) {
        if (!a.pinned) allow(a.memory(), a.bytes);
    }
}
OpenDeviceMemory::~OpenDeviceMemory() {
    allocations().open = false;
    for (const Allocation& a : allocations().sorted) {
        if (!a.pinned) forbid(a.memory(), a.bytes);
    }
}

}  // namespace simt
