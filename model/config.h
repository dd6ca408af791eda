// What a model is: the numbers of config.json, read once and never spread further. One transformer serves
// every family; the differences are these fields. HF names appear in config_json.cpp, params.cpp and nowhere
// else.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/rope.h"  // RopeScaling

enum class Norm : uint8_t { layernorm, rmsnorm };
enum class Position : uint8_t { learned, rope };
enum class Mlp : uint8_t { gelu, swiglu, relu2 };

constexpr int64_t kMaxLayers = 100000;

struct ModelConfig {
    std::string family = "llama";  // gpt2 | llama | qwen2 | qwen3
    int64_t vocab_size = 0;        // V
    int64_t max_position = 0;      // longest document piece that the model accepts
    int64_t channels = 0;          // C
    int64_t num_layers = 0;        // L
    int64_t num_heads = 0;         // H
    int64_t num_kv_heads = 0;      // K
    int64_t head_dim = 0;          // D
    int64_t mlp_dim = 0;           // F
    Norm norm = Norm::rmsnorm;
    Position position = Position::rope;
    Mlp mlp = Mlp::swiglu;
    float norm_eps = 1e-5f;
    double rope_theta = 10000;
    RopeScaling rope_scaling;
    bool qkv_bias = false, out_bias = false, mlp_bias = false;
    bool qk_norm = false;
    bool tied_head = false;
    std::vector<int64_t> windows;  // sliding window of each layer, 0: none; empty: none anywhere
    double init_std = 0.02;
    int64_t bos_token = -1, eos_token = -1;
    std::vector<int64_t> eos_list;      // every id that ends a text, eos_token first; empty: that one only
    void set_end_of_text(int64_t id) {  // ends and begins texts
        bos_token = eos_token = id;
        eos_list.clear();
    }

    int64_t window(int64_t layer) const { return windows.empty() ? 0 : windows[static_cast<size_t>(layer)]; }
    int64_t qkv_dim() const { return (num_heads + 2 * num_kv_heads) * head_dim; }
    int64_t attention_dim() const { return num_heads * head_dim; }
    bool operator==(const ModelConfig&) const = default;
};

// Reads HF config.json text. A field that changes the maths and is not known, or has a value that is not
// supported, is an InputError naming it; fields known to be harmless are ignored. `where` names the file in
// messages.
ModelConfig config_from_json(const std::string& text, const std::string& where);
// config.json as transformers, vLLM and llama.cpp's converter read it. torch_dtype: "float32" or "bfloat16".
std::string config_to_json(const ModelConfig& config, const std::string& torch_dtype);

// gpt2-124m gpt2-355m ... llama-160m llama-1b ... qwen2.5-0.5b ... qwen3-0.6b demo ... ; unknown names list
// them all.
ModelConfig config_preset(const std::string& name);
std::vector<std::string> config_preset_names();
void check_config(const ModelConfig& config,
                  const std::string& where);  // ranges and divisibility; InputError

// The products with weights: qkv, attention's output, fc (gate and up are one) and proj of a layer, and the
// head last.
struct LinearDims {
    int64_t out, in;
    bool bias;
};
std::array<LinearDims, 5> linear_dims(const ModelConfig& config);

// 6 x (weights that take part in a matmul, the head included) + 6 x L x attention_dim x seq_len: causal
// attention at half.
double flops_per_token(const ModelConfig& config, int64_t seq_len);
