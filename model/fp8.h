// FP8 arithmetic for the linear layers of blocks (--dtype fp8). Weights, activations and gradients live as
// with bf16; each operand of a product is quantised just before it, with a scale of its own from what it
// holds then (kernels/quantize.h):
//   forward   out = inp W^T         e4m3 of inp and W
//   backward  dinp = dout W, dW = dout^T inp    e5m2 of dout, e4m3 of W and inp
// Weights are quantised once a step, by its first micro-batch, in both orientations: 2 bytes a weight.
// Inputs are quantised again for the backward pass, from the bf16 that it keeps anyway: no memory that grows
// with layers but two numbers a linear layer, and all levels of recomputation are served alike.
//
// Those numbers are the largest magnitudes of its input and of its output's gradient, which the ops that make
// the two raise on their way (`absmax`). They are zeroed when a micro-batch begins, not before each of its
// passes: what is recomputed has the same bits, and raises nothing (but for GELU: model/layer.cpp).
#pragma once
#include <array>
#include <vector>

#include "kernels/matmul_fp8.h"
#include "model/arena.h"
#include "model/transformer.h"  // RunShape

enum class Linear : uint8_t { qkv, out, fc, proj };
constexpr int kNumLinears = 4;

struct Fp8Linear {
    Fp8Matrix weight, transposed;    // of [OC,C] and [C,OC] e4m3; one inverse
    Tensor inp_absmax, dout_absmax;  // [1] f32, of this micro-batch
};
using Fp8Linears = std::array<Fp8Linear, kNumLinears>;  // of one layer

struct Fp8Memory {
    std::vector<Fp8Linears> layers;
    Tensor absmax;                      // f32: all of theirs, to be zeroed together
    Tensor weight_absmax;               // [1] f32, of what is being quantised
    Tensor inp_inverse, dout_inverse;   // [1] f32
    Tensor inp, dout, dout_transposed;  // bytes for the widest linear layer
};
// Pure, as all layouts.
Fp8Memory layout_fp8(Arena& arena, const ModelConfig& config, int64_t num_tokens);

// The operands of one linear layer, and its products. inp_absmax and dout_absmax have been raised before.
struct Fp8Products {
    const Fp8Memory& memory;
    const Fp8Linear& linear;

    void quantize_weight(Tensor weight) const;
    // As matmul_forward. out_absmax, dinp_absmax: as in matmul_fp8, or absent.
    void forward(Tensor out, Tensor inp, const MatmulEpilogue& epilogue, Tensor out_absmax) const;
    // As matmul_backward_weight and then matmul_backward_input: dinp may lie where inp does.
    void backward(Tensor dinp, Tensor dweight, Tensor dbias, Tensor dout, Tensor inp, Tensor gelu_pre,
                  bool accumulate, Tensor dinp_absmax) const;
};
