// Bytes and seconds of a run on paper.
#include "model/scaling_plan.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/flags.h"  // nearest_name
#include "kernels/workspace.h"
#include "model/optimizer.h"

namespace {

// Fitted by least squares of log(predicted / published) over every second run of llm.c and llmq
// (model/published_runs.cpp): no other number here was chosen by them.
constexpr double kSustained = 0.95;  // of the best product's rate, in the heat of a whole step
constexpr double kTileSeconds =
    7.5e-6;  // a tile's first loads, its stores, its share of a grid's tail and start
// Measured elsewhere.
constexpr double kMemoryShare = 0.9;  // a copy on an H200: 4.3 of 4.8 TB/s
constexpr double kLinkShare = 0.8;    // NCCL's all-reduce within a node of H100: about 360 of 450 GB/s

constexpr Gpu kGpus[] = {
    {"a100", 80, 2039, 312, 0, 271.2, 0, 0.8 * 19.5, 108, 300},
    {"h100", 80, 3350, 989.4, 1978.9, 794.5, 1402.6, 0.8 * 67, 132, 450},
    {"h200", 141, 4800, 989.4, 1978.9, 794.5, 1453.4, 0.8 * 67, 132, 450},
    {"b200", 180, 8000, 2250, 4500, 1745, 3432.5, 0.8 * 75, 148, 900},
};

double num_params(const PaperRun& run) { return double(ParamTable(run.model).arena_size()); }
double weight_bytes(const PaperRun& run) { return double(dtype_bytes(run.shape.dtype)); }
double micro_tokens(const PaperRun& run) { return double(run.shape.num_rows) * double(run.shape.seq_len); }
double memory_seconds(const PaperRun& run, double bytes) {
    return bytes / (run.gpu.memory_gbs * 1e9 * kMemoryShare);
}

// ---- time of one GPU ----

struct Pass {
    double products = 0, attention = 0, elements = 0;
    double total() const { return products + attention + elements; }
};
Pass operator*(double times, const Pass& p) {
    return {times * p.products, times * p.attention, times * p.elements};
}
Pass operator+(const Pass& a, const Pass& b) {
    return {a.products + b.products, a.attention + b.attention, a.elements + b.elements};
}

// [rows, inner] x [inner, columns]; fp8: of FP8 numbers.
double product_seconds(const PaperRun& run, double rows, double columns, double inner, bool fp8,
                       double out_bytes) {
    constexpr double kEdge = 128, kTileArea = 128 * 256;
    const double area = std::ceil(rows / kEdge) * kEdge * std::ceil(columns / kEdge) * kEdge;
    const double tflops = fp8                              ? run.gpu.measured_fp8
                          : run.shape.dtype == DType::bf16 ? run.gpu.measured_bf16
                                                           : run.gpu.measured_fp32;
    const double multiplying = 2 * area * inner / (tflops * 1e12 * kSustained);
    const double between = area / kTileArea * kTileSeconds / run.gpu.num_multiprocessors;
    const double operand_bytes = fp8 ? 1 : weight_bytes(run);
    const double bytes = operand_bytes * inner * (rows + columns) + out_bytes * rows * columns;
    return std::max(multiplying + between, memory_seconds(run, bytes));
}

double attention_seconds(const PaperRun& run) {  // forward, of a layer
    const double d = double(run.model.head_dim), t = double(run.shape.seq_len);
    const double flops = 2 * micro_tokens(run) * double(run.model.attention_dim()) * t;
    const double on_tensor_cores = run.gpu.bf16_tflops * d / (d + 99) * t / (t + 350);
    const double tflops =
        run.shape.dtype == DType::bf16 ? on_tensor_cores : std::min(on_tensor_cores, run.gpu.measured_fp32);
    return flops / (tflops * 1e12);
}

// What a layer's element-wise kernels read and write, in activations a token. The residual is added where the
// norm that follows reads it.
double forward_elements(const ModelConfig& c) {
    const double heads = double((c.num_heads + c.num_kv_heads) * c.head_dim);
    double elements = 2 * 4 * double(c.channels);
    elements += (c.mlp == Mlp::swiglu ? 3 : 2) * double(c.mlp_dim);
    if (c.position == Position::rope) elements += 2 * heads;
    if (c.qk_norm) elements += 2 * heads;
    return elements;
}
double backward_elements(const ModelConfig& c) {
    const double heads = double((c.num_heads + c.num_kv_heads) * c.head_dim);
    double elements = 2 * 4 * double(c.channels) + 2 * double(c.attention_dim());
    elements += (c.mlp == Mlp::swiglu ? 5 : 3) * double(c.mlp_dim);
    if (c.position == Position::rope) elements += 2 * heads;
    if (c.qk_norm) elements += 3 * heads;
    for (const LinearDims& linear : linear_dims(c)) elements += linear.bias ? double(linear.out) : 0;
    return elements;
}

Pass layer_forward_pass(const PaperRun& run) {
    const double n = micro_tokens(run);
    Pass pass{.attention = attention_seconds(run)};
    double bytes = weight_bytes(run) * forward_elements(run.model);
    const auto linears = linear_dims(run.model);
    for (size_t i = 0; i + 1 < linears.size(); ++i) {
        const double out = double(linears[i].out), in = double(linears[i].in);
        pass.products += product_seconds(run, n, out, in, run.shape.fp8, weight_bytes(run));
        if (run.shape.fp8) bytes += 3 * in;  // bf16 read, FP8 written
    }
    pass.elements = memory_seconds(run, n * bytes);
    return pass;
}

// Both products of a linear layer's backward pass; its weights' gradients are added to in f32.
double backward_products(const PaperRun& run, const LinearDims& linear, bool fp8) {
    const double n = micro_tokens(run), out = double(linear.out), in = double(linear.in);
    return product_seconds(run, n, in, out, fp8, weight_bytes(run)) +
           product_seconds(run, out, in, n, fp8, 2 * 4);
}

Pass layer_backward_pass(const PaperRun& run) {
    const double n = micro_tokens(run);
    Pass pass{.attention = attention_seconds(run) * 2.5 / 0.875};
    double bytes = weight_bytes(run) * backward_elements(run.model);
    const auto linears = linear_dims(run.model);
    for (size_t i = 0; i + 1 < linears.size(); ++i) {
        pass.products += backward_products(run, linears[i], run.shape.fp8);
        if (run.shape.fp8) bytes += 3 * double(linears[i].in) + 4 * double(linears[i].out);  // dout both ways
    }
    pass.elements = memory_seconds(run, n * bytes);
    const Pass again = layer_forward_pass(run);
    if (run.shape.recompute == Recompute::block) return pass + again;
    if (run.shape.recompute == Recompute::mlp) pass.elements += again.elements;
    return pass;
}

// The head and the loss: forward and backward stand together, as the logits are never kept.
Pass head_pass(const PaperRun& run) {
    const LinearDims head = linear_dims(run.model).back();
    const double n = micro_tokens(run), out = double(head.out), in = double(head.in);
    return {.products = product_seconds(run, n, out, in, false, weight_bytes(run)) +
                        backward_products(run, head, false),
            .elements = memory_seconds(run, weight_bytes(run) * n * 2 * out)};
}

double optimizer_seconds(const PaperRun& run) {
    const ParamTable table(run.model);
    const double share = run.zero > 0 ? 1.0 / double(run.num_gpus) : 1;
    // The gradient twice (its norm, the update), master and moments read and written, the bf16 copy written.
    const double bytes = 2 * 4 + 3 * 8 + (run.shape.dtype == DType::bf16 ? 2 : 0);
    // Muon's five iterations of X X^T, its square and their product with X; tensor cores compute half of what
    // is symmetric.
    const double halves = run.shape.dtype == DType::bf16 ? 1 : 2;
    double flops = 0;
    for (const ParamInfo& row : table.rows()) {
        if (!run.muon || !row.muon) continue;
        const double blocks = double(row.muon_blocks), rows = double(row.rows) / blocks,
                     cols = double(row.cols);
        const double small = std::min(rows, cols), large = std::max(rows, cols);
        flops += blocks * 5 * ((2 + halves) * small * small * large + halves * small * small * small);
    }
    const double tflops = run.shape.dtype == DType::bf16 ? run.gpu.measured_bf16 : run.gpu.measured_fp32;
    return share * (memory_seconds(run, bytes * num_params(run)) + flops / (tflops * 1e12 * kSustained));
}

// ---- memory of one rank ----

int64_t share_of(int64_t bytes, int64_t ranks) { return (bytes + ranks - 1) / ranks; }

// From which stage on each rank has its part only of what a line of the plan names; 4: never.
int sharded_from(const std::string& name) {
    if (name == "master weights" || name == "first moments" || name == "second moments") return 1;
    if (name.starts_with("gradients")) return 2;
    if (name.starts_with("parameters")) return 3;
    return 4;
}

// The most that is whole at a time of what is sharded: one layer in use and the next on its way, or the
// embedding.
int64_t whole_params(const ParamTable& table) {
    int64_t layer = 0, other = 0;
    for (const ParamInfo& row : table.rows()) {
        if (row.layer == 0) layer += row.size();
        if (row.layer < 0) other = std::max(other, row.size());
    }
    return std::max(2 * layer, layer + other);
}

}  // namespace

