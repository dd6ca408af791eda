// One transformer layer, forward and backward, in the pieces that training, recomputation and decoding share.
//   qkv    = rope( qknorm( norm1(x) Wqkv^T + b ))      project_qkv
//   middle = x + attention(qkv) Wout^T + b             the caller runs attention; project_attention
//   act    = activation( norm2(middle) Wfc^T + b )     mlp_hidden
//   y      = middle + act Wproj^T + b                  mlp_output
#pragma once
#include "kernels/attention.h"  // AttentionShape
#include "model/activations.h"
#include "model/fp8.h"
#include "model/params.h"

// The tensors of one layer in an arena of parameters or of gradients; absent where the model has none.
struct LayerTensors {
    Tensor norm1_w, norm1_b, qkv_w, qkv_b, q_norm, k_norm, out_w, out_b;
    Tensor norm2_w, norm2_b, fc_w, fc_b, proj_w, proj_b;
    const Fp8Linears* fp8 = nullptr;  // of parameters, where the run has FP8
};
// `arena` may be a piece of one, from element `first` on.
LayerTensors layer_tensors(const ParamTable& table, Tensor arena, int64_t layer, int64_t first = 0);

// LayerNorm or RMSNorm, by whether there is a bias. mean is not used by RMSNorm.
void norm_forward(Tensor y, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor b, float eps,
                  Tensor absmax = {});
void norm_backward(Tensor dx, Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor w, Tensor mean, Tensor rstd,
                   bool accumulate_dx, Tensor absmax);

// What every piece of every layer needs to know about the run.
struct LayerRun {
    const ModelConfig& config;
    MatmulMath math = MatmulMath::f32;
    Tensor rope;             // [T,D]; absent with learned positions
    Tensor positions = {};   // [N]
    Tensor cu_seqlens = {};  // [S+1]
    bool keep_for_backward = false;
    const Fp8Memory* fp8 = nullptr;  // null: linear layers as `math` says
};
AttentionShape attention_shape(const ModelConfig& config, int64_t layer);

// What whoever makes the input of a linear layer, or the gradient of its output, raises on its way
// (model/fp8.h); absent without run.fp8.
Tensor inp_absmax(const LayerRun& run, const LayerTensors& p, Linear which);
Tensor dout_absmax(const LayerRun& run, const LayerTensors& p, Linear which);

// With run.fp8: the layer's weights as FP8, before its first forward pass of a step.
void quantize_weights(const LayerRun& run, const LayerTensors& p);
void project_qkv(const LayerRun& run, const LayerTensors& p, const LayerActivations& a, Tensor x);
void project_attention(const LayerRun& run, const LayerTensors& p, const LayerActivations& a, Tensor x);
void mlp_hidden(const LayerRun& run, const LayerTensors& p, const LayerActivations& a);
void mlp_output(const LayerRun& run, const LayerTensors& p, const LayerActivations& a, Tensor y);

// Everything up to `act`; also the recomputation of a whole layer.
void layer_forward(const LayerRun& run, const LayerTensors& p, const LayerActivations& a, Tensor x,
                   int64_t layer);
// s.dstream: in, the gradient of the layer's output; out, of its input x. Weight gradients g are set, or
// added to when `accumulate` (those of norms are always added to). Destroys a.fc and a.act. dx_absmax:
// absent, or the dout_absmax of whom dstream goes to next.
void layer_backward(const LayerRun& run, const LayerTensors& p, const LayerTensors& g,
                    const LayerActivations& a, const BackwardScratch& s, Tensor x, int64_t layer,
                    Recompute recompute, bool accumulate, Tensor dx_absmax);
