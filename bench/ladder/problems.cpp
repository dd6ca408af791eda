// Operands and their check.
#include "bench/ladder/problems.h"

#include <cmath>
#include <vector>

#include "core/error.h"
#include "kernels/attention.h"

namespace {

void fill_with_nans(Tensor t) {
    const std::vector<uint8_t> ones(static_cast<size_t>(t.bytes()), 0xff);
    Tensor host = make_tensor(const_cast<uint8_t*>(ones.data()), t.dtype, t.size());
    copy_tensor(t, host);
}

double largest_error(Tensor actual_on_device, const std::vector<bf16>& expected) {
    const HostCopy actual(actual_on_device);
    double square = 0, worst = 0;
    for (bf16 x : expected) square += static_cast<double>(to_float(x)) * to_float(x);
    const double rms = std::sqrt(square / static_cast<double>(expected.size()));
    for (size_t i = 0; i < expected.size(); ++i) {
        const double y = to_float(expected[i]), x = to_float(actual.tensor().as<bf16>()[i]);
        const double error = std::abs(x - y) / std::max(std::abs(y), rms);
        if (!(error <= worst)) worst = error;  // a NaN is the worst, and stays
        if (std::isnan(worst)) return INFINITY;
    }
    return worst;
}

}  // namespace

GemmProblem::GemmProblem(Device device, int64_t rows, int64_t outputs, int64_t inputs) : tensors_(device) {
    CHECK(rows % kGemmTile == 0 && outputs % kGemmTile == 0 && inputs % kGemmStep == 0 && inputs > 0,
          cat({rows, " x ", outputs, " x ", inputs, ": multiples of ", kGemmTile, " and ", kGemmStep}));
    operands_ = {tensors_.make(DType::bf16, rows, outputs), tensors_.make(DType::bf16, rows, inputs),
                 tensors_.make(DType::bf16, outputs, inputs)};
}

double GemmProblem::flops() const {
    return 2.0 * static_cast<double>(operands_.rows()) * static_cast<double>(operands_.outputs()) *
           static_cast<double>(operands_.inputs());
}

double GemmProblem::error_of(const Rung<GemmOperands>& rung) {
    const HostCopy inp(operands_.inp), weight(operands_.weight);
    std::vector<bf16> expected(static_cast<size_t>(operands_.out.size()));
    matmul_forward(tensor_of(expected.data(), operands_.rows(), operands_.outputs()), inp.tensor(),
                   weight.tensor(), {}, MatmulMath::bf16);
    fill_with_nans(operands_.out);
    rung.run(operands_);
    return largest_error(operands_.out, expected);
}

AttentionProblem::AttentionProblem(Device device, int64_t num_rows, int64_t seq_len, int64_t num_heads,
                                   int64_t num_kv_heads, bool with_scores)
    : tensors_(device) {
    CHECK(seq_len % kQueryTile == 0 && num_heads % num_kv_heads == 0,
          cat({"T=", seq_len, " H=", num_heads, " K=", num_kv_heads}));
    const int64_t tokens = num_rows * seq_len;
    operands_ = {tensors_.make(DType::bf16, tokens, num_heads * kHeadDim),
                 tensors_.make(DType::bf16, tokens, (num_heads + 2 * num_kv_heads) * kHeadDim),
                 tensors_.zeros(DType::f32, num_heads, tokens),
                 tensors_.bounds(num_rows, seq_len),
                 with_scores ? tensors_.zeros(DType::f32, num_rows * num_heads * seq_len, seq_len) : Tensor{},
                 num_rows,
                 seq_len,
                 num_heads,
                 num_kv_heads};
}

double AttentionProblem::flops() const {
    const AttentionOperands& a = operands_;
    return 4.0 * static_cast<double>(a.num_rows * a.num_heads * kHeadDim) * 0.5 *
           static_cast<double>(a.seq_len) * static_cast<double>(a.seq_len + 1);
}

double AttentionProblem::error_of(const Rung<AttentionOperands>& rung) {
    const AttentionOperands& a = operands_;
    const HostCopy qkv(a.qkv), cu_seqlens(a.cu_seqlens);
    std::vector<bf16> expected(static_cast<size_t>(a.out.size()));
    std::vector<float> lse(static_cast<size_t>(a.lse.size()));
    attention_forward(tensor_of(expected.data(), a.out.dims[0], a.out.dims[1]),
                      tensor_of(lse.data(), a.lse.dims[0], a.lse.dims[1]), qkv.tensor(), cu_seqlens.tensor(),
                      {.num_heads = a.num_heads, .num_kv_heads = a.num_kv_heads}, MatmulMath::bf16);
    fill_with_nans(a.out);
    rung.run(a);
    return largest_error(a.out, expected);
}
