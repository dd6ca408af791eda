// Hugging Face tokenizer.json: reads the byte-level BPE part of that format and refuses the rest by name;
// writes it in a fixed layout.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/log.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/formats.h"

namespace {

using Json = nlohmann::json;

constexpr int64_t kLargestId =
    1 << 24;  // no vocabulary is near this; a wild id must not allocate the machine

constexpr const char* kMendIds =
    "give each token of model.vocab and added_tokens an id of its own, or save the tokenizer again";

// A value with the way to it, for messages: `tokenizer.json: model.merges[7]`.
class Node {
public:
    Node(const Json* value, std::string where) : value_(value), where_(std::move(where)) {}

    [[noreturn]] void refuse(const std::string& what, const std::string& expected,
                             const std::string& hint = {}) const {
        std::string shown = value_ ? value_->dump(-1, ' ', false, Json::error_handler_t::replace) : "nothing";
        if (shown.size() > 80) shown = shown.substr(0, 80) + "...";
        fail_input({.what = what, .where = where_, .expected = expected, .actual = shown, .hint = hint});
    }
    bool absent() const { return value_ == nullptr || value_->is_null(); }
    Node operator[](const char* key) const {
        if (!absent() && !value_->is_object()) refuse("not a tokenizer.json", "an object");
        const bool found = !absent() && value_->contains(key);
        return {found ? &(*value_)[key] : nullptr, where_ + (where_.ends_with(": ") ? "" : ".") + key};
    }
    Node at(size_t index) const { return {&(*value_)[index], cat({where_, "[", index, "]"})}; }
    size_t size() const {
        if (!value_ || !value_->is_array()) refuse("not a tokenizer.json", "a list");
        return value_->size();
    }
    const std::string& text() const {
        if (!value_ || !value_->is_string()) refuse("not a tokenizer.json", "a string");
        return value_->get_ref<const std::string&>();
    }
    bool boolean(bool otherwise) const {
        if (absent()) return otherwise;
        if (!value_->is_boolean()) refuse("not a tokenizer.json", "true or false");
        return value_->get<bool>();
    }
    int32_t id() const {
        if (!value_ || !value_->is_number_integer() || value_->get<int64_t>() < 0 ||
            value_->get<int64_t>() > kLargestId)
            refuse("not a tokenizer.json", cat({"an id of 0 to ", kLargestId}));
        return value_->get<int32_t>();
    }
    const Json& json() const { return *value_; }
    const std::string& where() const { return where_; }

private:
    const Json* value_;
    std::string where_;
};

void require_absent(const Node& node, const std::string& name) {
    if (!node.absent()) node.refuse(cat({name, " is not supported"}), "null");
}

void require_false(const Node& node, const std::string& name) {
    if (node.boolean(false)) node.refuse(cat({name, " is not supported"}), "false");
}

// null and "" are the same to HF.
void require_no_text(const Node& node, const std::string& name) {
    if (!node.absent() && !node.text().empty()) node.refuse(cat({name, " is not supported"}), "null");
}

void require_type(const Node& node, const char* kind, const std::string& type) {
    const std::string& actual = node["type"].text();
    if (actual != type) node["type"].refuse(cat({kind, " ", actual, " is not supported"}), type);
}

bool read_normalizer(const Node& node) {
    if (node.absent()) return false;
    if (node["type"].text() == "Sequence") {
        const Node list = node["normalizers"];
        bool nfc = false;
        for (size_t i = 0; i < list.size(); ++i) nfc |= read_normalizer(list.at(i));
        return nfc;
    }
    require_type(node, "normalizer", "NFC");
    return true;
}

void check_byte_level(const Node& node, bool use_regex) {
    require_type(node, "pre-tokenizer", "ByteLevel");
    if (node["add_prefix_space"].boolean(true))
        node.refuse("pre-tokenizer ByteLevel with add_prefix_space is not supported",
                    "add_prefix_space false");
    if (node["use_regex"].boolean(true) != use_regex)
        node.refuse("this use_regex of pre-tokenizer ByteLevel is not supported",
                    use_regex ? "use_regex true" : "use_regex false");
}

SplitPattern read_pre_tokenizer(const Node& node) {
    if (node.absent()) node.refuse("no pre-tokenizer: not supported", "ByteLevel, or Split and ByteLevel");
    if (node["type"].text() == "ByteLevel") {
        check_byte_level(node, true);
        return SplitPattern::gpt2;
    }
    require_type(node, "pre-tokenizer", "Sequence");
    const Node list = node["pretokenizers"];
    if (list.size() != 2) list.refuse("this pre-tokenizer is not supported", "Split and ByteLevel");
    const Node split = list.at(0);
    require_type(split, "pre-tokenizer", "Split");
    if (split["behavior"].text() != "Isolated" || split["invert"].boolean(false))
        split.refuse("this behaviour of pre-tokenizer Split is not supported", "Isolated, not inverted");
    check_byte_level(list.at(1), false);
    const Node regex = split["pattern"]["Regex"];
    for (const std::string& name : split_pattern_names()) {
        const SplitPattern pattern = split_pattern_from_name(name);
        if (regex.text() == split_pattern_regex(pattern)) return pattern;
    }
    regex.refuse("this split pattern is not supported", "that of gpt2, llama3 or qwen2");
}

// What a post-processor adds around a text is left to the caller, but an unknown kind may do more than add.
void check_post_processor(const Node& node) {
    const std::string& type = node["type"].text();
    if (type == "Sequence") {
        const Node list = node["processors"];
        for (size_t i = 0; i < list.size(); ++i) check_post_processor(list.at(i));
    } else if (type != "ByteLevel" && type != "TemplateProcessing") {
        node["type"].refuse(cat({"post-processor ", type, " is not supported"}),
                            "ByteLevel or TemplateProcessing");
    }
}

void set_token(TokenizerModel& model, int32_t id, const std::string& bytes, const Node& node) {
    if (static_cast<size_t>(id) >= model.tokens.size()) model.tokens.resize(static_cast<size_t>(id) + 1);
    std::string& token = model.tokens[static_cast<size_t>(id)];
    if (!token.empty() && token != bytes)
        node.refuse("two tokens with one id", cat({"one token with id ", id}), kMendIds);
    token = bytes;
}

void read_added_tokens(const Node& list, const Json& vocabulary, TokenizerModel& model) {
    if (list.absent()) return;
    for (size_t i = 0; i < list.size(); ++i) {
        const Node node = list.at(i);
        AddedToken token;
        token.content = node["content"].text();
        token.id = node["id"].id();
        token.special = node["special"].boolean(false);
        token.normalized = node["normalized"].boolean(!token.special);
        for (const char* flag : {"lstrip", "rstrip", "single_word"})
            require_false(node[flag], cat({flag, " of added token ", token.content}));
        if (token.normalized && model.nfc)
            node.refuse(
                cat({"normalized added token ", token.content, " under normalizer NFC is not supported"}),
                "normalized false");
        const auto known = vocabulary.find(token.content);
        token.in_vocabulary = known != vocabulary.end();
        if (token.in_vocabulary && *known != token.id)
            node["id"].refuse(cat({"added token ", token.content, " has another id in the vocabulary"}),
                              known->dump(), kMendIds);
        set_token(model, token.id, token.content, node);
        model.added.push_back(token);
    }
    std::sort(model.added.begin(), model.added.end(),
              [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
}

void read_vocabulary(const Node& node, TokenizerModel& model) {
    for (const auto& item : node.json().items()) {
        const std::string& text = item.key();
        const Node entry(&item.value(), cat({node.where(), "[", json_quote(text), "]"}));
        const int32_t id = entry.id();
        const bool added = std::any_of(model.added.begin(), model.added.end(),
                                       [&](const AddedToken& token) { return token.content == text; });
        if (added) continue;
        const std::optional<std::string> bytes = from_byte_alphabet(text);
        if (!bytes || bytes->empty())
            entry.refuse(cat({"token ", json_quote(text), " is not of the byte-level alphabet"}),
                         "a byte-level vocabulary");
        set_token(model, id, *bytes, entry);
    }
}

void read_merges(const Node& list, const Json& vocabulary, TokenizerModel& model) {
    const auto id_of = [&](const Node& node, const std::string& token) {
        const auto found = vocabulary.find(token);
        if (found == vocabulary.end())
            node.refuse(cat({"merge of or to ", json_quote(token), ", which is not in the vocabulary"}),
                        "tokens of the vocabulary");
        return found->get<int32_t>();
    };
    const size_t count = list.size();
    model.merges.reserve(count);
    for (size_t i = 0; i < count; ++i) {
        const Node node = list.at(i);
        std::string left, right;
        if (node.json().is_string()) {
            const std::string& text = node.text();
            const size_t space = text.find(' ');
            if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
                node.refuse("not a merge", "two tokens with a space between");
            left = text.substr(0, space);
            right = text.substr(space + 1);
        } else {
            if (node.size() != 2) node.refuse("not a merge", "two tokens");
            left = node.at(0).text();
            right = node.at(1).text();
        }
        model.merges.push_back({id_of(node, left), id_of(node, right), id_of(node, left + right)});
    }
}

void write_added_tokens(const TokenizerModel& model, std::string& out) {
    const auto flag = [](bool value) { return value ? "true" : "false"; };
    out += "  \"added_tokens\": [";
    for (size_t i = 0; i < model.added.size(); ++i) {
        const AddedToken& token = model.added[i];
        out += cat({i ? "," : "", "\n    {\"id\": ", token.id, ", \"content\": ", json_quote(token.content),
                    ", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": ",
                    flag(token.normalized), ", \"special\": ", flag(token.special), "}"});
    }
    out += model.added.empty() ? "],\n" : "\n  ],\n";
}

std::string pre_tokenizer_json(SplitPattern pattern) {
    if (pattern == SplitPattern::gpt2)
        return R"({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})";
    return cat({R"({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": )",
                json_quote(split_pattern_regex(pattern)), R"(}, "behavior": "Isolated", "invert": false}, )",
                R"({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": )",
                pattern == SplitPattern::llama3 ? "true" : "false", R"(, "use_regex": false}]})"});
}

Json parse(const std::string& path, std::string_view text) {
    try {
        return Json::parse(text);
    } catch (const Json::parse_error& error) {
        fail_input({.what = "not JSON (truncated or damaged)", .where = cat({path, ", byte ", error.byte})});
    }
}

}  // namespace

