// What this process's control groups allow it: a container, a batch system or systemd may have set limits at
// its own group or at any group above it; the tightest holds. Versions 2 and 1, and both at once.
#pragma once
#include <cstdint>
#include <string>

// Where the kernel tells of them; tests give a tree of their own.
struct CgroupFiles {
    std::string membership = "/proc/self/cgroup";
    std::string mount = "/sys/fs/cgroup";
};

// Bytes that the memory limits still leave. Page cache counts as free: the kernel gives it back when the
// limit is near. INT64_MAX without a limit.
int64_t cgroup_memory_bytes(const CgroupFiles& files = {});
// Whole cores' worth of the processor quotas, rounded up, at least 1. INT_MAX without a quota.
int cgroup_cores(const CgroupFiles& files = {});
