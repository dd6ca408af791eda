// Shape, steps, line.
#include "bench/gpu_train.h"

#include <cmath>
#include <cstdio>

#include "bench/gpu_report.h"
#include "core/device.h"
#include "core/log.h"
#include "core/rng.h"
#include "kernels/peak.h"
#include "model/run_memory.h"

namespace {

constexpr double kUsable = 0.97;    // of the free memory: graphs, plans of products and code need some
constexpr int64_t kWarmUpRows = 3;  // micro-batches of a warm-up step: each kind of pass twice and more
constexpr int kWarmUpSteps = 2;
constexpr size_t kDifferentBatches = 8;

int64_t planned_bytes(const GpuTrainChoice& choice, const RunShape& shape) {
    return plan_run(config_preset(choice.model), {.shape = shape, .optimizer = {.muon = choice.muon}})
        .needed_bytes();
}

// A step of `num_micro` micro-batches, queued as the trainer does: only the numbers of the step before are
// waited for.
void train_step(Transformer& model, Optimizer& optimizer, const std::vector<Batch>& batches,
                int64_t num_micro, size_t first) {
    const int64_t tokens = num_micro * batches[0].num_rows * batches[0].seq_len;
    for (int64_t i = 0; i < num_micro; ++i) {
        model.forward_backward(batches[(first + static_cast<size_t>(i)) % batches.size()],
                               1.0f / static_cast<float>(tokens), i > 0);
    }
    if (optimizer.queued()) optimizer.take();
    optimizer.queue(model.grads(), 1e-4, model.summed_loss(), tokens);
}

void add_to_file(const std::string& path, const JsonLine& line) {
    if (path.empty()) return;
    std::FILE* file = std::fopen(path.c_str(), "a");
    if (file == nullptr) fail_input({.what = "cannot write", .where = path, .hint = "--json FILE"});
    std::fprintf(file, "%s\n", line.text().c_str());
    std::fclose(file);
}

const char* recompute_name(Recompute level) {
    return level == Recompute::none ? "none" : level == Recompute::mlp ? "mlp" : "block";
}

}  // namespace

Recompute recompute_level(const std::string& name) {
    return name == "block" ? Recompute::block : name == "mlp" ? Recompute::mlp : Recompute::none;
}

Batch random_batch(int64_t rows, int64_t seq_len, int64_t vocab_size, uint64_t seed) {
    Batch batch;
    batch.num_rows = rows;
    batch.seq_len = seq_len;
    const RandomKey key{seed, 1};
    for (int64_t i = 0; i < rows * seq_len; ++i) {
        const uint64_t counter = 2 * static_cast<uint64_t>(i), bound = static_cast<uint64_t>(vocab_size);
        batch.tokens.push_back(static_cast<int32_t>(random_below(key, counter, bound)));
        batch.targets.push_back(static_cast<int32_t>(random_below(key, counter + 1, bound)));
    }
    set_document_bounds(batch, -1);
    return batch;
}

RunShape gpu_train_shape(const GpuTrainChoice& choice, int64_t available_bytes) {
    RunShape shape{.num_rows = 0,
                   .seq_len = choice.seq_len,
                   .dtype = choice.precision.dtype,
                   .math = choice.precision.math,
                   .fp8 = choice.precision.fp8,
                   .device = choice.device};
    const int64_t rows_per_step = choice.batch_tokens / choice.seq_len;
    for (const char* level : {"none", "mlp", "block"}) {
        if (choice.recompute != "auto" && choice.recompute != level) continue;
        shape.recompute = recompute_level(level);
        const int64_t least = choice.micro_batch > 0 ? choice.micro_batch : 1;
        const int64_t most = choice.micro_batch > 0 ? choice.micro_batch : rows_per_step;
        int64_t fitting = 0;
        for (int64_t rows = least; rows <= most; rows *= 2) {
            shape.num_rows = rows;
            if (planned_bytes(choice, shape) > available_bytes) break;
            if (rows_per_step % rows == 0) fitting = rows;
        }
        shape.num_rows = fitting;
        if (fitting > 0) return shape;
    }
    return shape;
}

