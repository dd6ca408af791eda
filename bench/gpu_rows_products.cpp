// Rows of ops that are matrix products at heart, and of what belongs to them. Bytes and FLOPs are counted by
// hand from each op's contract.
#include "bench/gpu_row_list.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/kv_cache.h"
#include "kernels/loss_sum.h"
#include "kernels/matmul_plan.h"
#include "kernels/muon.h"

namespace {

void add_linear(Rows& rows, const char* name, int64_t n, int64_t outputs, int64_t inputs) {
    const DType dtype = rows.dtype();
    const MatmulMath math = rows.math();
    const Sizes sizes = {{"N", n}, {"outputs", outputs}, {"inputs", inputs}};
    const double flops = 2 * product({n, outputs, inputs});
    const double activations = rows.element() * (product({n, outputs}) + product({n, inputs}));
    const double weight = product({outputs, inputs});
    const std::string label = name;
    rows.add("matmul", ("forward " + label).c_str(), sizes, activations + rows.element() * weight, flops,
             [=](GpuTensors& t) -> Run {
                 const Tensor out = t.make(dtype, n, outputs), inp = t.make(dtype, n, inputs);
                 const Tensor w = t.make(dtype, outputs, inputs);
                 return [=] { matmul_forward(out, inp, w, {}, math); };
             });
    rows.add("matmul", ("backward_input " + label).c_str(), sizes, activations + rows.element() * weight,
             flops, [=](GpuTensors& t) -> Run {
                 const Tensor dout = t.make(dtype, n, outputs), dinp = t.make(dtype, n, inputs);
                 const Tensor w = t.make(dtype, outputs, inputs);
                 return [=] { matmul_backward_input(dinp, dout, w, false, {}, math); };
             });
    // Into a gradient that exists: all but a step's first micro-batch.
    rows.add("matmul", ("backward_weight " + label).c_str(), sizes, activations + 8 * weight, flops,
             [=](GpuTensors& t) -> Run {
                 const Tensor dout = t.make(dtype, n, outputs), inp = t.make(dtype, n, inputs);
                 const Tensor dw = t.make(DType::f32, outputs, inputs);
                 return [=] { matmul_backward_weight(dw, {}, dout, inp, true, math); };
             });
}

// What a model with biases and GELU has around its products.
void add_epilogues(Rows& rows, int64_t n, int64_t wide, int64_t channels) {
    const DType dtype = rows.dtype();
    const MatmulMath math = rows.math();
    const double weight = rows.element() * product({wide, channels}),
                 flops = 2 * product({n, wide, channels});
    rows.add("matmul", "forward bias+gelu", {{"N", n}, {"outputs", wide}, {"inputs", channels}},
             weight + rows.element() * (2 * product({n, wide}) + product({n, channels})), flops,
             [=](GpuTensors& t) -> Run {
                 const Tensor out = t.make(dtype, n, wide), pre = t.make(dtype, n, wide);
                 const Tensor inp = t.make(dtype, n, channels), w = t.make(dtype, wide, channels);
                 const Tensor bias = t.make(dtype, wide);
                 return [=] {
                     matmul_forward(out, inp, w, {.bias = bias, .gelu = true, .pre_activation = pre}, math);
                 };
             });
    rows.add("matmul", "forward bias+residual", {{"N", n}, {"outputs", channels}, {"inputs", wide}},
             weight + rows.element() * (product({n, wide}) + 2 * product({n, channels})), flops,
             [=](GpuTensors& t) -> Run {
                 const Tensor out = t.make(dtype, n, channels), residual = t.make(dtype, n, channels);
                 const Tensor inp = t.make(dtype, n, wide), w = t.make(dtype, channels, wide);
                 const Tensor bias = t.make(dtype, channels);
                 return [=] { matmul_forward(out, inp, w, {.bias = bias, .residual = residual}, math); };
             });
    rows.add("matmul", "backward_input gelu", {{"N", n}, {"outputs", channels}, {"inputs", wide}},
             weight + rows.element() * (2 * product({n, wide}) + product({n, channels})), flops,
             [=](GpuTensors& t) -> Run {
                 const Tensor dinp = t.make(dtype, n, wide), pre = t.make(dtype, n, wide);
                 const Tensor dout = t.make(dtype, n, channels), w = t.make(dtype, channels, wide);
                 return [=] { matmul_backward_input(dinp, dout, w, false, pre, math); };
             });
    rows.add("matmul", "backward_weight bias", {{"N", n}, {"outputs", wide}, {"inputs", channels}},
             8 * product({wide, channels}) + rows.element() * (product({n, wide}) + product({n, channels})),
             flops, [=](GpuTensors& t) -> Run {
                 const Tensor dout = t.make(dtype, n, wide), inp = t.make(dtype, n, channels);
                 const Tensor dw = t.make(DType::f32, wide, channels), db = t.make(DType::f32, wide);
                 return [=] { matmul_backward_weight(dw, db, dout, inp, true, math); };
             });
}

// Our own kernels by their tiles, the library kept out. On GPUs other than Hopper its tiles are large ones.
void add_tiles(Rows& rows, int64_t n, int64_t outputs, int64_t inputs) {
    const std::pair<const char*, MatmulTile> tiles[] = {{"large", MatmulTile::large},
                                                        {"hopper_square", MatmulTile::hopper_square},
                                                        {"hopper_wide", MatmulTile::hopper_wide}};
    for (const auto& [name, tile] : tiles) {
        rows.add("matmul", ("forward mlp_up, " + std::string(name) + " tiles").c_str(),
                 {{"N", n}, {"outputs", outputs}, {"inputs", inputs}},
                 2 * (product({n, outputs}) + product({n, inputs}) + product({outputs, inputs})),
                 2 * product({n, outputs, inputs}), [=, tile = tile](GpuTensors& t) -> Run {
                     const Tensor out = t.make(DType::bf16, n, outputs), inp = t.make(DType::bf16, n, inputs);
                     const Tensor w = t.make(DType::bf16, outputs, inputs);
                     return [=] {
                         const MatmulPlan plan{tile, 1};
                         force_matmul_plan(&plan);
                         matmul_forward(out, inp, w);
                         force_matmul_plan(nullptr);
                     };
                 });
    }
}

}  // namespace

