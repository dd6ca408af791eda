// The whole model: memory, checks of the batch, and the order of layers forward and backward.
#include "model/transformer.h"

#include <algorithm>

#include "core/device.h"
#include "core/error.h"
#include "core/threads.h"
#include "kernels/cast.h"
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/loss_sum.h"
#include "kernels/matmul_scratch.h"
#include "kernels/rope.h"
#include "model/batch_tensors.h"
#include "model/layer.h"

namespace {
void check_shape(const ModelConfig& config, const RunShape& shape) {
    check_config(config, "model configuration");
    CHECK(shape.num_rows > 0 && shape.seq_len > 0, cat({"B=", shape.num_rows, " T=", shape.seq_len}));
    CHECK(shape.dtype == DType::f32 || shape.dtype == DType::bf16, dtype_name(shape.dtype));
    CHECK(!shape.fp8 || shape.dtype == DType::bf16, dtype_name(shape.dtype));
    constexpr int kOldestWithFp8 = 89;
    if (shape.fp8 && shape.device != Device::cpu) {
        const DeviceInfo gpu = device_info(shape.device);
        if (gpu.capability < kOldestWithFp8) {
            fail_input({.what = "this GPU has no FP8 arithmetic",
                        .where = gpu.name,
                        .expected = "compute capability 8.9 or later for --dtype fp8",
                        .actual = cat({gpu.capability / 10, ".", gpu.capability % 10}),
                        .hint = "--dtype bf16"});
        }
    }
    if (shape.seq_len > config.max_position) {
        fail_input({.what = "sequences are longer than the model's positions reach",
                    .expected = cat({"at most ", config.max_position, " tokens"}),
                    .actual = cat({shape.seq_len}),
                    .hint = cat({"--seq-len ", config.max_position})});
    }
    // In double, before any product can overflow: tokens are counted in 32 bits, bytes in 64.
    const double tokens = double(shape.num_rows) * double(shape.seq_len);
    const double layer_width =
        8 * double(config.channels) + 4 * double(config.qkv_dim()) + 4 * double(config.mlp_dim);
    if (tokens > double(INT32_MAX) || tokens * layer_width * double(config.num_layers + 1) > 0x1p58) {
        fail_input({.what = "the micro-batch is larger than any memory",
                    .expected = cat({"at most ", INT32_MAX, " tokens, and far fewer for a large model"}),
                    .actual = cat({tokens, " tokens"}),
                    .hint = "a smaller --micro-batch or --seq-len"});
    }
}

// What attention's tiles take of a thread, at most: heads of 256, the largest (kernels/attention_forward.h).
constexpr int64_t kAttentionWorkerBytes = 640 << 10;

int64_t params_bytes(const ParamTable& table, DType dtype) { return table.arena_size() * dtype_bytes(dtype); }

int64_t grads_bytes(const ParamTable& table, const RunShape& shape) {
    return shape.backward ? table.arena_size() * dtype_bytes(DType::f32) : 0;
}

int64_t activation_bytes(const ModelConfig& config, const RunShape& shape) {
    Arena arena;
    layout_forward(arena, config, shape, shape.num_rows * shape.seq_len);
    return arena.bytes();
}

int64_t fp8_bytes(const ModelConfig& config, const RunShape& shape) {
    Arena arena;
    if (shape.fp8 && shape.backward) layout_fp8(arena, config, shape.num_rows * shape.seq_len);
    return arena.bytes();
}

int64_t scratch_bytes(const ModelConfig& config, const RunShape& shape) {
    Arena arena;
    layout_scratch(arena, config, shape, shape.num_rows * shape.seq_len);
    return arena.bytes();
}

void check_ids(const std::vector<int32_t>& ids, int32_t min, int64_t end, const char* what,
               const char* hint) {
    for (size_t i = 0; i < ids.size(); ++i) {
        if (ids[i] >= min && ids[i] < end) continue;
        fail_input({.what = what,
                    .where = cat({"index ", i, " of the micro-batch"}),
                    .expected = cat({min, " to ", end - 1}),
                    .actual = cat({ids[i]}),
                    .hint = hint});
    }
}
}  // namespace