TokenizerModel read_tokenizer_json(const std::string& path, std::string_view text) {
    const Json json = parse(path, text);
    const Node root(&json, path + ": ");
    require_absent(root["truncation"], "truncation");
    require_absent(root["padding"], "padding");

    TokenizerModel model;
    const Node bpe = root["model"];
    if (bpe.absent()) bpe.refuse("not a tokenizer.json", "a model");
    // Files from before 2020 leave the type out; what they hold is told by its keys.
    if (!bpe["type"].absent()) require_type(bpe, "model", "BPE");
    model.nfc = read_normalizer(root["normalizer"]);
    model.pattern = read_pre_tokenizer(root["pre_tokenizer"]);
    if (!root["decoder"].absent()) require_type(root["decoder"], "decoder", "ByteLevel");
    if (!root["post_processor"].absent()) {
        check_post_processor(root["post_processor"]);
        model.post_processor = root["post_processor"].json().dump();
    }
    if (!bpe["dropout"].absent() && bpe["dropout"].json() != 0)
        bpe["dropout"].refuse("dropout is not supported", "null");
    require_no_text(bpe["continuing_subword_prefix"], "continuing_subword_prefix");
    require_no_text(bpe["end_of_word_suffix"], "end_of_word_suffix");
    // unk_token, fuse_unk: without effect, since every byte must have a token (checked by Tokenizer).
    require_false(bpe["byte_fallback"], "byte_fallback");
    model.whole_piece_first = bpe["ignore_merges"].boolean(false);

    const Node vocabulary = bpe["vocab"];
    if (vocabulary.absent() || !vocabulary.json().is_object())
        vocabulary.refuse("not a tokenizer.json", "an object");
    read_added_tokens(root["added_tokens"], vocabulary.json(), model);
    read_vocabulary(vocabulary, model);
    read_merges(bpe["merges"], vocabulary.json(), model);
    return model;
}

