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
#include "tests/tiny_model.h"

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
// Each about twice the largest value seen over the families.
// f32: sums of some hundred terms at 6e-8 each, through some ten layers of arithmetic; most is in Qwen2's key
// biases, whose gradient is the small rest of cancelling terms. mixed: products of bf16-rounded factors, 2^-9
// each; errors average over the inner sum (32 terms) and add up over the 14 matmuls of forward and backward.
// bf16: activations and gradients too are rounded, at about 30 places, and the weights before the first; the
// loss is a mean over 42 tokens and averages that out.
constexpr Precision kPrecisions[] = {
    {"f32", DType::f32, MatmulMath::f32, 1e-6, 2e-5, 2e-5, 1e-6},
    {"mixed", DType::f32, MatmulMath::bf16, 3e-3, 0.15, 0.05, 1e-2},
    {"bf16", DType::bf16, MatmulMath::bf16, 1e-2, 0.2, 0.06, 1.2e-2},
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

double squared_norm(const std::vector<float>& values) {
    double squares = 0;
    for (const float value : values) squares += static_cast<double>(value) * value;
    return squares;
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
    // |error| / |golden| of one tensor, in the 2-norm. In reduced precision |golden| is that of the tensor's
    // whole slot (q, k, v): a key bias adds nearly the same number to all scores of a query, which the
    // softmax does not see, so that its gradient is the small rest of cancelling terms as large as the
    // others'.
    double gradient_error(const Transformer& model, const ParamInfo& row) {
        std::vector<float> difference = golden_.gradient(row);
        double scale = squared_norm(difference);
        for (size_t i = 0; i < difference.size(); ++i)
            difference[i] -= model.grads().as<float>()[row.offset + static_cast<int64_t>(i)];
        if (precision().math != MatmulMath::f32) {
            scale = 0;
            for (const ParamInfo& other : model.table().rows())
                if (other.slot == row.slot && other.layer == row.layer)
                    scale += squared_norm(golden_.gradient(other));
        }
        return std::sqrt(squared_norm(difference) / scale);
    }
    Optimizer make_optimizer(const Transformer& model) {
        return Optimizer(model.table(), {.weight_decay = 0.1, .grad_clip = 0}, model.params(),
                         precision().math);
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
    EXPECT_NEAR(step_loss(model, batch_, static_cast<float>(1 / count), false) / count, loss,
                precision().loss);
    EXPECT_EQ(golden_.num_tensors(), model.table().rows().size() + 7);  // no gradient is left unlooked at
    for (const ParamInfo& row : model.table().rows())
        EXPECT_LT(gradient_error(model, row), precision().gradient) << row.hf_name;

    // Gradient accumulation: the same batch twice at half weight.
    model.forward_backward(batch_, static_cast<float>(0.5 / count), false);
    model.forward_backward(batch_, static_cast<float>(0.5 / count), true);
    for (const ParamInfo& row : model.table().rows())
        EXPECT_LT(gradient_error(model, row), precision().gradient) << row.hf_name << ", accumulated";
}

TEST_P(GoldenRun, TenStepsOfAdamW) {
    Transformer model = make_transformer();
    Optimizer optimizer = make_optimizer(model);
    load(model, optimizer);
    const double count = static_cast<double>(batch_.num_targets());
    for (const double expected : golden_.read<double>("losses")) {
        const double loss = step_loss(model, batch_, static_cast<float>(1 / count), false) / count;
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
