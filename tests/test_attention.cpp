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

template <class T>
std::vector<uint8_t> all_bytes(const Outputs<T>& o) {
    return joined({o.out.bytes(), o.lse.bytes(), o.dqkv.bytes()});
}

TEST(Attention, SameBitsForAnyThreads) {
    for (const Case& c : {Case{{700, 3, 200}, 2, 2, 16}, Case{{300, 40}, 6, 2, 24, 77}}) {
        SCOPED_TRACE(c.text());
        const Values qkv = normal_values(c.num_tokens() * c.wide(), 5);
        const Values dout = normal_values(c.num_tokens() * c.channels(), 6);
        for_each_isa([&] {
            expect_same_bits_for_any_threads(
                [&] { return all_bytes(run<float>(c, qkv, dout, MatmulMath::f32)); });
            expect_same_bits_for_any_threads(
                [&] { return all_bytes(run<bf16>(c, qkv, dout, MatmulMath::bf16)); });
        });
    }
}

// Rows [first, first + count) of a buffer with `width` elements a row.
template <class T>
std::vector<uint8_t> rows_of(const Guarded<T>& all, int64_t first, int64_t count, int64_t width) {
    const auto* begin = reinterpret_cast<const uint8_t*>(all.data() + first * width);
    return {begin, begin + count * width * static_cast<int64_t>(sizeof(T))};
}

template <class T>
void expect_same_bits_alone(const Case& packed, MatmulMath math) {
    const Values qkv = normal_values(packed.num_tokens() * packed.wide(), 7);
    const Values dout = normal_values(packed.num_tokens() * packed.channels(), 8);
    const Outputs<T> all = run<T>(packed, qkv, dout, math);
    int64_t first = 0;
    for (int32_t length : packed.lengths) {
        Case alone = packed;
        alone.lengths = {length};
        const auto slice = [&](const Values& values, int64_t width) {
            return Values(values.begin() + first * width, values.begin() + (first + length) * width);
        };
        const Outputs<T> one = run<T>(alone, slice(qkv, packed.wide()), slice(dout, packed.channels()), math);
        EXPECT_TRUE(one.out.bytes() == rows_of(all.out, first, length, packed.channels()))
            << "out at " << first;
        EXPECT_TRUE(one.dqkv.bytes() == rows_of(all.dqkv, first, length, packed.wide()))
            << "dqkv at " << first;
        for (int64_t h = 0; h < packed.num_heads; ++h) {
            const int64_t at = h * packed.num_tokens() + first;
            EXPECT_TRUE(rows_of(one.lse, h * length, length, 1) == rows_of(all.lse, at, length, 1)) << "lse";
        }
        first += length;
    }
}
TEST(Attention, SameBitsAloneOrPacked) {
    for (const Case& c : {Case{{31, 1, 250, 97, 2, 96, 1}, 4, 2, 24}, Case{{130, 49, 300}, 2, 2, 64, 60}}) {
        SCOPED_TRACE(c.text());
        for_each_isa([&] {
            expect_same_bits_alone<float>(c, MatmulMath::f32);
            expect_same_bits_alone<float>(c, MatmulMath::bf16);
            expect_same_bits_alone<bf16>(c, MatmulMath::bf16);
        });
    }
}

TEST(Attention, NothingToDo) {
    for (const Case& c : {Case{{}, 2, 1, 8}, Case{{0, 0}, 2, 1, 8}}) run<float>(c, {}, {}, MatmulMath::f32);
}

// Scores of +-3e4 leave one key per query; exp must neither overflow nor make NaN of masked entries.
TEST(Attention, LargeScores) {
    const Case c{{70, 5}, 2, 1, 16, 9};
    Values qkv = representable<float>(normal_values(c.num_tokens() * c.wide(), 9, 150));
    const Values dout = representable<float>(normal_values(c.num_tokens() * c.channels(), 10));
    const Twin expected = twin(c, qkv, dout);
    for_each_isa([&] {
        // Scores of 3e4 have an f32 spacing of 2^-9; where two keys tie to that, P moves by as much.
        expect_close(run<float>(c, qkv, dout, MatmulMath::f32).out.values(), expected.out, 0.01, "out");
    });
}

