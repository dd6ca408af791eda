// The emulated GPU's memory and the host's pinned memory: ordinary memory of the process, written down so
// that pointers can be judged.
#pragma once
#include <cstddef>

namespace simt {

// 256-byte aligned, filled with 0xff; null when the device has no room. With `pinned`: of the host.
void* allocate(size_t bytes, bool pinned);
// Aborts unless allocate() gave it.
void release_memory(void* memory, bool pinned, const char* what);
size_t device_bytes_total();
size_t device_bytes_used();

enum class Place { host, pinned, device };
// Where `address` lies; in *left the bytes from it to the end of its allocation.
Place place_of(const void* address, size_t* left = nullptr);
// Aborts unless all bytes are there (`device`) or none of them is on the device.
void check_place(const void* address, size_t bytes, bool device, const char* what, const char* argument);

// AddressSanitizer keeps the host away from device memory: it may be touched while one of these lives.
class OpenDeviceMemory {
public:
    OpenDeviceMemory();
    ~OpenDeviceMemory();
    OpenDeviceMemory(const OpenDeviceMemory&) = delete;
    OpenDeviceMemory& operator=(const OpenDeviceMemory&) = delete;
};

}  // namespace simt
