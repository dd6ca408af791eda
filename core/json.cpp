// Parsing JSON that is not trusted. The parser itself does not recurse, but printing and copying do: hence
// the bound on depth, checked on the text.
#include "core/json.h"

#include <set>
#include <vector>

#include "core/log.h"

namespace {

constexpr size_t kMaxExcerpt = 100;

std::string shortened(std::string text) {
    if (text.size() > kMaxExcerpt) text = text.substr(0, kMaxExcerpt) + "...";
    return text;
}

// The byte at which the text is nested too deeply; npos when it never is.
size_t too_deep_at(std::string_view text) {
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (in_string) {
            if (c == '\\') ++i;
            if (c == '"') in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > kMaxJsonDepth) return i;
        } else if (c == '}' || c == ']') {
            --depth;
        }
    }
    return std::string_view::npos;
}

template <class Json>
void append_excerpt(std::string& out, const Json& value) {
    if (out.size() > kMaxExcerpt) return;
    if (value.is_string()) {
        out += json_quote(
            std::string_view(value.template get_ref<const std::string&>()).substr(0, kMaxExcerpt + 1));
    } else if (value.is_structured()) {
        const bool object = value.is_object();
        const size_t begin = out.size() + 1;
        out += object ? '{' : '[';
        for (const auto& [name, element] : value.items()) {
            if (out.size() > kMaxExcerpt) break;
            if (out.size() > begin) out += ',';
            if (object) out += json_quote(std::string_view(name).substr(0, kMaxExcerpt + 1)) + ':';
            append_excerpt(out, element);
        }
        out += object ? '}' : ']';
    } else {
        out += value.dump();
    }
}

}  // namespace

template <class Json>
Json parse_json(std::string_view text, const JsonSource& source) {
    const auto at = [&](size_t byte) {
        return cat({source.where, ", byte ", source.first_byte + static_cast<int64_t>(byte)});
    };
    if (const size_t deep = too_deep_at(text); deep != std::string_view::npos) {
        fail_input({.what = source.what,
                    .where = at(deep),
                    .expected = cat({"at most ", kMaxJsonDepth, " levels of nesting"}),
                    .actual = "more",
                    .hint = source.hint});
    }
    // The parser keeps the last of two equal names in silence.
    std::vector<std::set<std::string>> names;
    std::string repeated;
    const auto watch_names = [&](int, typename Json::parse_event_t event, Json& parsed) {
        if (event == Json::parse_event_t::object_start) names.emplace_back();
        if (event == Json::parse_event_t::object_end) names.pop_back();
        if (event == Json::parse_event_t::key &&
            !names.back().insert(parsed.template get<std::string>()).second && repeated.empty())
            repeated = json_excerpt(parsed);
        return true;
    };
    Json json;
    try {
        json = Json::parse(text.begin(), text.end(), watch_names);
    } catch (const typename Json::parse_error& error) {
        fail_input({.what = source.what,
                    .where = at(error.byte),
                    .actual = shortened(error.what()),
                    .hint = source.hint});
    } catch (const typename Json::exception& error) {  // a number beyond a double
        fail_input({.what = source.what,
                    .where = source.where,
                    .actual = shortened(error.what()),
                    .hint = source.hint});
    }
    if (!repeated.empty()) {
        fail_input({.what = cat({source.what, ": it lists a name twice"}),
                    .where = source.where,
                    .expected = "distinct names",
                    .actual = repeated,
                    .hint = source.hint});
    }
    return json;
}

template <class Json>
std::string json_excerpt(const Json& value) {
    std::string text;
    append_excerpt(text, value);
    return shortened(text);
}

template nlohmann::json parse_json(std::string_view, const JsonSource&);
template nlohmann::ordered_json parse_json(std::string_view, const JsonSource&);
template std::string json_excerpt(const nlohmann::json&);
template std::string json_excerpt(const nlohmann::ordered_json&);
