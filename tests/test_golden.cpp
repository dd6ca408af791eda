// End to end against an implementation that shares nothing with ours: tests/data/golden_FAMILY, written by
// scripts/reference/golden.py (float64 PyTorch, accepted by transformers). Logits, loss, the gradient of
// every tensor and ten losses under AdamW, with documents masked from each other, for every family; f32,
// mixed and bf16.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "core/bf16.h"
#include "kernels/cast.h"
#include "model/hf.h"
#include "model/optimizer.h"
#include "model/safetensors.h"
#include "model/transformer.h"

namespace {

constexpr double kLearningRate = 1e-3;

struct Precision {
    const char* name;
    DType dtype;
    MatmulMath math;
    // Loss: absolute. Logits: absolute, of values up to 5. Gradients: |error| / |golden| per tensor, in the
    // 2-norm. AdamW: absolute, of losses from 5 to 3.
    double loss, logits, gradient, adamw;
};
// f32: sums of some hundred terms at 6e-8 each, doubled by every layer; AdamW divides small gradients by
// themselves, so that after ten steps their relative error is the parameters'. mixed: products of
// bf16-rounded factors, 2^-9 each; errors average over the inner sum (32 terms) and add up over the 14
// matmuls of forward and backward. bf16: activations and gradients too are rounded at each of about 30
// places, and the weights themselves before the first.
constexpr Precision kPrecisions[] = {
    {"f32", DType::f32, MatmulMath::f32, 1e-5, 1e-4, 1e-4, 1e-5},
    {"mixed", DType::f32, MatmulMath::bf16, 1e-2, 6e-2, 3e-2, 2e-2},
    {"bf16", DType::bf16, MatmulMath::bf16, 2e-2, 1e-1, 6e-2, 3e-2},
};

class Golden {
public:
    explicit Golden(const std::string& family)
        : directory_(
              (std::filesystem::path(__FILE__).parent_path() / "data" / ("golden_" + family)).string()),
          file_(directory_ + "/golden.safetensors") {}
    const std::string& directory() const { return directory_; }
    template <class T>
    std::vector<T> read(const std::string& name) const {
        const SafetensorsEntry& entry = file_.entries().at(name);
        std::vector<T> values(static_cast<size_t>(entry.bytes) / sizeof(T));
        std::memcpy(values.data(), entry.data, static_cast<size_t>(entry.bytes));
        return values;
    }
    // The gradient of `row`, [out,in] as ours are.
    std::vector<float> gradient(const ParamInfo& row) const {
        const std::vector<float> stored = read<float>("grad." + row.hf_name);
        EXPECT_EQ(static_cast<int64_t>(stored.size()), row.size());
        if (!row.hf_transposed) return stored;
        std::vector<float> ours(stored.size());
        for (int64_t o = 0; o < row.rows; ++o)
            for (int64_t i = 0; i < row.cols; ++i)
                ours[static_cast<size_t>(o * row.cols + i)] = stored[static_cast<size_t>(i * row.rows + o)];
        return ours;
    }
    Batch batch() const {
        Batch batch;
        const std::vector<int64_t>& shape = file_.entries().at("tokens").shape;
        batch.num_rows = shape[0];
        batch.seq_len = shape[1];
        batch.tokens = read<int32_t>("tokens");
        batch.targets = read<int32_t>("targets");
        batch.positions = read<int32_t>("positions");
        batch.cu_seqlens = read<int32_t>("cu_seqlens");
        return batch;
    }
    size_t num_tensors() const { return file_.entries().size(); }

private:
    std::string directory_;
    SafetensorsFile file_;
};

double largest_difference(const std::vector<float>& a, const float* b) {
    double largest = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        const double difference = std::fabs(static_cast<double>(a[i]) - b[i]);
        if (!(difference <= largest)) largest = difference;  // NaN counts as larger
    }
    return largest;
}

double relative_error(const std::vector<float>& expected, const float* actual) {
    double squares = 0, errors = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        const double error = static_cast<double>(actual[i]) - expected[i];
        errors += error * error;
        squares += static_cast<double>(expected[i]) * expected[i];
    }
    return std::sqrt(errors / squares);
}

