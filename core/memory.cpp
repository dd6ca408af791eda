// Reads /proc/meminfo, and the limits of the control groups.
#include "core/memory.h"

#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

#include "core/cgroup.h"
#include "core/device.h"

int64_t available_memory_bytes(Device device) {
    if (device != Device::cpu) return device_info(device).free_bytes;
    int64_t available = std::numeric_limits<int64_t>::max();
    std::ifstream meminfo("/proc/meminfo");
    for (std::string name, unit; meminfo >> name;) {
        int64_t kib = 0;
        meminfo >> kib;
        std::getline(meminfo, unit);
        if (name == "MemAvailable:") available = kib * 1024;
    }
    return std::min(available, cgroup_memory_bytes());
}

int64_t peak_rss_bytes() {
    struct rusage usage {};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}
