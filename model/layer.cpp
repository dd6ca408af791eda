// The layer's pieces as calls of kernels; nothing is computed here.
#include "model/layer.h"

#include "core/error.h"
#include "kernels/cast.h"
#include "kernels/gelu.h"
#include "kernels/layernorm.h"
#include "kernels/qknorm.h"
#include "kernels/relu2.h"
#include "kernels/rmsnorm.h"
#include "kernels/swiglu.h"

LayerTensors layer_tensors(const ParamTable& table, Tensor arena, int64_t layer, int64_t first) {
    const auto slot = [&](Slot s) { return table.slot(arena, s, layer, first); };
    return {.norm1_w = slot(Slot::norm1_w),
            .norm1_b = slot(Slot::norm1_b),
            .qkv_w = slot(Slot::qkv_w),
            .qkv_b = slot(Slot::qkv_b),
            .q_norm = slot(Slot::q_norm),
            .k_norm = slot(Slot::k_norm),
            .out_w = slot(Slot::out_w),
            .out_b = slot(Slot::out_b),
            .norm2_w = slot(Slot::norm2_w),
            .norm2_b = slot(Slot::norm2_b),
            .fc_w = slot(Slot::fc_w),
            .fc_b = slot(Slot::fc_b),
            .proj_w = slot(Slot::proj_w),
            .proj_b = slot(Slot::proj_b)};
}

namespace {
Tensor weight_of(const LayerTensors& p, Linear which) {
    switch (which) {
        case Linear::qkv: return p.qkv_w;
        case Linear::out: return p.out_w;
        case Linear::fc: return p.fc_w;
        case Linear::proj: return p.proj_w;
    }
    return {};
}
Tensor bias_of(const LayerTensors& p, Linear which) {
    switch (which) {
        case Linear::qkv: return p.qkv_b;
        case Linear::out: return p.out_b;
        case Linear::fc: return p.fc_b;
        case Linear::proj: return p.proj_b;
    }
    return {};
}

const Fp8Linear& fp8_of(const LayerTensors& p, Linear which) { return (*p.fp8)[static_cast<size_t>(which)]; }

// With the layer's own bias.
void linear_forward(const LayerRun& run, const LayerTensors& p, Linear which, Tensor out, Tensor inp,
                    MatmulEpilogue epilogue = {}, Tensor out_absmax = {}) {
    epilogue.bias = bias_of(p, which);
    if (run.fp8) return Fp8Products{*run.fp8, fp8_of(p, which)}.forward(out, inp, epilogue, out_absmax);
    matmul_forward(out, inp, weight_of(p, which), epilogue, run.math);
}

// dinp may lie where inp does.
void linear_backward(const LayerRun& run, const LayerTensors& p, const LayerTensors& g, Linear which,
                     Tensor dinp, Tensor dout, Tensor inp, bool accumulate, Tensor gelu_pre = {},
                     Tensor dinp_absmax = {}) {
    const Tensor dweight = weight_of(g, which), dbias = bias_of(g, which);
    if (run.fp8) {
        return Fp8Products{*run.fp8, fp8_of(p, which)}.backward(dinp, dweight, dbias, dout, inp, gelu_pre,
                                                                accumulate, dinp_absmax);
    }
    matmul_backward_weight(dweight, dbias, dout, inp, accumulate, run.math);
    matmul_backward_input(dinp, dout, weight_of(p, which), false, gelu_pre, run.math);
}
}  // namespace

void quantize_weights(const LayerRun& run, const LayerTensors& p) {
    for (Linear which : {Linear::qkv, Linear::out, Linear::fc, Linear::proj}) {
        Fp8Products{*run.fp8, fp8_of(p, which)}.quantize_weight(weight_of(p, which));
    }
}

Tensor inp_absmax(const LayerRun& run, const LayerTensors& p, Linear which) {
    return run.fp8 ? fp8_of(p, which).inp_absmax : Tensor{};
}
Tensor dout_absmax(const LayerRun& run, const LayerTensors& p, Linear which) {
    return run.fp8 ? fp8_of(p, which).dout_absmax : Tensor{};
}

