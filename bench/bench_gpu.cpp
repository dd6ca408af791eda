// Every op on a GPU, forward and backward, at the shapes of real models' training, as a share of what the
// same GPU was measured to copy and to multiply in the same run. Random data, cold L2, medians with p10 and
// p90.
//   --device simt runs each row once at tiny shapes in the emulator and prints no rates: it shows that rows
//   run.
#include <cstdio>
#include <optional>

#include "bench/gpu_report.h"
#include "core/flags.h"
#include "core/io.h"
#include "kernels/peak.h"

namespace {

struct Options {
    std::string op, device = "cuda", shapes = "gpt2-124m,gpt2-1558m,llama-1b,qwen2.5-7b",
                    tokens = "8192,32768";
    std::string seq_lens = "1024,4096,16384", dtypes = "bf16", json, library;
    int64_t repetitions = 20, elements = int64_t{1} << 27, limit_s = 3600;
    bool smoke = false, once = false, list = false;
};

// One JSON object a line, each on its way to the file at once: what was measured survives whatever comes
// next.
class JsonFile {
public:
    explicit JsonFile(const std::string& path) {
        if (path.empty()) return;
        file_ = std::fopen(path.c_str(), "w");
        if (file_ == nullptr) fail_input({.what = "cannot write", .where = path, .hint = "--json FILE"});
    }
    ~JsonFile() {
        if (file_ != nullptr) std::fclose(file_);
    }
    JsonFile(const JsonFile&) = delete;
    void write(const JsonLine& line) {
        if (file_ == nullptr) return;
        std::fprintf(file_, "%s\n", line.text().c_str());
        std::fflush(file_);
    }

private:
    std::FILE* file_ = nullptr;
};

GpuRowChoice choice_of(const Options& o) {
    GpuRowChoice choice;
    if (!o.op.empty()) choice.ops = split_list(o.op, "--op");
    for (const std::string& op : choice.ops) {
        const auto& ops = gpu_row_ops();
        if (std::find(ops.begin(), ops.end(), op) != ops.end()) continue;
        std::string names;
        for (const std::string& name : ops) names += (names.empty() ? "" : ", ") + name;
        fail_input({.what = "unknown op", .where = "--op", .expected = names, .actual = op});
    }
    if (o.smoke) {
        choice.models = {"tiny-gpt2", "tiny-qwen3"};
        choice.tokens = {12};
        choice.seq_lens = {6};
        choice.precisions = parse_precisions("fp32,bf16", "--dtypes");
        choice.elements = 1000;
        return choice;
    }
    choice.models = split_list(o.shapes, "--shapes");
    choice.tokens = parse_counts(o.tokens, "--tokens");
    choice.seq_lens = parse_counts(o.seq_lens, "--seq-lens");
    choice.precisions = parse_precisions(o.dtypes, "--dtypes");
    choice.elements = o.elements;
    return choice;
}

class Bench {
public:
    Bench(const Options& o, Device device)
        : options_(o), device_(device), json_(o.json), facts_(gpu_facts(device)) {
        if (!o.library.empty()) library_ = LibraryTimes(o.library);
        if (o.once) return;
        // Twice the L2 and more: what is left of it is not what the next run reads.
        const DeviceInfo info = device_info(device);
        evict_memory_ = Buffer(std::max<int64_t>(2 * info.l2_bytes, int64_t{128} << 20), device);
        evict_ = evict_memory_.tensor();
    }

    void measure_ceilings() {
        if (options_.once) return;
        const DeviceInfo info = device_info(device_);
        const auto seconds_of = [&](const GpuRow& row) {
            const std::optional<GpuTiming> timing = run(row);
            return timing ? timing->median_s : 0.0;
        };
        const GpuRow copy = ceiling_copy(std::min<int64_t>(int64_t{2} << 30, info.free_bytes / 4));
        if (const double s = seconds_of(copy)) ceilings_.copy = copy.bytes / s;
        for (const Precision& precision : parse_precisions("bf16,fp32", "--dtypes")) {
            const GpuRow product = ceiling_matmul(8192, precision);
            const double s = seconds_of(product), sheet = peak_flops(device_, precision.math);
            if (s == 0) continue;
            (precision.math == MatmulMath::bf16 ? ceilings_.bf16 : ceilings_.f32) = product.flops / s;
            if (sheet > 0)
                std::printf("  %s: %.0f TFLOP/s, %.0f %% of the data sheet's %.0f\n", precision.name.c_str(),
                            product.flops / s * 1e-12, 100 * product.flops / s / sheet, sheet * 1e-12);
        }
    }

