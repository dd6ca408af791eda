// Reading and writing config.json. The rule of the reader: a field is known and honoured, known and
// harmless, or an error; nothing that changes the maths is dropped in silence. Accepts what transformers 4.x
// (rope_theta, rope_scaling) and 5.x (rope_parameters) write; what is written here loads in both.
#include "model/config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include "core/error.h"
#include "core/json.h"

namespace {
using Json = nlohmann::ordered_json;

constexpr const char* kCopyHint = "the file is damaged: copy it from the model's source again";

struct Family {
    const char* name;
    const char* architecture;
};
constexpr Family kFamilies[] = {{"gpt2", "GPT2LMHeadModel"},
                                {"llama", "LlamaForCausalLM"},
                                {"qwen2", "Qwen2ForCausalLM"},
                                {"qwen3", "Qwen3ForCausalLM"}};

std::string supported_families() {
    std::string text;
    for (const Family& f : kFamilies) {
        text += cat({text.empty() ? "" : ", ", f.name, " (", f.architecture, ")"});
    }
    return text;
}

// Bookkeeping, dropout (never applied here), heads of other tasks, and defaults of text generation: none of
// them changes what the network computes.
constexpr std::string_view kHarmless =
    " _attn_implementation _attn_implementation_autoset _name_or_path attention_dropout "
    "attn_implementation attn_pdrop bad_words_ids begin_suppress_tokens chunk_size_feed_forward "
    "decoder_start_token_id diversity_penalty do_sample dtype early_stopping embd_pdrop "
    "encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task "
    "forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label "
    "ignore_keys_at_rope_validation label2id length_penalty max_length min_length n_ctx "
    "no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences "
    "output_attentions output_hidden_states output_scores pad_token_id prefix problem_type "
    "remove_invalid_values reorder_and_upcast_attn repetition_penalty resid_pdrop return_dict "
    "return_dict_in_generate sep_token_id suppress_tokens summary_activation summary_first_dropout "
    "summary_proj_to_labels summary_type summary_use_proj task_specific_params temperature "
    "tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config transformers_version "
    "typical_p unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache ";

// A small multiple of it fits an int64 too.
bool small_enough(const Json& integer) { return std::fabs(integer.get<double>()) < 0x1p53; }

// One JSON object, read field by field. null means "not given", as in transformers.
class Fields {
public:
    Fields(const Json& object, std::string where, std::string prefix = "")
        : object_(object), where_(std::move(where)), prefix_(std::move(prefix)) {}

    const Json* find(const char* name) {
        seen_.insert(name);
        const auto it = object_.find(name);
        return it == object_.end() || it->is_null() ? nullptr : &*it;
    }
    bool names(const char* name) const { return object_.contains(name); }

