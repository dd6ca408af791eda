// The memory of device_workspace(): for each use a list of buffers, the last of them the largest. Smaller
// ones are kept, since kernels under way and captured graphs may still use them; sizes at least double, so
// together they are no more than the last.
#include "kernels/gpu_workspace.h"

#include <map>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace GPU_NAMESPACE {

void* device_workspace(const char* use, int64_t bytes) {
    // Never destroyed: at the program's end the device's runtime may be gone before it.
    static auto* const buffers = new std::map<std::string, std::vector<Buffer>>;
    std::vector<Buffer>& of_use = (*buffers)[use];
    if (of_use.empty() || of_use.back().bytes() < bytes) {
        const int64_t twice = of_use.empty() ? 0 : 2 * of_use.back().bytes();
        of_use.emplace_back(bytes > twice ? bytes : twice, kThisDevice);
    }
    return of_use.back().data();
}

}  // namespace GPU_NAMESPACE
