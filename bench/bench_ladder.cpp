// The two teaching ladders (bench/ladder/README.md), rung by rung: each is checked against the CPU at a small
// shape, and on a GPU timed at a large one. --device simt only checks.
#include <cmath>
#include <cstdio>
#include <optional>

#include "bench/gpu_report.h"
#include "bench/ladder/problems.h"
#include "core/flags.h"
#include "core/io.h"

namespace {

struct Options {
    std::string device = "cuda", ladder = "both", rung, json;
    int64_t size = 4096, seq_len = 4096, repetitions = 20;
};

// Times of one ladder's rungs, each beside the one before it.
class Table {
public:
    Table(const Options& o, Device device, const char* ladder, const std::string& shape)
        : options_(o), device_(device), ladder_(ladder), shape_(shape), facts_(gpu_facts(device)) {
        std::printf("%s %s\n%-26s %-40s %9s %10s %10s %10s %9s %9s\n", ladder, shape.c_str(), "rung", "idea",
                    "error", "us", "p10", "p90", "TFLOP/s", "x before");
        if (device == Device::simt) return;
        evict_memory_ =
            Buffer(std::max<int64_t>(2 * device_info(device).l2_bytes, int64_t{128} << 20), device);
        evict_ = evict_memory_.tensor();
    }
    // time_it: absent where there is nothing to time.
    void add(const char* name, const char* idea, double error, double flops,
             const std::function<void()>& run) {
        const bool right = error <= kLadderTolerance;
        num_wrong_ += !right;
        JsonLine line;
        line.add("kind", "ladder")
            .add("ladder", ladder_)
            .add("rung", name)
            .add("idea", idea)
            .add("shape", shape_);
        line.add("error", error).add("right", right);
        std::printf("%-26s %-40s %9.2g", name, idea, error);
        if (run && right) {
            const GpuTiming t = time_row(run, evict_, device_, static_cast<int>(options_.repetitions));
            std::printf(" %10.1f %10.1f %10.1f %9.1f", t.median_s * 1e6, t.p10_s * 1e6, t.p90_s * 1e6,
                        flops / t.median_s * 1e-12);
            if (before_s_ > 0) std::printf(" %9.2f", before_s_ / t.median_s);
            line.add("us", t.median_s * 1e6).add("us_p10", t.p10_s * 1e6).add("us_p90", t.p90_s * 1e6);
            line.add("tflops", flops / t.median_s * 1e-12);
            before_s_ = t.median_s;
        }
        std::printf("%s\n", right ? "" : "  WRONG");
        std::fflush(stdout);
        for (const auto& [key, value] : facts_) line.add(key, value);
        if (options_.json.empty()) return;
        json_ += line.text() + "\n";
        write_file_atomic(options_.json, json_);
    }
    int64_t num_wrong() const { return num_wrong_; }

private:
    const Options& options_;
    Device device_;
    std::string ladder_, shape_;
    GpuFacts facts_;
    Buffer evict_memory_;
    Tensor evict_;
    double before_s_ = 0;
    int64_t num_wrong_ = 0;
    static std::string json_;
};
std::string Table::json_;

bool chosen(const Options& o, const std::string& name) { return name.find(o.rung) != std::string::npos; }

// A rung that cannot run (its launch failed) is a wrong one.
template <class Problem, class R>
double error_or_failure(Problem& problem, const R& rung) {
    try {
        return problem.error_of(rung);
    } catch (const InternalError& error) {
        std::printf("%s: %s\n", rung.name, error.what());
        return INFINITY;
    }
}

int64_t climb_gemm(const Options& o, Device device) {
    GemmProblem small(device, 2 * kGemmTile, 3 * kGemmTile, 5 * kGemmStep);
    std::optional<GemmProblem> large;
    if (device != Device::simt) large.emplace(device, o.size, o.size, o.size);
    Table table(o, device, "gemm",
                large ? cat({o.size, " x ", o.size, " x ", o.size}) : std::string("small"));
    for (const Rung<GemmOperands>& rung : gemm_ladder()) {
        if (!chosen(o, rung.name)) continue;
        std::function<void()> run;
        if (large) run = [&] { rung.run(large->operands()); };
        table.add(rung.name, rung.idea, error_or_failure(small, rung), large ? large->flops() : 0, run);
    }
    return table.num_wrong();
}

int64_t climb_attention(const Options& o, Device device) {
    AttentionProblem small(device, 2, 3 * kQueryTile, 4, 2, true);
    std::optional<AttentionProblem> large;
    if (device != Device::simt) large.emplace(device, 2, o.seq_len, 16, 4, true);
    Table table(o, device, "attention",
                large ? cat({"B=2 T=", o.seq_len, " H=16 K=4 D=", kHeadDim}) : std::string("small"));
    for (const Rung<AttentionOperands>& rung : attention_ladder()) {
        if (!chosen(o, rung.name)) continue;
        std::function<void()> run;
        if (large) run = [&] { rung.run(large->operands()); };
        table.add(rung.name, rung.idea, error_or_failure(small, rung), large ? large->flops() : 0, run);
    }
    return table.num_wrong();
}

int body(int argc, char** argv) {
    Options o;
    Flags flags("bench_ladder", "Kernels from naive to production, an idea a rung, checked and timed.",
                "  make bench B=ladder\n  make bench B=ladder ARGS='--device simt --ladder gemm'");
    flags.add_choice("device", o.device, {"cuda", "simt"},
                     "simt: the emulator, which checks and does not time");
    flags.add_choice("ladder", o.ladder, {"both", "gemm", "attention"}, "which");
    flags.add("rung", o.rung, "only rungs whose name holds this");
    flags.add("size", o.size, "N = O = C of the timed product", kGemmTile, 1 << 16);
    flags.add("seq-len", o.seq_len, "T of the timed attention", kQueryTile, 1 << 15);
    flags.add("repetitions", o.repetitions, "timed runs of a rung", 1, 10000);
    flags.add("json", o.json, "also writes each rung as a line of JSON");
    flags.parse(argc, argv);
    if (o.size % kGemmTile != 0 || o.seq_len % kQueryTile != 0)
        fail_input({.what = "rungs take whole tiles only",
                    .where = o.size % kGemmTile != 0 ? "--size" : "--seq-len",
                    .expected = cat({"a multiple of ", o.size % kGemmTile != 0 ? kGemmTile : kQueryTile}),
                    .actual = cat({o.size % kGemmTile != 0 ? o.size : o.seq_len})});
    const Device device = device_from_name(o.device.c_str());
    int64_t wrong = 0;
    if (o.ladder != "attention") wrong += climb_gemm(o, device);
    if (o.ladder != "gemm") wrong += climb_attention(o, device);
    std::printf("bench_ladder: %lld rungs wrong\n", static_cast<long long>(wrong));
    flush_stdout();
    return wrong == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) { return run_main(argc, argv, body); }
