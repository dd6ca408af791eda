// Layouts of activations and scratch, for each level of recomputation.
#include "model/activations.h"

#include <algorithm>

#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/matmul_plan.h"
#include "kernels/quantize.h"

LayerActivations layout_layer(Arena& arena, const ModelConfig& c, DType dtype, int64_t n, bool backward,
                              const LayerActivations* recomputed) {
    LayerActivations a;
    if (recomputed) a = *recomputed;
    if (!recomputed) a.norm1 = arena.take(dtype, n, c.channels);
    a.norm1_mean = arena.take(DType::f32, n);
    a.norm1_rstd = arena.take(DType::f32, n);
    a.qkv = arena.take(dtype, n, c.qkv_dim());
    if (c.qk_norm) {
        if (backward) a.qk_raw = arena.take(dtype, n, (c.num_heads + c.num_kv_heads) * c.head_dim);
        a.qk_rstd = arena.take(DType::f32, n, c.num_heads + c.num_kv_heads);
    }
    a.attention = arena.take(dtype, n, c.attention_dim());
    a.lse = arena.take(DType::f32, c.num_heads, n);
    a.middle = arena.take(dtype, n, c.channels);
    if (!recomputed) a.norm2 = arena.take(dtype, n, c.channels);
    a.norm2_mean = arena.take(DType::f32, n);
    a.norm2_rstd = arena.take(DType::f32, n);
    a.fc = arena.take(dtype, n, c.mlp == Mlp::swiglu ? 2 * c.mlp_dim : c.mlp_dim);
    if (!recomputed) a.act = arena.take(dtype, n, c.mlp_dim);
    return a;
}

ForwardActivations layout_forward(Arena& arena, const ModelConfig& c, const RunShape& shape, int64_t n) {
    ForwardActivations f;
    if (c.position == Position::rope) f.rope = arena.take(DType::f32, shape.seq_len, c.head_dim);
    const int64_t kept = shape.backward ? c.num_layers : 0;
    for (int64_t l = 0; l <= kept; ++l) f.stream.push_back(arena.take(shape.dtype, n, c.channels));

    f.layers.push_back(layout_layer(arena, c, shape.dtype, n, shape.backward));
    for (int64_t l = 1; l < kept; ++l) {
        switch (shape.recompute) {
            case Recompute::none: f.layers.push_back(layout_layer(arena, c, shape.dtype, n, true)); break;
            case Recompute::mlp:
                f.layers.push_back(layout_layer(arena, c, shape.dtype, n, true, &f.layers[0]));
                break;
            case Recompute::block: f.layers.push_back(f.layers[0]); break;
        }
    }
    f.hidden = arena.take(shape.dtype, n, c.channels);
    f.mean = arena.take(DType::f32, n);
    f.rstd = arena.take(DType::f32, n);
    f.losses = arena.take(DType::f32, n);
    return f;
}

BackwardScratch layout_scratch(Arena& arena, const ModelConfig& c, const RunShape& shape, int64_t n) {
    BackwardScratch s;
    const int64_t max_tokens = shape.num_rows * shape.seq_len;
    int64_t workspace_bytes =
        cross_entropy_scratch_bytes(max_tokens, c.vocab_size, shape.dtype, shape.device);
    if (shape.backward) {
        const AttentionShape attention{.num_heads = c.num_heads, .num_kv_heads = c.num_kv_heads};
        workspace_bytes = std::max(
            workspace_bytes,
            attention_backward_scratch_bytes(max_tokens, shape.seq_len, c.head_dim, attention, shape.device));
    }
    s.workspace = arena.take(DType::u8, workspace_bytes);
    if (!shape.backward) return s;
    s.dstream = arena.take(shape.dtype, n, c.channels);
    s.dnorm = arena.take(shape.dtype, n, c.channels);
    s.dattention = arena.take(shape.dtype, n, c.attention_dim());
    s.dqkv = arena.take(shape.dtype, n, c.qkv_dim());
    return s;
}

WorkspaceSizes workspace_sizes(const ModelConfig& c, const RunShape& shape) {
    WorkspaceSizes sizes;
    sizes[Workspace::scalar] = kScalarBytes;
    if (shape.device == Device::cuda) sizes[Workspace::library] = kLibraryBytes;
    if (!shape.backward) return sizes;
    const int64_t n = shape.num_rows * shape.seq_len;
    sizes[Workspace::square_sums] = square_sums_bytes();
    sizes[Workspace::sorted_ids] = sorted_ids_bytes(n);
    sizes[Workspace::norm_sums] =
        norm_sums_bytes(n, c.channels, shape.dtype, c.norm == Norm::layernorm ? 2 : 1);
    if (c.qk_norm) sizes[Workspace::qknorm_sums] = qknorm_sums_bytes(n, c.head_dim);
    for (const LinearDims& linear : linear_dims(c)) {
        sizes.need(Workspace::split_sums,
                   split_sums_bytes(linear.out, linear.in, shape.fp8 ? fp8_line(n) : n));
        if (linear.bias) sizes.need(Workspace::column_sums, column_sums_bytes(n, linear.out));
    }
    return sizes;
}
