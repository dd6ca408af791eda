// Sums and prints a memory plan.
#include "model/memory_plan.h"

#include <algorithm>

#include "core/log.h"

int64_t MemoryPlan::total_bytes() const {
    int64_t total = 0;
    for (const Line& line : lines) total += line.kind == Kind::host ? 0 : line.bytes;
    return total;
}

int64_t MemoryPlan::needed_bytes() const {
    int64_t needed = 0;
    for (const Line& line : lines) needed += line.kind == Kind::needed ? line.bytes : 0;
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
    const auto add_lines = [&](bool of_host) {
        for (const Line& line : lines)
            if ((line.kind == Kind::host) == of_host) add_line(line.name, line.bytes);
    };
    add_lines(false);
    add_line("total", total_bytes());
    add_lines(true);
    return text;
}
