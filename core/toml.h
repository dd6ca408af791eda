// The part of TOML that configurations need: `name = value` lines, where a value is a string, a number, a
// boolean or an array of them. Tables, dates and dotted keys are refused with their line.
#pragma once
#include <string>
#include <string_view>
#include <vector>

struct TomlValue {
    std::string text;  // a string's content, or the word as it stands: 3e-4, true
    bool is_string = false;
};
struct TomlEntry {
    std::string name;
    std::vector<TomlValue> values;  // one, or an array's elements
    bool is_array = false;
    int line = 0;
};

// `path` is for messages. Malformed text and repeated names are InputErrors that say PATH:LINE.
std::vector<TomlEntry> parse_toml(std::string_view text, const std::string& path);
std::string toml_quote(std::string_view text);  // "..." with escapes
