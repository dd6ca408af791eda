// What a run will need, by purpose, known before anything is allocated. Peak resident memory must stay within
// 1.15 x total.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

struct MemoryPlan {
    enum class Kind : uint8_t {
        needed,
        reclaimable,  // pages of mapped files: resident while there is room, no reason to refuse
        host,  // in the host's memory, in the plan of a device's: neither refused by it nor in its total
    };
    struct Line {
        std::string name;
        int64_t bytes;
        Kind kind = Kind::needed;
    };
    std::vector<Line> lines;
    void add(std::string name, int64_t bytes, Kind kind = Kind::needed) {
        lines.push_back({std::move(name), bytes, kind});
    }
    int64_t total_bytes() const;
    int64_t needed_bytes() const;  // without what is reclaimable
    std::string text() const;      // one line each, then the total, then the host's
};
