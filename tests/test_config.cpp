// config.json: what transformers 4.x and 5.x write is read alike; every preset survives a round trip;
// whatever changes the maths and is not implemented is refused by name.
#include "model/config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/error.h"

namespace {
using Json = nlohmann::ordered_json;

// As transformers 4.44 wrote the smallest published models, less the fields of no interest.
const char* kGpt2 = R"({"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
  "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
  "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
  "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1,
  "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true,
  "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}}, "vocab_size": 50257})";
const char* kLlama =
    R"({"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu",
  "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072,
  "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
  "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                   "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256})";
const char* kQwen2 =
    R"({"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
  "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
  "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
  "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
  "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true, "use_sliding_window": false,
  "vocab_size": 151936})";
// As transformers 5 writes.
const char* kQwen3 =
    R"({"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 151643, "dtype": "bfloat16", "eos_token_id": 151643, "head_dim": 128, "hidden_act": "silu",
  "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960,
  "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
  "num_key_value_heads": 8, "pad_token_id": null, "rms_norm_eps": 1e-06,
  "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}, "sliding_window": null,
  "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936})";

ModelConfig read(const Json& json) { return config_from_json(json.dump(), "config.json"); }
Json with(const char* text, const char* changes) {
    Json json = Json::parse(text);
    json.update(Json::parse(changes));
    return json;
}
Json without(const char* text, std::initializer_list<const char*> names) {
    Json json = Json::parse(text);
    for (const char* name : names) EXPECT_EQ(json.erase(name), 1u) << name;
    return json;
}
std::string refusal(const std::string& text) {
    try {
        config_from_json(text, "config.json");
    } catch (const InputError& error) {
        return error.what();
    }
    return "";
}
void expect_refused(const Json& json, std::initializer_list<const char*> parts) {
    const std::string message = refusal(json.dump());
    EXPECT_NE(message, "") << "accepted: " << json.dump();
    for (const char* part : parts) {
        EXPECT_NE(message.find(part), std::string::npos) << "no \"" << part << "\" in \"" << message << "\"";
    }
    EXPECT_NE(message.find("config.json"), std::string::npos) << message;
}
}  // namespace

TEST(Config, PublishedFilesAreThePresets) {
    EXPECT_EQ(read(Json::parse(kGpt2)), config_preset("gpt2-124m"));
    EXPECT_EQ(read(Json::parse(kLlama)), config_preset("llama-1b"));
    EXPECT_EQ(read(Json::parse(kQwen3)), config_preset("qwen3-0.6b"));
    const ModelConfig qwen2 = read(Json::parse(kQwen2));
    EXPECT_EQ(qwen2.head_dim, 64);
    EXPECT_EQ(qwen2.rope_theta, 1e6);
    EXPECT_EQ(qwen2.norm_eps, 1e-6f);
    EXPECT_TRUE(qwen2.qkv_bias && !qwen2.out_bias && !qwen2.mlp_bias && !qwen2.qk_norm && qwen2.tied_head);
    EXPECT_TRUE(qwen2.windows.empty());
}

TEST(Config, EveryPresetSurvivesARoundTrip) {
    for (const std::string& name : config_preset_names()) {
        const ModelConfig config = config_preset(name);
        const std::string text = config_to_json(config, "float32");
        EXPECT_EQ(config_from_json(text, name), config) << text;
    }
}

TEST(Config, UnusualModelsSurviveARoundTrip) {
    ModelConfig qwen = config_preset("tiny-qwen2");
    for (const std::vector<int64_t>& windows : {std::vector<int64_t>{0, 7}, {7, 7}, {7, 0}}) {
        qwen.windows = windows;
        EXPECT_EQ(config_from_json(config_to_json(qwen, "bfloat16"), ""), qwen);
    }
    ModelConfig llama = config_preset("tiny-llama");
    llama.qkv_bias = llama.out_bias = llama.mlp_bias = llama.tied_head = true;
    llama.head_dim = 24;
    llama.rope_scaling = {.type = "yarn",
                          .factor = 4,
                          .original_max_position = 64,
                          .beta_fast = 16,
                          .attention_factor = 1.25,
                          .mscale = 0.7,
                          .mscale_all_dim = 0.5,
                          .truncate = false};
    EXPECT_EQ(config_from_json(config_to_json(llama, "float32"), ""), llama);
    llama.rope_scaling = {.type = "dynamic", .factor = 2};
    EXPECT_EQ(config_from_json(config_to_json(llama, "float32"), ""), llama);
    ModelConfig gpt2 = config_preset("tiny-gpt2");
    gpt2.mlp = Mlp::relu2;
    gpt2.mlp_dim = 100;
    gpt2.tied_head = false;
    gpt2.bos_token = gpt2.eos_token = -1;
    gpt2.norm_eps = 3e-6f;
    gpt2.init_std = 0.013;
    EXPECT_EQ(config_from_json(config_to_json(gpt2, "float32"), ""), gpt2);
}