std::string write_tokenizer_json(const TokenizerModel& model) {
    std::vector<bool> only_added(model.tokens.size(), false);
    std::vector<bool> added(model.tokens.size(), false);
    for (const AddedToken& token : model.added) {
        only_added[static_cast<size_t>(token.id)] = !token.in_vocabulary;
        added[static_cast<size_t>(token.id)] = true;
    }
    std::string out = "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n";
    write_added_tokens(model, out);
    out += cat({"  \"normalizer\": ", model.nfc ? R"({"type": "NFC"})" : "null", ",\n"});
    out += cat({"  \"pre_tokenizer\": ", pre_tokenizer_json(model.pattern), ",\n"});
    out +=
        cat({"  \"post_processor\": ", model.post_processor.empty() ? "null" : model.post_processor, ",\n"});
    out +=
        R"(  "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},)";
    out += "\n  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n";
    out += "    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n";
    out += "    \"fuse_unk\": false,\n    \"byte_fallback\": false,\n";
    out +=
        cat({"    \"ignore_merges\": ", model.whole_piece_first ? "true" : "false", ",\n    \"vocab\": {"});
    const char* separator = "\n";
    const auto shown = [&](int32_t id) {
        const std::string& bytes = model.tokens[static_cast<size_t>(id)];
        return added[static_cast<size_t>(id)] ? bytes : to_byte_alphabet(bytes);
    };
    for (size_t id = 0; id < model.tokens.size(); ++id) {
        if (model.tokens[id].empty() || only_added[id]) continue;
        out += cat({separator, "      ", json_quote(shown(static_cast<int32_t>(id))), ": ", id});
        separator = ",\n";
    }
    out += "\n    },\n    \"merges\": [";
    separator = "\n";
    for (const TokenizerModel::Merge& merge : model.merges) {
        out += cat({separator, "      ", json_quote(shown(merge.left) + ' ' + shown(merge.right))});
        separator = ",\n";
    }
    return out + "\n    ]\n  }\n}\n";
}

