// See byte_alphabet.h.
#include "tokenizer/byte_alphabet.h"

#include <algorithm>

#include "tokenizer/unicode.h"

namespace {

bool stands_for_itself(uint32_t byte) {
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

struct Alphabet {
    std::array<uint32_t, 256> code_of;
    std::array<uint8_t, 256> order;
    std::array<int, 0x200> byte_of;

    Alphabet() {
        uint32_t next = 0x100;
        for (uint32_t byte = 0; byte < 256; ++byte) code_of[byte] = stands_for_itself(byte) ? byte : next++;
        byte_of.fill(-1);
        for (uint32_t byte = 0; byte < 256; ++byte) {
            byte_of[code_of[byte]] = static_cast<int>(byte);
            order[byte] = static_cast<uint8_t>(byte);
        }
        std::sort(order.begin(), order.end(), [&](uint8_t a, uint8_t b) { return code_of[a] < code_of[b]; });
    }
};

const Alphabet& alphabet() {
    static const Alphabet instance;
    return instance;
}

}  // namespace

const std::array<uint8_t, 256>& byte_order() { return alphabet().order; }

std::string to_byte_alphabet(std::string_view bytes) {
    std::string text;
    for (char byte : bytes) append_symbol(text, alphabet().code_of[static_cast<uint8_t>(byte)]);
    return text;
}

std::optional<std::string> from_byte_alphabet(std::string_view text) {
    std::string bytes;
    for (size_t at = 0; at < text.size();) {
        const Symbol symbol = decode_symbol(text, at);
        if (symbol.code >= alphabet().byte_of.size() || alphabet().byte_of[symbol.code] < 0)
            return std::nullopt;
        bytes.push_back(static_cast<char>(alphabet().byte_of[symbol.code]));
        at += symbol.bytes;
    }
    return bytes;
}