AttentionShape attention_shape(const ModelConfig& c, int64_t layer) {
    return {.num_heads = c.num_heads, .num_kv_heads = c.num_kv_heads, .window = c.window(layer)};
}

void norm_forward(Tensor y, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor b, float eps,
                  Tensor absmax) {
    if (b.absent()) {
        rmsnorm_forward(y, rstd, x, w, eps, absmax);
    } else {
        layernorm_forward(y, mean, rstd, x, w, b, eps, absmax);
    }
}

void norm_backward(Tensor dx, Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor w, Tensor mean, Tensor rstd,
                   bool accumulate_dx, Tensor absmax) {
    if (db.absent()) {
        rmsnorm_backward(dx, dw, dy, x, w, rstd, accumulate_dx, absmax);
    } else {
        layernorm_backward(dx, dw, db, dy, x, w, mean, rstd, accumulate_dx, absmax);
    }
}

void project_qkv(const LayerRun& run, const LayerTensors& p, const LayerActivations& a, Tensor x) {
    const ModelConfig& c = run.config;
    norm_forward(a.norm1, a.norm1_mean, a.norm1_rstd, x, p.norm1_w, p.norm1_b, c.norm_eps,
                 inp_absmax(run, p, Linear::qkv));
    linear_forward(run, p, Linear::qkv, a.qkv, a.norm1);
    if (c.qk_norm) {
        const Tensor raw = run.keep_for_backward ? a.qk_raw : Tensor{};
        qknorm_forward(a.qkv, a.qk_rstd, raw, p.q_norm, p.k_norm, c.norm_eps, c.num_heads, c.num_kv_heads);
    }
    if (!run.rope.absent()) rope_forward(a.qkv, run.rope, run.positions, c.num_heads, c.num_kv_heads);
}

void project_attention(const LayerRun& run, const LayerTensors& p, const LayerActivations& a, Tensor x) {
    linear_forward(run, p, Linear::out, a.middle, a.attention, {.residual = x});
}

void mlp_hidden(const LayerRun& run, const LayerTensors& p, const LayerActivations& a) {
    norm_forward(a.norm2, a.norm2_mean, a.norm2_rstd, a.middle, p.norm2_w, p.norm2_b, run.config.norm_eps,
                 inp_absmax(run, p, Linear::fc));
    const Tensor act_absmax = inp_absmax(run, p, Linear::proj);
    switch (run.config.mlp) {
        case Mlp::gelu:
            linear_forward(run, p, Linear::fc, a.act, a.norm2, {.gelu = true, .pre_activation = a.fc},
                           act_absmax);
            break;
        case Mlp::swiglu:
            linear_forward(run, p, Linear::fc, a.fc, a.norm2);
            swiglu_forward(a.act, a.fc, act_absmax);
            break;
        case Mlp::relu2:
            linear_forward(run, p, Linear::fc, a.fc, a.norm2);
            relu2_forward(a.act, a.fc, act_absmax);
            break;
    }
}

void mlp_output(const LayerRun& run, const LayerTensors& p, const LayerActivations& a, Tensor y) {
    linear_forward(run, p, Linear::proj, y, a.act, {.residual = a.middle});
}

void layer_forward(const LayerRun& run, const LayerTensors& p, const LayerActivations& a, Tensor x,
                   int64_t layer) {
    project_qkv(run, p, a, x);
    attention_forward(a.attention, a.lse, a.qkv, run.cu_seqlens, attention_shape(run.config, layer), run.math,
                      inp_absmax(run, p, Linear::out));
    project_attention(run, p, a, x);
    mlp_hidden(run, p, a);
}