    int64_t integer(const char* name, int64_t otherwise) {
        const Json* value = find(name);
        if (!value) return otherwise;
        if (!value->is_number_integer()) refuse(name, "an integer");
        if (!small_enough(*value)) refuse(name, "less than 2^53");
        return value->get<int64_t>();
    }
    double number(const char* name, double otherwise) {
        const Json* value = find(name);
        if (!value) return otherwise;
        if (!value->is_number()) refuse(name, "a number");
        return value->get<double>();
    }
    bool boolean(const char* name, bool otherwise) {
        const Json* value = find(name);
        if (!value) return otherwise;
        if (!value->is_boolean()) refuse(name, "true or false");
        return value->get<bool>();
    }
    std::string text(const char* name, const char* otherwise) {
        const Json* value = find(name);
        if (!value) return otherwise;
        if (!value->is_string()) refuse(name, "a string");
        return value->get<std::string>();
    }
    int64_t token(const char* name, int64_t otherwise) {
        return !find(name) && names(name) ? -1 : integer(name, otherwise);
    }
    // The ids of a list; empty when the field is not one.
    std::vector<int64_t> tokens(const char* name) {
        std::vector<int64_t> ids;
        const Json* value = find(name);
        if (!value || !value->is_array()) return ids;
        for (const Json& id : *value) {
            if (!id.is_number_integer() || !small_enough(id)) refuse(name, "token ids");
            ids.push_back(id.get<int64_t>());
        }
        if (ids.empty()) refuse(name, "at least one token id");
        return ids;
    }
    // A field that exists in the family's code but of which only one value is implemented here.
    void only(const char* name, const Json& value) {
        const Json* actual = find(name);
        if (actual && *actual != value) refuse(name, json_excerpt(value));
    }
    [[noreturn]] void refuse(const char* name, const std::string& expected,
                             const std::string& hint = "") const {
        const auto it = object_.find(name);
        fail_input({.what = cat({"field \"", prefix_, name, "\" has a value that is not supported"}),
                    .where = where_,
                    .expected = expected,
                    .actual = it == object_.end() ? "nothing" : json_excerpt(*it),
                    .hint = hint});
    }
    void refuse_unknown(bool allow_harmless) const {
        for (const auto& [name, value] : object_.items()) {
            if (value.is_null() || seen_.contains(name)) continue;
            if (allow_harmless && kHarmless.find(cat({' ', name, ' '})) != kHarmless.npos) continue;
            fail_input({.what = cat({"unknown field \"", prefix_, name.substr(0, 100),
                                     "\" = ", json_excerpt(value), " may change what the model computes"}),
                        .where = where_,
                        .hint = "remove the field if the weights do not depend on it"});
        }
    }
    const std::string& where() const { return where_; }

private:
    const Json& object_;
    std::string where_, prefix_;
    std::set<std::string> seen_;
};

std::string read_family(Fields& fields) {
    std::string family = fields.text("model_type", "");
    std::string architecture;
    if (const Json* list = fields.find("architectures")) {
        if (!list->is_array() || list->size() != 1 || !(*list)[0].is_string()) {
            fields.refuse("architectures", "a list of one name");
        }
        architecture = (*list)[0].get<std::string>();
    }
    for (const Family& f : kFamilies) {
        if (family == f.name && (architecture.empty() || architecture == f.architecture)) return family;
        if (family.empty() && architecture == f.architecture) return f.name;
    }
    fail_input({.what = "model family is not supported",
                .where = fields.where(),
                .expected = supported_families(),
                .actual = cat({"model_type ", json_excerpt(Json(family)), ", architecture ",
                               json_excerpt(Json(architecture))}),
                .hint = "give a model of these families: RUN/step_N, or a preset"});
}

void read_rope(ModelConfig& config, Fields& fields) {
    config.rope_theta = fields.number("rope_theta", 10000);
    const bool theta_given = fields.find("rope_theta") != nullptr;
    const Json* old_form = fields.find("rope_scaling");
    const Json* new_form = fields.find("rope_parameters");
    if (old_form && !old_form->is_object()) fields.refuse("rope_scaling", "an object");
    if (new_form && !new_form->is_object()) fields.refuse("rope_parameters", "an object");
    if (old_form && old_form->empty()) old_form = nullptr;
    if (old_form && new_form) {  // both, as written below: they must say the same
        for (const auto& [key, value] : old_form->items()) {
            if (new_form->contains(key) && (*new_form)[key] != value) {
                fields.refuse("rope_parameters",
                              cat({"the same \"", key, "\" as in \"rope_scaling\": ", json_excerpt(value)}));
            }
        }
    }
    const Json* given = new_form ? new_form : old_form;
    if (!given) return;

    Fields rope(*given, fields.where(), new_form ? "rope_parameters." : "rope_scaling.");
    const double theta = rope.number("rope_theta", config.rope_theta);
    if (theta_given && theta != config.rope_theta) {
        rope.refuse("rope_theta", cat({"the value of \"rope_theta\": ", config.rope_theta}));
    }
    config.rope_theta = theta;

    RopeScaling& scaling = config.rope_scaling;
    const char* key = rope.names("rope_type") ? "rope_type" : "type";
    scaling.type = rope.text(key, "default");
    rope.find("rope_type"), rope.find("type");
    const bool llama3 = scaling.type == "llama3", yarn = scaling.type == "yarn";
    if (scaling.type != "default" && scaling.type != "linear" && scaling.type != "dynamic" && !llama3 &&
        !yarn) {
        rope.refuse(key, "default, linear, dynamic, yarn or llama3");
    }
    rope.only("partial_rotary_factor", 1.0);
    if (llama3 || yarn) {
        scaling.original_max_position = rope.integer("original_max_position_embeddings", 0);
        if (scaling.original_max_position < 0)
            rope.refuse("original_max_position_embeddings", "a positive number");
    }
    if (scaling.type != "default") {
        const bool derived = yarn && scaling.original_max_position > 0;
        if (!derived && !rope.find("factor")) rope.refuse("factor", "a number");
        scaling.factor = rope.number(
            "factor", derived ? double(config.max_position) / double(scaling.original_max_position) : 1);
        if (!(scaling.factor >= 1)) rope.refuse("factor", "at least 1");
    }
    if (llama3) {
        for (const char* name : {"low_freq_factor", "high_freq_factor"}) {
            if (!rope.find(name)) rope.refuse(name, "a number");
        }
        scaling.low_freq_factor = rope.number("low_freq_factor", 1);
        scaling.high_freq_factor = rope.number("high_freq_factor", 4);
        if (!(scaling.high_freq_factor > scaling.low_freq_factor)) {
            rope.refuse("high_freq_factor", "more than low_freq_factor");
        }
    }
    if (yarn) {
        scaling.beta_fast = rope.number("beta_fast", 32);
        scaling.beta_slow = rope.number("beta_slow", 1);
        scaling.attention_factor = rope.number("attention_factor", 0);
        scaling.mscale = rope.number("mscale", 0);
        scaling.mscale_all_dim = rope.number("mscale_all_dim", 0);
        scaling.truncate = rope.boolean("truncate", true);
    }
    rope.refuse_unknown(false);
}

// Qwen: layers from max_window_layers on slide, unless layer_types says which do.
void read_windows(ModelConfig& config, Fields& fields) {
    if (config.num_layers < 1 || config.num_layers > kMaxLayers) return;  // check_config refuses it
    // No window at all, as in transformers, when it is null; 4096 when it is not named.
    const bool windowless = fields.names("sliding_window") && !fields.find("sliding_window");
    const bool enabled = fields.boolean("use_sliding_window", false) && !windowless;
    const int64_t window = fields.integer("sliding_window", 4096);
    const int64_t first = fields.integer("max_window_layers", 28);
    const Json* types = fields.find("layer_types");
    if (types && (!types->is_array() || int64_t(types->size()) != config.num_layers)) {
        fields.refuse("layer_types", cat({"a list of ", config.num_layers, " names"}));
    }
    if (enabled && window < 1) fields.refuse("sliding_window", "at least 1");
    std::vector<int64_t> windows;
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
        bool slides = enabled && layer >= first;
        if (types) {
            const Json& type = (*types)[size_t(layer)];
            slides = type == "sliding_attention";
            if (!slides && type != "full_attention") {
                fields.refuse("layer_types", "full_attention and sliding_attention only");
            }
            if (slides && !enabled)
                fields.refuse("layer_types", windowless
                                                 ? "full_attention only, since sliding_window is null"
                                                 : "full_attention only, since use_sliding_window is false");
        }
        windows.push_back(slides ? window : 0);
    }
    if (std::ranges::any_of(windows, [](int64_t w) { return w > 0; })) config.windows = windows;
}