// Both generations of transformers must find their own fields.
TEST(Config, RopeIsWrittenForBothGenerations) {
    const Json json = Json::parse(config_to_json(config_preset("llama-1b"), "bfloat16"));
    EXPECT_EQ(json["rope_theta"], 500000.0);
    EXPECT_EQ(json["rope_scaling"]["rope_type"], "llama3");
    EXPECT_EQ(json["rope_parameters"]["rope_theta"], 500000.0);
    EXPECT_EQ(json["rope_parameters"]["original_max_position_embeddings"], 8192);
    EXPECT_EQ(json["torch_dtype"], "bfloat16");
    EXPECT_EQ(json["rms_norm_eps"].dump(), "1e-05");
    EXPECT_TRUE(Json::parse(config_to_json(config_preset("demo"), "float32"))["rope_scaling"].is_null());
}

TEST(Config, MissingFieldsAreWhatTransformersTakes) {
    EXPECT_TRUE(read(Json::parse(R"({"model_type": "gpt2"})")) == config_preset("gpt2-124m"));
    EXPECT_EQ(read(with(kGpt2, R"({"n_inner": null})")).mlp_dim, 3072);
    EXPECT_EQ(read(with(kGpt2, R"({"n_inner": 1000})")).mlp_dim, 1000);
    EXPECT_TRUE(read(Json::parse(kGpt2)).tied_head);
    EXPECT_FALSE(read(without(kLlama, {"tie_word_embeddings"})).tied_head);
    EXPECT_FALSE(read(without(kQwen2, {"tie_word_embeddings"})).tied_head);
    EXPECT_FALSE(read(without(kQwen3, {"tie_word_embeddings"})).tied_head);
    EXPECT_EQ(read(without(kLlama, {"num_key_value_heads"})).num_kv_heads, 32);
    EXPECT_EQ(read(without(kLlama, {"head_dim"})).head_dim, 64);
    EXPECT_EQ(read(without(kQwen3, {"head_dim"})).head_dim, 128);
    EXPECT_EQ(read(without(kQwen3, {"rope_parameters"})).rope_theta, 10000);
    EXPECT_EQ(read(without(kLlama, {"rope_scaling"})).rope_scaling, RopeScaling{});
    EXPECT_EQ(read(Json::parse(R"({"model_type": "llama"})")).eos_token, 2);
    EXPECT_EQ(read(with(kLlama, R"({"eos_token_id": null})")).eos_token, -1);
    EXPECT_EQ(read(without(kLlama, {"model_type"})), config_preset("llama-1b"));
}

TEST(Config, ActivationsOfGpt2) {
    EXPECT_EQ(read(with(kGpt2, R"({"activation_function": "gelu_pytorch_tanh"})")).mlp, Mlp::gelu);
    EXPECT_EQ(read(with(kGpt2, R"({"activation_function": "relu2"})")).mlp, Mlp::relu2);
    expect_refused(with(kGpt2, R"({"activation_function": "gelu"})"),
                   {"activation_function", "gelu_new", "erf"});
}

TEST(Config, SlidingWindowsOfQwen) {
    const char* three = R"({"num_hidden_layers": 3, "use_sliding_window": true, "sliding_window": 64,
                            "max_window_layers": 1})";
    EXPECT_EQ(read(with(kQwen2, three)).windows, (std::vector<int64_t>{0, 64, 64}));
    Json types = with(kQwen2, three);
    types["layer_types"] = {"sliding_attention", "full_attention", "full_attention"};
    EXPECT_EQ(read(types).windows, (std::vector<int64_t>{64, 0, 0}));
    types["layer_types"] = {"sliding_attention"};
    expect_refused(types, {"layer_types", "a list of 3"});
    types["layer_types"] = {"full_attention", "linear_attention", "full_attention"};
    expect_refused(types, {"layer_types", "linear_attention"});
    types["layer_types"] = {"full_attention", "sliding_attention", "full_attention"};
    types["use_sliding_window"] = false;
    expect_refused(types, {"layer_types", "use_sliding_window"});
}

// transformers: a window that is null is none, whatever use_sliding_window says; one that is not named is
// 4096.
TEST(Config, ANullWindowIsFullAttention) {
    Json json =
        with(kQwen2, R"({"num_hidden_layers": 3, "use_sliding_window": true, "max_window_layers": 1})");
    json["sliding_window"] = nullptr;
    EXPECT_TRUE(read(json).windows.empty());
    json.erase("sliding_window");
    EXPECT_EQ(read(json).windows, (std::vector<int64_t>{0, 4096, 4096}));
    json["sliding_window"] = nullptr;
    json["layer_types"] = {"full_attention", "sliding_attention", "full_attention"};
    expect_refused(json, {"layer_types", "sliding_window is null"});
}

