// Walks from the process's group up to the mount. A container often sees the path that its host sees, but
// only its own part of the tree: directories that are not there are passed over, and the mount itself is its
// group.
#include "core/cgroup.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <vector>

namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

struct Group {
    std::string directory;
    bool version_1;
};

// "0::/a/b" is the group of version 2, "4:cpu,cpuacct:/a/b" one of version 1 with its controllers.
std::vector<Group> groups_of(const std::string& controller, const CgroupFiles& files) {
    std::vector<Group> groups;
    std::ifstream membership(files.membership);
    for (std::string line; std::getline(membership, line);) {
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        const bool version_1 = !controllers.empty();
        if (version_1 && ("," + controllers + ",").find("," + controller + ",") == std::string::npos)
            continue;
        const std::string root = files.mount + (version_1 ? "/" + controller : "");
        for (std::string path = line.substr(second + 1);; path.resize(path.rfind('/'))) {
            while (path.ends_with('/')) path.pop_back();
            groups.push_back({root + path, version_1});
            if (path.find('/') == std::string::npos) break;
        }
    }
    return groups;
}

// The number that a file begins with; kNoLimit when there is none ("max", or no such file).
int64_t number_in(const std::string& path) {
    std::ifstream file(path);
    int64_t value = 0;
    return file >> value ? value : kNoLimit;
}

// The sum of the named lines of a memory.stat, 0 for those it lacks.
int64_t sum_of(const std::string& path, const std::vector<std::string>& names) {
    int64_t sum = 0, value = 0;
    std::ifstream file(path);
    for (std::string name; file >> name >> value;)
        if (std::find(names.begin(), names.end(), name) != names.end()) sum += value;
    return sum;
}

int64_t memory_left(const Group& group) {
    const std::string memory = group.directory + "/memory.";
    const int64_t limit = number_in(memory + (group.version_1 ? "limit_in_bytes" : "max"));
    const int64_t usage = number_in(memory + (group.version_1 ? "usage_in_bytes" : "current"));
    if (limit == kNoLimit || usage == kNoLimit) return kNoLimit;
    // The groups below count too: total_ in version 1, always in version 2.
    const int64_t cache = group.version_1
                              ? sum_of(memory + "stat", {"total_inactive_file", "total_active_file"})
                              : sum_of(memory + "stat", {"inactive_file", "active_file"});
    return std::max<int64_t>(0, limit - std::max<int64_t>(0, usage - cache));
}

int64_t cores(const Group& group) {
    int64_t quota = kNoLimit, period = kNoLimit;
    if (group.version_1) {
        quota = number_in(group.directory + "/cpu.cfs_quota_us");  // -1: none
        period = number_in(group.directory + "/cpu.cfs_period_us");
    } else {
        std::ifstream file(group.directory + "/cpu.max");  // "max 100000", "150000 100000"
        if (!(file >> quota >> period)) return kNoLimit;
    }
    if (quota <= 0 || quota == kNoLimit || period <= 0 || period == kNoLimit) return kNoLimit;
    return (quota - 1) / period + 1;
}

}  // namespace

int64_t cgroup_memory_bytes(const CgroupFiles& files) {
    int64_t left = kNoLimit;
    for (const Group& group : groups_of("memory", files)) left = std::min(left, memory_left(group));
    return left;
}

int cgroup_cores(const CgroupFiles& files) {
    int64_t fewest = std::numeric_limits<int>::max();
    for (const Group& group : groups_of("cpu", files)) fewest = std::min(fewest, cores(group));
    return static_cast<int>(fewest);
}
