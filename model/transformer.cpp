// The whole model: memory, checks of the batch, and the order of layers forward and backward.
#include "model/transformer.h"

#include <algorithm>

#include "core/device.h"
#include "core/error.h"
#include "kernels/cast.h"
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/loss_sum.h"
#include "kernels/rope.h"
#include "model/batch_tensors.h"
#include "model/layer.h"
#include "model/transformer_memory.h"

namespace {
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
    std::vector<Tensor> weight_units, grad_units;  // where each unit's piece of the arenas is at present
    std::vector<LayerTensors> p, g;                // parameters and gradients of each layer
    WeightSource* source = nullptr;
    GradientSink* sink = nullptr;  // during a pass
    bool idle = false;             // likewise: nothing is computed
    ForwardActivations forward;    // views for num_tokens tokens
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
          params(arena_bytes(table, s).params, s.device),
          grads(arena_bytes(table, s).grads, s.device),
          activations(activation_bytes(c, s), s.device),
          scratch(scratch_bytes(c, s), s.device),
          fp8_memory(fp8_bytes(c, s), s.device),
          batch(s.num_rows * s.seq_len, s.device),
          total_loss(dtype_bytes(DType::f64), s.device) {
        weight_units.resize(static_cast<size_t>(table.num_units()));
        grad_units.resize(static_cast<size_t>(table.num_units()));
        p.resize(static_cast<size_t>(c.num_layers));
        g.resize(static_cast<size_t>(s.backward ? c.num_layers : 0));
        place_all();
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
    Tensor param_arena() const { return shape.has_params ? params.tensor(shape.dtype) : Tensor{}; }
    Tensor grad_arena() const {
        return shape.backward && shape.has_grads ? grads.tensor(DType::f32) : Tensor{};
    }
    // Of units 0 and L + 1.
    Tensor in_unit(const std::vector<Tensor>& units, Slot slot) const {
        const bool front = slot == Slot::wte || slot == Slot::wpe;
        const int64_t unit = front ? 0 : table.num_units() - 1;
        return table.slot(units[static_cast<size_t>(unit)], slot, -1, table.unit_begin(unit));
    }
    Tensor param(Slot slot) const { return in_unit(weight_units, slot); }
    Tensor grad(Slot slot) const { return in_unit(grad_units, slot); }
    Slot head() const { return config.tied_head ? Slot::wte : Slot::head_w; }
    int64_t last_unit() const { return table.num_units() - 1; }

    // The unit's piece of an arena lies at `memory` now.
    void place(std::vector<Tensor>& units, std::vector<LayerTensors>& layers, int64_t unit, Tensor memory) {
        Tensor& present = units[static_cast<size_t>(unit)];
        if (present.data == memory.data) return;
        CHECK(memory.size() == table.unit_size(unit), cat({"unit ", unit, ": ", shape_text(memory)}));
        present = memory;
        if (unit == 0 || unit == last_unit()) return;
        LayerTensors& layer = layers[static_cast<size_t>(unit - 1)];
        const Fp8Linears* const fp8_of_layer = layer.fp8;
        layer = layer_tensors(table, memory, unit - 1, table.unit_begin(unit));
        layer.fp8 = fp8_of_layer;
    }
    // In the arenas, where there are any.
    void place_all() {
        for (int64_t unit = 0; unit < table.num_units(); ++unit) {
            const int64_t begin = table.unit_begin(unit), size = table.unit_size(unit);
            if (shape.has_params) place(weight_units, p, unit, param_arena().rows(begin, size));
            if (!grad_arena().absent()) place(grad_units, g, unit, grad_arena().rows(begin, size));
        }
    }
    void need(int64_t unit, int64_t then) {
        if (source != nullptr) place(weight_units, p, unit, source->weights(unit, then));
    }
    void begin_grads(int64_t unit) {
        if (sink != nullptr) place(grad_units, g, unit, sink->begin(unit));
    }
    void end_grads(int64_t unit) {
        if (sink != nullptr) sink->end(unit);
    }

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
    // new_weights: since the last pass, so FP8 has to make its copies anew.
    void run_forward(bool keep, bool new_weights) {
        const LayerRun run = layer_run(keep);
        Tensor x = forward.stream[0];
        need(0, 1);
        if (!idle) embedding_forward(x, param(Slot::wte), param(Slot::wpe), batch.tokens, run.positions);
        for (size_t l = 0; l < p.size(); ++l) {
            need(static_cast<int64_t>(l) + 1, static_cast<int64_t>(l) + 2);
            if (idle) continue;
            const LayerActivations& a = forward.layers[keep ? l : 0];
            const Tensor y = keep ? forward.stream[l + 1] : x;
            if (run.fp8 != nullptr && new_weights) quantize_weights(run, p[l]);
            layer_forward(run, p[l], a, x, static_cast<int64_t>(l));
            mlp_output(run, p[l], a, y);
            x = y;
        }
        const int64_t then = keep ? last_unit() - 1 : -1;
        need(last_unit(), config.tied_head ? 0 : then);
        if (!idle) {
            norm_forward(forward.hidden, forward.mean, forward.rstd, x, param(Slot::final_norm_w),
                         param(Slot::final_norm_b), config.norm_eps);
        }
        if (config.tied_head) need(0, then);
    }

    // Gradients that kernels only ever add to. All others are set by the first micro-batch: the tied head's
    // by the cross-entropy, before the embedding adds to it.
    void zero_accumulated_grads(int64_t unit) {
        const int64_t begin = table.unit_begin(unit), end = table.unit_begin(unit + 1);
        for (const ParamInfo& row : table.rows()) {
            if (row.offset < begin || row.offset >= end) continue;
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
                case Slot::final_norm_b:
                    fill_zero(table.tensor(grad_units[static_cast<size_t>(unit)], row, begin));
                    break;
                default: break;
            }
        }
    }

