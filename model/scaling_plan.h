// A run on paper: what it needs of each GPU's memory, what it sends over the network and how long a step
// takes, on machines that nobody here has to own. Pure functions of shapes and datasheets.
//
// Letters: P parameters, N ranks (one a GPU), M micro-batches of a rank in a step, w bytes of a weight (bf16
// and fp8 2, fp32 4). Gradients are summed in f32. The stages of ZeRO (Rajbhandari et al. 2020) divide by N:
//     1   master weights and moments        2   gradients too        3   weights too
//
// Sent by a rank in a step; a ring's reduce-scatter and all-gather send (N-1)/N of the buffer each:
//     0   gradients: all-reduce                                            2 * 4P * (N-1)/N
//     1   gradients: reduce-scatter, once; new weights: all-gather         (4P + wP) * (N-1)/N
//     2   reduce-scatter after each micro-batch                            (M*4P + wP) * (N-1)/N
//     3   likewise; weights are gathered for each forward and backward     M * (4P + 2wP) * (N-1)/N
//
// A collective of S bytes takes as long as the slower of two wires: (N-1)/N * S over a GPU's links within its
// node, and where there are several nodes, n, of g GPUs, (n-1)/n * S/g over its share of the node's network
// (a ring for each GPU, as NCCL lays them). It is cut into L pieces, one a layer, and each waits for g-1 hops
// around the node and log2(n), rounded up, across nodes. Of a time t, max(t/L, t - window) is not hidden: a
// layer's piece has nothing left to hide behind. Gradients hide behind one micro-batch's backward pass, and
// gathered weights behind the forward pass that follows (with 3, behind the pass that they are gathered for).
//
// Time of a GPU is a roofline (Williams et al. 2009) of each kernel in turn:
//     products    tiles of 128 x 256: FLOPs / (the rate that mamf-finder measured * kSustained) +
//     kTileSeconds
//                 for each tile to begin and end, spread over the multiprocessors; or the bytes if they last
//                 longer
//     attention   causal, half of the square: datasheet rate * D/(D + 99) * T/(T + 350), backward 2.5 x the
//     work
//                 at 7/8 of the rate: cuDNN's and FlashAttention-3's published times on H100, D 64 and 128, T
//                 1k to 16k
//     the rest    bytes that norms, activations, RoPE, biases, FP8 scaling and the optimizer move, over
//                 kMemoryShare of the datasheet's bandwidth
// Compared with published runs (build/plan --published): what llm.c and llmq do with large batches it gives
// within 12 %, half of the runs never used to choose a constant.
// Not in it: gaps between kernels and the host's part (small micro-batches are slower than this), offloading,
// tensor and pipeline parallelism, stragglers, sliding windows, power limits below the datasheet's.
#pragma once
#include <optional>
#include <string>

#include "model/config.h"
#include "model/memory_plan.h"
#include "model/transformer.h"  // RunShape

// Dense, without sparsity. measured_: the best of many products, by mamf-finder
// (github.com/stas00/ml-engineering, compute/accelerator); of fp32 0.8 of the datasheet is assumed.
struct Gpu {
    const char* name;
    double memory_gib, memory_gbs;   // GiB; GB/s
    double bf16_tflops, fp8_tflops;  // datasheet; fp8 0: has none
    double measured_bf16, measured_fp8, measured_fp32;
    double num_multiprocessors, link_gbs;  // link: NVLink, one direction
};
Gpu gpu_named(const std::string& name);  // a100, h100, h200, b200; InputError lists them

struct Network {
    double intra_gbs = 0;   // GB/s of each GPU, one direction, within a node; 0: the GPU's own
    double inter_gbs = 50;  // and between nodes: 400 Gbit/s a GPU
    int64_t gpus_per_node = 8;
    double latency_us = 5;  // of a hop
};

struct PaperRun {
    ModelConfig model;
    Gpu gpu;
    RunShape shape = {};  // of a rank's micro-batch; its device and math do not matter
    bool muon = false;
    int zero = 1;
    int64_t num_gpus = 1, micro_batches = 1;  // N, M
    Network network = {};

    double tokens_per_step() const {
        return double(num_gpus) * double(micro_batches) * double(shape.num_rows) * double(shape.seq_len);
    }
};

// Of one rank. Activations and workspaces are those of the trainer's own plan.
MemoryPlan paper_memory(const PaperRun& run);

struct WireBytes {  // sent by one rank in a step
    double gradients = 0, weights = 0;
    double total() const { return gradients + weights; }
};
WireBytes wire_bytes(const PaperRun& run);
// One reduce-scatter or all-gather of `bytes` over all ranks.
double collective_seconds(const PaperRun& run, double bytes);

struct StepTime {  // seconds of a step
    double products = 0, attention = 0, elements = 0, optimizer = 0;
    double network = 0;  // what is not hidden
    double total() const { return products + attention + elements + optimizer + network; }
};
StepTime step_time(const PaperRun& run);
double tokens_per_second(const PaperRun& run);  // of all GPUs
double paper_mfu(const PaperRun& run);          // of the datasheet's bf16 rate, fp8 and fp32 runs too

// The same run on another number of GPUs. Weak: each keeps its batch. Strong: the step keeps its; a rank has
// fewer micro-batches, then smaller ones, and nothing is returned where rows do not divide by the GPUs.
PaperRun weak_scaled(PaperRun run, int64_t num_gpus);
std::optional<PaperRun> strong_scaled(PaperRun run, int64_t num_gpus);
