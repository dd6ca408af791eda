// Which runtime a device has, and what all of them share: opening at first use, and the directions of copies.
#include "core/device.h"

#include <atomic>
#include <cstring>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "core/log.h"

namespace on_simt {
const DeviceRuntime& device_runtime();
}
#if defined(INGOT_CUDA)
namespace on_cuda {
const DeviceRuntime& device_runtime();
}
#endif

namespace {

constexpr Device kDevices[] = {Device::cpu, Device::cuda, Device::simt};
bool g_opened[3] = {};
std::atomic<int64_t> g_waits{0};

const DeviceRuntime& runtime_of(Device device) {
    CHECK(device != Device::cpu, "the CPU has no device runtime");
    if (device == Device::simt) return on_simt::device_runtime();
#if defined(INGOT_CUDA)
    return on_cuda::device_runtime();
#else
    fail_no_cuda();
#endif
}

const DeviceRuntime& opened_runtime(Device device) {
    if (!g_opened[static_cast<int>(device)]) open_device(device);
    return runtime_of(device);
}

void wait_for_event(Device device, void* event) {
    if (runtime_of(device).event_passed(event)) return;
    ++g_waits;
    runtime_of(device).wait_event(event);
}

}  // namespace

void fail_no_cuda() {
    fail_input({.what = "this build has no CUDA",
                .where = "--device cuda",
                .expected = "nvcc on the machine that built it",
                .actual = "none was found",
                .hint = "install the CUDA toolkit and run make, or use --device cpu"});
}

const char* device_name(Device device) {
    switch (device) {
        case Device::cpu: return "cpu";
        case Device::cuda: return "cuda";
        case Device::simt: return "simt";
    }
    fail_check(__FILE__, __LINE__, "known device", cat({"device=", static_cast<int>(device)}));
}

Device device_from_name(const char* name) {
    for (Device device : kDevices) {
        if (std::string_view(name) != device_name(device)) continue;
        open_device(device);
        return device;
    }
    if (std::string_view(name) != "auto") {
        fail_input({.what = "unknown device",
                    .where = "--device",
                    .expected = "auto, cpu, cuda or simt",
                    .actual = name});
    }
#if defined(INGOT_CUDA)
    try {
        open_device(Device::cuda);
        return Device::cuda;
    } catch (const InputError&) {  // none, or none that can be used
    }
#endif
    return Device::cpu;
}

void open_device(Device device, int index) {
    if (device == Device::cpu) return;
    runtime_of(device).open(index);
    g_opened[static_cast<int>(device)] = true;
}

DeviceInfo device_info(Device device) { return opened_runtime(device).info(); }

void* device_allocate(Device device, int64_t bytes) { return opened_runtime(device).allocate(bytes); }
void device_release(Device device, void* memory) noexcept { runtime_of(device).release(memory); }
void* device_allocate_host(Device device, int64_t bytes) {
    return opened_runtime(device).allocate_host(bytes);
}
void device_release_host(Device device, void* memory) noexcept { runtime_of(device).release_host(memory); }

void copy_tensor(Tensor out, Tensor inp, Stream stream) {
    CHECK(out.dtype == inp.dtype && out.size() == inp.size(),
          cat({shape_text(out), " from ", shape_text(inp)}));
    if (out.size() == 0) return;
    if (out.device == Device::cpu && inp.device == Device::cpu) {
        std::memmove(out.data, inp.data, static_cast<size_t>(out.bytes()));
        return;
    }
    const Device device = out.device == Device::cpu ? inp.device : out.device;
    CHECK(out.device == device || out.device == Device::cpu, device_name(out.device));
    CHECK(inp.device == device || inp.device == Device::cpu, device_name(inp.device));
    const DeviceRuntime& runtime = opened_runtime(device);
    runtime.copy(out.data, out.device == device, inp.data, inp.device == device, out.bytes(), stream);
    if (out.device == Device::cpu) {
        ++g_waits;
        runtime.wait(stream);
    }
}

void zero_tensor(Tensor out, Stream stream) {
    if (out.size() == 0) return;
    if (out.device == Device::cpu) {
        std::memset(out.data, 0, static_cast<size_t>(out.bytes()));
    } else {
        opened_runtime(out.device).zero(out.data, out.bytes(), stream);
    }
}

HostCopy::HostCopy(Tensor t) : tensor_(t) {
    if (t.absent() || t.device == Device::cpu) return;
    memory_ = Buffer(t.bytes());
    tensor_.data = memory_.data();
    tensor_.device = Device::cpu;
    copy_tensor(tensor_, t);
}

