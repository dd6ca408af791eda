// The transformer a second time, in float64 and plain loops, straight from the formulas: the oracle of
// test_transformer and test_generate. Shares the parameter table's offsets with the model, and nothing else.
#pragma once
#include <cmath>
#include <vector>

#include "core/batch.h"
#include "model/config.h"
#include "model/params.h"

class ModelTwin {
public:
    using Values = std::vector<double>;
    ModelTwin(const ModelConfig& config, const ParamTable& table) : c(config), table_(table) {}

    // params: the arena in f64. Returns [N,V].
    Values logits(const Values& params, const Batch& batch) const {
        const int64_t N = batch.num_rows * batch.seq_len, C = c.channels, F = c.mlp_dim;
        const int64_t HD = c.attention_dim(), KD = c.num_kv_heads * c.head_dim;
        const auto at = [&](Slot slot, int64_t layer = -1) { return find(params, slot, layer); };
        Values x(N * C);
        for (int64_t n = 0; n < N; ++n) {
            for (int64_t i = 0; i < C; ++i) {
                x[n * C + i] = at(Slot::wte)[batch.tokens[n] * C + i];
                if (c.position == Position::learned)
                    x[n * C + i] += at(Slot::wpe)[batch.positions[n] * C + i];
            }
        }
        for (int64_t l = 0; l < c.num_layers; ++l) {
            Values h = norm(x, at(Slot::norm1_w, l), at(Slot::norm1_b, l), C);
            Values qkv = linear(h, at(Slot::qkv_w, l), at(Slot::qkv_b, l), C, HD + 2 * KD);
            for (int64_t n = 0; n < N; ++n) {
                for (int64_t head = 0; head < c.num_heads + c.num_kv_heads; ++head) {
                    double* v = &qkv[n * (HD + 2 * KD) + head * c.head_dim];
                    if (c.qk_norm)
                        rms(v, at(head < c.num_heads ? Slot::q_norm : Slot::k_norm, l), c.head_dim);
                    if (c.position == Position::rope) rotate(v, batch.positions[n]);
                }
            }
            add(x, linear(attention(qkv, batch.cu_seqlens, c.window(l)), at(Slot::out_w, l),
                          at(Slot::out_b, l), HD, C));
            h = norm(x, at(Slot::norm2_w, l), at(Slot::norm2_b, l), C);
            const int64_t width = c.mlp == Mlp::swiglu ? 2 * F : F;
            const Values fc = linear(h, at(Slot::fc_w, l), at(Slot::fc_b, l), C, width);
            Values act(N * F);
            for (int64_t n = 0; n < N; ++n) {
                for (int64_t f = 0; f < F; ++f) {
                    const double z = fc[n * width + f];
                    double& y = act[n * F + f];
                    if (c.mlp == Mlp::gelu) {
                        y = z / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (z + 0.044715 * z * z * z)));
                    } else if (c.mlp == Mlp::relu2) {
                        y = z > 0 ? z * z : 0;
                    } else {
                        y = z / (1 + std::exp(-z)) * fc[n * width + F + f];
                    }
                }
            }
            add(x, linear(act, at(Slot::proj_w, l), at(Slot::proj_b, l), F, C));
        }
        const Values hidden = norm(x, at(Slot::final_norm_w), at(Slot::final_norm_b), C);
        return linear(hidden, at(c.tied_head ? Slot::wte : Slot::head_w), nullptr, C, c.vocab_size);
    }

    // Of each token, 0 where it has no target.
    Values losses(const Values& params, const Batch& batch) const {
        const Values z = logits(params, batch);
        const int64_t V = c.vocab_size;
        Values losses(batch.tokens.size());
        for (size_t n = 0; n < losses.size(); ++n) {
            if (batch.targets[n] < 0) continue;
            double sum = 0;
            for (int64_t v = 0; v < V; ++v) sum += std::exp(z[n * V + v]);
            losses[n] = std::log(sum) - z[n * V + batch.targets[n]];
        }
        return losses;
    }
    double loss(const Values& params, const Batch& batch) const {
        double sum = 0;
        for (const double loss : losses(params, batch)) sum += loss;
        return sum;
    }

