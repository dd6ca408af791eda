// How a row of bench_gpu is timed and told: as a share of what the same device was just measured to copy and
// to multiply, and beside another library's time where one is given.
#pragma once
#include <map>
#include <string>

#include "bench/gpu_rows.h"
#include "core/log.h"

struct GpuTiming {
    double median_s = 0, p10_s = 0, p90_s = 0;
    int repetitions = 0;
};
struct GpuCeilings {
    double copy = 0;           // bytes/s, read and written
    double f32 = 0, bf16 = 0;  // FLOP/s of a large product
    double flops(const Precision& precision) const { return precision.math == MatmulMath::bf16 ? bf16 : f32; }
};

// Medians over at least `repetitions` runs, each with a cold L2: `evict` (absent: none) is overwritten before
// it. The host queues them all and waits once, so that no launch gap is measured that a training step would
// not have.
GpuTiming time_row(const std::function<void()>& run, Tensor evict, Device device, int repetitions);

// Times of the same rows in another library, in microseconds: lines of JSON with op, pass, shape, dtype and
// us.
class LibraryTimes {
public:
    LibraryTimes() = default;
    explicit LibraryTimes(const std::string& path);
    double us(const GpuRow& row) const;  // 0: not there

private:
    std::map<std::string, double> us_;
};

// Facts of the run (GPU, driver, toolkit, commit) behind each line.
using GpuFacts = std::vector<std::pair<std::string, std::string>>;
GpuFacts gpu_facts(Device device);

std::string gpu_table_head();
// timing absent (nothing measured): the shape only.
std::string gpu_table_line(const GpuRow& row, const GpuTiming* timing, const GpuCeilings& ceilings,
                           double library_us);
JsonLine gpu_json_line(const GpuRow& row, const GpuTiming* timing, const GpuCeilings& ceilings,
                       double library_us, const GpuFacts& facts);
// Faster than what the device can do, by more than ceilings can be off: a broken measurement.
bool too_fast(const GpuRow& row, const GpuTiming& timing, const GpuCeilings& ceilings);

const char* bench_commit();
