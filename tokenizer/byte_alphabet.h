// GPT-2's byte alphabet: each byte has a printable character, so that tokens are text in JSON. Bytes that are
// printable in Latin-1 stand for themselves; the others take U+0100, U+0101, ... in order.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

// The 256 bytes in the order of their characters. Trained tokenizers give them ids 0..255 in this order,
// which is also gpt2's and that of HF's trainer.
const std::array<uint8_t, 256>& byte_order();

std::string to_byte_alphabet(std::string_view bytes);
std::optional<std::string> from_byte_alphabet(
    std::string_view text);  // nothing when a character is not of it
