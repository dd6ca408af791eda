// What bench_gpu measures: every op, forward and backward, at the shapes of real models' training.
#pragma once
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "bench/gpu_tensors.h"
#include "bench/parse.h"

struct GpuRow {
    std::string op, pass, model;                         // "attention", "backward", "llama-1b"
    std::vector<std::pair<std::string, int64_t>> sizes;  // {"N", 8192}, {"C", 768}
    Precision precision;
    double bytes = 0;  // that it must move through memory: each input read once, each output written once
    double flops = 0;  // of products; 0: bound by memory whatever it computes
    std::function<std::function<void()>(GpuTensors&)> prepare;  // makes its tensors; gives what one call does

    std::string shape() const;  // "llama-1b N=8192 C=768"
};

struct GpuRowChoice {
    std::vector<std::string> ops;     // empty: all
    std::vector<std::string> models;  // presets
    std::vector<int64_t> tokens;      // N
    std::vector<int64_t> seq_lens;    // T, of attention: N / T documents
    std::vector<Precision> precisions;
    int64_t elements = 0;  // of the optimizer's and of casts' rows
};
const std::vector<std::string>& gpu_row_ops();  // every name that GpuRow::op can be
std::vector<GpuRow> gpu_rows(const GpuRowChoice& choice);

// One product of n x n matrices, and one copy of so many bytes: the device's own ceilings.
GpuRow ceiling_matmul(int64_t n, const Precision& precision);
GpuRow ceiling_copy(int64_t bytes);
