// Times, shares and lines.
#include "bench/gpu_report.h"

#include <algorithm>
#include <cstdio>

#include "core/io.h"
#include "core/json.h"

namespace {

constexpr int kWarmUps = 3;  // modules are loaded, plans made, clocks raised

std::string key_of(const std::string& op, const std::string& pass, const std::string& shape,
                   const std::string& dtype) {
    return op + "|" + pass + "|" + shape + "|" + dtype;
}

// "  123.4", or blanks where there is nothing to say.
std::string cell(double value, int width, int digits, bool there) {
    if (!there) return std::string(static_cast<size_t>(width), ' ');
    char text[64];
    std::snprintf(text, sizeof text, "%*.*f", width, digits, value);
    return text;
}

}  // namespace

GpuTiming time_row(const std::function<void()>& run, Tensor evict, Device device, int repetitions) {
    for (int i = 0; i < kWarmUps; ++i) run();
    device_synchronize(device);
    std::vector<DeviceTimer> timers;
    for (int i = 0; i < repetitions; ++i) {
        if (!evict.absent()) zero_tensor(evict);
        timers.emplace_back(device);
        timers.back().start();
        run();
        timers.back().stop();
    }
    std::vector<double> seconds;
    for (DeviceTimer& timer : timers) seconds.push_back(timer.ms() * 1e-3);
    device_synchronize(device);
    return {quantile(seconds, 0.5), quantile(seconds, 0.1), quantile(seconds, 0.9), repetitions};
}

LibraryTimes::LibraryTimes(const std::string& path) {
    const std::string text = read_file(path);
    const JsonSource source{.what = "not a line of another library's times", .where = path};
    for (size_t begin = 0; begin < text.size();) {
        const size_t end = std::min(text.find('\n', begin), text.size());
        const std::string_view line(text.data() + begin, end - begin);
        begin = end + 1;
        if (line.empty()) continue;
        const auto json = parse_json<nlohmann::json>(line, source);
        if (!json.contains("op") || !json.contains("us"))
            continue;  // lines of other kinds may stand among them
        read_json(source, [&] {
            us_[key_of(json.at("op"), json.at("pass"), json.at("shape"), json.at("dtype"))] = json.at("us");
            return 0;
        });
    }
}
double LibraryTimes::us(const GpuRow& row) const {
    const auto found = us_.find(key_of(row.op, row.pass, row.shape(), row.precision.name));
    return found == us_.end() ? 0 : found->second;
}

GpuFacts gpu_facts(Device device) {
    const DeviceInfo info = device_info(device);
    return {
        {"gpu", info.name}, {"driver", info.driver}, {"toolkit", info.toolkit}, {"commit", bench_commit()}};
}

bool too_fast(const GpuRow& row, const GpuTiming& timing, const GpuCeilings& ceilings) {
    constexpr double kSlack = 1.15;  // a ceiling is one shape's; another's may lie a little above it
    const double flops = ceilings.flops(row.precision);
    return (ceilings.copy > 0 && row.bytes / timing.median_s > kSlack * ceilings.copy) ||
           (flops > 0 && row.flops / timing.median_s > kSlack * flops);
}

std::string gpu_table_head() {
    char line[256];
    std::snprintf(line, sizeof line, "%-34s %-52s %-5s %10s %10s %10s %8s %6s %8s %8s %6s\n", "op", "shape",
                  "dtype", "us", "p10", "p90", "GB/s", "% copy", "TFLOP/s", "% matmul", "x lib");
    return line;
}

std::string gpu_table_line(const GpuRow& row, const GpuTiming* timing, const GpuCeilings& ceilings,
                           double library_us) {
    char head[160];
    std::snprintf(head, sizeof head, "%-34s %-52s %-5s", (row.op + " " + row.pass).c_str(),
                  row.shape().c_str(), row.precision.name.c_str());
    std::string line = head;
    if (timing != nullptr) {
        const double s = timing->median_s, peak = ceilings.flops(row.precision);
        line += " " + cell(s * 1e6, 10, 1, true) + " " + cell(timing->p10_s * 1e6, 10, 1, true) + " " +
                cell(timing->p90_s * 1e6, 10, 1, true);
        line += " " + cell(row.bytes / s * 1e-9, 8, 0, true);
        line += " " + cell(100 * row.bytes / s / ceilings.copy, 6, 1, ceilings.copy > 0);
        line += " " + cell(row.flops / s * 1e-12, 8, 1, row.flops > 0);
        line += " " + cell(100 * row.flops / s / peak, 8, 1, row.flops > 0 && peak > 0);
        line += " " + cell(library_us * 1e-6 / s, 6, 2, library_us > 0);
        if (too_fast(row, *timing, ceilings)) line += "  too fast to be true";
    }
    return line.erase(line.find_last_not_of(' ') + 1) + "\n";
}

JsonLine gpu_json_line(const GpuRow& row, const GpuTiming* timing, const GpuCeilings& ceilings,
                       double library_us, const GpuFacts& facts) {
    JsonLine line;
    line.add("kind", "op").add("op", row.op).add("pass", row.pass).add("shape", row.shape());
    line.add("dtype", row.precision.name).add("model", row.model);
    for (const auto& [name, size] : row.sizes) line.add(name, size);
    line.add("bytes", row.bytes).add("flops", row.flops);
    if (timing != nullptr) {
        const double s = timing->median_s, peak = ceilings.flops(row.precision);
        line.add("us", s * 1e6).add("us_p10", timing->p10_s * 1e6).add("us_p90", timing->p90_s * 1e6);
        line.add("repetitions", timing->repetitions).add("gb_per_s", row.bytes / s * 1e-9);
        if (ceilings.copy > 0) line.add("copy_frac", row.bytes / s / ceilings.copy);
        if (row.flops > 0) line.add("tflops", row.flops / s * 1e-12);
        if (row.flops > 0 && peak > 0) line.add("matmul_frac", row.flops / s / peak);
        if (library_us > 0) line.add("library_us", library_us).add("x_library", library_us * 1e-6 / s);
        if (too_fast(row, *timing, ceilings)) line.add("too_fast", true);
    }
    for (const auto& [name, value] : facts) line.add(name, value);
    return line;
}
