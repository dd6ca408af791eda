// The split scanners. Each follows its regular expression alternative by alternative; white space, whose
// alternatives need look-ahead and backtracking, is decided from the whole run at once.
#include "tokenizer/split.h"

#include <array>

#include "core/error.h"
#include "core/flags.h"
#include "tokenizer/unicode.h"

namespace {

struct PatternRow {
    SplitPattern pattern;
    const char* name;
    const char* gguf_name;
    std::string_view regex;
};
constexpr PatternRow kPatterns[] = {
    {SplitPattern::gpt2, "gpt2", "gpt-2",
     R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"},
    {SplitPattern::llama3, "llama3", "llama-bpe",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|)"
     R"(\s+(?!\S)|\s+)"},
    {SplitPattern::qwen2, "qwen2", "qwen2",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|)"
     R"(\s+(?!\S)|\s+)"},
};

constexpr CharClass ascii_class(int c) {
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) return CharClass::letter;
    if (c >= '0' && c <= '9') return CharClass::number;
    if (c == ' ' || (c >= '\t' && c <= '\r')) return CharClass::space;
    return CharClass::other;
}
constexpr std::array<CharClass, 128> kAsciiClass = [] {
    std::array<CharClass, 128> table{};
    for (int c = 0; c < 128; ++c) table[static_cast<size_t>(c)] = ascii_class(c);
    return table;
}();

struct ClassedSymbol {
    CharClass kind;
    uint32_t bytes;
};

class Scanner {
public:
    explicit Scanner(std::string_view text) : text_(text) {}

    bool at_end(size_t at) const { return at >= text_.size(); }
    char byte(size_t at) const { return text_[at]; }
    ClassedSymbol symbol(size_t at) const {
        const uint8_t lead = static_cast<uint8_t>(text_[at]);
        if (lead < 0x80) return {kAsciiClass[lead], 1};
        const Symbol decoded = decode_symbol(text_, at);
        return {char_class(decoded.code), decoded.bytes};
    }
    bool is(size_t at, CharClass kind) const { return !at_end(at) && symbol(at).kind == kind; }
    bool is_line_break(size_t at) const { return !at_end(at) && (text_[at] == '\r' || text_[at] == '\n'); }

    // End of the run of `kind` that begins at `at`, of at most `limit` symbols.
    size_t run(size_t at, CharClass kind, size_t limit = SIZE_MAX) const {
        while (limit-- > 0 && !at_end(at)) {
            const ClassedSymbol next = symbol(at);
            if (next.kind != kind) break;
            at += next.bytes;
        }
        return at;
    }
    size_t run_of_line_breaks(size_t at) const {
        while (is_line_break(at)) ++at;
        return at;
    }

    // End of 's 't 're 've 'm 'll 'd at the apostrophe `at`, or 0. Ignoring case is Unicode's simple folding,
    // under which U+017F (long s, bytes C5 BF) is an s; no other code point folds to one of these letters.
    size_t contraction(size_t at, bool ignore_case) const {
        const auto letter = [&](size_t i) {
            if (at_end(i)) return '\0';
            const char c = text_[i];
            return ignore_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c;
        };
        const char first = letter(at + 1), second = letter(at + 2);
        if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
        if ((first == 'r' || first == 'v') && second == 'e') return at + 3;
        if (first == 'l' && second == 'l') return at + 3;
        if (ignore_case && first == '\xC5' && second == '\xBF') return at + 3;
        return 0;
    }

    // \s+(?!\S)|\s+ : the whole run at the end of the text, else all but its last symbol, else that one
    // symbol. With `break_after_lines` \s*[\r\n]+ comes first: the run up to and including its last line
    // break.
    size_t white_space(size_t begin, bool break_after_lines) const {
        size_t at = begin, last = begin, after_line_break = 0;
        while (!at_end(at)) {
            const ClassedSymbol next = symbol(at);
            if (next.kind != CharClass::space) break;
            last = at;
            if (is_line_break(at)) after_line_break = at + 1;
            at += next.bytes;
        }
        if (break_after_lines && after_line_break != 0) return after_line_break;
        return at_end(at) || last == begin ? at : last;
    }

private:
    std::string_view text_;
};

size_t next_gpt2(const Scanner& text, size_t begin) {
    if (text.byte(begin) == '\'') {
        if (const size_t end = text.contraction(begin, false)) return end;
    }
    size_t body = begin;
    if (text.byte(begin) == ' ' && !text.at_end(begin + 1)) ++body;
    const CharClass kind = text.symbol(body).kind;
    if (kind != CharClass::space) return text.run(body, kind);
    return text.white_space(begin, false);
}

size_t next_llama3(const Scanner& text, size_t begin, size_t max_digits) {
    if (text.byte(begin) == '\'') {
        if (const size_t end = text.contraction(begin, true)) return end;
    }
    const ClassedSymbol first = text.symbol(begin);
    if (first.kind == CharClass::letter) return text.run(begin, CharClass::letter);
    if (first.kind == CharClass::number) return text.run(begin, CharClass::number, max_digits);
    const size_t second = begin + first.bytes;
    if (!text.is_line_break(begin) && text.is(second, CharClass::letter))
        return text.run(second, CharClass::letter);
    if (first.kind == CharClass::other) return text.run_of_line_breaks(text.run(begin, CharClass::other));
    if (text.byte(begin) == ' ' && text.is(second, CharClass::other))
        return text.run_of_line_breaks(text.run(second, CharClass::other));
    return text.white_space(begin, true);
}

}  // namespace

const char* split_pattern_name(SplitPattern pattern) { return kPatterns[static_cast<size_t>(pattern)].name; }

const char* split_pattern_gguf_name(SplitPattern pattern) {
    return kPatterns[static_cast<size_t>(pattern)].gguf_name;
}

std::string_view split_pattern_regex(SplitPattern pattern) {
    return kPatterns[static_cast<size_t>(pattern)].regex;
}

std::vector<std::string> split_pattern_names() {
    std::vector<std::string> names;
    for (const PatternRow& row : kPatterns) names.push_back(row.name);
    return names;
}

SplitPattern split_pattern_from_name(const std::string& name) {
    for (const PatternRow& row : kPatterns)
        if (name == row.name) return row.pattern;
    const std::string nearest = nearest_name(name, split_pattern_names());
    fail_input({.what = "unknown split pattern",
                .expected = "gpt2, llama3 or qwen2",
                .actual = name.empty() ? "nothing" : name,
                .hint = nearest.empty() ? "--pattern gpt2" : cat({"--pattern ", nearest})});
}

size_t next_piece(SplitPattern pattern, std::string_view text, size_t begin) {
    CHECK(begin < text.size(), cat({"begin=", begin, " size=", text.size()}));
    const Scanner scanner(text);
    switch (pattern) {
        case SplitPattern::gpt2: return next_gpt2(scanner, begin);
        case SplitPattern::llama3: return next_llama3(scanner, begin, 3);
        case SplitPattern::qwen2: return next_llama3(scanner, begin, 1);
    }
    CHECK(false, "pattern outside its enumeration");
    return 0;
}