struct Transformer::State {
    ModelConfig config;
    RunShape shape;
    ParamTable table;
    Buffer params, grads, activations, scratch, fp8_memory;
    std::vector<LayerTensors> p, g;  // parameters and gradients of each layer
    ForwardActivations forward;      // views for num_tokens tokens
    BackwardScratch backward;
    Fp8Memory fp8;
    BatchTensors batch;
    Buffer total_loss;  // one f64
    int64_t num_tokens = 0;
    // Graphs of forward and backward, for a number of tokens and whether gradients are added to. The first
    // micro-batch of a kind runs as it is: libraries then choose their algorithms, and memory is allocated.
    struct Step {
        int64_t num_tokens;
        bool accumulate;
        DeviceGraph graph;
    };
    std::vector<Step> steps;

    State(const ModelConfig& c, const RunShape& s)
        : config(c),
          shape(s),
          table(c),
          params(params_bytes(table, s.dtype), s.device),
          grads(grads_bytes(table, s), s.device),
          activations(activation_bytes(c, s), s.device),
          scratch(scratch_bytes(c, s), s.device),
          fp8_memory(fp8_bytes(c, s), s.device),
          batch(s.num_rows * s.seq_len, s.device),
          total_loss(dtype_bytes(DType::f64), s.device) {
        for (int64_t l = 0; l < c.num_layers; ++l) {
            p.push_back(layer_tensors(table, param_arena(), l));
            if (s.backward) g.push_back(layer_tensors(table, grad_arena(), l));
        }
        view_for(s.num_rows * s.seq_len);
        if (uses_fp8()) {
            Arena arena(fp8_memory);
            fp8 = layout_fp8(arena, c, s.num_rows * s.seq_len);
            for (size_t l = 0; l < p.size(); ++l) p[l].fp8 = &fp8.layers[l];
        }
        if (s.device != Device::cpu) reserve_workspaces(s.device, workspace_sizes(c, s));
        if (c.position == Position::rope) {
            Buffer host(forward.rope.bytes());
            const Tensor table_on_host =
                host.tensor(DType::f32).view(forward.rope.dims[0], forward.rope.dims[1]);
            rope_table(table_on_host, c.rope_theta, c.rope_scaling, c.max_position, s.seq_len);
            copy_tensor(forward.rope, table_on_host);
        }
    }

    bool uses_fp8() const { return shape.fp8 && shape.backward; }
    Tensor param_arena() const { return params.tensor(shape.dtype); }
    Tensor grad_arena() const { return shape.backward ? grads.tensor(DType::f32) : Tensor{}; }
    Tensor param(Slot slot) const { return table.slot(param_arena(), slot); }
    Tensor grad(Slot slot) const { return table.slot(grad_arena(), slot); }
    Slot head() const { return config.tied_head ? Slot::wte : Slot::head_w; }

    // Smaller micro-batches use the front of the same memory.
    void view_for(int64_t n) {
        if (n == num_tokens) return;
        num_tokens = n;
        Arena forward_arena(activations), scratch_arena(scratch);
        forward = layout_forward(forward_arena, config, shape, n);
        backward = layout_scratch(scratch_arena, config, shape, n);
        CHECK(forward_arena.bytes() <= activations.bytes() && scratch_arena.bytes() <= scratch.bytes(),
              cat({"tokens=", n}));
    }

    void check_batch(const Batch& batch) const {
        const int64_t n = batch.num_rows * batch.seq_len, size = static_cast<int64_t>(batch.tokens.size());
        const int64_t max_tokens = shape.num_rows * shape.seq_len;
        CHECK(n > 0 && n <= max_tokens && size == n,
              cat({"tokens=", size, " N=", n, " at most ", max_tokens}));
        CHECK(batch.targets.size() == batch.tokens.size() && batch.positions.size() == batch.tokens.size(),
              cat({"targets=", batch.targets.size(), " positions=", batch.positions.size(), " N=", n}));
        const std::vector<int32_t>& bounds = batch.cu_seqlens;
        CHECK(bounds.size() >= 2 && bounds.front() == 0 && bounds.back() == n,
              cat({"bounds=", bounds.size()}));
        for (size_t i = 1; i < bounds.size(); ++i) {
            CHECK(bounds[i] > bounds[i - 1], cat({"bound ", i, " is ", bounds[i], " after ", bounds[i - 1]}));
            if (bounds[i] - bounds[i - 1] > shape.seq_len) {
                fail_input({.what = "a document piece is longer than the sequence length of this run",
                            .where = cat({"piece ", i - 1, " of the micro-batch"}),
                            .expected = cat({"at most ", shape.seq_len, " tokens"}),
                            .actual = cat({bounds[i] - bounds[i - 1]})});
            }
        }
        const char* kOtherTokenizer = "the shards were made with another tokenizer than the model's";
        check_ids(batch.tokens, 0, config.vocab_size, "token id is outside the vocabulary", kOtherTokenizer);
        check_ids(batch.targets, -1, config.vocab_size, "target id is outside the vocabulary",
                  kOtherTokenizer);
        check_ids(batch.positions, 0, shape.seq_len, "position is outside the sequence length of this run",
                  "");
    }