Gpu gpu_named(const std::string& name) {
    std::vector<std::string> names;
    for (const Gpu& gpu : kGpus) {
        if (name == gpu.name) return gpu;
        names.push_back(gpu.name);
    }
    std::string list;
    for (const std::string& known : names) list += (list.empty() ? "" : ", ") + known;
    const std::string nearest = nearest_name(name, names);
    fail_input({.what = "no datasheet of this GPU is here",
                .where = "--gpu",
                .expected = list,
                .actual = name,
                .hint = nearest.empty() ? "" : "did you mean " + nearest + "?"});
}

MemoryPlan paper_memory(const PaperRun& run) {
    const ParamTable table(run.model);
    RunShape shape = run.shape;
    shape.device = Device::simt;  // the kernels of a GPU, whether or not one is here
    shape.math = shape.dtype == DType::bf16 ? MatmulMath::bf16 : MatmulMath::f32;
    MemoryPlan whole, rank;
    Transformer::plan(whole, run.model, shape);
    Optimizer::plan(whole, table, {.muon = run.muon}, shape.dtype, shape.math, shape.device);
    for (const MemoryPlan::Line& line : whole.lines) {
        const int stage = sharded_from(line.name);
        const bool part = run.zero >= stage && run.num_gpus > 1;
        rank.add(part ? cat({line.name, ", 1/", run.num_gpus}) : line.name,
                 part ? share_of(line.bytes, run.num_gpus) : line.bytes);
    }
    rank.add("library workspace", kLibraryBytes);
    if (run.num_gpus > 1 && run.zero >= 2)
        rank.add("gradients not yet sent (f32)", whole_params(table) * dtype_bytes(DType::f32));
    if (run.num_gpus > 1 && run.zero >= 3)
        rank.add("gathered weights", whole_params(table) * dtype_bytes(shape.dtype));
    return rank;
}