class GoldenRun : public testing::TestWithParam<std::tuple<const char*, Precision>> {
protected:
    const Precision& precision() const { return std::get<1>(GetParam()); }
    Golden golden_{std::get<0>(GetParam())};
    Batch batch_ = golden_.batch();
    ModelConfig config_ = load_hf_config(golden_.directory());

    Transformer make_transformer() {
        const RunShape shape = {.num_rows = batch_.num_rows,
                                .seq_len = batch_.seq_len,
                                .dtype = precision().dtype,
                                .math = precision().math};
        return Transformer(config_, shape);
    }
    void load(const Transformer& model, Optimizer& optimizer) {
        load_hf_weights(golden_.directory(), model.table(), config_, optimizer.master());
        optimizer.publish_master();
    }
    Optimizer make_optimizer(const Transformer& model) {
        return Optimizer(model.table(), {.weight_decay = 0.1, .grad_clip = 0}, model.params(),
                         precision().dtype, precision().math);
    }
};

TEST_P(GoldenRun, LogitsLossAndGradients) {
    Transformer model = make_transformer();
    Optimizer optimizer = make_optimizer(model);
    load(model, optimizer);

    const std::vector<float> expected = golden_.read<float>("logits");
    std::vector<float> logits(expected.size());
    model.forward_logits(batch_,
                         tensor_of(logits.data(), batch_.num_rows * batch_.seq_len, config_.vocab_size));
    EXPECT_LT(largest_difference(expected, logits.data()), precision().logits);

    const double loss = golden_.read<double>("loss")[0];
    const double count = static_cast<double>(batch_.num_targets());
    EXPECT_NEAR(model.forward_loss(batch_) / count, loss, precision().loss);
    EXPECT_NEAR(model.forward_backward(batch_, static_cast<float>(1 / count), false) / count, loss,
                precision().loss);
    EXPECT_EQ(golden_.num_tensors(), model.table().rows().size() + 7);  // no gradient is left unlooked at
    for (const ParamInfo& row : model.table().rows()) {
        const double error = relative_error(golden_.gradient(row), model.grads() + row.offset);
        EXPECT_LT(error, precision().gradient) << row.hf_name;
        RecordProperty(row.hf_name, std::to_string(error));
    }

    // Gradient accumulation: the same batch twice at half weight.
    model.forward_backward(batch_, static_cast<float>(0.5 / count), false);
    model.forward_backward(batch_, static_cast<float>(0.5 / count), true);
    for (const ParamInfo& row : model.table().rows())
        EXPECT_LT(relative_error(golden_.gradient(row), model.grads() + row.offset), precision().gradient)
            << row.hf_name;
}

TEST_P(GoldenRun, TenStepsOfAdamW) {
    Transformer model = make_transformer();
    Optimizer optimizer = make_optimizer(model);
    load(model, optimizer);
    const double count = static_cast<double>(batch_.num_targets());
    for (const double expected : golden_.read<double>("losses")) {
        const double loss = model.forward_backward(batch_, static_cast<float>(1 / count), false) / count;
        EXPECT_NEAR(loss, expected, precision().adamw) << "step " << optimizer.num_updates();
        EXPECT_TRUE(optimizer.step(model.grads(), kLearningRate, loss).applied);
    }
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenRun,
                         testing::Combine(testing::Values("gpt2", "llama", "qwen2", "qwen3"),
                                          testing::ValuesIn(kPrecisions)),
                         [](const auto& info) {
                             return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param).name;
                         });

// The documents of the goldens are those that token 0 opens: the batch's own rule must find the same.
TEST(GoldenBatch, DocumentBoundsFollowFromTheTokens) {
    const Batch golden = Golden("llama").batch();
    Batch ours = golden;
    ours.positions.clear();
    ours.cu_seqlens.clear();
    set_document_bounds(ours, 0);
    EXPECT_EQ(ours.positions, golden.positions);
    EXPECT_EQ(ours.cu_seqlens, golden.cu_seqlens);
}

}  // namespace
