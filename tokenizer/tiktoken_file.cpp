// .tiktoken: one line `base64(bytes) SP rank` per token. The rank is both the id and the merge priority; gaps
// are allowed (p50k has them). The file names neither its split pattern nor its special tokens.
#include <algorithm>
#include <charconv>
#include <unordered_map>

#include "core/error.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/formats.h"

namespace {

constexpr char kBase64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr int32_t kLargestId =
    1 << 24;  // no vocabulary is near this; a wild rank must not allocate the machine

std::string to_base64(std::string_view bytes) {
    std::string text;
    for (size_t at = 0; at < bytes.size(); at += 3) {
        const size_t count = std::min<size_t>(3, bytes.size() - at);
        uint32_t word = 0;
        for (size_t i = 0; i < 3; ++i)
            word = word << 8 | (i < count ? static_cast<uint8_t>(bytes[at + i]) : 0u);
        for (size_t i = 0; i < 4; ++i) text += i <= count ? kBase64[word >> (18 - 6 * i) & 63] : '=';
    }
    return text;
}

// False when `text` is not padded base64.
bool from_base64(std::string_view text, std::string& bytes) {
    bytes.clear();
    if (text.empty() || text.size() % 4 != 0) return false;
    const size_t padding = text.ends_with("==") ? 2 : text.ends_with("=") ? 1 : 0;
    uint32_t word = 0;
    for (size_t at = 0; at < text.size(); ++at) {
        const bool pad = at >= text.size() - padding;
        const char* found = pad ? kBase64 : std::find(kBase64, kBase64 + 64, text[at]);
        if (found == kBase64 + 64) return false;
        word = word << 6 | static_cast<uint32_t>(found - kBase64);
        if (at % 4 != 3) continue;
        for (int shift = 16; shift >= 0; shift -= 8) bytes.push_back(static_cast<char>(word >> shift & 255));
        word = 0;
    }
    bytes.resize(bytes.size() - padding);
    return true;
}

[[noreturn]] void fail_line(const std::string& path, int64_t line, const std::string& expected,
                            const std::string& actual) {
    fail_input({.what = "not a .tiktoken file",
                .where = cat({path, ", line ", line}),
                .expected = expected,
                .actual = actual,
                .hint = "get the file again, or give a tokenizer.json"});
}

// NAME or NAME=ID into the model.
void add_special(TokenizerModel& model, const std::string& special) {
    std::string name = special;
    int64_t id = static_cast<int64_t>(model.tokens.size());
    const size_t equals = special.rfind('=');
    if (equals != std::string::npos && equals + 1 < special.size() &&
        special.find_first_not_of("0123456789", equals + 1) == std::string::npos) {
        name = special.substr(0, equals);
        const char* end = special.data() + special.size();
        if (std::from_chars(special.data() + equals + 1, end, id).ec != std::errc{} || id > kLargestId)
            fail_input({.what = "the id of a special token is out of range",
                        .where = "--special " + special,
                        .expected = cat({"0 to ", kLargestId}),
                        .hint = "give it the id that the model was trained with"});
    }
    if (static_cast<size_t>(id) >= model.tokens.size()) model.tokens.resize(static_cast<size_t>(id) + 1);
    std::string& token = model.tokens[static_cast<size_t>(id)];
    if (!token.empty())
        fail_input({.what = "the id of a special token is taken",
                    .where = "--special " + special,
                    .expected = "an id without a token",
                    .actual = cat({id, ", which has one"}),
                    .hint = cat({"leave the id out, or give one from ", model.tokens.size(), " on"})});
    if (name.empty()) check_added_names({name});
    token = name;
    model.added.push_back({.content = name, .id = static_cast<int32_t>(id)});
}

}  // namespace

TokenizerModel read_tiktoken(const std::string& path, std::string_view text, const LoadOptions& options) {
    TokenizerModel model;
    model.pattern = split_pattern_from_name(options.pattern);
    model.nfc = model.pattern == SplitPattern::qwen2;
    model.whole_piece_first = true;
    model.ranked_by_id = true;

    std::string bytes;
    int64_t line_number = 0;
    for (size_t begin = 0; begin < text.size();) {
        const size_t end = std::min(text.find('\n', begin), text.size());
        std::string_view line = text.substr(begin, end - begin);
        begin = end + 1;
        if (line.ends_with('\r')) line.remove_suffix(1);
        ++line_number;
        if (line.empty()) continue;
        const size_t space = line.find(' ');
        const std::string shown(line.substr(0, 40));
        if (space == std::string_view::npos || !from_base64(line.substr(0, space), bytes))
            fail_line(path, line_number, "base64, a space and a rank", shown);
        int32_t rank = -1;
        const char* digits_end = line.data() + line.size();
        const auto [stop, error] = std::from_chars(line.data() + space + 1, digits_end, rank);
        if (error != std::errc{} || stop != digits_end || rank < 0 || rank > kLargestId)
            fail_line(path, line_number, cat({"a rank of 0 to ", kLargestId}), shown);
        if (static_cast<size_t>(rank) >= model.tokens.size())
            model.tokens.resize(static_cast<size_t>(rank) + 1);
        std::string& token = model.tokens[static_cast<size_t>(rank)];
        if (!token.empty()) fail_line(path, line_number, "each rank once", cat({rank, " again"}));
        token = bytes;
    }
    if (model.tokens.empty()) fail_line(path, 1, "tokens", "an empty file");

    for (const std::string& special : options.specials) add_special(model, special);
    if (!model.added.empty()) model.eot = model.added.front().id;
    std::sort(model.added.begin(), model.added.end(),
              [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
    return model;
}

std::string write_tiktoken(const TokenizerModel& model) {
    std::vector<bool> added(model.tokens.size(), false);
    for (const AddedToken& token : model.added)
        added[static_cast<size_t>(token.id)] = !token.in_vocabulary || token.special;
    std::vector<bool> made(model.tokens.size(), false);
    int32_t newest = -1;
    for (const TokenizerModel::Merge& merge : model.merges) {
        if (made[static_cast<size_t>(merge.merged)]) continue;  // a second way to the same token
        if (merge.merged < newest) return "";
        newest = merge.merged;
        made[static_cast<size_t>(merge.merged)] = true;
    }
    std::string text;
    for (size_t id = 0; id < model.tokens.size(); ++id) {
        if (model.tokens[id].empty() || added[id]) continue;
        text += to_base64(model.tokens[id]) + ' ' + std::to_string(id) + '\n';
    }
    return text;
}