    // Nothing when the row failed: told, counted, and the next one's turn.
    std::optional<GpuTiming> run(const GpuRow& row) {
        std::optional<GpuTiming> timing;
        JsonLine line;
        try {
            GpuTensors tensors(device_);
            const std::function<void()> body = row.prepare(tensors);
            if (options_.once) {
                body();
                device_synchronize(device_);
            } else {
                timing = time_row(body, evict_, device_, static_cast<int>(options_.repetitions));
            }
            const GpuTiming* measured = timing ? &*timing : nullptr;
            std::printf("%s", gpu_table_line(row, measured, ceilings_, library_.us(row)).c_str());
            line = gpu_json_line(row, measured, ceilings_, library_.us(row), facts_);
        } catch (const std::exception& error) {
            ++num_failed_;
            std::printf("%s", gpu_table_line(row, nullptr, ceilings_, 0).c_str());
            std::printf("  failed: %s\n", error.what());
            line = gpu_json_line(row, nullptr, ceilings_, 0, facts_).add("failed", error.what());
        }
        json_.write(line);
        std::fflush(stdout);
        return timing;
    }
    int64_t num_failed() const { return num_failed_; }
    const GpuFacts& facts() const { return facts_; }

private:
    const Options& options_;
    Device device_;
    JsonFile json_;
    GpuFacts facts_;
    LibraryTimes library_;
    Buffer evict_memory_;
    Tensor evict_;
    GpuCeilings ceilings_;
    int64_t num_failed_ = 0;
};

int body(int argc, char** argv) {
    Options o;
    Flags flags("bench_gpu", "Every op on a GPU as a share of its measured copy and matmul rates.",
                "  make bench B=gpu\n  make bench B=gpu ARGS='--op attention --shapes llama-1b --json FILE'\n"
                "  make bench B=gpu ARGS='--device simt'");
    flags.add("op", o.op, "ops, comma-separated; empty: all");
    flags.add_choice("device", o.device, {"cuda", "simt"}, "simt: the emulator, as with --smoke");
    flags.add("shapes", o.shapes, "presets whose widths are used, comma-separated");
    flags.add("tokens", o.tokens, "N, comma-separated; attention takes the largest");
    flags.add("seq-lens", o.seq_lens, "T of attention, comma-separated");
    flags.add("dtypes", o.dtypes, "fp32, bf16 or mixed, comma-separated");
    flags.add("elements", o.elements, "of the optimizer's and of casts' rows", 1, int64_t{1} << 31);
    flags.add("repetitions", o.repetitions, "timed runs of a row", 1, 10000);
    flags.add("limit-s", o.limit_s, "rows that have not begun after so many seconds are left out", 1, 86400);
    flags.add("json", o.json, "also writes each row as a line of JSON");
    flags.add("library", o.library, "another library's times (scripts/reference/torch_train.py --ops)");
    flags.add("once", o.once, "each row once, no rates: for a profiler");
    flags.add("smoke", o.smoke, "each row once, tiny, no rates");
    flags.add("list", o.list, "prints the rows as JSON and measures nothing");
    flags.parse(argc, argv);
    if (o.device == "simt") o.smoke = true;
    if (o.smoke) o.once = true;
    const GpuRowChoice choice = choice_of(o);
    const std::vector<GpuRow> rows = gpu_rows(choice);
    if (o.list) {
        for (const GpuRow& row : rows)
            std::printf("%s\n", gpu_json_line(row, nullptr, {}, 0, {}).text().c_str());
        return 0;
    }
    const double start = seconds_now();
    const Device device = device_from_name(o.device.c_str());
    Bench bench(o, device);
    for (const auto& [name, value] : bench.facts()) std::printf("%s: %s\n", name.c_str(), value.c_str());
    std::printf("%s", o.once ? "" : gpu_table_head().c_str());
    bench.measure_ceilings();
    size_t done = 0;
    for (; done < rows.size(); ++done) {
        if (seconds_now() - start > static_cast<double>(o.limit_s)) break;
        bench.run(rows[done]);
    }
    std::printf("bench_gpu: %zu of %zu rows, %lld failed\n", done, rows.size(),
                static_cast<long long>(bench.num_failed()));
    flush_stdout();
    return bench.num_failed() == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) { return run_main(argc, argv, body); }
