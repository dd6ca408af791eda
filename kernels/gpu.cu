// What launch() needs of the running device (kernels/gpu.h).
#include "kernels/gpu.h"

#include "core/device.h"

namespace GPU_NAMESPACE {

cudaStream_t stream_of(Stream stream) {
    return static_cast<cudaStream_t>(stream.handle != nullptr ? stream.handle
                                                              : compute_stream(kThisDevice).handle);
}

bool grids_overlap() {
    static const bool overlap = device_info(kThisDevice).capability >= 90;
    return overlap;
}

void fail_launch(const void* kernel, const Grid& grid, int threads, int64_t smem_bytes, cudaError_t error) {
    const char* name = "a kernel";
#if defined(__CUDACC__)
    if (cudaFuncGetName(&name, kernel) != cudaSuccess) name = "a kernel";
#else
    static_cast<void>(kernel);
#endif
    fail_check(grid.file, grid.line, name,
               cat({"launch of ", grid.blocks.x, " x ", grid.blocks.y, " x ", grid.blocks.z, " blocks of ",
                    threads, " threads with ", smem_bytes, " bytes of shared memory failed: ",
                    cudaGetErrorName(error), ": ", cudaGetErrorString(error)}));
}

}  // namespace GPU_NAMESPACE