TEST(Config, EndOfTextListsAreKept) {
    const ModelConfig llama = read(Json::parse(kLlama));
    EXPECT_EQ(llama.eos_token, 128001);
    EXPECT_EQ(llama.eos_list, (std::vector<int64_t>{128001, 128008, 128009}));
    EXPECT_EQ(Json::parse(config_to_json(llama, "bfloat16"))["eos_token_id"], Json({128001, 128008, 128009}));
    const ModelConfig one = read(with(kLlama, R"({"eos_token_id": [128001]})"));
    EXPECT_EQ(Json::parse(config_to_json(one, "bfloat16"))["eos_token_id"], Json::array({128001}));
    expect_refused(with(kLlama, R"({"eos_token_id": []})"), {"eos_token_id", "at least one"});
    expect_refused(with(kLlama, R"({"eos_token_id": [1, "2"]})"), {"eos_token_id", "token ids"});
    expect_refused(with(kLlama, R"({"eos_token_id": [1, 200000]})"), {"end-of-text", "200000"});
    expect_refused(with(kLlama, R"({"eos_token_id": [1, -1]})"), {"end-of-text", "-1"});
}

// Text that is hostile, not merely wrong: refused in one line, and soon.
TEST(Config, HostileTextsAreRefused) {
    std::string deep = kLlama;
    deep.insert(1, "\"id2label\": " + std::string(100'000, '[') + std::string(100'000, ']') + ", ");
    EXPECT_NE(refusal(deep).find("levels of nesting"), std::string::npos);
    std::string vast = kLlama;
    vast.insert(1, "\"rope_theta_\": 1e999, ");
    EXPECT_NE(refusal(vast).find("not valid JSON"), std::string::npos);
    std::string twice = kLlama;
    twice.insert(1, "\"hidden_size\": 8, ");
    EXPECT_NE(refusal(twice).find("lists a name twice"), std::string::npos);
    Json unknown_field = Json::parse(kLlama);
    unknown_field["x"] = std::string(1'000'000, 'y');
    const std::string unknown = refusal(unknown_field.dump());
    EXPECT_LT(unknown.size(), 400u);
    expect_refused(with(kQwen2, R"({"num_hidden_layers": 4503599627370496, "use_sliding_window": true})"),
                   {"layers"});
    expect_refused(with(kGpt2, R"({"n_embd": -9000000000000000000, "n_head": 1})"), {"n_embd", "2^53"});
    // Each size is allowed, their product is not.
    expect_refused(with(kLlama, R"({"hidden_size": 16777216, "num_attention_heads": 65536,
                                    "num_key_value_heads": 65536, "head_dim": 256,
                                    "intermediate_size": 16777216, "num_hidden_layers": 100000})"),
                   {"number of parameters"});
}

TEST(Config, RopeScalingOfBothGenerations) {
    const auto scaling = [](const char* changes) { return read(with(kQwen2, changes)).rope_scaling; };
    const char* yarn =
        R"({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}})";
    EXPECT_EQ(scaling(yarn), (RopeScaling{.type = "yarn", .factor = 4, .original_max_position = 32768}));
    EXPECT_EQ(
        scaling(R"({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 8192}})").factor, 4);
    EXPECT_EQ(scaling(R"({"rope_scaling": {"rope_type": "linear", "factor": 2}})").type, "linear");
    EXPECT_EQ(read(with(kQwen3,
                        R"({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5e4}})"))
                  .rope_theta,
              5e4);
    expect_refused(with(kQwen2, R"({"rope_scaling": {"type": "longrope", "factor": 4}})"),
                   {"rope_scaling.type", "longrope", "llama3"});
    expect_refused(with(kQwen2, R"({"rope_scaling": {"type": "linear"}})"), {"rope_scaling.factor"});
    expect_refused(with(kQwen2, R"({"rope_scaling": {"type": "linear", "factor": 0.5}})"),
                   {"factor", "at least 1"});
    expect_refused(with(kLlama, R"({"rope_scaling": {"rope_type": "llama3", "factor": 8}})"),
                   {"low_freq_factor"});
    expect_refused(with(kQwen2, R"({"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 3}})"),
                   {"unknown field", "rope_scaling.beta_fast"});
    expect_refused(with(kQwen3, R"({"rope_theta": 10000.0})"),
                   {"rope_parameters.rope_theta", "1000000", "10000"});
    expect_refused(with(kLlama, R"({"rope_parameters": {"rope_type": "llama3", "factor": 8}})"),
                   {"rope_parameters", "factor", "32"});
    expect_refused(
        with(kQwen3, R"({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}})"),
        {"partial_rotary_factor", "0.5"});
}

