// Unicode 16.0: UTF-8 symbols and the three character classes that split patterns speak of, and NFC.
// Input is bytes: a byte outside well-formed UTF-8 is one symbol of class `other`, so nothing is ever lost.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

enum class CharClass : uint8_t { other, letter, number, space };  // \p{L}, \p{N}, \s (White_Space)

constexpr uint32_t kInvalidByte = 0x110000;  // code of a stray byte b: kInvalidByte + b

struct Symbol {
    uint32_t code = 0;
    uint32_t bytes = 0;  // 1..4
};
// The symbol at text[at], at < text.size().
Symbol decode_symbol(std::string_view text, size_t at);
void append_symbol(std::string& text, uint32_t code);  // UTF-8, or the stray byte

CharClass char_class(uint32_t code);
const char* unicode_version();

// Normalization form C. Stray bytes stay as they are and join with nothing.
std::string to_nfc(std::string_view text);
// False when to_nfc(text) would change nothing, at the cost of a scan; may be true for text that is already
// NFC.
bool may_change_under_nfc(std::string_view text);