void add_matmul(Rows& rows, const ModelConfig& c, int64_t n) {
    const bool gated = c.mlp == Mlp::swiglu;
    add_linear(rows, "qkv", n, c.qkv_dim(), c.channels);
    add_linear(rows, "attention_out", n, c.channels, c.attention_dim());
    add_linear(rows, gated ? "mlp_gate_up" : "mlp_up", n, gated ? 2 * c.mlp_dim : c.mlp_dim, c.channels);
    add_linear(rows, "mlp_down", n, c.channels, c.mlp_dim);
    if (c.mlp == Mlp::gelu) add_epilogues(rows, n, c.mlp_dim, c.channels);
    if (rows.dtype() == DType::bf16) add_tiles(rows, n, gated ? 2 * c.mlp_dim : c.mlp_dim, c.channels);
}

void add_attention(Rows& rows, const ModelConfig& c, int64_t n, int64_t length) {
    const int64_t h = c.num_heads, k = c.num_kv_heads, d = c.head_dim, documents = n / length;
    const DType dtype = rows.dtype();
    const MatmulMath math = rows.math();
    const AttentionShape shape{.num_heads = h, .num_kv_heads = k};
    const Sizes sizes = {{"B", documents}, {"T", length}, {"H", h}, {"K", k}, {"D", d}};
    // A token and those before it: half of T x T and half of the diagonal.
    const double pairs = 0.5 * product({documents, h, length, length + 1});
    const double out_bytes = rows.element() * product({n, h, d}), lse_bytes = 4 * product({n, h});
    const double qkv_bytes = rows.element() * product({n, c.qkv_dim()});
    rows.add("attention", "forward", sizes, qkv_bytes + out_bytes + lse_bytes,
             4 * pairs * static_cast<double>(d), [=](GpuTensors& t) -> Run {
                 const Tensor out = t.make(dtype, n, h * d), lse = t.make(DType::f32, h, n);
                 const Tensor qkv = t.make(dtype, n, (h + 2 * k) * d), bounds = t.bounds(documents, length);
                 return [=] { attention_forward(out, lse, qkv, bounds, shape, math); };
             });
    rows.add("attention", "backward", sizes, 2 * qkv_bytes + 2 * out_bytes + lse_bytes,
             10 * pairs * static_cast<double>(d), [=](GpuTensors& t) -> Run {
                 const Tensor out = t.make(dtype, n, h * d), lse = t.make(DType::f32, h, n);
                 const Tensor qkv = t.make(dtype, n, (h + 2 * k) * d), bounds = t.bounds(documents, length);
                 const Tensor dout = t.make(dtype, n, h * d), dqkv = t.make(dtype, n, (h + 2 * k) * d);
                 const Tensor scratch =
                     t.bytes(attention_backward_scratch_bytes(n, length, d, shape, t.device()));
                 attention_forward(out, lse, qkv, bounds, shape, math);  // its lse: no exponential overflows
                 return [=] { attention_backward(dqkv, dout, out, lse, qkv, bounds, shape, math, scratch); };
             });
    // One new token against a cache of T.
    rows.add("attention", "cached", {{"T", length}, {"H", h}, {"K", k}, {"D", d}},
             rows.element() * 2 * product({length, k, d}), 0, [=](GpuTensors& t) -> Run {
                 const Tensor out = t.make(dtype, 1, h * d), qkv = t.make(dtype, 1, (h + 2 * k) * d);
                 const Tensor keys = t.make(dtype, length, k * d), values = t.make(dtype, length, k * d);
                 return [=] { attention_cached(out, qkv, keys, values, length - 1, shape); };
             });
    rows.add("kv_cache", "append", {{"T", length}, {"H", h}, {"K", k}, {"D", d}},
             rows.element() * 4 * product({length, k, d}), 0, [=](GpuTensors& t) -> Run {
                 const Tensor qkv = t.make(dtype, length, (h + 2 * k) * d);
                 const Tensor keys = t.make(dtype, length, k * d), values = t.make(dtype, length, k * d);
                 return [=] { kv_cache_append(keys, values, qkv, 0); };
             });
}

