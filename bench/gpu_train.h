// Training throughput on a GPU: synthetic tokens, micro-batches accumulated to steps of a given size, the
// host waiting where the trainer waits (once a step, for loss and gradient norm) and nowhere else.
#pragma once
#include <string>

#include "bench/parse.h"
#include "core/batch.h"
#include "model/transformer.h"

struct GpuTrainChoice {
    std::string model;  // preset
    Precision precision;
    Device device = Device::cuda;
    bool muon = false;
    std::string recompute = "auto";  // auto: the least that fits
    int64_t seq_len = 0, batch_tokens = 0;
    int64_t micro_batch = 0;  // rows; 0: the largest power of two that fits and divides the step
    int64_t steps = 0, limit_s = 0;
    std::string json = {};  // a line is added to this file; empty: none
};

// The micro-batch and recomputation of a choice in `available_bytes` of device memory; num_rows 0: none fits.
RunShape gpu_train_shape(const GpuTrainChoice& choice, int64_t available_bytes);

// Prints a line and adds one to the file of JSON; false when the model does not fit or the result is not
// sound.
bool train_on_gpu(const GpuTrainChoice& choice);

Recompute recompute_level(const std::string& name);  // none, mlp, block
Batch random_batch(int64_t rows, int64_t seq_len, int64_t vocab_size, uint64_t seed);
