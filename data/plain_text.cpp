// UTF-8 repair and the places where a long text may be cut.
#include "data/plain_text.h"

#include "core/error.h"

namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

struct Sequence {
    int64_t bytes;  // of the character, or of the malformed maximal subpart
    bool valid;
};

// The sequence at the start of `s`, whose first byte is not ASCII (Unicode 16, table 3-7).
Sequence sequence_at(std::string_view s) {
    const auto byte = [&](size_t i) { return i < s.size() ? static_cast<uint8_t>(s[i]) : uint8_t{0}; };
    const uint8_t lead = byte(0);
    int64_t length;
    uint8_t low = 0x80, high = 0xbf;  // of the second byte
    if (lead >= 0xc2 && lead <= 0xdf) {
        length = 2;
    } else if (lead >= 0xe0 && lead <= 0xef) {
        length = 3;
        if (lead == 0xe0) low = 0xa0;   // no overlong forms
        if (lead == 0xed) high = 0x9f;  // no surrogates
    } else if (lead >= 0xf0 && lead <= 0xf4) {
        length = 4;
        if (lead == 0xf0) low = 0x90;
        if (lead == 0xf4) high = 0x8f;  // nothing over U+10FFFF
    } else {
        return {1, false};
    }
    for (int64_t i = 1; i < length; ++i) {
        const uint8_t b = byte(static_cast<size_t>(i));
        if (b < (i == 1 ? low : 0x80) || b > (i == 1 ? high : 0xbf)) return {i, false};
    }
    return {length, true};
}

bool is_continuation(char c) { return (static_cast<uint8_t>(c) & 0xc0) == 0x80; }

}  // namespace

void RepairCounts::operator+=(const RepairCounts& other) {
    invalid_utf8 += other.invalid_utf8;
    controls += other.controls;
    crlf += other.crlf;
}

std::string repair_text(std::string_view bytes, RepairCounts& counts) {
    if (bytes.starts_with(kByteOrderMark)) bytes.remove_prefix(kByteOrderMark.size());
    std::string out;
    out.reserve(bytes.size());
    for (size_t i = 0; i < bytes.size();) {
        const auto c = static_cast<uint8_t>(bytes[i]);
        if (c >= 0x80) {
            const Sequence sequence = sequence_at(bytes.substr(i, 4));
            if (sequence.valid) {
                out.append(bytes, i, static_cast<size_t>(sequence.bytes));
            } else {
                out += kReplacement;
                ++counts.invalid_utf8;
            }
            i += static_cast<size_t>(sequence.bytes);
            continue;
        }
        ++i;
        if (c == '\r') {
            if (i < bytes.size() && bytes[i] == '\n') ++i;
            out += '\n';
            ++counts.crlf;
        } else if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f) {
            ++counts.controls;
        } else {
            out += static_cast<char>(c);
        }
    }
    return out;
}

std::string escape_invalid_utf8(std::string_view bytes) {
    std::string out;
    for (size_t i = 0; i < bytes.size();) {
        const bool ascii = static_cast<uint8_t>(bytes[i]) < 0x80;
        const Sequence sequence = ascii ? Sequence{1, true} : sequence_at(bytes.substr(i, 4));
        const std::string_view taken = bytes.substr(i, static_cast<size_t>(sequence.bytes));
        i += taken.size();
        if (sequence.valid) {
            out += taken;
            continue;
        }
        constexpr char kDigits[] = "0123456789ABCDEF";
        for (const char c : taken) {
            const auto byte = static_cast<uint8_t>(c);
            out += {'%', kDigits[byte >> 4], kDigits[byte & 15]};
        }
    }
    return out;
}

std::vector<std::string_view> split_text(std::string_view text, int64_t max_bytes) {
    CHECK(max_bytes >= 4, cat({"max_bytes=", max_bytes}));  // a character must fit
    const auto limit = static_cast<size_t>(max_bytes);
    std::vector<std::string_view> pieces;
    while (text.size() > limit) {
        const std::string_view window = text.substr(0, limit);
        size_t cut = 0;
        const auto last_after = [&](std::string_view mark, size_t from) {
            const size_t at = window.rfind(mark);
            if (cut == 0 && at != std::string_view::npos && at + mark.size() > from) cut = at + mark.size();
        };
        if (const size_t heading = window.rfind("\n\n#");
            heading != std::string_view::npos && heading + 2 > limit / 2) {
            cut = heading + 2;
        }
        last_after("\n\n", limit / 2);
        for (const size_t from : {limit / 2, size_t{0}}) {
            last_after("\n", from);
            last_after(" ", from);
        }
        if (cut == 0) {
            cut = limit;
            while (cut > limit - 3 && is_continuation(text[cut])) --cut;
        }
        pieces.push_back(text.substr(0, cut));
        text.remove_prefix(cut);
    }
    if (!text.empty() || pieces.empty()) pieces.push_back(text);
    return pieces;
}
