// Character classes, split scanners and NFC against what tiktoken, HF tokenizers and Unicode's own data say
// (tests/data/tokenizer_vectors.json, made by scripts/reference/tokenizer_vectors.py).
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/io.h"
#include "core/rng.h"
#include "tokenizer/split.h"
#include "tokenizer/unicode.h"

namespace {

using Json = nlohmann::json;

const Json& vectors() {
    static const Json json = Json::parse(std::ifstream("tests/data/tokenizer_vectors.json"));
    return json;
}

std::string from_hex(const std::string& text) {
    std::string bytes;
    for (size_t i = 0; i < text.size(); i += 2)
        bytes.push_back(static_cast<char>(std::stoi(text.substr(i, 2), nullptr, 16)));
    return bytes;
}

std::vector<size_t> piece_lengths(SplitPattern pattern, std::string_view text) {
    std::vector<size_t> lengths;
    for (size_t at = 0; at < text.size();) {
        const size_t end = next_piece(pattern, text, at);
        EXPECT_GT(end, at);
        EXPECT_LE(end, text.size());
        lengths.push_back(end - at);
        at = end;
    }
    return lengths;
}

bool is_scalar(uint32_t code) { return code < 0xD800 || code >= 0xE000; }

TEST(Unicode, ClassesOfEveryCodePointAreThoseOfTiktoken) {
    for (const auto& [name, kind] :
         {std::pair{"letter", CharClass::letter}, std::pair{"number", CharClass::number},
          std::pair{"space", CharClass::space}}) {
        std::string members;
        int64_t count = 0;
        for (uint32_t code = 0; code < 0x110000; ++code) {
            if (!is_scalar(code) || char_class(code) != kind) continue;
            append_symbol(members, code);
            ++count;
        }
        EXPECT_EQ(count, vectors()["classes"][name]["count"].get<int64_t>()) << name;
        EXPECT_EQ(sha256_hex(members), vectors()["classes"][name]["sha256"].get<std::string>()) << name;
    }
    EXPECT_STREQ(unicode_version(), "16.0.0");
    EXPECT_EQ(char_class(kInvalidByte + 0xFF), CharClass::other);
}

TEST(Unicode, DecodesExactlyTheWellFormedSequences) {
    for (uint32_t code = 0; code < 0x110000; ++code) {
        if (!is_scalar(code)) continue;
        std::string text;
        append_symbol(text, code);
        const Symbol symbol = decode_symbol(text, 0);
        ASSERT_EQ(symbol.code, code);
        ASSERT_EQ(symbol.bytes, text.size());
        if (text.size() == 1) continue;
        const uint32_t first = decode_symbol(text.substr(0, text.size() - 1), 0).code;
        ASSERT_EQ(first, kInvalidByte + static_cast<uint8_t>(text[0])) << "cut short";
    }
    for (const char* bad :
         {"\x80", "\xBF", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
          "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\xC3(", "\xE2\x82(", "\xF0\x9F\x98("}) {
        const Symbol symbol = decode_symbol(bad, 0);
        EXPECT_EQ(symbol.bytes, 1u) << bad;
        EXPECT_EQ(symbol.code, kInvalidByte + static_cast<uint8_t>(bad[0])) << bad;
    }
}

TEST(Split, BoundariesAreThoseOfTheRegularExpressions) {
    ASSERT_GT(vectors()["pieces"].size(), 400u);
    for (const Json& row : vectors()["pieces"]) {
        const std::string text = from_hex(row["text"]);
        for (const std::string& name : split_pattern_names())
            EXPECT_EQ(piece_lengths(split_pattern_from_name(name), text),
                      row[name].get<std::vector<size_t>>())
                << name << ": " << row["text"];
    }
}

TEST(Split, EveryShortRunOfWhiteSpace) {
    for (const std::string& name : split_pattern_names()) {
        const SplitPattern pattern = split_pattern_from_name(name);
        std::string lines;
        for (int length = 1; length <= 6; ++length) {
            for (int number = 0; number < 1 << (2 * length); ++number) {
                std::string run;
                for (int digit = length - 1; digit >= 0; --digit) run += " \t\n\r"[number >> (2 * digit) & 3];
                for (const std::string& text : {run, "a" + run, run + "a", "a" + run + "!"}) {
                    const std::vector<size_t> lengths = piece_lengths(pattern, text);
                    for (size_t i = 0; i < lengths.size(); ++i)
                        lines += (i ? " " : "") + std::to_string(lengths[i]);
                    lines += '\n';
                }
            }
        }
        EXPECT_EQ(sha256_hex(lines), vectors()["white_space"][name].get<std::string>()) << name;
    }
}

TEST(Split, AnyBytesAreCoveredWithoutGaps) {
    for (uint64_t sample = 0; sample < 300; ++sample) {
        const RandomKey key{.seed = 3, .stream = sample};
        std::string text;
        for (uint64_t i = 0; i < 200; ++i) text.push_back(static_cast<char>(random_below(key, i, 256)));
        for (const std::string& name : split_pattern_names()) {
            size_t covered = 0;
            for (size_t length : piece_lengths(split_pattern_from_name(name), text)) covered += length;
            ASSERT_EQ(covered, text.size());
        }
    }
}

TEST(Split, NamesAndTheRefusalOfOthers) {
    for (const std::string& name : split_pattern_names())
        EXPECT_EQ(split_pattern_name(split_pattern_from_name(name)), name);
    try {
        split_pattern_from_name("lama3");
        FAIL();
    } catch (const InputError& error) {
        EXPECT_STREQ(
            error.what(),
            "unknown split pattern: expected gpt2, llama3 or qwen2, got lama3  hint: --pattern llama3");
    }
}

TEST(Nfc, EveryCodePointAloneAndWithMarks) {
    std::string alone, marked;
    for (uint32_t code = 0; code < 0x110000; ++code) {
        if (!is_scalar(code)) continue;
        std::string text;
        append_symbol(text, code);
        const std::string normalized = to_nfc(text);
        ASSERT_TRUE(may_change_under_nfc(text) || normalized == text) << code;
        alone += normalized;
        for (uint32_t mark : {0x323, 0x301, 0x11A8}) append_symbol(text, mark);
        marked += to_nfc(text);
    }
    EXPECT_EQ(sha256_hex(alone), vectors()["nfc"]["every_code_point"].get<std::string>());
    EXPECT_EQ(sha256_hex(marked), vectors()["nfc"]["every_code_point_and_marks"].get<std::string>());
}

TEST(Nfc, SequencesOfBasesAndMarks) {
    for (const Json& row : vectors()["nfc"]["cases"]) {
        const std::string text = from_hex(row[0]), expected = from_hex(row[1]);
        EXPECT_EQ(to_nfc(text), expected) << row[0];
        EXPECT_EQ(to_nfc("x\n" + text + "y\n" + text), "x\n" + expected + "y\n" + expected) << row[0];
        EXPECT_EQ(to_nfc(expected), expected) << row[0];
    }
}

TEST(Nfc, StrayBytesStayAndJoinWithNothing) {
    EXPECT_EQ(to_nfc("e\xCC\x81"), "\xC3\xA9");
    EXPECT_EQ(to_nfc("e\xFF\xCC\x81"), "e\xFF\xCC\x81");
    EXPECT_EQ(to_nfc("\xFF"
                     "e\xCC\x81\xCC"),
              "\xFF\xC3\xA9\xCC");
}

}  // namespace
