// A reader of flat TOML, one character at a time, counting lines for its messages.
#include "core/toml.h"

#include <cctype>
#include <charconv>
#include <cstdint>
#include <cstdio>

#include "core/error.h"

namespace {

class Reader {
public:
    Reader(std::string_view text, const std::string& path) : text_(text), path_(path) {
        if (text_.starts_with("\xef\xbb\xbf")) at_ = 3;  // a byte order mark
    }

    std::vector<TomlEntry> entries() {
        std::vector<TomlEntry> all;
        for (;;) {
            skip_blank_lines();
            if (at_ == text_.size()) return all;
            TomlEntry entry = read_entry();
            for (const TomlEntry& earlier : all)
                if (earlier.name == entry.name)
                    fail_input({.what = "repeated name",
                                .where = cat({place(), entry.name}),
                                .expected = "each name once",
                                .actual = cat({"it again after line ", earlier.line})});
            all.push_back(std::move(entry));
        }
    }

private:
    std::string place() const { return cat({path_, ":", line_, ": "}); }

    [[noreturn]] void fail(const std::string& expected) const {
        const size_t end = std::min(text_.find_first_of("\r\n", at_), text_.size());
        const std::string_view rest = text_.substr(at_, std::min<size_t>(end - at_, 40));
        fail_input({.what = "malformed TOML",
                    .where = cat({path_, ":", line_}),
                    .expected = expected,
                    .actual = rest.empty() ? "the end of the line" : cat({"`", rest, "`"})});
    }

    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
    char take() {
        const char c = text_[at_++];
        line_ += c == '\n';
        return c;
    }
    bool take_if(char c) {
        if (at_ == text_.size() || text_[at_] != c) return false;
        take();
        return true;
    }

    void skip_spaces() {
        while (peek() == ' ' || peek() == '\t') take();
    }
    void skip_comment() {
        skip_spaces();
        if (peek() == '#')
            while (at_ < text_.size() && peek() != '\n') take();
    }
    void skip_blank_lines() {
        do {
            skip_comment();
        } while (take_if('\n') || take_if('\r'));
    }

    TomlEntry read_entry() {
        if (peek() == '[') fail("`name = value` (tables are not used)");
        TomlEntry entry;
        entry.line = line_;
        while (std::isalnum(static_cast<unsigned char>(peek())) || peek() == '_' || peek() == '-')
            entry.name += take();
        skip_spaces();
        if (entry.name.empty() || peek() != '=') fail("`name = value`");
        take();
        skip_spaces();
        if (take_if('[')) {
            entry.is_array = true;
            for (skip_blank_lines(); !take_if(']'); skip_blank_lines()) {
                entry.values.push_back(read_value());
                skip_blank_lines();
                if (!take_if(',') && peek() != ']') fail("`,` or `]`");
            }
        } else {
            entry.values.push_back(read_value());
        }
        skip_comment();
        take_if('\r');
        if (at_ < text_.size() && peek() != '\n') fail("the end of the line");
        return entry;
    }

    TomlValue read_value() {
        if (text_.substr(at_).starts_with("\"\"\"") || text_.substr(at_).starts_with("'''"))
            fail("a string of one line");
        if (peek() == '"') return {read_string(), true};
        if (peek() == '\'') return {read_literal(), true};
        TomlValue word;
        while (at_ < text_.size() &&
               std::string_view(" \t\r\n,]#\"'[{=").find(peek()) == std::string_view::npos)
            word.text += take();
        if (word.text.empty()) fail("a value");
        return word;
    }

    std::string read_literal() {
        std::string content;
        for (take(); !take_if('\'');) {
            if (at_ == text_.size() || peek() == '\n') fail("a closing '");
            content += take();
        }
        return content;
    }

    std::string read_string() {
        std::string content;
        for (take(); !take_if('"');) {
            if (at_ == text_.size() || peek() == '\n') fail("a closing \"");
            const char c = take();
            if (c == '\\')
                read_escape(content);
            else
                content += c;
        }
        return content;
    }

    void read_escape(std::string& content) {
        const char c = peek();
        constexpr std::string_view kLetters = "btnfr\"\\", kMeanings = "\b\t\n\f\r\"\\";
        const size_t simple = kLetters.find(c);
        if (c != '\0' && simple != std::string_view::npos) {
            take();
            content += kMeanings[simple];
            return;
        }
        const size_t digits = c == 'u' ? 4 : c == 'U' ? 8 : 0;
        const std::string_view number = text_.substr(std::min(at_ + 1, text_.size()), digits);
        uint32_t code = 0;
        const auto parsed = std::from_chars(number.data(), number.data() + number.size(), code, 16);
        if (digits == 0 || number.size() != digits || parsed.ptr != number.data() + digits ||
            code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
            fail("an escape: \\b \\t \\n \\f \\r \\\" \\\\ \\uXXXX \\UXXXXXXXX");
        at_ += 1 + digits;
        append_utf8(content, code);
    }

    static void append_utf8(std::string& out, uint32_t code) {
        const auto tail = [&](int shift) { out += static_cast<char>(0x80 | ((code >> shift) & 0x3f)); };
        if (code < 0x80) {
            out += static_cast<char>(code);
        } else if (code < 0x800) {
            out += static_cast<char>(0xc0 | (code >> 6));
            tail(0);
        } else if (code < 0x10000) {
            out += static_cast<char>(0xe0 | (code >> 12));
            tail(6), tail(0);
        } else {
            out += static_cast<char>(0xf0 | (code >> 18));
            tail(12), tail(6), tail(0);
        }
    }

    std::string_view text_;
    const std::string& path_;
    size_t at_ = 0;
    int line_ = 1;
};

}  // namespace

std::vector<TomlEntry> parse_toml(std::string_view text, const std::string& path) {
    return Reader(text, path).entries();
}

std::string toml_quote(std::string_view text) {
    std::string quoted = "\"";
    for (const char c : text) {
        constexpr std::string_view kLetters = "btnfr\"\\", kMeanings = "\b\t\n\f\r\"\\";
        const size_t simple = kMeanings.find(c);
        if (simple != std::string_view::npos) {
            quoted += '\\';
            quoted += kLetters[simple];
        } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
            char escape[8];
            std::snprintf(escape, sizeof escape, "\\u%04X", static_cast<unsigned>(c));
            quoted += escape;
        } else {
            quoted += c;
        }
    }
    return quoted + '"';
}
