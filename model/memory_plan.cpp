// Sums and prints a memory plan.
#include "model/memory_plan.h"

#include <algorithm>

#include "core/log.h"

int64_t MemoryPlan::total_bytes() const {
    int64_t total = 0;
    for (const Line& line : lines) total += line.bytes;
    return total;
}

int64_t MemoryPlan::needed_bytes() const {
    int64_t needed = 0;
    for (const Line& line : lines) needed += line.reclaimable ? 0 : line.bytes;
    return needed;
}

std::string MemoryPlan::text() const {
    size_t width = 5;  // "total"
    for (const Line& line : lines) width = std::max(width, line.name.size());
    std::string text;
    const auto add_line = [&](const std::string& name, int64_t bytes) {
        const std::string amount = human_bytes(static_cast<double>(bytes));
        const size_t gap = width - name.size() + (amount.size() < 12 ? 12 - amount.size() : 1);
        text += name + std::string(gap, ' ') + amount + "\n";
    };
    for (const Line& line : lines) add_line(line.name, line.bytes);
    add_line("total", total_bytes());
    return text;
}
