// Whole training steps (forward, backward, clipping, AdamW) as a share of this machine's own FMA peak,
// measured in the same run, step by step in turn with it. One line a configuration:
//   train model=gpt2-124m B=4 T=64 dtype=fp32 threads=2 tokens_per_s=... peak_share=... peak_rss_frac=...
// Wall time; medians with p10/p90 of the step. A share above 1 is a broken measurement and ends the program.
// Each configuration runs in a child process, so that its peak memory is its own.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "bench/parse.h"
#include "core/error.h"
#include "core/flags.h"
#include "core/log.h"
#include "core/rng.h"
#include "core/threads.h"
#include "kernels/fma_peak.h"
#include "kernels/isa.h"
#include "model/optimizer.h"
#include "model/transformer.h"

namespace {

struct Options {
    std::string model = "gpt2-124m";
    std::string shapes = "4x64,4x256,1x1024";
    std::string dtypes = "fp32,bf16";
    std::string isa = "auto";
    std::string optimizer = "adamw";
    std::string recompute = "none";
    int64_t threads = 0;
    int64_t steps = 5;
};

Batch random_batch(int64_t rows, int64_t seq_len, int64_t vocab_size, uint64_t step) {
    Batch batch;
    batch.num_rows = rows;
    batch.seq_len = seq_len;
    const RandomKey key{step, 1};
    for (int64_t i = 0; i < rows * seq_len; ++i) {
        batch.tokens.push_back(
            static_cast<int32_t>(random_below(key, 2 * static_cast<uint64_t>(i), vocab_size)));
        batch.targets.push_back(
            static_cast<int32_t>(random_below(key, 2 * static_cast<uint64_t>(i) + 1, vocab_size)));
    }
    set_document_bounds(batch, -1);
    return batch;
}

// Runs one configuration and prints its line; false when the measurement contradicts the peak.
bool run(const Options& options, const BatchShape& batch_shape, const Precision& precision) {
    const auto [rows, seq_len] = batch_shape;
    set_num_threads(static_cast<int>(options.threads > 0 ? options.threads : hardware_threads()));
    set_isa(isa_from_name(options.isa.c_str()));
    const ModelConfig config = config_preset(options.model);
    RunShape shape{.num_rows = rows, .seq_len = seq_len};
    shape.dtype = precision.dtype;
    shape.math = precision.math;
    if (options.recompute == "mlp") shape.recompute = Recompute::mlp;
    if (options.recompute == "block") shape.recompute = Recompute::block;
    const OptimizerConfig optimizer_config{.muon = options.optimizer == "muon"};

    MemoryPlan plan;
    Transformer::plan(plan, config, shape);
    Transformer model(config, shape);
    Optimizer::plan(plan, model.table(), optimizer_config, shape.dtype);
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
        options.model.c_str(), static_cast<long long>(rows), static_cast<long long>(seq_len),
        precision.name.c_str(), num_threads(), static_cast<double>(tokens) / median, flops / median / peak,
        rss_bytes / static_cast<double>(plan.total_bytes()), isa_name(current_isa()),
        options.optimizer.c_str(), options.recompute.c_str(), median * 1e3, quantile(seconds, 0.1) * 1e3,
        quantile(seconds, 0.9) * 1e3, flops / median * 1e-9, peak * 1e-9,
        human_bytes(static_cast<double>(plan.total_bytes())).c_str(), human_bytes(rss_bytes).c_str());
    flush_stdout();
    if (flops / median > peak) {
        std::fprintf(stderr, "error: a step above the measured peak: the measurement is broken\n");
        return false;
    }
    return true;
}

int body(int argc, char** argv) {
    Options options;
    Flags flags("bench_train", "Whole training steps as a share of the machine's measured FMA peak.",
                "  make bench B=train\n  make bench B=train ARGS='--shapes 4x256 --dtypes bf16 --isa avx2'");
    flags.add("model", options.model, "preset");
    flags.add("shapes", options.shapes, "BxT, comma-separated");
    flags.add("dtypes", options.dtypes, "fp32, bf16 or mixed, comma-separated");
    flags.add("isa", options.isa, "auto, plain, avx2, avx512 or avx512_bf16");
    flags.add_choice("optimizer", options.optimizer, {"adamw", "muon"}, "optimizer");
    flags.add_choice("recompute", options.recompute, {"none", "mlp", "block"}, "recompute level");
    flags.add("threads", options.threads, "threads; 0: all cores", 0, 256);
    flags.add("steps", options.steps, "timed steps per configuration", 1, 1000);
    flags.parse(argc, argv);
    // What can be wrong is found before the first measurement, and here, not in a child.
    const std::vector<Precision> precisions = parse_precisions(options.dtypes, "--dtypes");
    const std::vector<BatchShape> shapes = parse_shapes(options.shapes, "--shapes");
    set_isa(isa_from_name(options.isa.c_str()));
    const int64_t most_tokens = config_preset(options.model).max_position;
    for (const BatchShape& shape : shapes) {
        if (shape.seq_len > most_tokens)
            fail_input({.what = "rows longer than the model's positions",
                        .where = "--shapes",
                        .expected = cat({"at most ", most_tokens, " tokens"}),
                        .actual = cat({shape.seq_len}),
                        .hint = cat({"--shapes 1x", most_tokens})});
    }
    for (const Precision& precision : precisions) {
        for (const BatchShape& shape : shapes) {
            const pid_t child = fork();
            if (child < 0)
                fail_input({.what = "cannot start a process",
                            .where = std::strerror(errno),
                            .hint = "free some memory, or raise `ulimit -u`"});
            if (child == 0) _exit(run(options, shape, precision) ? 0 : 1);
            int status = 0;
            waitpid(child, &status, 0);
            if (WIFSIGNALED(status))
                std::fprintf(
                    stderr,
                    "error: B=%lld T=%lld dtype=%s was ended by signal %d  hint: a smaller --shapes\n",
                    static_cast<long long>(shape.rows), static_cast<long long>(shape.seq_len),
                    precision.name.c_str(), WTERMSIG(status));
            if (status != 0) return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
        }
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) { return run_main(argc, argv, body); }
