// What each operand becomes, and where; the products are kernels/matmul_fp8.h.
#include "model/fp8.h"

#include <algorithm>

#include "kernels/cast.h"
#include "kernels/quantize.h"

namespace {

struct LinearSize {
    int64_t outputs, inputs;
};
LinearSize linear_size(const ModelConfig& c, Linear which) {
    switch (which) {
        case Linear::qkv: return {c.qkv_dim(), c.channels};
        case Linear::out: return {c.channels, c.attention_dim()};
        case Linear::fc: return {c.mlp == Mlp::swiglu ? 2 * c.mlp_dim : c.mlp_dim, c.channels};
        case Linear::proj: return {c.channels, c.mlp_dim};
    }
    return {};
}

// [lines, fp8_line(inner)] in memory for the widest.
Tensor codes(Tensor bytes, DType dtype, int64_t lines, int64_t inner) {
    Tensor t = make_tensor(bytes.data, dtype, lines, fp8_line(inner));
    t.device = bytes.device;
    return t;
}

}  // namespace

Fp8Memory layout_fp8(Arena& arena, const ModelConfig& c, int64_t num_tokens) {
    Fp8Memory m;
    int64_t widest_inp = 0, widest_dout = 0;
    m.absmax = arena.take(DType::f32, c.num_layers * kNumLinears * 2);
    int64_t num_absmax = 0;
    const auto next_absmax = [&] { return m.absmax.rows(num_absmax++, 1); };
    for (int64_t l = 0; l < c.num_layers; ++l) {
        m.layers.emplace_back();
        for (int i = 0; i < kNumLinears; ++i) {
            const LinearSize size = linear_size(c, static_cast<Linear>(i));
            const Tensor inverse = arena.take(DType::f32, 1);
            m.layers.back()[static_cast<size_t>(i)] = {
                {arena.take(DType::e4m3, size.outputs, fp8_line(size.inputs)), inverse},
                {arena.take(DType::e4m3, size.inputs, fp8_line(size.outputs)), inverse},
                next_absmax(),
                next_absmax()};
            widest_inp = std::max(widest_inp, size.inputs);
            widest_dout = std::max(widest_dout, size.outputs);
        }
    }
    m.weight_absmax = arena.take(DType::f32, 1);
    m.inp_inverse = arena.take(DType::f32, 1);
    m.dout_inverse = arena.take(DType::f32, 1);
    // Either orientation fits: N lines of the widest layer, or as many lines of N.
    m.inp = arena.take(DType::u8, fp8_line(num_tokens), fp8_line(widest_inp));
    m.dout = arena.take(DType::u8, num_tokens, fp8_line(widest_dout));
    m.dout_transposed = arena.take(DType::u8, widest_dout, fp8_line(num_tokens));
    return m;
}

void Fp8Products::quantize_weight(Tensor weight) const {
    fill_zero(memory.weight_absmax);
    raise_absmax(memory.weight_absmax, weight);
    quantize(linear.weight.codes, linear.transposed.codes, linear.weight.inverse, weight,
             memory.weight_absmax);
}

void Fp8Products::forward(Tensor out, Tensor inp, const MatmulEpilogue& epilogue, Tensor out_absmax) const {
    const Tensor inp_codes = codes(memory.inp, DType::e4m3, inp.dims[0], inp.dims[1]);
    quantize(inp_codes, {}, memory.inp_inverse, inp, linear.inp_absmax);
    matmul_fp8(out, {inp_codes, memory.inp_inverse}, linear.weight, epilogue, {}, out_absmax);
}

void Fp8Products::backward(Tensor dinp, Tensor dweight, Tensor dbias, Tensor dout, Tensor inp,
                           Tensor gelu_pre, bool accumulate, Tensor dinp_absmax) const {
    const int64_t num_tokens = inp.dims[0];
    const Tensor inp_codes = codes(memory.inp, DType::e4m3, inp.dims[1], num_tokens);
    quantize({}, inp_codes, memory.inp_inverse, inp, linear.inp_absmax);
    const Tensor dout_codes = codes(memory.dout, DType::e5m2, num_tokens, dout.dims[1]);
    const Tensor dout_transposed = codes(memory.dout_transposed, DType::e5m2, dout.dims[1], num_tokens);
    quantize(dout_codes, dout_transposed, memory.dout_inverse, dout, linear.dout_absmax);
    MatmulEpilogue onto;
    if (accumulate) onto.residual = dweight;
    matmul_fp8(dweight, {dout_transposed, memory.dout_inverse}, {inp_codes, memory.inp_inverse}, onto);
    if (!dbias.absent()) matmul_backward_bias(dbias, dout, accumulate);
    matmul_fp8(dinp, {dout_codes, memory.dout_inverse}, linear.transposed, {}, gelu_pre, dinp_absmax);
}