std::string read_eos_token(const std::string& config_path, std::string_view text) {
    const Json json = parse(config_path, text);
    const Node eos = Node(&json, config_path + ": ")["eos_token"];
    if (eos.absent()) return "";
    return eos.json().is_object() ? eos["content"].text() : eos.text();
}

// PreTrainedTokenizerFast makes transformers take tokenizer.json as it is: the classes named after a family
// rebuild the pre-tokenizer from their own source. llama.cpp's converter looks at neither: it hashes the ids
// of a test text and knows published vocabularies only, so for a trained one its get_vocab_base_pre() must be
// told the name, which stands here as gguf_pre (and is what tokenizer.ggml.pre holds in a GGUF file).
std::string write_tokenizer_config(const TokenizerModel& model) {
    std::string out =
        "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n  \"add_prefix_space\": false,\n";
    out += "  \"clean_up_tokenization_spaces\": false,\n";
    out += cat({"  \"gguf_pre\": \"", split_pattern_gguf_name(model.pattern), "\",\n"});
    if (model.eot >= 0)
        out += cat({"  \"eos_token\": ", json_quote(model.tokens[static_cast<size_t>(model.eot)]), ",\n"});
    out += "  \"added_tokens_decoder\": {";
    const char* separator = "\n";
    for (const AddedToken& token : model.added) {
        out += cat({separator, "    \"", token.id, "\": {\"content\": ", json_quote(token.content),
                    ", \"lstrip\": false, \"normalized\": ", token.normalized ? "true" : "false",
                    ", \"rstrip\": false, \"single_word\": false, \"special\": ",
                    token.special ? "true" : "false", "}"});
        separator = ",\n";
    }
    return out + (model.added.empty() ? "}\n}\n" : "\n  }\n}\n");
}