    void run_backward(bool accumulate) {
        const LayerRun run = layer_run(true);
        const BackwardScratch& s = backward;
        const auto begin = [&](int64_t unit) {
            begin_grads(unit);
            if (!accumulate && !idle) zero_accumulated_grads(unit);
        };
        begin(last_unit());
        if (config.tied_head) begin(0);
        if (!idle) {
            cross_entropy(forward.losses, s.dnorm, grad(head()), forward.hidden, param(head()), batch.targets,
                          batch.dloss_scale, accumulate, shape.math, s.workspace);
            loss_sum(total_loss.tensor(DType::f64), forward.losses, accumulate);
            norm_backward(s.dstream, grad(Slot::final_norm_w), grad(Slot::final_norm_b), s.dnorm,
                          forward.stream.back(), param(Slot::final_norm_w), forward.mean, forward.rstd, false,
                          dout_absmax(run, p.back(), Linear::proj));
        }
        end_grads(last_unit());
        for (size_t l = p.size(); l-- > 0;) {
            const int64_t unit = static_cast<int64_t>(l) + 1;
            need(unit, unit > 1 ? unit - 1 : -1);
            begin(unit);
            if (!idle) {
                layer_backward(run, p[l], g[l], forward.layers[l], s, forward.stream[l],
                               static_cast<int64_t>(l), shape.recompute, accumulate,
                               l > 0 ? dout_absmax(run, p[l - 1], Linear::proj) : Tensor{});
            }
            end_grads(unit);
        }
        if (!config.tied_head) begin(0);
        if (!idle) {
            embedding_backward(grad(Slot::wte), grad(Slot::wpe), s.dstream, batch.tokens, run.positions);
        }
        end_grads(0);
    }

    void run_idle(bool with_backward) {
        idle = true;
        run_forward(with_backward, false);
        if (with_backward) run_backward(false);
        idle = false;
    }

    void run_step(bool accumulate) {
        if (uses_fp8()) fill_zero(fp8.absmax);
        run_forward(true, !accumulate);  // weights change between steps only
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
    check_run_shape(config, shape);
    state_ = std::make_unique<State>(config, shape);
}
Transformer::~Transformer() = default;

const ModelConfig& Transformer::config() const { return state_->config; }
const RunShape& Transformer::shape() const { return state_->shape; }
const ParamTable& Transformer::table() const { return state_->table; }
Tensor Transformer::params() const { return state_->param_arena(); }
Tensor Transformer::grads() const { return state_->grad_arena(); }
void Transformer::set_weights(WeightSource* source) {
    CHECK(source == nullptr || state_->shape.device == Device::cpu, "a source of weights on a device");
    state_->source = source;
    state_->place_all();
}
int64_t Transformer::allocated_bytes() const {
    const State& s = *state_;
    return s.params.bytes() + s.grads.bytes() + s.activations.bytes() + s.scratch.bytes() +
           s.fp8_memory.bytes();
}

void Transformer::forward_backward(const Batch& batch, float dloss_scale, bool accumulate) {
    State& s = *state_;
    CHECK(s.shape.backward, "this transformer was made for evaluation only");
    s.sink = nullptr;  // of a pass that has failed
    s.load(batch, dloss_scale);
    if (s.shape.device == Device::cpu) {
        s.run_step(accumulate);
    } else {
        s.run_step_as_graph(accumulate);
    }
}

void Transformer::forward_backward(const Batch& batch, float dloss_scale, GradientSink& sink) {
    State& s = *state_;
    CHECK(s.shape.backward && s.shape.device == Device::cpu, device_name(s.shape.device));
    s.load(batch, dloss_scale);
    s.sink = &sink;
    s.run_step(false);
    s.sink = nullptr;
    s.place_all();
}

void Transformer::idle_step(GradientSink& sink) {
    state_->sink = &sink;
    state_->run_idle(true);
    state_->sink = nullptr;
    state_->place_all();
}
void Transformer::idle_forward() { state_->run_idle(false); }

Tensor Transformer::summed_loss() const { return state_->total_loss.tensor(DType::f64); }
double Transformer::total_loss() const { return state_->read_loss_sum(); }

double Transformer::forward_loss(const Batch& batch, Tensor losses) {
    State& s = *state_;
    s.load(batch, 0);
    s.run_forward(false, false);
    cross_entropy(s.forward.losses, {}, {}, s.forward.hidden, s.param(s.head()), s.batch.targets, {}, false,
                  s.shape.math, s.backward.workspace);
    loss_sum(s.total_loss.tensor(DType::f64), s.forward.losses, false);
    if (!losses.absent()) copy_tensor(losses, s.forward.losses);
    return s.read_loss_sum();
}

void Transformer::forward_logits(const Batch& batch, Tensor logits) {
    State& s = *state_;
    s.load(batch, 0);
    s.run_forward(false, false);
    Buffer memory(logits.bytes(), s.shape.device);
    const Tensor result = memory.tensor(DType::f32).view(logits.dims[0], logits.dims[1]);
    matmul_forward(result, s.forward.hidden, s.param(s.head()), {}, s.shape.math);
    copy_tensor(logits, result);
}