DeviceEvent::DeviceEvent(Device device) : device_(device) {
    if (device != Device::cpu) handle_ = opened_runtime(device).make_event(false);
}
DeviceEvent::DeviceEvent(DeviceEvent&& other) noexcept
    : device_(other.device_), handle_(std::exchange(other.handle_, nullptr)) {}
DeviceEvent::~DeviceEvent() {
    if (handle_ != nullptr) runtime_of(device_).free_event(handle_);
}
void DeviceEvent::record() {
    if (handle_ != nullptr) runtime_of(device_).record_event(handle_);
}
bool DeviceEvent::passed() { return handle_ == nullptr || runtime_of(device_).event_passed(handle_); }
void DeviceEvent::wait() {
    if (handle_ != nullptr) wait_for_event(device_, handle_);
}

Readback::Readback(Device device, int64_t bytes)
    : device_(device),
      bytes_(bytes),
      memory_(device == Device::cpu ? ::operator new(static_cast<size_t>(bytes))
                                    : device_allocate_host(device, bytes)),
      copied_(device) {}
Readback::Readback(Readback&& other) noexcept
    : device_(other.device_),
      bytes_(other.bytes_),
      memory_(std::exchange(other.memory_, nullptr)),
      tensor_(other.tensor_),
      copied_(std::move(other.copied_)) {}
Readback::~Readback() {
    if (memory_ == nullptr) return;  // moved from
    copied_.wait();
    if (device_ == Device::cpu) {
        ::operator delete(memory_);
    } else {
        device_release_host(device_, memory_);
    }
}
void Readback::start(Tensor inp) {
    CHECK(inp.device == device_ && inp.bytes() <= bytes_, cat({shape_text(inp), " of ", bytes_, " bytes"}));
    tensor_ = inp;
    tensor_.data = memory_;
    tensor_.device = Device::cpu;
    if (device_ == Device::cpu) return copy_tensor(tensor_, inp);
    opened_runtime(device_).copy(memory_, false, inp.data, true, inp.bytes(), {});
    copied_.record();
}
Tensor Readback::wait() {
    copied_.wait();
    return tensor_;
}

DeviceTimer::DeviceTimer(Device device) : device_(device) {
    if (device == Device::cpu) return;
    begin_ = opened_runtime(device).make_event(true);
    end_ = runtime_of(device).make_event(true);
}
DeviceTimer::DeviceTimer(DeviceTimer&& other) noexcept
    : device_(other.device_),
      begin_(std::exchange(other.begin_, nullptr)),
      end_(std::exchange(other.end_, nullptr)),
      host_begin_(other.host_begin_),
      host_end_(other.host_end_) {}
DeviceTimer::~DeviceTimer() {
    if (begin_ != nullptr) runtime_of(device_).free_event(begin_);
    if (end_ != nullptr) runtime_of(device_).free_event(end_);
}
void DeviceTimer::start() {
    if (device_ == Device::cpu) {
        host_begin_ = seconds_now();
    } else {
        runtime_of(device_).record_event(begin_);
    }
}
void DeviceTimer::stop() {
    if (device_ == Device::cpu) {
        host_end_ = seconds_now();
    } else {
        runtime_of(device_).record_event(end_);
    }
}
double DeviceTimer::ms() {
    if (device_ == Device::cpu) return (host_end_ - host_begin_) * 1e3;
    wait_for_event(device_, end_);
    return runtime_of(device_).event_ms(begin_, end_);
}

DeviceGraph::DeviceGraph(DeviceGraph&& other) noexcept
    : device_(other.device_), handle_(std::exchange(other.handle_, nullptr)) {}
DeviceGraph::~DeviceGraph() {
    if (handle_ != nullptr) runtime_of(device_).free_graph(handle_);
}
void DeviceGraph::record(const std::function<void()>& body) {
    CHECK(handle_ == nullptr, "a graph is recorded once");
    const DeviceRuntime& runtime = opened_runtime(device_);
    runtime.begin_graph();
    try {
        body();
    } catch (...) {
        runtime.end_graph(false);
        throw;
    }
    handle_ = runtime.end_graph(true);
}
void DeviceGraph::launch() { runtime_of(device_).launch_graph(handle_); }

void device_synchronize(Device device) {
    if (device == Device::cpu || !g_opened[static_cast<int>(device)]) return;
    ++g_waits;
    runtime_of(device).synchronize();
}
int64_t num_device_waits() { return g_waits; }

Stream compute_stream(Device device) {
    return device == Device::cpu ? Stream{} : Stream{opened_runtime(device).compute_stream()};
}
