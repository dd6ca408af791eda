// Scratch memory of GPU kernels whose contracts have no argument for it: sums over parts, sorted indices.
#pragma once
#include <cstdint>

#include "kernels/gpu.h"

namespace GPU_NAMESPACE {

// At least `bytes` of device memory, 256-byte aligned, contents undefined. Each use has memory of its own,
// which grows to the largest size asked for and stays: ops of one use must run on one stream, and before
// calls are captured into a graph the largest must have been made once. What a graph has captured remains
// valid.
void* device_workspace(const char* use, int64_t bytes);

}  // namespace GPU_NAMESPACE
