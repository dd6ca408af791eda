// Devices other than the CPU: what they are, their memory, copies, and the queue of work. Two runtimes of one
// source (core/device_runtime.cu): CUDA's, where the build has it, and the emulator's. Ops run in the order
// of their calls on the device's compute stream; the host goes on at once and waits in device_synchronize()
// or a copy to the host only.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

#include "core/tensor.h"

const char* device_name(Device device);  // "cpu", "cuda", "simt"
// Opens the device of that name; "auto": cuda where there is a usable one, else cpu.
Device device_from_name(const char* name);

struct DeviceInfo {
    std::string name;  // "NVIDIA H200"
    int64_t total_bytes = 0, free_bytes = 0;
    int capability = 0;  // 90 for compute capability 9.0
    int num_multiprocessors = 0;
    int64_t l2_bytes = 0;         // 0: not known
    std::string driver, toolkit;  // newest CUDA that the driver can run, CUDA of this build: "13.0"
};
// Chooses the device `index` for this process and starts its runtime; throws InputError with a hint when
// there is none, when it is too old, or when its driver is older than the toolkit of the build. Nothing to do
// for the CPU. Called by whatever first needs the device, if not before.
void open_device(Device device, int index = 0);
DeviceInfo device_info(Device device);

void* device_allocate(Device device, int64_t bytes);  // contents undefined; InputError when there is no room
void device_release(Device device, void* memory) noexcept;
void* device_allocate_host(Device device, int64_t bytes);  // host memory that copies reach directly (pinned)
void device_release_host(Device device, void* memory) noexcept;

// out and inp: equal dtype and size, on one device, or one of them on the CPU. To the host: waits until the
// bytes are there. From the host and on the device: queued, in the order of the stream; ordinary host memory
// may be changed on return, memory of device_allocate_host() only when the stream has passed.
void copy_tensor(Tensor out, Tensor inp, Stream stream = {});
void zero_tensor(Tensor out, Stream stream = {});
// A tensor's contents on the host: on the CPU the tensor itself, else a copy of it.
class HostCopy {
public:
    explicit HostCopy(Tensor t);
    Tensor tensor() const { return tensor_; }

private:
    Buffer memory_;
    Tensor tensor_;
};
void device_synchronize(Device device);  // waits for everything; reports a kernel's failure as InternalError
// How often the host has waited so far for a device that was not yet there: copies to the host, events,
// synchronisations. What must be queued without a wait leaves it as it is.
int64_t num_device_waits();

// Why a launch on Device::cuda is impossible in this build; throws InputError.
[[noreturn]] void fail_no_cuda();

// A point in a device's compute stream that the host can wait for. On the CPU nothing is ever under way.
class DeviceEvent {
public:
    explicit DeviceEvent(Device device);
    DeviceEvent(DeviceEvent&& other) noexcept;
    ~DeviceEvent();
    void record();  // behind everything queued so far
    bool passed();  // whether the device has come to where it was last recorded; true if never
    void wait();    // until it has

private:
    Device device_;
    void* handle_ = nullptr;
};

// A tensor's way to the host while the host goes on: start() queues a copy into page-locked memory (on the
// CPU, it copies), the bytes are there when the copy has arrived. InputError when there is no such memory.
class Readback {
public:
    Readback(Device device, int64_t bytes);
    Readback(Readback&& other) noexcept;
    ~Readback();             // waits
    void start(Tensor inp);  // at most `bytes`; the one before must have arrived
    bool arrived() { return copied_.passed(); }
    Tensor wait();  // what inp held when start() was called, on the host; valid until the next start()

private:
    Device device_;
    int64_t bytes_;
    void* memory_;
    Tensor tensor_;
    DeviceEvent copied_;
};

// How long the device took between two points of its compute stream, by its own clock; the host need not wait
// for either. On the CPU: wall time.
class DeviceTimer {
public:
    explicit DeviceTimer(Device device);
    DeviceTimer(DeviceTimer&& other) noexcept;
    ~DeviceTimer();
    void start();  // behind everything queued so far
    void stop();   // likewise
    double ms();   // waits until the device has come to where stop() was called

private:
    Device device_;
    void *begin_ = nullptr, *end_ = nullptr;
    double host_begin_ = 0, host_end_ = 0;
};

// A sequence of launches and copies on a device, recorded once and launched again as one (a CUDA graph): the
// same kernels with the same arguments.
class DeviceGraph {
public:
    explicit DeviceGraph(Device device) : device_(device) {}
    DeviceGraph(DeviceGraph&& other) noexcept;
    ~DeviceGraph();
    bool recorded() const { return handle_ != nullptr; }
    void record(const std::function<void()>& body);  // runs nothing; body must neither allocate nor wait
    void launch();

private:
    Device device_;
    void* handle_ = nullptr;
};

// The stream that {} stands for on a device; null on the CPU.
Stream compute_stream(Device device);

// The runtime of one device kind, as core/device_runtime.cu gives it.
struct DeviceRuntime {
    void (*open)(int index);
    DeviceInfo (*info)();
    void* (*allocate)(int64_t bytes);
    void (*release)(void* memory);
    void* (*allocate_host)(int64_t bytes);
    void (*release_host)(void* memory);
    void (*copy)(void* out, bool out_on_device, const void* inp, bool inp_on_device, int64_t bytes,
                 Stream stream);  // queued
    void (*zero)(void* out, int64_t bytes, Stream stream);
    void (*wait)(Stream stream);
    void (*synchronize)();
    void* (*compute_stream)();
    void* (*make_event)(bool timing);
    void (*free_event)(void* event);
    void (*record_event)(void* event);
    bool (*event_passed)(void* event);
    void (*wait_event)(void* event);
    double (*event_ms)(void* begin, void* end);  // both timing, recorded and passed
    void (*begin_graph)();
    void* (*end_graph)(bool keep);
    void (*launch_graph)(void* graph);
    void (*free_graph)(void* graph);
};
