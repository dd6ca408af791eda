// What unicode.cpp's table holds per code point; shared by the files of this folder that scan text.
#pragma once
#include <cstdint>

constexpr uint8_t kClassMask = 3;  // a CharClass
constexpr uint8_t kNfcActive = 4;  // may change under NFC, or join with what precedes it

uint8_t char_properties(uint32_t code);  // 0 for a stray byte
