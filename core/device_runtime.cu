// One device kind's runtime (core/device.h), written against the CUDA runtime API: compiled by nvcc for GPUs
// and by g++ with the emulator's <cuda_runtime.h> for Device::simt.
#include <cuda_runtime.h>

#include "core/device.h"
#include "core/error.h"

#if defined(__CUDACC__)
#define RUNTIME_NAMESPACE on_cuda
#else
#define RUNTIME_NAMESPACE on_simt
#endif

namespace RUNTIME_NAMESPACE {
namespace {

constexpr int kOldestMajor = 8;  // bf16 tensor cores and cp.async

cudaStream_t g_stream = nullptr;

std::string version_text(int version) { return cat({version / 1000, ".", version % 1000 / 10}); }

// A failure that the program could not have foreseen: asynchronous ones name the last kernels' fault.
void require(cudaError_t error, const char* call) {
    if (error == cudaSuccess) return;
    fail_check(__FILE__, __LINE__, call, cat({cudaGetErrorName(error), ": ", cudaGetErrorString(error)}));
}
#define REQUIRE(call) require(call, #call)

[[noreturn]] void fail_room(const char* what, int64_t bytes) {
    cudaGetLastError();  // an allocation that fails harms nothing that comes after it
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    fail_input({.what = what,
                .expected = cat({"room for ", bytes, " more bytes"}),
                .actual = cat({static_cast<int64_t>(free), " free of ", static_cast<int64_t>(total)}),
                .hint = "a smaller --micro-batch, --recompute block, or a smaller model"});
}

void open(int index) {
    int driver = 0, runtime = 0, count = 0;
    const cudaError_t found = cudaGetDeviceCount(&count);
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (found == cudaErrorInsufficientDriver && driver > 0) {
        fail_input({.what = "the GPU's driver is older than the CUDA toolkit of this build",
                    .expected = cat({"a driver for CUDA ", version_text(runtime), " or later"}),
                    .actual = cat({"CUDA ", version_text(driver)}),
                    .hint = "update the driver, or build with an older toolkit"});
    }
    if (found != cudaSuccess || count == 0) {
        fail_input({.what = "no GPU was found",
                    .where = "--device cuda",
                    .expected = "an NVIDIA GPU and its driver",
                    .actual = driver == 0            ? "no driver"
                              : found == cudaSuccess ? "no device"
                                                     : cudaGetErrorString(found),
                    .hint = "--device cpu, or check nvidia-smi"});
    }
    if (index < 0 || index >= count) {
        fail_input({.what = "there is no such GPU",
                    .expected = cat({"0 to ", count - 1}),
                    .actual = cat({index}),
                    .hint = "CUDA_VISIBLE_DEVICES chooses among several"});
    }
    cudaDeviceProp properties;
    REQUIRE(cudaGetDeviceProperties(&properties, index));
    if (properties.major < kOldestMajor) {
        fail_input({.what = "the GPU is too old",
                    .where = properties.name,
                    .expected = cat({"compute capability ", kOldestMajor, ".0 or later"}),
                    .actual = cat({properties.major, ".", properties.minor}),
                    .hint = "--device cpu"});
    }
    REQUIRE(cudaSetDevice(index));
    if (g_stream == nullptr) REQUIRE(cudaStreamCreateWithFlags(&g_stream, cudaStreamNonBlocking));
}

DeviceInfo info() {
    int index = 0, driver = 0, runtime = 0;
    size_t free = 0, total = 0;
    cudaDeviceProp properties;
    REQUIRE(cudaGetDevice(&index));
    REQUIRE(cudaGetDeviceProperties(&properties, index));
    REQUIRE(cudaMemGetInfo(&free, &total));
    REQUIRE(cudaDriverGetVersion(&driver));
    REQUIRE(cudaRuntimeGetVersion(&runtime));
    int64_t l2_bytes = 0;
#if defined(__CUDACC__)  // the emulator has no caches
    l2_bytes = properties.l2CacheSize;
#endif
    return {.name = properties.name,
            .total_bytes = static_cast<int64_t>(total),
            .free_bytes = static_cast<int64_t>(free),
            .capability = properties.major * 10 + properties.minor,
            .num_multiprocessors = properties.multiProcessorCount,
            .l2_bytes = l2_bytes,
            .driver = version_text(driver),
            .toolkit = version_text(runtime)};
}

cudaStream_t handle_of(Stream stream) {
    return stream.handle != nullptr ? static_cast<cudaStream_t>(stream.handle) : g_stream;
}

void* allocate(int64_t bytes) {
    void* memory = nullptr;
    if (cudaMalloc(&memory, static_cast<size_t>(bytes)) != cudaSuccess) fail_room("out of GPU memory", bytes);
    return memory;
}
// Released at the program's end too, when the runtime may be gone: failures do not matter.
void release(void* memory) { cudaFree(memory); }

void* allocate_host(int64_t bytes) {
    void* memory = nullptr;
    if (cudaMallocHost(&memory, static_cast<size_t>(bytes)) != cudaSuccess)
        fail_room("out of page-locked host memory", bytes);
    return memory;
}
void release_host(void* memory) { cudaFreeHost(memory); }

void copy(void* out, bool out_on_device, const void* inp, bool inp_on_device, int64_t bytes, Stream stream) {
    const cudaMemcpyKind kind = out_on_device
                                    ? (inp_on_device ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice)
                                    : cudaMemcpyDeviceToHost;
    REQUIRE(cudaMemcpyAsync(out, inp, static_cast<size_t>(bytes), kind, handle_of(stream)));
}

void zero(void* out, int64_t bytes, Stream stream) {
    REQUIRE(cudaMemsetAsync(out, 0, static_cast<size_t>(bytes), handle_of(stream)));
}

void wait(Stream stream) { REQUIRE(cudaStreamSynchronize(handle_of(stream))); }
void synchronize() { REQUIRE(cudaDeviceSynchronize()); }
void* compute_stream() { return g_stream; }

void* make_event(bool timing) {
    cudaEvent_t event = nullptr;
    REQUIRE(cudaEventCreateWithFlags(&event, timing ? cudaEventDefault : cudaEventDisableTiming));
    return event;
}
void free_event(void* event) { cudaEventDestroy(static_cast<cudaEvent_t>(event)); }
void record_event(void* event) { REQUIRE(cudaEventRecord(static_cast<cudaEvent_t>(event), g_stream)); }
bool event_passed(void* event) {
    const cudaError_t state = cudaEventQuery(static_cast<cudaEvent_t>(event));
    if (state == cudaErrorNotReady) return false;
    require(state, "cudaEventQuery");
    return true;
}
void wait_event(void* event) { REQUIRE(cudaEventSynchronize(static_cast<cudaEvent_t>(event))); }
double event_ms(void* begin, void* end) {
    float ms = 0;
    REQUIRE(cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(begin), static_cast<cudaEvent_t>(end)));
    return ms;
}

void begin_graph() { REQUIRE(cudaStreamBeginCapture(g_stream, cudaStreamCaptureModeThreadLocal)); }
void* end_graph(bool keep) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    if (!keep) {  // whatever went wrong is already being told
        if (cudaStreamEndCapture(g_stream, &graph) == cudaSuccess && graph != nullptr)
            cudaGraphDestroy(graph);
        cudaGetLastError();
        return nullptr;
    }
    REQUIRE(cudaStreamEndCapture(g_stream, &graph));
    REQUIRE(cudaGraphInstantiate(&exec, graph, 0));
    REQUIRE(cudaGraphDestroy(graph));
    return exec;
}
void launch_graph(void* graph) { REQUIRE(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), g_stream)); }
void free_graph(void* graph) { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)); }

}  // namespace

const DeviceRuntime& device_runtime() {
    static const DeviceRuntime runtime{
        .open = open,
        .info = info,
        .allocate = allocate,
        .release = release,
        .allocate_host = allocate_host,
        .release_host = release_host,
        .copy = copy,
        .zero = zero,
        .wait = wait,
        .synchronize = synchronize,
        .compute_stream = compute_stream,
        .make_event = make_event,
        .free_event = free_event,
        .record_event = record_event,
        .event_passed = event_passed,
        .wait_event = wait_event,
        .event_ms = event_ms,
        .begin_graph = begin_graph,
        .end_graph = end_graph,
        .launch_graph = launch_graph,
        .free_graph = free_graph,
    };
    return runtime;
}

}  // namespace RUNTIME_NAMESPACE
