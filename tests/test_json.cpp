// JSON that others wrote: what is refused, in which words, and that no text, however deep or long, does more
// than that.
#include "core/json.h"

#include <gtest/gtest.h>

namespace {

using nlohmann::json;
using nlohmann::ordered_json;

const JsonSource kSource = {.where = "f.json", .hint = "copy it again", .first_byte = 8};

std::string complaint(const std::string& text) {
    try {
        parse_json<json>(text, kSource);
        parse_json<ordered_json>(text, kSource);
    } catch (const InputError& error) {
        return error.what();
    }
    return "(accepted)";
}
void expect_refused(const std::string& text, const std::vector<std::string>& phrases) {
    const std::string line = complaint(text);
    EXPECT_LT(line.size(), 300u);
    for (const std::string& phrase : phrases)
        EXPECT_NE(line.find(phrase), std::string::npos) << "no \"" << phrase << "\" in: " << line;
}
std::string nested(size_t depth, char open, char close) {
    return std::string(depth, open) + std::string(depth, close);
}

TEST(Json, NestingIsBounded) {
    EXPECT_EQ(complaint(nested(kMaxJsonDepth, '[', ']')), "(accepted)");
    expect_refused(nested(kMaxJsonDepth + 1, '[', ']'), {"f.json, byte 72", "at most 64 levels", "copy it"});
    expect_refused(nested(100'000, '[', ']'), {"at most 64 levels"});
    expect_refused(std::string(100'000, '['), {"at most 64 levels"});
    std::string objects;
    for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
    expect_refused(objects, {"at most 64 levels"});
    // What stands in a string, behind an escaped quote too, is no nesting.
    EXPECT_EQ(complaint("[\"\\\"" + std::string(1000, '[') + "\\\\\"]"), "(accepted)");
    EXPECT_EQ(complaint("[" + std::string(5000, ' ') + "[],[],{}]"), "(accepted)");
}

TEST(Json, WhatIsNoJsonIsRefused) {
    expect_refused("", {"not valid JSON", "f.json", "hint: copy it again"});
    expect_refused("{", {"not valid JSON"});
    expect_refused("{,", {"not valid JSON", "f.json, byte 10"});
    expect_refused("[1e999]", {"not valid JSON", "f.json", "1e999"});
    expect_refused("[" + std::string(100'000, '9') + "]", {"not valid JSON"});
    expect_refused("[\"\xff\"]", {"not valid JSON"});
    expect_refused(std::string(1'000'000, 'x'), {"not valid JSON"});
    expect_refused("{\"a\":{\"b\":1,\"b\":2}}", {"lists a name twice", "\"b\""});
    EXPECT_EQ(complaint("{\"a\":{\"b\":1},\"c\":[{\"b\":1},{\"b\":2}]}"), "(accepted)");
}

TEST(Json, TypedReadsAreChecked) {
    const json value = parse_json<json>("{\"n\":[],\"s\":\"x\"}", kSource);
    EXPECT_EQ(read_json(kSource, [&] { return value.at("s").get<std::string>(); }), "x");
    EXPECT_THROW(read_json(kSource, [&] { return value.at("n").get<int>(); }), InputError);
    EXPECT_THROW(read_json(kSource, [&] { return value.at("absent").get<int>(); }), InputError);
}

TEST(Json, ExcerptsAreShort) {
    EXPECT_EQ(json_excerpt(json::parse("{\"a\":[1,null,\"x\\n\"],\"b\":{}}")),
              "{\"a\":[1,null,\"x\\n\"],\"b\":{}}");
    EXPECT_EQ(json_excerpt(ordered_json::parse("[[],[2.5,true]]")), "[[],[2.5,true]]");
    json large = json::array();
    for (int i = 0; i < 100'000; ++i) large.push_back(std::string(100, 'y'));
    EXPECT_LT(json_excerpt(large).size(), 110u);
    EXPECT_LT(json_excerpt(json(std::string(1'000'000, 'z'))).size(), 110u);
}

}  // namespace