    LayerRun layer_run(bool keep) const {
        return {.config = config,
                .math = shape.math,
                .rope = forward.rope,
                .positions = batch.positions,
                .cu_seqlens = batch.cu_seqlens,
                .keep_for_backward = keep,
                .fp8 = keep && uses_fp8() ? &fp8 : nullptr};  // evaluation is in bf16
    }

    // Brings a micro-batch to where the kernels read it. It must stay until they have run.
    void load(const Batch& next, float dloss_scale) {
        check_batch(next);
        view_for(next.num_rows * next.seq_len);
        batch.load(next, dloss_scale);
    }

    // Fills forward.hidden. Without `keep` all layers use the first one's memory, which then stays in cache.
    void run_forward(bool keep) {
        const LayerRun run = layer_run(keep);
        Tensor x = forward.stream[0];
        embedding_forward(x, param(Slot::wte), param(Slot::wpe), batch.tokens, run.positions);
        for (size_t l = 0; l < p.size(); ++l) {
            const LayerActivations& a = forward.layers[keep ? l : 0];
            const Tensor y = keep ? forward.stream[l + 1] : x;
            layer_forward(run, p[l], a, x, static_cast<int64_t>(l));
            mlp_output(run, p[l], a, y);
            x = y;
        }
        norm_forward(forward.hidden, forward.mean, forward.rstd, x, param(Slot::final_norm_w),
                     param(Slot::final_norm_b), config.norm_eps);
    }

    // Gradients that kernels only ever add to. All others are set by the first micro-batch: the tied head's
    // by the cross-entropy, before the embedding adds to it.
    void zero_accumulated_grads() {
        for (const ParamInfo& row : table.rows()) {
            switch (row.slot) {
                case Slot::wte:
                    if (config.tied_head) break;
                    [[fallthrough]];
                case Slot::wpe:
                case Slot::norm1_w:
                case Slot::norm1_b:
                case Slot::q_norm:
                case Slot::k_norm:
                case Slot::norm2_w:
                case Slot::norm2_b:
                case Slot::final_norm_w:
                case Slot::final_norm_b: fill_zero(table.tensor(grad_arena(), row)); break;
                default: break;
            }
        }
    }

    void run_backward(bool accumulate) {
        const LayerRun run = layer_run(true);
        const BackwardScratch& s = backward;
        if (!accumulate) zero_accumulated_grads();
        cross_entropy(forward.losses, s.dnorm, grad(head()), forward.hidden, param(head()), batch.targets,
                      batch.dloss_scale, accumulate, shape.math, s.workspace);
        loss_sum(total_loss.tensor(DType::f64), forward.losses, accumulate);
        norm_backward(s.dstream, grad(Slot::final_norm_w), grad(Slot::final_norm_b), s.dnorm,
                      forward.stream.back(), param(Slot::final_norm_w), forward.mean, forward.rstd, false,
                      dout_absmax(run, p.back(), Linear::proj));
        for (size_t l = p.size(); l-- > 0;) {
            layer_backward(run, p[l], g[l], forward.layers[l], s, forward.stream[l], static_cast<int64_t>(l),
                           shape.recompute, accumulate,
                           l > 0 ? dout_absmax(run, p[l - 1], Linear::proj) : Tensor{});
        }
        embedding_backward(grad(Slot::wte), grad(Slot::wpe), s.dstream, batch.tokens, run.positions);
    }

