// The matrix products of real models' training steps. One list, so that every benchmark means the same
// shapes.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

struct LinearShape {
    const char* name;
    int64_t outputs, inputs;  // weight [outputs, inputs]
    int64_t count;            // how many of these one step has, each with its own weight
};

struct ModelShape {
    const char* name;
    std::vector<LinearShape> linears;  // in the order of the forward pass, the head last
};

inline const std::vector<ModelShape>& model_shapes() {
    static const std::vector<ModelShape> models = {
        {"gpt2-124m",
         {{"qkv", 2304, 768, 12},
          {"attention_out", 768, 768, 12},
          {"mlp_up", 3072, 768, 12},
          {"mlp_down", 768, 3072, 12},
          {"head", 50257, 768, 1}}},
        {"llama-160m",
         {{"qkv", 2304, 768, 12},
          {"attention_out", 768, 768, 12},
          {"mlp_gate_up", 6144, 768, 12},
          {"mlp_down", 768, 3072, 12},
          {"head", 32000, 768, 1}}},
        {"small",  // 6 layers, C=384, byte vocabulary
         {{"qkv", 1152, 384, 6},
          {"attention_out", 384, 384, 6},
          {"mlp_up", 1536, 384, 6},
          {"mlp_down", 384, 1536, 6},
          {"head", 256, 384, 1}}},
    };
    return models;
}
