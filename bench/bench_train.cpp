// Whole training steps: forward, backward, clipping, AdamW.
// On the CPU as a share of this machine's own FMA peak, measured in the same run, step by step in turn with
// it. One line a configuration:
//   train model=gpt2-124m B=4 T=64 dtype=fp32 threads=2 tokens_per_s=... peak_share=... peak_rss_frac=...
// Wall time; medians with p10/p90 of the step. A share above 1 is a broken measurement and ends the program.
// On a GPU as a share of the data sheet's rate (MFU), with micro-batches accumulated to a step of
// --batch-tokens (bench/gpu_train.h). Each configuration runs in a child process, so that its peak memory is
// its own.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "bench/gpu_train.h"
#include "core/error.h"
#include "core/flags.h"
#include "core/io.h"
#include "core/log.h"
#include "core/threads.h"
#include "kernels/fma_peak.h"
#include "kernels/isa.h"
#include "model/optimizer.h"
#include "model/transformer.h"

namespace {

struct Options {
    std::string models = "gpt2-124m";
    std::string shapes = "4x64,4x256,1x1024";
    std::string dtypes = "fp32,bf16";
    std::string isa = "auto";
    std::string optimizer = "adamw";
    std::string recompute = "auto";
    std::string device = "cpu";
    std::string json;
    int64_t threads = 0;
    int64_t steps = 5;
    int64_t seq_len = 1024, batch_tokens = 524288, micro_batch = 0, limit_s = 600, total_s = 86400;
};

// Runs one configuration and prints its line; false when the measurement contradicts the peak.
bool run_on_cpu(const Options& options, const std::string& model_name, const BatchShape& batch_shape,
                const Precision& precision) {
    const auto [rows, seq_len] = batch_shape;
    const ModelConfig config = config_preset(model_name);
    RunShape shape{.num_rows = rows, .seq_len = seq_len};
    shape.dtype = precision.dtype;
    shape.math = precision.math;
    shape.fp8 = precision.fp8;
    const std::string recompute = options.recompute == "auto" ? "none" : options.recompute;
    shape.recompute = recompute_level(recompute);
    const OptimizerConfig optimizer_config{.muon = options.optimizer == "muon"};

    MemoryPlan plan;
    Transformer::plan(plan, config, shape);
    Transformer model(config, shape);
    Optimizer::plan(plan, model.table(), optimizer_config, shape.dtype, shape.math);
    Optimizer optimizer(model.table(), optimizer_config, model.params(), shape.math);
    init_params(model.table(), optimizer.master(), 1);
    optimizer.publish_master();

    const int64_t tokens = rows * seq_len;
    std::vector<double> seconds, peaks;
    for (int64_t step = 0; step <= options.steps; ++step) {
        const Batch batch = random_batch(rows, seq_len, config.vocab_size, static_cast<uint64_t>(step));
        peaks.push_back(fma_peak_flops(shape.math));
        const double start = seconds_now();
        model.forward_backward(batch, 1.0f / static_cast<float>(tokens), false);
        optimizer.step(model.grads(), 1e-4, model.total_loss() / static_cast<double>(tokens));
        // Step 0 touches every page for the first time.
        if (step > 0) seconds.push_back(seconds_now() - start);
    }
    const double peak = *std::max_element(peaks.begin(), peaks.end());
    const double flops = flops_per_token(config, seq_len) * static_cast<double>(tokens);
    const double median = quantile(seconds, 0.5);
    struct rusage usage {};
    getrusage(RUSAGE_SELF, &usage);
    const double rss_bytes = static_cast<double>(usage.ru_maxrss) * 1024;
    std::printf(
        "train model=%s B=%lld T=%lld dtype=%s threads=%d tokens_per_s=%.1f peak_share=%.3f "
        "peak_rss_frac=%.3f "
        "isa=%s optimizer=%s recompute=%s ms=%.1f ms_p10=%.1f ms_p90=%.1f gflops=%.1f peak_gflops=%.1f "
        "plan=%s rss=%s\n",
        model_name.c_str(), static_cast<long long>(rows), static_cast<long long>(seq_len),
        precision.name.c_str(), num_threads(), static_cast<double>(tokens) / median, flops / median / peak,
        rss_bytes / static_cast<double>(plan.total_bytes()), isa_name(current_isa()),
        options.optimizer.c_str(), recompute.c_str(), median * 1e3, quantile(seconds, 0.1) * 1e3,
        quantile(seconds, 0.9) * 1e3, flops / median * 1e-9, peak * 1e-9,
        human_bytes(static_cast<double>(plan.total_bytes())).c_str(), human_bytes(rss_bytes).c_str());
    if (flops / median > peak) {
        std::fprintf(stderr, "error: a step above the measured peak: the measurement is broken\n");
        return false;
    }
    return true;
}

// In a process of its own, which has its own threads; its exit code.
int in_child(const Options& o, const std::string& label, const std::function<bool()>& measure) {
    flush_stdout();
    const pid_t child = fork();
    if (child < 0)
        fail_input({.what = "cannot start a process",
                    .where = std::strerror(errno),
                    .hint = "free some memory, or raise `ulimit -u`"});
    if (child == 0) {
        set_num_threads(static_cast<int>(o.threads > 0 ? o.threads : hardware_threads()));
        const bool sound = measure();  // what it throws ends the child in run_main
        flush_stdout();
        _exit(sound ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status))
        std::fprintf(stderr, "error: %s was ended by signal %d  hint: smaller shapes\n", label.c_str(),
                     WTERMSIG(status));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

// All of them, even when one fails; the first failure's exit code.
int train_on_gpu(const Options& o, const std::vector<std::string>& models,
                 const std::vector<Precision>& precisions) {
    // A child opens the device: CUDA does not survive a fork.
    const Device device = o.device == "simt" ? Device::simt : Device::cuda;
    if (!o.json.empty()) write_file_atomic(o.json, "");
    int first_failure = 0;
    const double start = seconds_now();
    for (const std::string& model : models) {
        for (const Precision& precision : precisions) {
            if (seconds_now() - start > static_cast<double>(o.total_s)) {
                std::printf("train model=%s dtype=%s left out: no time\n", model.c_str(),
                            precision.name.c_str());
                continue;
            }
            const GpuTrainChoice choice{.model = model,
                                        .precision = precision,
                                        .device = device,
                                        .muon = o.optimizer == "muon",
                                        .recompute = o.recompute,
                                        .seq_len = o.seq_len,
                                        .batch_tokens = o.batch_tokens,
                                        .micro_batch = o.micro_batch,
                                        .steps = o.steps,
                                        .limit_s = o.limit_s,
                                        .json = o.json};
            const int code =
                in_child(o, cat({model, " dtype=", precision.name}), [&] { return train_on_gpu(choice); });
            if (code == 2) return code;  // the flags, or no GPU: the others would say the same
            if (first_failure == 0) first_failure = code;
        }
    }
    return first_failure;
}

int body(int argc, char** argv) {
    Options o;
    Flags flags(
        "bench_train", "Whole training steps as a share of the machine's peak.",
        "  make bench B=train\n  make bench B=train ARGS='--shapes 4x256 --dtypes bf16 --isa avx2'\n"
        "  make bench B=train ARGS='--device cuda --models gpt2-124m,gpt2-1558m,llama-1b --dtypes bf16'");
    flags.add("models", o.models, "presets, comma-separated");
    flags.add("dtypes", o.dtypes,
              "fp32, bf16, mixed or fp8, comma-separated; shares of fp8 are of the bf16 peak");
    flags.add_choice("device", o.device, {"cpu", "cuda", "simt"}, "simt: the emulator, which has no speed");
    flags.add_choice("optimizer", o.optimizer, {"adamw", "muon"}, "optimizer");
    flags.add_choice("recompute", o.recompute, {"auto", "none", "mlp", "block"},
                     "auto: none on the CPU, the least that fits on a GPU");
    flags.add("steps", o.steps, "timed steps per configuration", 1, 1000);
    flags.add("shapes", o.shapes, "CPU: BxT, comma-separated");
    flags.add("isa", o.isa, "CPU: auto, plain, avx2, avx512 or avx512_bf16");
    flags.add("threads", o.threads, "CPU: threads; 0: all cores", 0, 256);
    flags.add("seq-len", o.seq_len, "GPU: tokens per row", 1, 1 << 24);
    flags.add("batch-tokens", o.batch_tokens, "GPU: tokens per step", 1, int64_t{1} << 31);
    flags.add("micro-batch", o.micro_batch, "GPU: rows per pass; 0: the largest power of two that fits", 0,
              1 << 20);
    flags.add("limit-s", o.limit_s, "GPU: no further step of a configuration after so many seconds", 1,
              86400);
    flags.add("total-s", o.total_s, "GPU: no further configuration after so many seconds", 1, 86400);
    flags.add("json", o.json, "GPU: also writes a line of JSON per configuration");
    flags.parse(argc, argv);
    // What can be wrong is found before the first measurement, and here, not in a child.
    const std::vector<Precision> precisions = parse_precisions(o.dtypes, "--dtypes", true);
    const std::vector<BatchShape> shapes = parse_shapes(o.shapes, "--shapes");
    const std::vector<std::string> models = split_list(o.models, "--models");
    set_isa(isa_from_name(o.isa.c_str()));
    const bool on_cpu = o.device == "cpu";
    for (const std::string& model : models) {
        const int64_t most_tokens = config_preset(model).max_position;
        int64_t longest = on_cpu ? 0 : o.seq_len;
        for (const BatchShape& shape : shapes) longest = std::max(longest, on_cpu ? shape.seq_len : 0);
        if (longest > most_tokens)
            fail_input(
                {.what = "rows longer than the model's positions",
                 .where = on_cpu ? "--shapes" : "--seq-len",
                 .expected = cat({"at most ", most_tokens, " tokens for ", model}),
                 .actual = cat({longest}),
                 .hint = on_cpu ? cat({"--shapes 1x", most_tokens}) : cat({"--seq-len ", most_tokens})});
    }
    if (!on_cpu) return train_on_gpu(o, models, precisions);
    for (const std::string& model : models) {
        for (const Precision& precision : precisions) {
            for (const BatchShape& shape : shapes) {
                const std::string label =
                    cat({model, " B=", shape.rows, " T=", shape.seq_len, " dtype=", precision.name});
                const int code = in_child(o, label, [&] { return run_on_cpu(o, model, shape, precision); });
                if (code != 0) return code;
            }
        }
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) { return run_main(argc, argv, body); }
