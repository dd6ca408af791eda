// What the tests of attention's kernels share: cases, a float64 twin of both passes, runs on any device, and
// what every kernel promises about documents.
#pragma once
#include "kernels/attention.h"
#include "tests/absmax_check.h"
#include "tests/op_check.h"

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

struct Twin {
    Values out, lse, dqkv;
};

// Plain loops: softmax rows as the header says, gradients by the chain rule through each row.
inline Twin twin(const Case& c, const Values& qkv, const Values& dout) {
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

// Where a case runs, how many elements its buffers (qkv by itself) are away from an aligned address, and how
// many empty documents fill cu_seqlens up.
struct Place {
    Device device = Device::cpu;
    int64_t offset = 1, qkv_offset = offset;
    int64_t padding = 0;
};

// Forward and backward.
template <class T>
Outputs<T> run(const Case& c, const Values& qkv_values, const Values& dout_values, MatmulMath math,
               const Place& place = {}) {
    const int64_t n = c.num_tokens();
    const Guarded<T> qkv(qkv_values, place.qkv_offset), dout(dout_values, place.offset);
    Outputs<T> o{Guarded<T>(n * c.channels(), place.offset), Guarded<T>(n * c.wide(), place.offset),
                 Guarded<float>(n * c.num_heads, place.offset)};
    std::vector<int32_t> bounds = c.bounds();
    bounds.resize(bounds.size() + static_cast<size_t>(place.padding), bounds.back());
    RaisedAbsmax out_absmax(place.device), dqkv_absmax(place.device);
    OnDevice on(place.device);
    const Tensor cu = on(tensor_of(bounds.data(), static_cast<int64_t>(bounds.size())));
    const Tensor out = on(o.out.tensor(n, c.channels())), lse = on(o.lse.tensor(c.num_heads, n));
    const Tensor inputs = on(qkv.tensor(n, c.wide()));
    attention_forward(out, lse, inputs, cu, c.shape(), math, out_absmax.tensor());
    const Guarded<float> scratch(
        attention_backward_scratch_bytes(n, c.max_length(), c.dim, c.shape(), place.device) / 4);
    const Tensor scratch_bytes = make_tensor(scratch.data(), DType::u8, scratch.size() * 4);
    attention_backward(on(o.dqkv.tensor(n, c.wide())), on(dout.tensor(n, c.channels())), out, lse, inputs, cu,
                       c.shape(), math, on(scratch_bytes), dqkv_absmax.tensor());
    on.fetch();
    out_absmax.expect(o.out, "out");
    dqkv_absmax.expect(o.dqkv, "dqkv");
    return o;
}

// Operand: what the products see of a T.
template <class T, class Operand, class Cases>
void expect_twin(const Cases& cases, MatmulMath math, double tolerance, const Place& place = {}) {
    for (const Case& c : cases) {
        SCOPED_TRACE(c.text());
        const int64_t n = c.num_tokens();
        const Values qkv = representable<T>(normal_values(n * c.wide(), 1));
        const Values dout = representable<T>(normal_values(n * c.channels(), 2));
        const Twin expected = twin(c, representable<Operand>(qkv), representable<Operand>(dout));
        const Outputs<T> actual = run<T>(c, qkv, dout, math, place);
        expect_close(actual.out.values(), expected.out, tolerance, "out");
        expect_close(actual.lse.values(), expected.lse, tolerance, "lse");
        expect_close(actual.dqkv.values(), expected.dqkv, tolerance, "dqkv");
    }
}

template <class T>
std::vector<uint8_t> all_bytes(const Outputs<T>& o) {
    return joined({o.out.bytes(), o.lse.bytes(), o.dqkv.bytes()});
}

// Rows [first, first + count) of a buffer with `width` elements a row.
template <class T>
std::vector<uint8_t> rows_of(const Guarded<T>& all, int64_t first, int64_t count, int64_t width) {
    const auto* begin = reinterpret_cast<const uint8_t*>(all.data() + first * width);
    return {begin, begin + count * width * static_cast<int64_t>(sizeof(T))};
}

template <class T>
void expect_same_bits_alone(const Case& packed, MatmulMath math, const Place& place = {}) {
    const Values qkv = normal_values(packed.num_tokens() * packed.wide(), 7);
    const Values dout = normal_values(packed.num_tokens() * packed.channels(), 8);
    const Outputs<T> all = run<T>(packed, qkv, dout, math, place);
    int64_t first = 0;
    for (int32_t length : packed.lengths) {
        Case alone = packed;
        alone.lengths = {length};
        const auto slice = [&](const Values& values, int64_t width) {
            return Values(values.begin() + first * width, values.begin() + (first + length) * width);
        };
        const Outputs<T> one =
            run<T>(alone, slice(qkv, packed.wide()), slice(dout, packed.channels()), math, place);
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
// Whatever is NaN in the middle document, and whatever tiles it shares with its neighbours.
template <class T>
void expect_nan_stays(const Case& c, MatmulMath math, Device device) {
    const int64_t first = c.lengths[0], end = first + c.lengths[1], poisoned = first + 9;
    for (int64_t column : {0, 8, 16, -1}) {  // of a query, a key, a value; of dout
        SCOPED_TRACE(cat({c.text(), " column ", column}));
        Values qkv = normal_values(c.num_tokens() * c.wide(), 11);
        Values dout = normal_values(c.num_tokens() * c.channels(), 12);
        (column >= 0 ? qkv[static_cast<size_t>(poisoned * c.wide() + column / 8 * c.dim)]
                     : dout[static_cast<size_t>(poisoned * c.channels())]) = NAN;
        const Outputs<T> o = run<T>(c, qkv, dout, math, {device, 0});
        const auto has_nan = [&](const Values& values, int64_t token, int64_t width) {
            const auto row = values.begin() + token * width;
            return std::any_of(row, row + width, [](double x) { return std::isnan(x); });
        };
        const Values out = o.out.values(), dqkv = o.dqkv.values();
        for (int64_t n = 0; n < c.num_tokens(); ++n) {
            if (n < first || n >= end) {
                EXPECT_FALSE(has_nan(out, n, c.channels())) << n;
                EXPECT_FALSE(has_nan(dqkv, n, c.wide())) << n;
            } else if (n == poisoned || (n > poisoned && column > 0)) {
                EXPECT_EQ(has_nan(out, n, c.channels()), column >= 0) << n;
                EXPECT_TRUE(has_nan(dqkv, n, c.wide())) << n;
            }
        }
    }
}

// The largest score of a single query grows behind the first `early` keys: what was summed before has to
// shrink, whichever of a warp's rows it is.
template <class T>
void expect_rescaled(const Case& c, int64_t early, int64_t query, MatmulMath math, double tolerance,
                     Device device) {
    Values qkv = representable<bf16>(normal_values(c.num_tokens() * c.wide(), 14));
    for (int64_t n = 0; n < c.num_tokens(); ++n) {
        for (int64_t i = 0; i < c.dim; ++i) {
            qkv[static_cast<size_t>(n * c.wide() + i)] =
                n == query && i == 0 ? static_cast<double>(c.dim) : 0;
            qkv[static_cast<size_t>(n * c.wide() + c.dim + i)] = n >= early && i == 0 ? 1 : 0;
        }
    }
    SCOPED_TRACE(cat({device_name(device), " query ", query}));
    const Values dout = representable<bf16>(normal_values(c.num_tokens() * c.channels(), 15));
    expect_close(run<T>(c, qkv, dout, math, {device, 0}).out.values(), twin(c, qkv, dout).out, tolerance,
                 "out");
}

// P is 1, so that dS = dP - delta is the difference of two equal sums, if both round dO alike.
template <class T>
void expect_no_score_gradient(const Case& c, MatmulMath math, const Place& place) {
    const Values qkv = normal_values(c.num_tokens() * c.wide(), 16);
    const Values dqkv =
        run<T>(c, qkv, normal_values(c.num_tokens() * c.channels(), 17), math, place).dqkv.values();
    for (int64_t n = 0; n < c.num_tokens(); ++n) {
        for (int64_t i = 0; i < c.channels() + c.num_kv_heads * c.dim; ++i) {
            EXPECT_NEAR(dqkv[static_cast<size_t>(n * c.wide() + i)], 0, 1e-5) << n << " " << i;
        }
    }
}