void read_end_of_text(ModelConfig& config, Fields& fields, int64_t otherwise) {
    config.eos_list = fields.tokens("eos_token_id");
    config.eos_token =
        config.eos_list.empty() ? fields.token("eos_token_id", otherwise) : config.eos_list.front();
}

void read_gpt2(ModelConfig& config, Fields& fields) {
    config.norm = Norm::layernorm;
    config.position = Position::learned;
    config.vocab_size = fields.integer("vocab_size", 50257);
    config.max_position = fields.integer("n_positions", 1024);
    config.channels = fields.integer("n_embd", 768);
    config.num_layers = fields.integer("n_layer", 12);
    config.num_heads = config.num_kv_heads = fields.integer("n_head", 12);
    config.head_dim = config.num_heads > 0 ? config.channels / config.num_heads : 0;
    config.mlp_dim = fields.integer("n_inner", 4 * config.channels);
    config.norm_eps = float(fields.number("layer_norm_epsilon", 1e-5));
    config.qkv_bias = config.out_bias = config.mlp_bias = true;
    config.tied_head = fields.boolean("tie_word_embeddings", true);
    config.bos_token = fields.token("bos_token_id", 50256);
    read_end_of_text(config, fields, 50256);
    const std::string activation = fields.text("activation_function", "gelu_new");
    if (activation == "gelu_new" || activation == "gelu_pytorch_tanh") {
        config.mlp = Mlp::gelu;
    } else if (activation == "relu2") {
        config.mlp = Mlp::relu2;
    } else {
        fields.refuse("activation_function", "gelu_new, gelu_pytorch_tanh or relu2",
                      activation == "gelu" ? "the exact (erf) GELU is another function" : "");
    }
    fields.only("scale_attn_weights", true);
    fields.only("scale_attn_by_inverse_layer_idx", false);
}