    void run_step(bool accumulate) {
        // Weights change between steps only: the first micro-batch of one quantises them.
        if (uses_fp8() && !accumulate) {
            for (const LayerTensors& layer : p) quantize_weights(layer_run(true), layer);
        }
        if (uses_fp8()) fill_zero(fp8.absmax);
        run_forward(true);
        run_backward(accumulate);
    }

    void run_step_as_graph(bool accumulate) {
        for (Step& step : steps) {
            if (step.num_tokens != num_tokens || step.accumulate != accumulate) continue;
            if (!step.graph.recorded()) step.graph.record([&] { run_step(accumulate); });
            return step.graph.launch();
        }
        steps.push_back({num_tokens, accumulate, DeviceGraph(shape.device)});
        run_step(accumulate);
    }

    double read_loss_sum() const {
        const HostCopy sum(total_loss.tensor(DType::f64));
        return *sum.tensor().as<double>();
    }
};

Transformer::Transformer(const ModelConfig& config, const RunShape& shape) {
    check_shape(config, shape);
    state_ = std::make_unique<State>(config, shape);
}
Transformer::~Transformer() = default;

void Transformer::plan(MemoryPlan& plan, const ModelConfig& config, const RunShape& shape) {
    check_shape(config, shape);
    const ParamTable table(config);
    plan.add(cat({"parameters (", dtype_name(shape.dtype), ")"}), params_bytes(table, shape.dtype));
    if (shape.backward) plan.add("gradients (f32)", grads_bytes(table, shape));
    plan.add("activations", activation_bytes(config, shape));
    plan.add("scratch", scratch_bytes(config, shape));
    if (shape.fp8 && shape.backward) plan.add("FP8 weights and operands", fp8_bytes(config, shape));
    if (shape.device != Device::cpu) {
        plan.add("batch", BatchTensors::device_bytes(shape.num_rows * shape.seq_len));
        plan.add("device workspaces", workspace_sizes(config, shape).total());
        return;
    }
    plan.add("matmul scratch", matmul_scratch_bytes(num_threads()));
    plan.add("attention scratch", num_threads() * kAttentionWorkerBytes);
}

const ModelConfig& Transformer::config() const { return state_->config; }
const RunShape& Transformer::shape() const { return state_->shape; }
const ParamTable& Transformer::table() const { return state_->table; }
Tensor Transformer::params() const { return state_->param_arena(); }
Tensor Transformer::grads() const { return state_->grad_arena(); }
int64_t Transformer::allocated_bytes() const {
    const State& s = *state_;
    return s.params.bytes() + s.grads.bytes() + s.activations.bytes() + s.scratch.bytes() +
           s.fp8_memory.bytes();
}

void Transformer::forward_backward(const Batch& batch, float dloss_scale, bool accumulate) {
    State& s = *state_;
    CHECK(s.shape.backward, "this transformer was made for evaluation only");
    s.load(batch, dloss_scale);
    if (s.shape.device == Device::cpu) {
        s.run_step(accumulate);
    } else {
        s.run_step_as_graph(accumulate);
    }
}

Tensor Transformer::summed_loss() const { return state_->total_loss.tensor(DType::f64); }
double Transformer::total_loss() const { return state_->read_loss_sum(); }

double Transformer::forward_loss(const Batch& batch, Tensor losses) {
    State& s = *state_;
    s.load(batch, 0);
    s.run_forward(false);
    cross_entropy(s.forward.losses, {}, {}, s.forward.hidden, s.param(s.head()), s.batch.targets, {}, false,
                  s.shape.math, s.backward.workspace);
    loss_sum(s.total_loss.tensor(DType::f64), s.forward.losses, false);
    if (!losses.absent()) copy_tensor(losses, s.forward.losses);
    return s.read_loss_sum();
}

void Transformer::forward_logits(const Batch& batch, Tensor logits) {
    State& s = *state_;
    s.load(batch, 0);
    s.run_forward(false);
    Buffer memory(logits.bytes(), s.shape.device);
    const Tensor result = memory.tensor(DType::f32).view(logits.dims[0], logits.dims[1]);
    matmul_forward(result, s.forward.hidden, s.param(s.head()), {}, s.shape.math);
    copy_tensor(logits, result);
}
