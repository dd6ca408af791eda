// build/plan: a run on paper. For a model, a GPU, their number and a network: memory of a rank, bytes on the
// wire, time of a step, and how it scales; and how such predictions compare with published runs.
#include <cmath>
#include <cstdio>
#include <string>

#include "core/error.h"
#include "core/flags.h"
#include "core/log.h"
#include "model/hf.h"
#include "model/published_runs.h"
#include "model/scaling_plan.h"

namespace {

struct Options {
    std::string model = "llama-8b", gpu = "h100", dtype = "bf16", optimizer = "adamw", recompute = "none";
    int64_t gpus = 8, zero = 1, micro_batch = 1, seq_len = 1024, batch_tokens = 0;
    Network network;
    bool published = false;
};

void declare(Flags& f, Options& o) {
    f.add("model", o.model, "preset, or Hugging Face directory: its config.json is enough");
    f.add("gpu", o.gpu, "a100, h100, h200 or b200: 80, 80, 141 and 180 GiB, SXM");
    f.add("gpus", o.gpus, "GPUs, a rank each", 1, 1 << 20);
    f.add("zero", o.zero, "stage of ZeRO: 1 shards the optimizer, 2 gradients too, 3 weights too", 0, 3);
    f.add("micro-batch", o.micro_batch, "rows per forward and backward pass of a rank", 1, 1 << 16);
    f.add("seq-len", o.seq_len, "tokens per row", 1, 1 << 24);
    f.add("batch-tokens", o.batch_tokens, "tokens per optimizer step, all ranks; 0: a micro-batch each", 0,
          int64_t{1} << 40);
    f.add_choice("dtype", o.dtype, {"fp32", "bf16", "fp8"}, "as of build/train");
    f.add_choice("optimizer", o.optimizer, {"adamw", "muon"}, "as of build/train");
    f.add_choice("recompute", o.recompute, {"none", "mlp", "block"}, "as of build/train");
    f.add("intra-gbs", o.network.intra_gbs, "GB/s a GPU sends within its node; 0: its NVLink's");
    f.add("inter-gbs", o.network.inter_gbs, "GB/s a GPU sends to other nodes", 1e-3);
    f.add("gpus-per-node", o.network.gpus_per_node, "GPUs that NVLink joins", 1, 1 << 20);
    f.add("latency-us", o.network.latency_us, "microseconds of a hop");
    f.add("published", o.published, "instead: predictions beside published runs");
}

PaperRun run_of(const Options& o) {
    PaperRun run{.model = find_model(o.model).config, .gpu = gpu_named(o.gpu), .network = o.network};
    run.shape = {.num_rows = o.micro_batch,
                 .seq_len = o.seq_len,
                 .dtype = o.dtype == "fp32" ? DType::f32 : DType::bf16,
                 .fp8 = o.dtype == "fp8",
                 .recompute = o.recompute == "block" ? Recompute::block
                              : o.recompute == "mlp" ? Recompute::mlp
                                                     : Recompute::none};
    if (run.shape.fp8 && run.gpu.fp8_tflops == 0)
        fail_input({.what = "this GPU has no FP8 arithmetic",
                    .where = cat({"--gpu ", o.gpu}),
                    .expected = "h100, h200 or b200 for --dtype fp8",
                    .actual = o.gpu,
                    .hint = "--dtype bf16"});
    run.muon = o.optimizer == "muon";
    run.zero = static_cast<int>(o.zero);
    run.num_gpus = o.gpus;
    const int64_t tokens = o.gpus * o.micro_batch * o.seq_len;
    if (o.batch_tokens % tokens != 0)
        fail_input({.what = "a step is not a whole number of micro-batches of all ranks",
                    .where = "--batch-tokens",
                    .expected = cat({"a multiple of gpus x micro-batch x seq-len = ", tokens}),
                    .actual = cat({o.batch_tokens}),
                    .hint = cat({"--batch-tokens ", (o.batch_tokens / tokens + 1) * tokens})});
    run.micro_batches = std::max<int64_t>(1, o.batch_tokens / tokens);
    return run;
}

double gib(int64_t bytes) { return double(bytes) / double(1 << 30); }

void print_memory(const PaperRun& run, const MemoryPlan& plan) {
    const double needed = gib(plan.total_bytes());
    std::printf("Memory of a rank\n%s%s %.1f of %.0f GiB\n\n", plan.text().c_str(),
                needed <= run.gpu.memory_gib ? "it fits:" : "IT DOES NOT FIT:", needed, run.gpu.memory_gib);
}

void print_wire(const PaperRun& run) {
    const WireBytes wire = wire_bytes(run);
    std::printf("Sent by a rank in a step, --zero %d\n", run.zero);
    std::printf("%-22s %12s\n", "gradients (f32)", human_bytes(wire.gradients).c_str());
    std::printf("%-22s %12s\n\n", cat({"weights (", dtype_name(run.shape.dtype), ")"}).c_str(),
                human_bytes(wire.weights).c_str());
}

void print_time(const PaperRun& run) {
    const StepTime time = step_time(run);
    const std::pair<const char*, double> lines[] = {
        {"products", time.products},   {"attention", time.attention},         {"element-wise", time.elements},
        {"optimizer", time.optimizer}, {"network, not hidden", time.network}, {"total", time.total()}};
    std::printf("Time of a step\n");
    for (const auto& [name, seconds] : lines)
        std::printf("%-22s %9.2f ms %6.1f %%\n", name, seconds * 1e3, 100 * seconds / time.total());
    std::printf("%s tokens/s, %s a GPU, MFU %.1f %% of %g TFLOP/s (bf16)\n\n",
                human_count(tokens_per_second(run)).c_str(),
                human_count(tokens_per_second(run) / double(run.num_gpus)).c_str(), 100 * paper_mfu(run),
                run.gpu.bf16_tflops);
}

// Of tokens/s a GPU, against one GPU alone.
void print_scaling(const PaperRun& run) {
    std::printf("From 1 to 16384 GPUs; ! does not fit; efficiency: tokens/s a GPU, over that of one GPU\n");
    std::printf("%6s | %-51s | %-47s\n", "", "weak: the same batch a GPU", "strong: the same batch a step");
    std::printf("%6s | %9s %12s %9s %6s %11s | %9s %12s %9s %13s\n", "GPUs", "GiB/rank", "ms/step",
                "tokens/s", "MFU %", "efficiency", "micro", "ms/step", "tokens/s", "efficiency");
    const auto rate = [](const PaperRun& r) { return tokens_per_second(r) / double(r.num_gpus); };
    const double weak_one = rate(weak_scaled(run, 1)), strong_one = rate(*strong_scaled(run, 1));
    for (int64_t gpus = 1; gpus <= 16384; gpus *= 2) {
        const PaperRun weak = weak_scaled(run, gpus);
        const double needed = gib(paper_memory(weak).total_bytes());
        std::printf("%6lld | %8.1f%s %12.1f %9s %6.1f %11.3f | ", static_cast<long long>(gpus), needed,
                    needed > run.gpu.memory_gib ? "!" : " ", step_time(weak).total() * 1e3,
                    human_count(tokens_per_second(weak)).c_str(), 100 * paper_mfu(weak),
                    rate(weak) / weak_one);
        if (const auto strong = strong_scaled(run, gpus)) {
            const std::string micro = cat({strong->micro_batches, " x ", strong->shape.num_rows});
            std::printf("%9s %12.1f %9s %13.3f\n", micro.c_str(), step_time(*strong).total() * 1e3,
                        human_count(tokens_per_second(*strong)).c_str(), rate(*strong) / strong_one);
        } else {
            std::printf("%9s\n", "-");
        }
    }
}

void print_published() {
    std::printf(
        "Tokens/s of one GPU, predicted by one set of constants; those of runs marked * chose them.\n");
    std::printf("%-15s %-13s %9s %-5s %9s %9s %8s   %-18s %s\n", "trainer", "model", "GPUs", "dtype",
                "published", "predicted", "error", "remark", "source");
    int64_t within = 0;
    for (const PublishedRun& p : published_runs()) {
        const double error = prediction_error(p);
        within += std::fabs(error) <= 0.15;
        const std::string gpus = cat({p.run.num_gpus, " ", p.run.gpu.name});
        std::printf("%-15s %-13s %9s %-5s %9.0f %9.0f %+7.1f%%%s %-18s %s\n", p.trainer, p.model,
                    gpus.c_str(), p.run.shape.fp8 ? "fp8" : "bf16", p.tokens_per_second,
                    p.tokens_per_second * (1 + error), 100 * error, p.fitted ? " *" : "  ", p.remark,
                    p.source);
    }
    std::printf("%lld of %zu within 15 %%\n", static_cast<long long>(within), published_runs().size());
}

int plan(int argc, char** argv) {
    Options o;
    Flags flags(
        "plan", "Plans a run on paper: memory of a rank, bytes on the wire, time of a step, scaling.",
        "  build/plan --model llama-8b --gpu h200 --gpus 64 --zero 2 --seq-len 4096 --batch-tokens 4194304\n"
        "  build/plan --published\n");
    declare(flags, o);
    flags.parse(argc, argv);
    if (o.published) {
        print_published();
        return 0;
    }
    const PaperRun run = run_of(o);
    const MemoryPlan memory = paper_memory(run);  // refuses what cannot be trained at all
    const double params = double(ParamTable(run.model).num_params());
    std::printf(
        "%s, %s parameters, on %lld x %s: %lld micro-batches of %lld x %lld tokens a rank and step\n\n",
        o.model.c_str(), human_count(params).c_str(), static_cast<long long>(o.gpus), run.gpu.name,
        static_cast<long long>(run.micro_batches), static_cast<long long>(o.micro_batch),
        static_cast<long long>(o.seq_len));
    print_memory(run, memory);
    print_wire(run);
    print_time(run);
    print_scaling(run);
    return 0;
}

}  // namespace

int main(int argc, char** argv) { return run_main(argc, argv, plan); }
