// What a run will need, by purpose, known before anything is allocated. Peak resident memory must stay within
// 1.15 x total.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

struct MemoryPlan {
    struct Line {
        std::string name;
        int64_t bytes;
        bool reclaimable = false;  // pages of mapped files: resident while there is room, no reason to refuse
    };
    std::vector<Line> lines;
    void add(std::string name, int64_t bytes, bool reclaimable = false) {
        lines.push_back({std::move(name), bytes, reclaimable});
    }
    int64_t total_bytes() const;
    int64_t needed_bytes() const;  // without what is reclaimable
    std::string text() const;      // one line each, then the total
};