void read_llama_like(ModelConfig& config, Fields& fields) {
    const bool llama = config.family == "llama", qwen3 = config.family == "qwen3";
    config.norm = Norm::rmsnorm;
    config.position = Position::rope;
    config.mlp = Mlp::swiglu;
    config.vocab_size = fields.integer("vocab_size", llama ? 32000 : 151936);
    config.max_position = fields.integer("max_position_embeddings", llama ? 2048 : 32768);
    config.channels = fields.integer("hidden_size", 4096);
    config.num_layers = fields.integer("num_hidden_layers", 32);
    config.num_heads = fields.integer("num_attention_heads", 32);
    config.num_kv_heads = fields.integer("num_key_value_heads", config.num_heads);
    const int64_t even_split = config.num_heads > 0 ? config.channels / config.num_heads : 0;
    config.head_dim = fields.integer("head_dim", qwen3 && !fields.names("head_dim") ? 128 : even_split);
    config.mlp_dim = fields.integer("intermediate_size", llama ? 11008 : 22016);
    config.norm_eps = float(fields.number("rms_norm_eps", 1e-6));
    config.qkv_bias = config.family == "qwen2" || fields.boolean("attention_bias", false);
    config.out_bias = config.family != "qwen2" && config.qkv_bias;
    config.mlp_bias = llama && fields.boolean("mlp_bias", false);
    config.qk_norm = qwen3;
    config.tied_head = fields.boolean("tie_word_embeddings", false);
    config.bos_token = fields.token("bos_token_id", llama ? 1 : -1);
    read_end_of_text(config, fields, llama ? 2 : -1);
    if (fields.text("hidden_act", "silu") != "silu") fields.refuse("hidden_act", "\"silu\"");
    if (llama) {
        fields.only("pretraining_tp", 1);
        fields.only("rope_interleaved", false);
    } else {
        read_windows(config, fields);
    }
    fields.only("partial_rotary_factor", 1.0);
    read_rope(config, fields);
}

// The double whose shortest text is the float's: 1e-05, not 9.999999747378752e-06.
double shortest(float x) {
    char text[32];
    const auto end = std::to_chars(text, text + sizeof text, x).ptr;
    double value = 0;
    std::from_chars(text, end, value);
    return value;
}

Json token_json(int64_t token) { return token < 0 ? Json(nullptr) : Json(token); }

void write_rope(Json& json, const ModelConfig& config) {
    const RopeScaling& scaling = config.rope_scaling;
    Json parameters = {{"rope_type", scaling.type}};
    if (scaling.type != "default") parameters["factor"] = scaling.factor;
    if (scaling.type == "llama3") {
        parameters["low_freq_factor"] = scaling.low_freq_factor;
        parameters["high_freq_factor"] = scaling.high_freq_factor;
    }
    if (scaling.type == "yarn") {
        parameters["beta_fast"] = scaling.beta_fast;
        parameters["beta_slow"] = scaling.beta_slow;
        if (scaling.attention_factor != 0) parameters["attention_factor"] = scaling.attention_factor;
        if (scaling.mscale != 0) parameters["mscale"] = scaling.mscale;
        if (scaling.mscale_all_dim != 0) parameters["mscale_all_dim"] = scaling.mscale_all_dim;
        if (!scaling.truncate) parameters["truncate"] = false;
    }
    if (scaling.original_max_position > 0) {
        parameters["original_max_position_embeddings"] = scaling.original_max_position;
    }
    json["rope_theta"] = config.rope_theta;
    json["rope_scaling"] = scaling.type == "default" ? Json(nullptr) : parameters;
    parameters["rope_theta"] = config.rope_theta;
    json["rope_parameters"] = parameters;
}

