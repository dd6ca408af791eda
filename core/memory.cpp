// Reads /proc/meminfo and the cgroup's limit and use (version 2, then version 1).
#include "core/memory.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>
#include <string>

namespace {

// The number in a one-line file; -1 when there is none ("max", or no such file).
int64_t number_in(const char* path) {
    std::ifstream file(path);
    int64_t value = -1;
    return file >> value ? value : -1;
}

int64_t cgroup_room(const char* limit_path, const char* use_path) {
    const int64_t limit = number_in(limit_path), use = number_in(use_path);
    if (limit < 0 || use < 0) return std::numeric_limits<int64_t>::max();
    return std::max<int64_t>(0, limit - use);
}

}  // namespace

int64_t available_memory_bytes() {
    int64_t available = std::numeric_limits<int64_t>::max();
    std::ifstream meminfo("/proc/meminfo");
    for (std::string name, unit; meminfo >> name;) {
        int64_t kib = 0;
        meminfo >> kib;
        std::getline(meminfo, unit);
        if (name == "MemAvailable:") available = kib * 1024;
    }
    available =
        std::min(available, cgroup_room("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"));
    return std::min(available, cgroup_room("/sys/fs/cgroup/memory/memory.limit_in_bytes",
                                           "/sys/fs/cgroup/memory/memory.usage_in_bytes"));
}

int64_t peak_rss_bytes() {
    struct rusage usage {};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}