void add_cross_entropy(Rows& rows, const ModelConfig& c, int64_t n) {
    const int64_t channels = c.channels, vocab = c.vocab_size;
    const DType dtype = rows.dtype();
    const MatmulMath math = rows.math();
    const Sizes sizes = {{"N", n}, {"C", channels}, {"V", vocab}};
    const double hidden_bytes = rows.element() * product({n, channels});
    const double weight_bytes = rows.element() * product({vocab, channels}),
                 flops = 2 * product({n, channels, vocab});
    rows.add("cross_entropy", "losses", sizes, hidden_bytes + weight_bytes, flops, [=](GpuTensors& t) -> Run {
        const Tensor losses = t.make(DType::f32, n), hidden = t.make(dtype, n, channels);
        const Tensor weight = t.make(dtype, vocab, channels), targets = t.ids(n, vocab);
        const Tensor scratch = t.bytes(cross_entropy_scratch_bytes(n, vocab, dtype, t.device()));
        return [=] { cross_entropy(losses, {}, {}, hidden, weight, targets, {}, false, math, scratch); };
    });
    rows.add(
        "cross_entropy", "losses and gradients", sizes,
        2 * hidden_bytes + weight_bytes + 8 * product({vocab, channels}), 3 * flops,
        [=](GpuTensors& t) -> Run {
            const Tensor losses = t.make(DType::f32, n), hidden = t.make(dtype, n, channels);
            const Tensor weight = t.make(dtype, vocab, channels), targets = t.ids(n, vocab);
            const Tensor dhidden = t.make(dtype, n, channels), dweight = t.make(DType::f32, vocab, channels);
            const Tensor scale = t.make(DType::f32, 1);
            const Tensor scratch = t.bytes(cross_entropy_scratch_bytes(n, vocab, dtype, t.device()));
            return [=] {
                cross_entropy(losses, dhidden, dweight, hidden, weight, targets, scale, true, math, scratch);
            };
        });
    rows.add("loss_sum", "forward", {{"N", n}}, 4 * product({n}), 0, [=](GpuTensors& t) -> Run {
        const Tensor total = t.zeros(DType::f64, 1), losses = t.make(DType::f32, n);
        return [=] { loss_sum(total, losses, false); };
    });
}

void add_muon(Rows& rows, const ModelConfig& c) {
    const int64_t r = c.mlp_dim, channels = c.channels;
    const MatmulMath math = rows.math();
    const int64_t small = std::min(r, channels), large = std::max(r, channels);
    const int64_t layers = c.num_layers;
    // Five times X X^T, A^2 (of which tensor cores compute half) and B X.
    const double halves = math == MatmulMath::bf16 ? 1 : 2;
    const double flops =
        5 * ((2 + halves) * product({small, small, large}) + halves * product({small, small, small}));
    rows.add("muon", "step", {{"L", layers}, {"R", r}, {"C", channels}}, 22 * product({layers, r, channels}),
             static_cast<double>(layers) * flops, [=](GpuTensors& t) -> Run {
                 MuonMatrices matrices{.rows = r, .cols = channels, .offsets = {}};
                 for (int64_t layer = 0; layer < layers; ++layer)
                     matrices.offsets.push_back(layer * matrices.size());
                 const int64_t n = layers * matrices.size();
                 const Tensor master = t.make(DType::f32, n), momentum = t.make(DType::f32, n);
                 const Tensor grad = t.make(DType::f32, n), param = t.make(DType::bf16, n);
                 const Tensor scratch = t.bytes(muon_scratch_bytes(matrices, math, master.device));
                 const MuonStep step{.lr = 0.02f,
                                     .momentum = 0.95f,
                                     .weight_decay = 0,
                                     .grad_scale = 1,
                                     .rounding = {.seed = 1, .stream = 2},
                                     .first_index = 0};
                 return [=] { muon_step(param, master, momentum, grad, matrices, step, math, scratch); };
             });
}
