// Where everything between input and loss lies: what the forward pass leaves for the backward pass, and the
// gradients of activations. N is the number of tokens in the micro-batch. Layouts are pure: the same
// arguments, the same places.
#pragma once
#include <vector>

#include "kernels/workspace.h"
#include "model/arena.h"
#include "model/config.h"
#include "model/transformer.h"  // RunShape

struct LayerActivations {
    Tensor norm1, norm1_mean, norm1_rstd;  // [N,C], [N], [N]
    Tensor qkv, qk_raw, qk_rstd;           // [N,(H+2K)D] after RoPE, [N,(H+K)D] and [N,H+K] with QK-norm
    Tensor attention, lse;                 // [N,HD], [H,N]
    Tensor middle;                         // [N,C] the residual stream between attention and MLP
    Tensor norm2, norm2_mean, norm2_rstd;  // [N,C], [N], [N]
    Tensor fc;                             // [N,F], or [N,2F] for SwiGLU: before the activation
    Tensor act;                            // [N,F]
};

struct ForwardActivations {
    Tensor rope;  // [T,D] cosines and sines, filled once
    std::vector<Tensor>
        stream;  // L+1 x [N,C]: the input of each layer and of the final norm; one when not kept
    std::vector<LayerActivations>
        layers;                 // L; tensors that are recomputed share one place; one when not kept
    Tensor hidden, mean, rstd;  // [N,C], [N], [N] of the final norm
    Tensor losses;              // [N]
};

struct BackwardScratch {
    Tensor workspace;   // bytes, for attention and cross-entropy in turn
    Tensor dstream;     // [N,C] gradient of the residual stream
    Tensor dnorm;       // [N,C] gradient of a norm's output
    Tensor dattention;  // [N,HD]
    Tensor dqkv;        // [N,(H+2K)D]
};

// recomputed: the layer whose norm1, norm2 and act are used here too (Recompute::mlp); null: all are the
// layer's own.
LayerActivations layout_layer(Arena& arena, const ModelConfig& config, DType dtype, int64_t num_tokens,
                              bool backward, const LayerActivations* recomputed = nullptr);
// num_tokens: at most shape.num_rows * shape.seq_len, for which the memory was measured.
ForwardActivations layout_forward(Arena& arena, const ModelConfig& config, const RunShape& shape,
                                  int64_t num_tokens);
BackwardScratch layout_scratch(Arena& arena, const ModelConfig& config, const RunShape& shape,
                               int64_t num_tokens);
// What the kernels of a device keep for themselves beside it, the gradient's norm and sampling included.
WorkspaceSizes workspace_sizes(const ModelConfig& config, const RunShape& shape);
