// How the rows of bench_gpu are collected: of one model at one precision.
#pragma once
#include <algorithm>
#include <initializer_list>

#include "bench/gpu_rows.h"
#include "model/config.h"

using Run = std::function<void()>;
using Sizes = std::vector<std::pair<std::string, int64_t>>;

inline double product(std::initializer_list<int64_t> factors) {
    double result = 1;
    for (int64_t factor : factors) result *= static_cast<double>(factor);
    return result;
}

class Rows {
public:
    Rows(const GpuRowChoice& choice, std::vector<GpuRow>& rows, std::string model, Precision precision)
        : choice_(choice), rows_(rows), model_(std::move(model)), precision_(std::move(precision)) {}

    bool wanted(const char* op) const {
        return choice_.ops.empty() ||
               std::find(choice_.ops.begin(), choice_.ops.end(), op) != choice_.ops.end();
    }
    void add(const char* op, const char* pass, Sizes sizes, double bytes, double flops,
             std::function<Run(GpuTensors&)> prepare) {
        if (wanted(op))
            rows_.push_back(
                {op, pass, model_, std::move(sizes), precision_, bytes, flops, std::move(prepare)});
    }
    DType dtype() const { return precision_.dtype; }
    MatmulMath math() const { return precision_.math; }
    double element() const { return static_cast<double>(dtype_bytes(precision_.dtype)); }

private:
    const GpuRowChoice& choice_;
    std::vector<GpuRow>& rows_;
    std::string model_;
    Precision precision_;
};

// bench/gpu_rows_products.cpp: bound by arithmetic where they are large.
void add_matmul(Rows& rows, const ModelConfig& c, int64_t num_tokens);
void add_attention(Rows& rows, const ModelConfig& c, int64_t num_tokens, int64_t seq_len);
void add_cross_entropy(Rows& rows, const ModelConfig& c, int64_t num_tokens);
void add_muon(Rows& rows, const ModelConfig& c);
// bench/gpu_rows_memory.cpp: bound by memory.
void add_norm(Rows& rows, const ModelConfig& c, int64_t num_tokens);
void add_heads(Rows& rows, const ModelConfig& c, int64_t num_tokens, int64_t seq_len);
void add_activations(Rows& rows, const ModelConfig& c, int64_t num_tokens);
void add_stream(Rows& rows, const ModelConfig& c, int64_t num_tokens, int64_t seq_len);
void add_arrays(Rows& rows, int64_t elements);  // flat ones, of no model in particular