namespace {
// Redoes norm2 and the activation from what Recompute::mlp kept: middle and fc.
void recompute_mlp(const LayerRun& run, const LayerTensors& p, const LayerActivations& a) {
    norm_forward(a.norm2, a.norm2_mean, a.norm2_rstd, a.middle, p.norm2_w, p.norm2_b, run.config.norm_eps,
                 inp_absmax(run, p, Linear::fc));
    const Tensor act_absmax = inp_absmax(run, p, Linear::proj);
    switch (run.config.mlp) {
        case Mlp::gelu:
            // Of fc as it was rounded: other bits, and another largest, than those of the product's GELU.
            if (!act_absmax.absent()) fill_zero(act_absmax);
            gelu_forward(a.act, a.fc, act_absmax);
            break;
        case Mlp::swiglu: swiglu_forward(a.act, a.fc, act_absmax); break;
        case Mlp::relu2: relu2_forward(a.act, a.fc, act_absmax); break;
    }
}

void mlp_backward(const LayerRun& run, const LayerTensors& p, const LayerTensors& g,
                  const LayerActivations& a, const BackwardScratch& s, bool accumulate) {
    // The activation has done its duty; its gradient takes its place, and that of fc the place of act or fc.
    const Tensor dact = a.act, dfc_absmax = dout_absmax(run, p, Linear::fc);
    Tensor dfc = dact;
    const bool through_gelu = run.config.mlp == Mlp::gelu;  // by the product: dact is dfc then
    linear_backward(run, p, g, Linear::proj, dact, s.dstream, a.act, accumulate,
                    through_gelu ? a.fc : Tensor{}, through_gelu ? dfc_absmax : Tensor{});
    switch (run.config.mlp) {
        case Mlp::gelu: break;
        case Mlp::swiglu:
            dfc = a.fc;
            swiglu_backward(dfc, a.fc, dact, dfc_absmax);
            break;
        case Mlp::relu2: relu2_backward(dfc, a.fc, dact, dfc_absmax); break;
    }
    linear_backward(run, p, g, Linear::fc, s.dnorm, dfc, a.norm2, accumulate);
    // The stream goes around the MLP too: its gradient is added to.
    norm_backward(s.dstream, g.norm2_w, g.norm2_b, s.dnorm, a.middle, p.norm2_w, a.norm2_mean, a.norm2_rstd,
                  true, dout_absmax(run, p, Linear::out));
}

void attention_part_backward(const LayerRun& run, const LayerTensors& p, const LayerTensors& g,
                             const LayerActivations& a, const BackwardScratch& s, Tensor x, int64_t layer,
                             bool accumulate, Tensor dx_absmax) {
    const ModelConfig& c = run.config;
    const bool turned = !run.rope.absent();
    // Raised by whoever changes dqkv last.
    const Tensor dqkv_absmax = dout_absmax(run, p, Linear::qkv), none = {};
    linear_backward(run, p, g, Linear::out, s.dattention, s.dstream, a.attention, accumulate);
    attention_backward(s.dqkv, s.dattention, a.attention, a.lse, a.qkv, run.cu_seqlens,
                       attention_shape(c, layer), run.math, s.workspace,
                       turned || c.qk_norm ? none : dqkv_absmax);
    if (turned) {
        rope_backward(s.dqkv, run.rope, run.positions, c.num_heads, c.num_kv_heads,
                      c.qk_norm ? none : dqkv_absmax);
    }
    if (c.qk_norm) {
        qknorm_backward(s.dqkv, g.q_norm, g.k_norm, a.qk_raw, a.qk_rstd, p.q_norm, p.k_norm, c.num_heads,
                        c.num_kv_heads, dqkv_absmax);
    }
    linear_backward(run, p, g, Linear::qkv, s.dnorm, s.dqkv, a.norm1, accumulate);
    norm_backward(s.dstream, g.norm1_w, g.norm1_b, s.dnorm, x, p.norm1_w, a.norm1_mean, a.norm1_rstd, true,
                  dx_absmax);
}
}  // namespace

void layer_backward(const LayerRun& run, const LayerTensors& p, const LayerTensors& g,
                    const LayerActivations& a, const BackwardScratch& s, Tensor x, int64_t layer,
                    Recompute recompute, bool accumulate, Tensor dx_absmax) {
    if (recompute == Recompute::block) layer_forward(run, p, a, x, layer);
    if (recompute == Recompute::mlp) recompute_mlp(run, p, a);
    mlp_backward(run, p, g, a, s, accumulate);
    if (recompute == Recompute::mlp) {
        norm_forward(a.norm1, a.norm1_mean, a.norm1_rstd, x, p.norm1_w, p.norm1_b, run.config.norm_eps,
                     inp_absmax(run, p, Linear::qkv));
    }
    attention_part_backward(run, p, g, a, s, x, layer, accumulate, dx_absmax);
}
