// The rest of the stand-in for CUDA's runtime: the device, memory, copies, launches.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <utility>

#include "kernels/simt/device_memory.h"
#include "kernels/simt/machine.h"
#include "kernels/simt/sanitizers.h"
#include "kernels/simt/scheduler.h"
#include "kernels/simt/streams.h"

using Lock = std::lock_guard<std::mutex>;

namespace {

thread_local cudaError_t last_error = cudaSuccess;
cudaError_t note(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

}  // namespace

// ---- launches ---------------------------------------------------------------------------------------------

namespace simt {

void run_grid(const LaunchSite& site, std::initializer_list<const void*> pointers,
              std::function<void()> thread) {
    const Site place{"launch", site.file, site.line};
    const dim3 grid = site.grid, block = site.block;
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    if (threads == 0 || threads > kMaxThreads) {
        violation(&place, "launch of blocks of %llu threads: expected 1 to 1024",
                  static_cast<unsigned long long>(threads));
    }
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
        grid.z > 65535) {
        violation(&place, "launch of a grid of (%u,%u,%u) blocks: the limits are (2147483647,65535,65535)",
                  grid.x, grid.y, grid.z);
    }
    if (site.smem_bytes < 0 || site.smem_bytes > 227 << 10) {
        violation(&place, "launch with %lld bytes of dynamic shared memory: the limit is 227 KiB",
                  static_cast<long long>(site.smem_bytes));
    }
    const Lock lock(runtime_lock());
    int index = 0;
    for (const void* pointer : pointers) {
        if (pointer && place_of(pointer) != Place::device) {
            violation(&place, "launch: argument %d (%p) does not point to device memory", index, pointer);
        }
        ++index;
    }
    enqueue(site.stream, [site, thread = std::move(thread)] { execute_grid(site, thread); });
}

}  // namespace simt

long long clock64() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

// ---- the device -------------------------------------------------------------------------------------------

namespace {
simt::Machine machine;
}
void simt::set_machine(const Machine& pretended) { machine = pretended; }

cudaError_t cudaGetDeviceCount(int* count) {
    *count = 0;
    if (machine.driver < machine.toolkit) return note(cudaErrorInsufficientDriver);
    if (machine.num_gpus == 0) return note(cudaErrorNoDevice);
    *count = machine.num_gpus;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return note(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    if (device != 0) return note(cudaErrorInvalidDevice);
    *properties = {};
    std::strcpy(properties->name, "emulated GPU (simt)");
    properties->major = machine.capability / 10;
    properties->minor = machine.capability % 10;
    properties->multiProcessorCount = 4;
    properties->totalGlobalMem = simt::device_bytes_total();
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = 227 << 10;
    properties->maxThreadsPerBlock = simt::kMaxThreads;
    properties->warpSize = simt::kLanes;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
    *version = machine.driver;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = machine.toolkit;
    return cudaSuccess;
}
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

namespace {
struct ErrorText {
    cudaError_t error;
    const char *name, *text;
};
constexpr ErrorText kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver", "the driver is older than the runtime"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no device"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported", "not while the stream captures"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "the capture began in another stream"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined",
     "a stream of the capture did not come back"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation", "an event from outside the capture"},
};
const ErrorText* text_of(cudaError_t error) {
    for (const ErrorText& known : kErrors) {
        if (known.error == error) return &known;
    }
    return nullptr;
}
}  // namespace
const char* cudaGetErrorName(cudaError_t error) {
    const ErrorText* const known = text_of(error);
    return known ? known->name : "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
    const ErrorText* const known = text_of(error);
    return known ? known->text : "unrecognized error code";
}

// ---- memory -----------------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** memory, size_t bytes) {
    const Lock lock(simt::runtime_lock());
    *memory = bytes == 0 ? nullptr : simt::allocate(bytes, false);
    return note(*memory || bytes == 0 ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaMallocHost(void** memory, size_t bytes) {
    const Lock lock(simt::runtime_lock());
    *memory = bytes == 0 ? nullptr : simt::allocate(bytes, true);
    return note(*memory || bytes == 0 ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void* memory) {
    if (!memory) return cudaSuccess;
    const Lock lock(simt::runtime_lock());
    simt::finish_everything();
    simt::release_memory(memory, false, "cudaFree");
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
    if (!memory) return cudaSuccess;
    const Lock lock(simt::runtime_lock());
    simt::finish_everything();
    simt::release_memory(memory, true, "cudaFreeHost");
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
    const Lock lock(simt::runtime_lock());
    *total_bytes = simt::device_bytes_total();
    *free_bytes = *total_bytes - simt::device_bytes_used();
    return cudaSuccess;
}

// ---- copies -----------------------------------------------------------------------------------------------

namespace {

void copy(const char* what, void* out, const void* inp, size_t bytes, cudaMemcpyKind kind,
          cudaStream_t stream) {
    using simt::Place;
    if (bytes == 0) return;
    if (kind == cudaMemcpyDefault) {
        const bool from = simt::place_of(inp) == Place::device, to = simt::place_of(out) == Place::device;
        kind = from ? (to ? cudaMemcpyDeviceToDevice : cudaMemcpyDeviceToHost)
                    : (to ? cudaMemcpyHostToDevice : cudaMemcpyHostToHost);
    }
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    simt::check_place(out, bytes, to_device, what, "destination");
    simt::check_place(inp, bytes, from_device, what, "source");
    if (!from_device && simt::place_of(inp) == Place::host && !simt::is_capturing(stream)) {
        // Pageable memory has been read when the call returns.
        std::shared_ptr<char[]> staged(new char[bytes]);
        std::memcpy(staged.get(), inp, bytes);
        simt::enqueue(stream, [=] { std::memcpy(out, staged.get(), bytes); });
    } else {
        simt::enqueue(stream, [=] { std::memmove(out, inp, bytes); });
    }
    // ... and has been written.
    if (!to_device && simt::place_of(out) == Place::host && !simt::is_capturing(stream))
        simt::finish_stream(stream);
}

void set(const char* what, void* out, int byte, size_t bytes, cudaStream_t stream) {
    if (bytes == 0) return;
    simt::check_place(out, bytes, true, what, "destination");
    simt::enqueue(stream, [=] { std::memset(out, byte, bytes); });
}

}  // namespace

cudaError_t cudaMemcpyAsync(void* out, const void* inp, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    const Lock lock(simt::runtime_lock());
    copy("cudaMemcpyAsync", out, inp, bytes, kind, stream);
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void* out, const void* inp, size_t bytes, cudaMemcpyKind kind) {
    const Lock lock(simt::runtime_lock());
    copy("cudaMemcpy", out, inp, bytes, kind, nullptr);
    simt::finish_stream(nullptr);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* out, int byte, size_t bytes, cudaStream_t stream) {
    const Lock lock(simt::runtime_lock());
    set("cudaMemsetAsync", out, byte, bytes, stream);
    return cudaSuccess;
}
cudaError_t cudaMemset(void* out, int byte, size_t bytes) {
    return cudaMemsetAsync(out, byte, bytes, nullptr);
}
