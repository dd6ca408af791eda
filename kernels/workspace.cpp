// The blocks: for each use a list, the last of them the largest. What grows at least doubles, so that the old
// ones together are no more than the last.
#include "kernels/workspace.h"

#include <algorithm>
#include <vector>

#include "kernels/isa.h"

#ifdef ISA_PLAIN
namespace {

using Blocks = std::vector<Buffer>;

Blocks& blocks_of(Device device, Workspace use) {
    // Never destroyed: at the program's end the device's runtime may be gone before it.
    static auto* const blocks = new std::array<std::array<Blocks, kNumWorkspaces>, 3>;
    return (*blocks)[static_cast<size_t>(device)][static_cast<size_t>(use)];
}
int64_t largest(const Blocks& blocks) { return blocks.empty() ? 0 : blocks.back().bytes(); }

}  // namespace

void* device_workspace(Device device, Workspace use, int64_t bytes) {
    Blocks& blocks = blocks_of(device, use);
    if (largest(blocks) < bytes) blocks.emplace_back(std::max(bytes, 2 * largest(blocks)), device);
    return blocks.empty() ? nullptr : blocks.back().data();
}

void reserve_workspaces(Device device, const WorkspaceSizes& sizes) {
    for (int i = 0; i < kNumWorkspaces; ++i) {
        const auto use = static_cast<Workspace>(i);
        Blocks& blocks = blocks_of(device, use);
        if (largest(blocks) < sizes[use]) blocks.emplace_back(sizes[use], device);
    }
}

WorkspaceSizes allocated_workspaces(Device device) {
    WorkspaceSizes sizes;
    for (int i = 0; i < kNumWorkspaces; ++i) {
        const auto use = static_cast<Workspace>(i);
        for (const Buffer& block : blocks_of(device, use)) sizes[use] += block.bytes();
    }
    return sizes;
}

void release_workspaces(Device device) {
    device_synchronize(device);
    for (int i = 0; i < kNumWorkspaces; ++i) blocks_of(device, static_cast<Workspace>(i)).clear();
}
#endif
