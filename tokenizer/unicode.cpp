// UTF-8 decoding and character classes: ranges of unicode_tables.h, expanded once into a two-level table.
#include "tokenizer/unicode.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <vector>

#include "tokenizer/unicode_properties.h"
#include "tokenizer/unicode_tables.h"

namespace {

constexpr uint32_t kCodePoints = 0x110000;
constexpr uint32_t kBlock =
    256;  // equal blocks are stored once: 4352 block numbers and about 60 KiB of blocks

class PropertyTable {
public:
    PropertyTable() {
        std::vector<uint8_t> flat(kCodePoints, 0);
        const auto mark = [&](const auto& ranges, uint8_t property) {
            for (const CodeRange& range : ranges)
                for (uint32_t code = range.first; code <= range.last; ++code) flat[code] |= property;
        };
        mark(kLetterRanges, static_cast<uint8_t>(CharClass::letter));
        mark(kNumberRanges, static_cast<uint8_t>(CharClass::number));
        mark(kSpaceRanges, static_cast<uint8_t>(CharClass::space));
        mark(kNfcActiveRanges, kNfcActive);
        for (uint32_t block = 0; block < block_of_.size(); ++block) {
            const uint8_t* content = flat.data() + block * kBlock;
            uint32_t same = 0;
            while (same * kBlock < blocks_.size() &&
                   std::memcmp(blocks_.data() + same * kBlock, content, kBlock) != 0)
                ++same;
            if (same * kBlock == blocks_.size()) blocks_.insert(blocks_.end(), content, content + kBlock);
            block_of_[block] = static_cast<uint16_t>(same);
        }
    }
    uint8_t operator[](uint32_t code) const {
        if (code >= kCodePoints) return 0;
        return blocks_[block_of_[code / kBlock] * kBlock + code % kBlock];
    }

private:
    std::array<uint16_t, kCodePoints / kBlock> block_of_{};
    std::vector<uint8_t> blocks_;
};

const PropertyTable properties;

}  // namespace

uint8_t char_properties(uint32_t code) { return properties[code]; }

CharClass char_class(uint32_t code) { return static_cast<CharClass>(properties[code] & kClassMask); }

const char* unicode_version() { return kUnicodeVersion; }

Symbol decode_symbol(std::string_view text, size_t at) {
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[at + i]); };
    const uint32_t lead = byte(0);
    if (lead < 0x80) return {lead, 1};
    const Symbol stray = {kInvalidByte + lead, 1};
    // Bounds of the second byte exclude overlong forms, surrogates and codes past U+10FFFF (Unicode, table
    // 3-7).
    uint32_t length, low = 0x80, high = 0xBF;
    if (lead >= 0xC2 && lead <= 0xDF) {
        length = 2;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
        length = 3;
        if (lead == 0xE0) low = 0xA0;
        if (lead == 0xED) high = 0x9F;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
        length = 4;
        if (lead == 0xF0) low = 0x90;
        if (lead == 0xF4) high = 0x8F;
    } else {
        return stray;
    }
    if (text.size() - at < length || byte(1) < low || byte(1) > high) return stray;
    uint32_t code = lead & (0x7Fu >> length);
    for (uint32_t i = 1; i < length; ++i) {
        if ((byte(i) & 0xC0) != 0x80) return stray;
        code = code << 6 | (byte(i) & 0x3Fu);
    }
    return {code, length};
}

void append_symbol(std::string& text, uint32_t code) {
    const auto put = [&](uint32_t byte) { text.push_back(static_cast<char>(byte)); };
    if (code >= kInvalidByte) {
        put(code - kInvalidByte);
    } else if (code < 0x80) {
        put(code);
    } else if (code < 0x800) {
        put(0xC0 | code >> 6);
        put(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        put(0xE0 | code >> 12);
        put(0x80 | (code >> 6 & 0x3F));
        put(0x80 | (code & 0x3F));
    } else {
        put(0xF0 | code >> 18);
        put(0x80 | (code >> 12 & 0x3F));
        put(0x80 | (code >> 6 & 0x3F));
        put(0x80 | (code & 0x3F));
    }
}