bool train_on_gpu(const GpuTrainChoice& choice) {
    if (choice.batch_tokens % choice.seq_len != 0 ||
        (choice.micro_batch > 0 && choice.batch_tokens % (choice.micro_batch * choice.seq_len) != 0))
        fail_input(
            {.what = "a step is not a whole number of micro-batches",
             .where = "--batch-tokens",
             .expected = cat({"a multiple of ", std::max<int64_t>(1, choice.micro_batch) * choice.seq_len}),
             .actual = cat({choice.batch_tokens}),
             .hint = cat({"--batch-tokens ", std::max<int64_t>(1, choice.micro_batch) * choice.seq_len})});
    const ModelConfig config = config_preset(choice.model);
    open_device(choice.device);
    const int64_t free_before = device_info(choice.device).free_bytes;
    const RunShape shape =
        gpu_train_shape(choice, static_cast<int64_t>(kUsable * static_cast<double>(free_before)));
    JsonLine line;
    line.add("kind", "train").add("model", choice.model).add("device", device_name(choice.device));
    line.add("dtype", choice.precision.name).add("optimizer", choice.muon ? "muon" : "adamw");
    line.add("seq_len", choice.seq_len).add("batch_tokens", choice.batch_tokens);
    line.add("micro_batch", shape.num_rows).add("recompute", recompute_name(shape.recompute));
    for (const auto& [name, value] : gpu_facts(choice.device)) line.add(name, value);
    if (shape.num_rows == 0) {
        RunShape smallest = shape;
        smallest.num_rows = std::max<int64_t>(1, choice.micro_batch);
        const int64_t needed = planned_bytes(choice, smallest);
        std::printf("train model=%s dtype=%s does not fit: %s planned, %s free\n", choice.model.c_str(),
                    choice.precision.name.c_str(), human_bytes(static_cast<double>(needed)).c_str(),
                    human_bytes(static_cast<double>(free_before)).c_str());
        add_to_file(choice.json,
                    line.add("fits", false).add("plan_bytes", needed).add("free_bytes", free_before));
        return true;  // a fact, not a failure
    }

    Transformer model(config, shape);
    const OptimizerConfig optimizing{.muon = choice.muon};
    Optimizer optimizer(model.table(), optimizing, model.params(), shape.math);
    init_params(model.table(), optimizer.master(), 1);
    optimizer.publish_master();
    std::vector<Batch> batches;
    const int64_t num_micro = choice.batch_tokens / (shape.num_rows * shape.seq_len);
    for (size_t i = 0; i < std::min(kDifferentBatches, static_cast<size_t>(num_micro) + 1); ++i)
        batches.push_back(random_batch(shape.num_rows, shape.seq_len, config.vocab_size, i));
    // Graphs are recorded, plans of products made, clocks raised.
    for (int i = 0; i < kWarmUpSteps; ++i)
        train_step(model, optimizer, batches, std::min(num_micro, kWarmUpRows), 0);
    device_synchronize(choice.device);
    const int64_t device_bytes = free_before - device_info(choice.device).free_bytes;

    // The host ends a step when the device has come to the end of the one before but for its update. The last
    // one waits.
    std::vector<double> seconds;
    const double start = seconds_now();
    double before = start;
    for (int64_t step = 0; step < choice.steps; ++step) {
        if (step > 0 && seconds_now() - start > static_cast<double>(choice.limit_s)) break;
        train_step(model, optimizer, batches, num_micro, static_cast<size_t>(step));
        const double now = seconds_now();
        seconds.push_back(now - before);
        before = now;
    }
    device_synchronize(choice.device);
    const double loss = optimizer.take().loss;
    const double mean = (seconds_now() - start) / static_cast<double>(seconds.size());

    // The first step found the device idle and the last one's end is not in its own: the mean has both.
    const double median = seconds.size() > 2 ? quantile(seconds, 0.5) : mean;
    const double tokens = static_cast<double>(choice.batch_tokens);
    const double flops = flops_per_token(config, choice.seq_len),
                 peak = peak_flops(choice.device, shape.math);
    const double mfu = peak > 0 ? flops * tokens / median / peak : 0;
    const int64_t plan_bytes = planned_bytes(choice, shape);
    const bool emulated = choice.device == Device::simt;
    line.add("fits", true).add("micro_batches", num_micro).add("steps", static_cast<int64_t>(seconds.size()));
    line.add("loss", loss).add("flops_per_token", flops).add("plan_bytes", plan_bytes);
    line.add("device_bytes", device_bytes);
    if (!emulated) {
        line.add("tokens_per_s", tokens / median).add("tokens_per_s_mean", tokens / mean);
        line.add("ms", median * 1e3).add("ms_p10", quantile(seconds, 0.1) * 1e3);
        line.add("ms_p90", quantile(seconds, 0.9) * 1e3).add("peak_flops", peak);
        if (peak > 0) line.add("mfu", mfu);
    }
    add_to_file(choice.json, line);
    const std::string rates =
        emulated ? ""
                 : cat({" tokens_per_s=", std::round(tokens / median), " mfu=", std::round(mfu * 1e4) / 1e4,
                        " ms=", std::round(median * 1e4) / 10});
    std::printf(
        "train model=%s dtype=%s device=%s B=%lld T=%lld micro_batches=%lld recompute=%s%s loss=%.4f "
        "memory=%s plan=%s\n",
        choice.model.c_str(), choice.precision.name.c_str(), device_name(choice.device),
        static_cast<long long>(shape.num_rows), static_cast<long long>(shape.seq_len),
        static_cast<long long>(num_micro), recompute_name(shape.recompute), rates.c_str(), loss,
        human_bytes(static_cast<double>(device_bytes)).c_str(),
        human_bytes(static_cast<double>(plan_bytes)).c_str());
    if (std::isfinite(loss) && mfu <= 1) return true;
    std::fprintf(stderr, "error: %s: loss %g, %.2f of the data sheet's rate: the measurement is broken\n",
                 choice.model.c_str(), loss, mfu);
    return false;
}
