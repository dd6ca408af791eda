// The whole model: memory, checks of the batch, and the order of layers forward and backward.
#include "model/transformer.h"

#include <algorithm>

#include "core/error.h"
#include "core/threads.h"
#include "kernels/cast.h"
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/matmul_scratch.h"
#include "kernels/rope.h"
#include "model/layer.h"

namespace {
void check_shape(const ModelConfig& config, const RunShape& shape) {
    check_config(config, "model configuration");
    CHECK(shape.num_rows > 0 && shape.seq_len > 0, cat({"B=", shape.num_rows, " T=", shape.seq_len}));
    CHECK(shape.dtype == DType::f32 || shape.dtype == DType::bf16, dtype_name(shape.dtype));
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

int64_t scratch_bytes(const ModelConfig& config, const RunShape& shape) {
    Arena arena;
    layout_scratch(arena, config, shape, shape.num_rows * shape.seq_len);
    return arena.bytes();
}

Tensor tensor_of_ids(const std::vector<int32_t>& ids) {
    return tensor_of(const_cast<int32_t*>(ids.data()), static_cast<int64_t>(ids.size()));
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
    Buffer params, grads, activations, scratch;
    std::vector<LayerTensors> p, g;  // parameters and gradients of each layer
    ForwardActivations forward;      // views for num_tokens tokens
    BackwardScratch backward;
    int64_t num_tokens = 0;

    State(const ModelConfig& c, const RunShape& s)
        : config(c),
          shape(s),
          table(c),
          params(params_bytes(table, s.dtype)),
          grads(grads_bytes(table, s)),
          activations(activation_bytes(c, s)),
          scratch(scratch_bytes(c, s)) {
        for (int64_t l = 0; l < c.num_layers; ++l) {
            p.push_back(layer_tensors(table, params.data(), s.dtype, l));
            if (s.backward) g.push_back(layer_tensors(table, grads.data(), DType::f32, l));
        }
        view_for(s.num_rows * s.seq_len);
        if (c.position == Position::rope) {
            rope_table(forward.rope, c.rope_theta, c.rope_scaling, c.max_position, s.seq_len);
        }
    }

    Tensor param(Slot slot) const { return table.slot(params.data(), shape.dtype, slot); }
    Tensor grad(Slot slot) const { return table.slot(grads.data(), DType::f32, slot); }
    Slot head() const { return config.tied_head ? Slot::wte : Slot::head_w; }

    // Smaller micro-batches use the front of the same memory.
    void view_for(int64_t n) {
        if (n == num_tokens) return;
        num_tokens = n;
        Arena forward_arena(activations.data()), scratch_arena(scratch.data());
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

    LayerRun layer_run(const Batch& batch, bool keep) const {
        return {.config = config,
                .math = shape.math,
                .rope = forward.rope,
                .positions = tensor_of_ids(batch.positions),
                .cu_seqlens = tensor_of_ids(batch.cu_seqlens),
                .keep_for_backward = keep};
    }

    // Fills forward.hidden. Without `keep` all layers use the first one's memory, which then stays in cache.
    void run_forward(const Batch& batch, bool keep) {
        check_batch(batch);
        view_for(batch.num_rows * batch.seq_len);
        const LayerRun run = layer_run(batch, keep);
        Tensor x = forward.stream[0];
        embedding_forward(x, param(Slot::wte), param(Slot::wpe), tensor_of_ids(batch.tokens), run.positions);
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
                case Slot::final_norm_b: fill_zero(table.tensor(grads.data(), DType::f32, row)); break;
                default: break;
            }
        }
    }

    void run_backward(const Batch& batch, float dloss_scale, bool accumulate) {
        const LayerRun run = layer_run(batch, true);
        const BackwardScratch& s = backward;
        if (!accumulate) zero_accumulated_grads();
        cross_entropy(forward.losses, s.dnorm, grad(head()), forward.hidden, param(head()),
                      tensor_of_ids(batch.targets), dloss_scale, accumulate, shape.math, s.workspace);
        norm_backward(s.dstream, grad(Slot::final_norm_w), grad(Slot::final_norm_b), s.dnorm,
                      forward.stream.back(), param(Slot::final_norm_w), forward.mean, forward.rstd, false);
        for (size_t l = p.size(); l-- > 0;) {
            layer_backward(run, p[l], g[l], forward.layers[l], s, forward.stream[l], static_cast<int64_t>(l),
                           shape.recompute, accumulate);
        }
        embedding_backward(grad(Slot::wte), grad(Slot::wpe), s.dstream, tensor_of_ids(batch.tokens),
                           run.positions);
    }

    double sum_losses() const {
        const float* losses = forward.losses.as<float>();
        double sum = 0;
        for (int64_t n = 0; n < num_tokens; ++n) sum += losses[n];
        return sum;
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
    plan.add("matmul scratch", matmul_scratch_bytes(num_threads()));
    plan.add("attention scratch", num_threads() * kAttentionWorkerBytes);
}

const ModelConfig& Transformer::config() const { return state_->config; }
const RunShape& Transformer::shape() const { return state_->shape; }
const ParamTable& Transformer::table() const { return state_->table; }
void* Transformer::params() const { return state_->params.data(); }
float* Transformer::grads() const { return static_cast<float*>(state_->grads.data()); }
int64_t Transformer::allocated_bytes() const {
    const State& s = *state_;
    return s.params.bytes() + s.grads.bytes() + s.activations.bytes() + s.scratch.bytes();
}

double Transformer::forward_backward(const Batch& batch, float dloss_scale, bool accumulate) {
    CHECK(state_->shape.backward, "this transformer was made for evaluation only");
    state_->run_forward(batch, true);
    state_->run_backward(batch, dloss_scale, accumulate);
    return state_->sum_losses();
}

double Transformer::forward_loss(const Batch& batch, Tensor losses) {
    State& s = *state_;
    s.run_forward(batch, false);
    cross_entropy(s.forward.losses, {}, {}, s.forward.hidden, s.param(s.head()), tensor_of_ids(batch.targets),
                  0, false, s.shape.math, s.backward.workspace);
    if (!losses.absent()) cast(losses, s.forward.losses);
    return s.sum_losses();
}

void Transformer::forward_logits(const Batch& batch, Tensor logits) {
    State& s = *state_;
    s.run_forward(batch, false);
    matmul_forward(logits, s.forward.hidden, s.param(s.head()), {}, s.shape.math);
}