void write_windows(Json& json, const ModelConfig& config) {
    Json types = Json::array(), window = nullptr;
    int64_t first = config.num_layers;
    for (int64_t layer = config.num_layers - 1; layer >= 0; --layer) {
        if (config.window(layer) == 0) continue;
        window = config.window(layer);
        if (first == layer + 1) first = layer;
    }
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
        types.push_back(config.window(layer) > 0 ? "sliding_attention" : "full_attention");
    }
    json["use_sliding_window"] = !window.is_null();
    json["sliding_window"] = window;
    json["max_window_layers"] = first;
    json["layer_types"] = types;
}
}  // namespace

ModelConfig config_from_json(const std::string& text, const std::string& where) {
    const Json json = parse_json<Json>(text, {.where = where, .hint = kCopyHint});
    if (!json.is_object())
        fail_input({.what = "not a model configuration",
                    .where = where,
                    .expected = "an object",
                    .hint = kCopyHint});
    Fields fields(json, where);
    ModelConfig config;
    config.family = read_family(fields);
    config.init_std = fields.number("initializer_range", 0.02);
    if (fields.find("quantization_config")) {
        fields.refuse("quantization_config", "unquantized weights (f32, bf16 or f16)");
    }
    for (const char* name : {"add_cross_attention", "is_encoder_decoder", "tie_encoder_decoder"})
        fields.only(name, false);
    for (const char* name : {"pruned_heads", "per_layer_config"}) fields.only(name, Json::object());
    fields.find("is_decoder");
    if (config.family == "gpt2") {
        read_gpt2(config, fields);
    } else {
        read_llama_like(config, fields);
    }
    fields.refuse_unknown(true);
    check_config(config, where);
    return config;
}

std::string config_to_json(const ModelConfig& config, const std::string& torch_dtype) {
    check_config(config, "configuration to be written");
    Json json;
    for (const Family& f : kFamilies) {
        if (config.family == f.name) json["architectures"] = {f.architecture};
    }
    json["model_type"] = config.family;
    json["vocab_size"] = config.vocab_size;
    json["initializer_range"] = config.init_std;
    json["bos_token_id"] = token_json(config.bos_token);
    json["eos_token_id"] = config.eos_list.empty() ? token_json(config.eos_token) : Json(config.eos_list);
    json["tie_word_embeddings"] = config.tied_head;
    json["torch_dtype"] = torch_dtype;
    json["use_cache"] = true;
    if (config.family == "gpt2") {
        json["activation_function"] = config.mlp == Mlp::gelu ? "gelu_new" : "relu2";
        json["n_positions"] = config.max_position;
        json["n_embd"] = config.channels;
        json["n_layer"] = config.num_layers;
        json["n_head"] = config.num_heads;
        json["n_inner"] = config.mlp_dim == 4 * config.channels ? Json(nullptr) : Json(config.mlp_dim);
        json["layer_norm_epsilon"] = shortest(config.norm_eps);
        for (const char* dropout : {"attn_pdrop", "embd_pdrop", "resid_pdrop"}) json[dropout] = 0.0;
        return json.dump(2) + "\n";
    }
    json["max_position_embeddings"] = config.max_position;
    json["hidden_size"] = config.channels;
    json["intermediate_size"] = config.mlp_dim;
    json["num_hidden_layers"] = config.num_layers;
    json["num_attention_heads"] = config.num_heads;
    json["num_key_value_heads"] = config.num_kv_heads;
    json["head_dim"] = config.head_dim;
    json["hidden_act"] = "silu";
    json["rms_norm_eps"] = shortest(config.norm_eps);
    json["attention_dropout"] = 0.0;
    if (config.family != "qwen2") json["attention_bias"] = config.qkv_bias;
    if (config.family == "llama") json["mlp_bias"] = config.mlp_bias;
    if (config.family != "llama") write_windows(json, config);
    write_rope(json, config);
    return json.dump(2) + "\n";
}
