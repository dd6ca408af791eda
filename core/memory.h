// How much memory this process may still take: what the kernel calls available, within the limits of its
// control groups (core/cgroup.h).
#pragma once
#include <cstdint>

#include "core/tensor.h"

int64_t available_memory_bytes(Device device = Device::cpu);  // of a device: what is free there
int64_t peak_rss_bytes();                                     // most resident memory so far (getrusage)
