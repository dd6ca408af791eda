// JSON that others wrote: headers, configurations, indexes, manifests. Whatever is wrong with it is an
// InputError of one short line, never a crash: nesting is bounded before anything recurses, numbers that no
// double holds and names given twice are refused, and messages quote a bounded excerpt. Json is
// nlohmann::json, or ordered_json where the order of names is kept.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "core/error.h"

constexpr int kMaxJsonDepth = 64;

struct JsonSource {
    std::string what = "not valid JSON";  // the complaint's first words
    std::string where = {};               // the file
    std::string hint = {};
    int64_t first_byte = 0;  // of the text within the file
};
template <class Json>
Json parse_json(std::string_view text, const JsonSource& source);
template <class Json>
std::string json_excerpt(const Json& value);  // as JSON, at most about 100 characters

// read(): typed accesses (at, get, get_to) to parsed JSON. A missing name or a value of another type is an
// InputError.
template <class Read>
auto read_json(const JsonSource& source, Read&& read) {
    try {
        return read();
    } catch (const nlohmann::json::exception& error) {
        fail_input({.what = source.what, .where = source.where, .actual = error.what(), .hint = source.hint});
    }
}