private:
    const double* find(const Values& params, Slot slot, int64_t layer) const {
        for (const ParamInfo& row : table_.rows()) {
            if (row.slot == slot && row.layer == layer) return &params[row.offset];
        }
        return nullptr;
    }
    static void add(Values& x, const Values& y) {
        for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
    }
    static Values linear(const Values& x, const double* w, const double* b, int64_t in, int64_t out) {
        const int64_t N = int64_t(x.size()) / in;
        Values y(N * out);
        for (int64_t n = 0; n < N; ++n) {
            for (int64_t o = 0; o < out; ++o) {
                double sum = b ? b[o] : 0;
                for (int64_t i = 0; i < in; ++i) sum += x[n * in + i] * w[o * in + i];
                y[n * out + o] = sum;
            }
        }
        return y;
    }
    void rms(double* x, const double* w, int64_t size) const {
        double square = 0;
        for (int64_t i = 0; i < size; ++i) square += x[i] * x[i];
        const double rstd = 1 / std::sqrt(square / size + c.norm_eps);
        for (int64_t i = 0; i < size; ++i) x[i] *= rstd * w[i];
    }
    Values norm(Values x, const double* w, const double* b, int64_t C) const {
        for (size_t n = 0; n < x.size() / C; ++n) {
            double* row = &x[n * C];
            if (c.norm == Norm::rmsnorm) {
                rms(row, w, C);
                continue;
            }
            double mean = 0, var = 0;
            for (int64_t i = 0; i < C; ++i) mean += row[i] / C;
            for (int64_t i = 0; i < C; ++i) var += (row[i] - mean) * (row[i] - mean) / C;
            for (int64_t i = 0; i < C; ++i)
                row[i] = (row[i] - mean) / std::sqrt(var + c.norm_eps) * w[i] + b[i];
        }
        return x;
    }
    void rotate(double* v, int64_t position) const {  // plain RoPE: scaling variants are test_rope's
        const int64_t half = c.head_dim / 2;
        for (int64_t i = 0; i < half; ++i) {
            const double angle =
                double(position) * std::pow(c.rope_theta, -2.0 * double(i) / double(c.head_dim));
            const double a = v[i], b = v[i + half];
            v[i] = a * std::cos(angle) - b * std::sin(angle);
            v[i + half] = b * std::cos(angle) + a * std::sin(angle);
        }
    }
    Values attention(const Values& qkv, const std::vector<int32_t>& bounds, int64_t window) const {
        const int64_t D = c.head_dim, H = c.num_heads, K = c.num_kv_heads, width = (H + 2 * K) * D;
        Values out(qkv.size() / width * H * D);
        for (size_t s = 0; s + 1 < bounds.size(); ++s) {
            for (int64_t n = bounds[s]; n < bounds[s + 1]; ++n) {
                const int64_t first = window > 0 ? std::max<int64_t>(bounds[s], n - window + 1) : bounds[s];
                for (int64_t h = 0; h < H; ++h) {
                    const int64_t kv = h / (H / K);
                    const double* q = &qkv[n * width + h * D];
                    Values p;
                    double sum = 0;
                    for (int64_t m = first; m <= n; ++m) {
                        const double* k = &qkv[m * width + (H + kv) * D];
                        double score = 0;
                        for (int64_t d = 0; d < D; ++d) score += q[d] * k[d];
                        p.push_back(std::exp(score / std::sqrt(double(D))));
                        sum += p.back();
                    }
                    for (int64_t m = first; m <= n; ++m) {
                        const double* v = &qkv[m * width + (H + K + kv) * D];
                        for (int64_t d = 0; d < D; ++d) out[(n * H + h) * D + d] += p[m - first] / sum * v[d];
                    }
                }
            }
        }
        return out;
    }

    const ModelConfig& c;
    const ParamTable& table_;
};
