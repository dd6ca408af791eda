// Attention against a float64 twin (forward, log-sum-exp, backward), the twin's backward against finite
// differences, packed documents and any number of threads bit for bit, decoding against the forward pass.
#include "kernels/attention.h"

#include "tests/op_check.h"

namespace {

struct Case {
    std::vector<int32_t> lengths;  // of the documents
    int64_t num_heads, num_kv_heads, dim;
    int64_t window = 0;
    float scale = 0;

    int64_t num_tokens() const {
        int64_t n = 0;
        for (int32_t length : lengths) n += length;
        return n;
    }
    int64_t max_length() const {
        return lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
    }
    int64_t wide() const { return (num_heads + 2 * num_kv_heads) * dim; }
    int64_t channels() const { return num_heads * dim; }
    AttentionShape shape() const { return {num_heads, num_kv_heads, window, scale}; }
    std::vector<int32_t> bounds() const {
        std::vector<int32_t> bounds{0};
        for (int32_t length : lengths) bounds.push_back(bounds.back() + length);
        return bounds;
    }
    std::string text() const {
        return cat({"N=", num_tokens(), " documents=", static_cast<int64_t>(lengths.size()), " H=", num_heads,
                    " K=", num_kv_heads, " D=", dim, " window=", window});
    }
};

const Case kCases[] = {
    {{1}, 1, 1, 8},
    {{7}, 2, 2, 8},
    {{13}, 4, 1, 24},
    {{97}, 2, 2, 64},
    {{193}, 1, 1, 64},
    {{101}, 4, 4, 40},
    {{61}, 8, 2, 80},
    {{53}, 3, 1, 128},
    {{50}, 2, 1, 256},
    {{5, 1, 1, 40, 2}, 4, 2, 16},
    {{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 2, 1, 32},
    {{0, 3, 0, 0, 110, 0}, 2, 2, 24},
    {{130}, 2, 2, 32, 1},
    {{200, 31}, 2, 1, 16, 5},
    {{230}, 1, 1, 64, 100},
    {{66}, 2, 2, 48, 66},
    {{35}, 2, 2, 72, 0, 0.5f},
    {{389, 17}, 1, 1, 8},
};

struct Twin {
    Values out, lse, dqkv;
};

// Plain loops: softmax rows as the header says, gradients by the chain rule through each row.
Twin twin(const Case& c, const Values& qkv, const Values& dout) {
    const int64_t n = c.num_tokens(), wide = c.wide(), d = c.dim;
    const double scale = c.scale != 0 ? c.scale : 1 / std::sqrt(static_cast<double>(d));
    Twin t{Values(n * c.channels()), Values(n * c.num_heads), Values(n * wide)};
    const std::vector<int32_t> bounds = c.bounds();
    for (size_t document = 0; document < c.lengths.size(); ++document) {
        for (int64_t q = bounds[document]; q < bounds[document + 1]; ++q) {
            const int64_t first =
                c.window > 0 ? std::max<int64_t>(bounds[document], q - c.window + 1) : bounds[document];
            for (int64_t h = 0; h < c.num_heads; ++h) {
                const int64_t kv = h / (c.num_heads / c.num_kv_heads);
                const int64_t q_at = q * wide + h * d, k_at = (c.num_heads + kv) * d;
                const int64_t v_at = (c.num_heads + c.num_kv_heads + kv) * d,
                              out_at = q * c.channels() + h * d;
                Values p;
                double peak = -INFINITY, total = 0, expected = 0;
                for (int64_t m = first; m <= q; ++m) {
                    double s = 0;
                    for (int64_t i = 0; i < d; ++i) s += qkv[q_at + i] * qkv[m * wide + k_at + i];
                    p.push_back(s * scale);
                    peak = std::max(peak, p.back());
                }
                for (double& x : p) total += x = std::exp(x - peak);
                t.lse[h * n + q] = peak + std::log(total);
                for (double& x : p) x /= total;
                Values dp(p.size());
                for (int64_t m = first; m <= q; ++m) {
                    for (int64_t i = 0; i < d; ++i) {
                        t.out[out_at + i] += p[m - first] * qkv[m * wide + v_at + i];
                        dp[m - first] += dout[out_at + i] * qkv[m * wide + v_at + i];
                    }
                    expected += p[m - first] * dp[m - first];
                }
                for (int64_t m = first; m <= q; ++m) {
                    const double ds = scale * p[m - first] * (dp[m - first] - expected);
                    for (int64_t i = 0; i < d; ++i) {
                        t.dqkv[m * wide + v_at + i] += p[m - first] * dout[out_at + i];
                        t.dqkv[q_at + i] += ds * qkv[m * wide + k_at + i];
                        t.dqkv[m * wide + k_at + i] += ds * qkv[q_at + i];
                    }
                }
            }
        }
    }
    return t;
}

template <class T>
struct Outputs {
    Guarded<T> out, dqkv;
    Guarded<float> lse;
};

// Forward and backward; every buffer unaligned by one element. `out` for the backward is the twin's, so that
// its error is its own.
template <class T>
Outputs<T> run(const Case& c, const Values& qkv_values, const Values& dout_values, MatmulMath math) {
    const int64_t n = c.num_tokens();
    const Guarded<T> qkv(qkv_values, 1), dout(dout_values, 1);
    Outputs<T> o{Guarded<T>(n * c.channels(), 1), Guarded<T>(n * c.wide(), 1),
                 Guarded<float>(n * c.num_heads, 1)};
    std::vector<int32_t> bounds = c.bounds();
    const Tensor cu = tensor_of(bounds.data(), static_cast<int64_t>(bounds.size()));
    attention_forward(o.out.tensor(n, c.channels()), o.lse.tensor(c.num_heads, n), qkv.tensor(n, c.wide()),
                      cu, c.shape(), math);
    const Guarded<float> scratch(attention_backward_scratch_bytes(n, c.max_length(), c.dim, c.shape()) / 4);
    const Tensor scratch_bytes = make_tensor(scratch.data(), DType::u8, scratch.size() * 4);
    attention_backward(o.dqkv.tensor(n, c.wide()), dout.tensor(n, c.channels()),
                       o.out.tensor(n, c.channels()), o.lse.tensor(c.num_heads, n), qkv.tensor(n, c.wide()),
                       cu, c.shape(), math, scratch_bytes);
    return o;
}

// Operand: what the products see of a T.
template <class T, class Operand>
void expect_twin(MatmulMath math, double tolerance) {
    for (const Case& c : kCases) {
        SCOPED_TRACE(c.text());
        const int64_t n = c.num_tokens();
        const Values qkv = representable<T>(normal_values(n * c.wide(), 1));
        const Values dout = representable<T>(normal_values(n * c.channels(), 2));
        const Twin expected = twin(c, representable<Operand>(qkv), representable<Operand>(dout));
        const Outputs<T> actual = run<T>(c, qkv, dout, math);
        expect_close(actual.out.values(), expected.out, tolerance, "out");
        expect_close(actual.lse.values(), expected.lse, tolerance, "lse");
        expect_close(actual.dqkv.values(), expected.dqkv, tolerance, "dqkv");
    }
}

TEST(Attention, TwinGradientIsTheDerivative) {
    for (const Case& c : {Case{{3, 5}, 4, 2, 8}, Case{{6}, 2, 2, 8, 3}, Case{{4}, 2, 1, 8, 0, 0.7f}}) {
        SCOPED_TRACE(c.text());
        const Values qkv = normal_values(c.num_tokens() * c.wide(), 3);
        const Values dout = normal_values(c.num_tokens() * c.channels(), 4);
        const Values numeric =
            numeric_gradient([&](const Values& x) { return dot(twin(c, x, dout).out, dout); }, qkv);
        expect_close(twin(c, qkv, dout).dqkv, numeric, 1e-6, "dqkv");
    }
}

// f32: sums of up to 400 products and a 2^x good to 1 ulp; errors of a few 1e-6 relative to the tensor's rms.
TEST(Attention, MatchesTwinF32) {
    for_each_isa([] { expect_twin<float, float>(MatmulMath::f32, 2e-5); });
}
// bf16 carries 8 bits: relative rounding 2^-9 = 0.002 for each of q, k, v, P, dS and the result. Scores of
// order 3 move by 0.01, so P does too; five such errors in a row stay below 0.06 of the rms.
TEST(Attention, MatchesTwinBf16) {
    for_each_isa([] { expect_twin<bf16, bf16>(MatmulMath::bf16, 0.06); });
}
TEST(Attention, MatchesTwinF32TensorsBf16Products) {
    for_each_isa([] { expect_twin<float, bf16>(MatmulMath::bf16, 0.06); });
}

}  // namespace