WireBytes wire_bytes(const PaperRun& run) {
    const double others = double(run.num_gpus - 1) / double(run.num_gpus), m = double(run.micro_batches);
    const double gradients = 4 * num_params(run) * others;
    const double weights = weight_bytes(run) * num_params(run) * others;
    switch (run.zero) {
        case 0: return {2 * gradients, 0};
        case 1: return {gradients, weights};
        case 2: return {m * gradients, weights};
        default: return {m * gradients, m * 2 * weights};
    }
}

double collective_seconds(const PaperRun& run, double bytes) {
    if (run.num_gpus == 1) return 0;
    const Network& net = run.network;
    const double links = (net.intra_gbs > 0 ? net.intra_gbs : run.gpu.link_gbs) * 1e9 * kLinkShare;
    const double ranks = double(run.num_gpus), in_node = double(std::min(run.num_gpus, net.gpus_per_node));
    const double nodes = std::ceil(ranks / in_node);
    const double inside = in_node > 1 ? (ranks - 1) / ranks * bytes / links : 0;
    const double between = (nodes - 1) / nodes * bytes / in_node / (net.inter_gbs * 1e9 * kLinkShare);
    const double hops = in_node - 1 + std::ceil(std::log2(nodes));
    return std::max(inside, between) + double(run.model.num_layers) * hops * net.latency_us * 1e-6;
}

StepTime step_time(const PaperRun& run) {
    const double layers = double(run.model.num_layers), m = double(run.micro_batches);
    const Pass forward = layers * layer_forward_pass(run);
    const Pass backward = layers * layer_backward_pass(run) + head_pass(run);
    const Pass all = m * (forward + backward);
    StepTime time{.products = all.products,
                  .attention = all.attention,
                  .elements = all.elements,
                  .optimizer = optimizer_seconds(run)};
    if (run.num_gpus == 1) return time;

    const double reduce = collective_seconds(run, 4 * num_params(run));
    const double gather = collective_seconds(run, weight_bytes(run) * num_params(run));
    const auto exposed = [&](double seconds, const Pass& window) {
        return std::max(seconds / layers, seconds - window.total());
    };
    switch (run.zero) {
        case 0: time.network = exposed(2 * reduce, backward); break;
        case 1: time.network = exposed(reduce, backward) + exposed(gather, forward); break;
        case 2: time.network = m * exposed(reduce, backward) + exposed(gather, forward); break;
        default: time.network = m * (exposed(gather, forward) + exposed(gather + reduce, backward));
    }
    return time;
}

PaperRun weak_scaled(PaperRun run, int64_t num_gpus) {
    run.num_gpus = num_gpus;
    return run;
}

std::optional<PaperRun> strong_scaled(PaperRun run, int64_t num_gpus) {
    const int64_t rows_per_step = run.num_gpus * run.micro_batches * run.shape.num_rows;
    if (rows_per_step % num_gpus != 0) return {};
    const int64_t rows = rows_per_step / num_gpus;
    run.num_gpus = num_gpus;
    run.shape.num_rows = std::min(run.shape.num_rows, rows);
    while (rows % run.shape.num_rows != 0) --run.shape.num_rows;
    run.micro_batches = rows / run.shape.num_rows;
    return run;
}

double tokens_per_second(const PaperRun& run) { return run.tokens_per_step() / step_time(run).total(); }

double paper_mfu(const PaperRun& run) {
    return flops_per_token(run.model, run.shape.seq_len) * tokens_per_second(run) /
           (double(run.num_gpus) * run.gpu.bf16_tflops * 1e12);
}
