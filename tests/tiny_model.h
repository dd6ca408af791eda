// What the tests of files share: a tiny model in memory, a directory that goes away, the text of an error.
#pragma once
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/tensor.h"
#include "kernels/cast.h"
#include "model/config.h"
#include "model/optimizer.h"
#include "model/params.h"
#include "model/transformer.h"

inline const std::string kTinyFamilies[] = {"tiny-gpt2", "tiny-llama", "tiny-qwen2", "tiny-qwen3"};

// A model in memory: table, f32 values and the arena of `dtype` that a transformer would read.
struct TinyModel {
    ModelConfig config;
    ParamTable table;
    DType dtype;
    Buffer memory;

    TinyModel(const ModelConfig& c, DType d, uint64_t seed) : config(c), table(c), dtype(d) {
        Buffer values(table.arena_size() * 4);
        init_params(table, values.tensor(DType::f32), seed);
        memory = Buffer(table.arena_size() * dtype_bytes(dtype));
        cast(params(), values.tensor(DType::f32));
    }
    explicit TinyModel(const std::string& preset, DType d = DType::f32, uint64_t seed = 1)
        : TinyModel(config_preset(preset), d, seed) {}
    Tensor params() const { return memory.tensor(dtype); }
    Optimizer optimizer() { return Optimizer(table, {}, params(), MatmulMath::f32); }
    float* values() { return params().as<float>(); }
};

// Forward and backward; the losses' sum.
inline double step_loss(Transformer& model, const Batch& batch, float dloss_scale, bool accumulate) {
    model.forward_backward(batch, dloss_scale, accumulate);
    return model.total_loss();
}

class DirectoryTest : public testing::Test {
protected:
    void SetUp() override {
        std::string pattern = (std::filesystem::temp_directory_path() / "ingot-XXXXXX").string();
        out_ = mkdtemp(pattern.data());
    }
    void TearDown() override { std::filesystem::remove_all(out_); }

    template <class F>
    static std::string complaint(F&& body) {
        try {
            body();
        } catch (const InputError& error) {
            return error.what();
        }
        return "(accepted)";
    }
    static void expect_phrases(const std::string& text, const std::vector<std::string>& phrases) {
        for (const std::string& phrase : phrases)
            EXPECT_NE(text.find(phrase), std::string::npos) << "no \"" << phrase << "\" in: " << text;
    }

    std::string out_;
};
