// A rung's operands on a device, random, and the CPU's result for them.
#pragma once
#include "bench/gpu_tensors.h"
#include "bench/ladder/ladder.h"

class GemmProblem {
public:
    GemmProblem(Device device, int64_t rows, int64_t outputs, int64_t inputs);
    const GemmOperands& operands() const { return operands_; }
    double flops() const;
    // Of the rung's output: the largest difference from the CPU's, as a share of the element or of the root
    // mean square, whichever is larger. The output is filled with NaNs first.
    double error_of(const Rung<GemmOperands>& rung);

private:
    GpuTensors tensors_;
    GemmOperands operands_;
};

class AttentionProblem {
public:
    // with_scores: room for the first rung's T x T.
    AttentionProblem(Device device, int64_t num_rows, int64_t seq_len, int64_t num_heads,
                     int64_t num_kv_heads, bool with_scores);
    const AttentionOperands& operands() const { return operands_; }
    double flops() const;  // of what the mask leaves
    double error_of(const Rung<AttentionOperands>& rung);

private:
    GpuTensors tensors_;
    AttentionOperands operands_;
};

// Results are rounded to bf16, 2^-9 of the value, by the CPU and by the rung; on the way attention rounds
// weights of the softmax likewise.
constexpr double kLadderTolerance = 1.0 / 64;
