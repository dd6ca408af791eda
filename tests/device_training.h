// Training a tiny model on a device as the trainer does, step by step.
#pragma once
#include <algorithm>
#include <vector>

#include "model/checkpoint.h"
#include "tests/on_device.h"
#include "tests/tiny_model.h"

constexpr int64_t kRows = 2, kTokens = 24;

// Documents of uneven lengths; the same for the same number.
inline Batch batch_of(const ModelConfig& config, uint64_t number, int64_t rows = kRows) {
    Batch batch;
    batch.num_rows = rows, batch.seq_len = kTokens;
    for (int64_t i = 0; i < rows * kTokens; ++i) {
        // A small alphabet, so that there is something to learn in a few steps.
        const auto draw = [&](int64_t at) {
            return static_cast<int32_t>(random_below({number, 5}, static_cast<uint64_t>(at), 7));
        };
        batch.tokens.push_back(i % kTokens == 9 ? 0 : 1 + draw(i));
        batch.targets.push_back(i % 11 == 3 ? -1
                                            : (1 + draw(i)) * 3 % static_cast<int32_t>(config.vocab_size));
    }
    set_document_bounds(batch, 0);
    return batch;
}

struct Training {
    ModelConfig config;
    Transformer model;
    Optimizer optimizer;

    Training(const ModelConfig& c, const RunShape& shape, const OptimizerConfig& optimizing)
        : config(c), model(c, shape), optimizer(model.table(), optimizing, model.params(), shape.math) {
        init_params(model.table(), optimizer.master(), 1);
        optimizer.publish_master();
    }
    // As the trainer does: a step's numbers are taken when the next one's gradients have been queued. One
    // micro-batch a step; `spoilt` steps have a scale of losses that makes their gradients infinite.
    std::vector<StepResult> train_pipelined(int64_t begin, int64_t end, const std::vector<int64_t>& spoilt,
                                            int64_t* waits = nullptr) {
        std::vector<StepResult> results;
        for (int64_t step = begin; step < end; ++step) {
            const int64_t before = num_device_waits();
            const Batch batch = batch_of(config, static_cast<uint64_t>(step));
            const bool spoil = std::find(spoilt.begin(), spoilt.end(), step) != spoilt.end();
            model.forward_backward(batch, spoil ? 1e38f : 1 / static_cast<float>(batch.num_targets()), false);
            const int64_t forwards = num_device_waits() - before;
            if (optimizer.queued()) results.push_back(optimizer.take());
            const int64_t took = num_device_waits();
            optimizer.queue(model.grads(), 3e-3, model.summed_loss(), batch.num_targets());
            if (waits != nullptr) *waits += forwards + num_device_waits() - took;
        }
        results.push_back(optimizer.take());
        return results;
    }
    // Steps [begin, end), every other one of two micro-batches; their losses.
    Values train(int64_t begin, int64_t end) {
        Values losses;
        for (int64_t step = begin; step < end; ++step) {
            std::vector<Batch> batches;
            for (int64_t i = 0; i <= step % 2; ++i)
                batches.push_back(batch_of(config, static_cast<uint64_t>(2 * step + i)));
            int64_t targets = 0;
            for (const Batch& batch : batches) targets += batch.num_targets();
            for (const Batch& batch : batches)
                model.forward_backward(batch, 1 / static_cast<float>(targets), &batch != &batches[0]);
            losses.push_back(model.total_loss() / static_cast<double>(targets));
            EXPECT_TRUE(optimizer.step(model.grads(), 3e-3, losses.back()).applied);
        }
        return losses;
    }
    std::string hash() const { return weights_hash(model.table(), optimizer.master()); }
};

enum class Precision { f32, bf16, fp8 };
inline const char* name_of(Precision precision) {
    return precision == Precision::f32 ? "f32" : precision == Precision::bf16 ? "bf16" : "fp8";
}
inline RunShape shape_on(Device device, Precision precision) {
    const bool f32 = precision == Precision::f32;
    return {.num_rows = kRows,
            .seq_len = kTokens,
            .dtype = f32 ? DType::f32 : DType::bf16,
            .math = f32 ? MatmulMath::f32 : MatmulMath::bf16,
            .fp8 = precision == Precision::fp8,
            .device = device};
}