TEST(Attention, NanReachesEveryLaterTokenOfItsDocumentOnly) {
    const Case c{{50, 120}, 1, 1, 8};
    for (int64_t poisoned :
         {0, 8, 16}) {  // a query, a key, a value of token 60, which is the second document's 10th
        Values qkv = normal_values(c.num_tokens() * c.wide(), 11);
        qkv[static_cast<size_t>(60 * c.wide() + poisoned)] = NAN;
        const Values dout = normal_values(c.num_tokens() * c.channels(), 12);
        for_each_isa([&] {
            const Values out = run<float>(c, qkv, dout, MatmulMath::f32).out.values();
            const auto has_nan = [&](int64_t token) {
                const auto row = out.begin() + token * c.channels();
                return std::any_of(row, row + c.channels(), [](double x) { return std::isnan(x); });
            };
            EXPECT_TRUE(has_nan(60));
            for (int64_t n = 0; n < 50; ++n) EXPECT_FALSE(has_nan(n)) << n;
            for (int64_t n = 61; n < 170 && poisoned > 0; ++n) EXPECT_TRUE(has_nan(n)) << n;
        });
    }
}

// The last n rows of a forward pass, computed from a cache. Both sum in f32, in other orders and, for bf16
// tensors, with or without rounding P: tolerances as against the twin.
template <class T>
void expect_cached_like_forward(double tolerance) {
    for (Case c : {Case{{150}, 4, 2, 64}, Case{{37}, 8, 1, 24}, Case{{300}, 2, 2, 128, 33},
                   Case{{20}, 18, 2, 8}, Case{{9}, 1, 1, 80}, Case{{90}, 3, 3, 256}}) {
        const int64_t total = c.num_tokens(), kv = c.num_kv_heads * c.dim;
        const Values qkv_values = representable<T>(normal_values(total * c.wide(), 13));
        const Values expected = twin(c, qkv_values, Values(static_cast<size_t>(total * c.channels()))).out;
        const Guarded<T> k((total + 2) * kv, 1), v((total + 2) * kv, 1);  // two rows more than are used
        for (int64_t n = 0; n < total; ++n) {
            for (int64_t i = 0; i < kv; ++i) {
                k[n * kv + i] = rounded<T>(qkv_values[n * c.wide() + c.channels() + i]);
                v[n * kv + i] = rounded<T>(qkv_values[n * c.wide() + c.channels() + kv + i]);
            }
        }
        for (int64_t n : {int64_t{0}, int64_t{1}, int64_t{3}, int64_t{9}, total}) {
            if (n > total) continue;
            SCOPED_TRACE(c.text() + cat({" n=", n}));
            const Guarded<T> qkv(Values(qkv_values.end() - n * c.wide(), qkv_values.end()), 1);
            const Guarded<T> out(n * c.channels(), 1);
            attention_cached(out.tensor(n, c.channels()), qkv.tensor(n, c.wide()), k.tensor(total + 2, kv),
                             v.tensor(total + 2, kv), total - n, c.shape());
            expect_close(out.values(), Values(expected.end() - n * c.channels(), expected.end()), tolerance,
                         "out");
        }
    }
}
TEST(Attention, CachedMatchesTwin) {
    for_each_isa([] {
        expect_cached_like_forward<float>(2e-5);
        expect_cached_like_forward<bf16>(0.06);
    });
}

TEST(Attention, RefusesWrongArguments) {
    float memory[64] = {};
    int32_t bounds[] = {0, 2};
    const Tensor qkv = tensor_of(memory, 2, 24), out = tensor_of(memory, 2, 8), lse = tensor_of(memory, 1, 2);
    const auto message = [&](const Tensor& o, const Tensor& cu, const AttentionShape& shape) {
        return check_failure([&] { attention_forward(o, lse, qkv, cu, shape, MatmulMath::f32); });
    };
    const Tensor cu = tensor_of(bounds, 2);
    expect_mentions(message(tensor_of(memory, 2, 16), cu, {1, 1}), {"attention_forward", "out", "f32[2,16]"});
    expect_mentions(message(out, cu, {3, 2}), {"num_heads", "3"});
    expect_mentions(message(out, cu, {1, 1, -1}), {"window", "-1"});
    bounds[1] = 3;
    expect_mentions(message(out, cu, {1, 1}), {"cu_seqlens", "3"});
    bounds[1] = 2;
    const Tensor small = make_tensor(memory, DType::u8, 16);
    expect_mentions(check_failure([&] {
                        attention_backward(qkv, out, out, lse, qkv, cu, {1, 1}, MatmulMath::f32, small);
                    }),
                    {"attention_backward", "scratch"});
}

}  // namespace