TEST(Config, WhatChangesTheMathsIsRefusedByName) {
    expect_refused(with(kGpt2, R"({"scale_attn_by_inverse_layer_idx": true})"),
                   {"scale_attn_by_inverse_layer_idx", "expected false", "true"});
    expect_refused(with(kGpt2, R"({"scale_attn_weights": false})"), {"scale_attn_weights", "expected true"});
    expect_refused(with(kGpt2, R"({"add_cross_attention": true})"), {"add_cross_attention"});
    expect_refused(with(kLlama, R"({"pretraining_tp": 2})"), {"pretraining_tp", "expected 1", "2"});
    expect_refused(with(kLlama, R"({"hidden_act": "gelu"})"), {"hidden_act", "silu", "gelu"});
    expect_refused(with(kLlama, R"({"quantization_config": {"bits": 4}})"),
                   {"quantization_config", "unquantized"});
    expect_refused(with(kLlama, R"({"num_local_experts": 8})"), {"unknown field", "num_local_experts", "8"});
    expect_refused(with(kLlama, R"({"sliding_window": 4096})"), {"unknown field", "sliding_window"});
    expect_refused(with(kQwen2, R"({"attention_bias": false})"), {"unknown field", "attention_bias"});
    expect_refused(with(kQwen3, R"({"auto_map": {"AutoModel": "x"}})"), {"unknown field", "auto_map"});
    EXPECT_EQ(read(with(kLlama, R"({"sliding_window": null, "num_experts": null})")),
              config_preset("llama-1b"));
}

TEST(Config, OtherFamiliesAreRefusedWithTheListOfOurs) {
    expect_refused(with(kLlama, R"({"model_type": "mistral", "architectures": ["MistralForCausalLM"]})"),
                   {"mistral", "MistralForCausalLM", "gpt2", "llama", "qwen2", "qwen3"});
    expect_refused(with(kQwen3, R"({"architectures": ["Qwen3MoeForCausalLM"]})"), {"Qwen3MoeForCausalLM"});
    expect_refused(with(kLlama, R"({"architectures": ["LlamaForSequenceClassification"]})"),
                   {"LlamaForSequence"});
    expect_refused(Json::parse(R"({"hidden_size": 4})"), {"family"});
}

TEST(Config, WrongTypesAndSizesAreRefused) {
    expect_refused(with(kLlama, R"({"hidden_size": "2048"})"), {"hidden_size", "an integer", "\"2048\""});
    expect_refused(with(kLlama, R"({"hidden_size": 2048.5})"), {"hidden_size", "an integer"});
    expect_refused(with(kLlama, R"({"vocab_size": 18446744073709551615})"), {"vocab_size"});
    expect_refused(with(kLlama, R"({"vocab_size": 0, "bos_token_id": null, "eos_token_id": null})"),
                   {"vocabulary"});
    expect_refused(with(kLlama, R"({"num_key_value_heads": 5})"), {"heads", "multiple", "32"});
    expect_refused(with(kLlama, R"({"head_dim": 12})"), {"head dimension", "multiple of 8", "12"});
    expect_refused(with(kLlama, R"({"num_hidden_layers": -1})"), {"layers", "-1"});
    expect_refused(with(kLlama, R"({"rms_norm_eps": 0})"), {"epsilon"});
    expect_refused(with(kGpt2, R"({"n_head": 0})"), {"heads", "0"});
    expect_refused(with(kGpt2, R"({"n_head": 11})"), {"head dimension"});
    expect_refused(with(kLlama, R"({"eos_token_id": 200000})"), {"end-of-text", "200000"});
    EXPECT_NE(refusal("{\"model_type\": ").find("JSON"), std::string::npos);
    EXPECT_NE(refusal("[1]").find("object"), std::string::npos);
}

TEST(Config, FlopsPerTokenCountMatmulsAndHalfOfAttention) {
    EXPECT_NEAR(flops_per_token(config_preset("gpt2-124m"), 64), 745e6, 0.005 * 745e6);
    const ModelConfig tiny = config_preset("tiny-llama");
    const double weights = 2 * (64 * 128 + 64 * 64 + 3 * 64 * 176) + 64 * 512;
    EXPECT_EQ(flops_per_token(tiny, 10), 6 * weights + 6 * 2 * 64 * 10);
}

TEST(Config, UnknownPresetsAreRefusedWithTheNames) {
    try {
        config_preset("gpt2-125m");
        FAIL();
    } catch (const InputError& error) {
        const std::string message = error.what();
        EXPECT_NE(message.find("llama-160m"), std::string::npos) << message;
        EXPECT_NE(message.find("did you mean gpt2-124m?"), std::string::npos) << message;
    }
}
