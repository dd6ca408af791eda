// NFC (Unicode Standard Annex 15): decompose, order the marks, compose. Only stretches that hold a code point
// of kNfcActiveRanges take this path, each together with the one symbol before it; the rest is copied.
#include <algorithm>
#include <vector>

#include "tokenizer/unicode.h"
#include "tokenizer/unicode_properties.h"
#include "tokenizer/unicode_tables.h"

namespace {

// Hangul by arithmetic (Unicode, section 3.12): 19 leads x 21 vowels x 28 tails, the first tail being none.
constexpr uint32_t kSyllables = 0xAC00, kLeads = 0x1100, kVowels = 0x1161, kTails = 0x11A7;
constexpr uint32_t kNumLeads = 19, kNumVowels = 21, kNumTails = 28;
constexpr uint32_t kNumSyllables = kNumLeads * kNumVowels * kNumTails;

uint8_t combining_class(uint32_t code) {
    const auto range = std::upper_bound(std::begin(kCombiningRanges), std::end(kCombiningRanges), code,
                                        [](uint32_t c, const CombiningRange& r) { return c < r.first; });
    if (range == std::begin(kCombiningRanges)) return 0;
    const CombiningRange& candidate = *std::prev(range);
    return code <= candidate.last ? candidate.combining_class : 0;
}

void append_decomposed(std::vector<uint32_t>& codes, uint32_t code) {
    if (code - kSyllables < kNumSyllables) {
        const uint32_t index = code - kSyllables;
        codes.push_back(kLeads + index / (kNumVowels * kNumTails));
        codes.push_back(kVowels + index / kNumTails % kNumVowels);
        if (index % kNumTails != 0) codes.push_back(kTails + index % kNumTails);
        return;
    }
    const auto found = std::lower_bound(std::begin(kDecompositions), std::end(kDecompositions), code,
                                        [](const Decomposition& d, uint32_t c) { return d.code < c; });
    if (found == std::end(kDecompositions) || found->code != code) {
        codes.push_back(code);
        return;
    }
    append_decomposed(codes, found->first);
    if (found->second != 0) append_decomposed(codes, found->second);
}

// The primary composite of a pair, or 0.
uint32_t composed(uint32_t first, uint32_t second) {
    if (first - kLeads < kNumLeads && second - kVowels < kNumVowels)
        return kSyllables + ((first - kLeads) * kNumVowels + (second - kVowels)) * kNumTails;
    const bool open_syllable = first - kSyllables < kNumSyllables && (first - kSyllables) % kNumTails == 0;
    if (open_syllable && second > kTails && second < kTails + kNumTails) return first + (second - kTails);
    const auto found = std::lower_bound(std::begin(kCompositions), std::end(kCompositions), second,
                                        [first](const Composition& c, uint32_t s) {
                                            return c.first != first ? c.first < first : c.second < s;
                                        });
    if (found == std::end(kCompositions) || found->first != first || found->second != second) return 0;
    return found->code;
}

struct OrderedCode {
    uint32_t code;
    uint8_t combining;
};

void order_marks(std::vector<OrderedCode>& codes) {
    for (size_t begin = 0; begin < codes.size();) {
        size_t end = begin;
        while (end < codes.size() && codes[end].combining != 0) ++end;
        std::stable_sort(
            codes.begin() + static_cast<int64_t>(begin), codes.begin() + static_cast<int64_t>(end),
            [](const OrderedCode& a, const OrderedCode& b) { return a.combining < b.combining; });
        begin = end + 1;
    }
}

void append_composed(std::string& out, std::vector<OrderedCode>& codes) {
    size_t kept = 0, starter = 0;
    bool has_starter = false;
    for (const OrderedCode next : codes) {
        // Blocked: something between the starter and this symbol has the same or a higher class, or is a
        // starter.
        const bool adjacent = has_starter && kept == starter + 1;
        const bool reachable =
            has_starter &&
            (adjacent || (codes[kept - 1].combining != 0 && codes[kept - 1].combining < next.combining));
        const uint32_t composite = reachable ? composed(codes[starter].code, next.code) : 0;
        if (composite != 0) {
            codes[starter].code = composite;
            continue;
        }
        if (next.combining == 0) {
            starter = kept;
            has_starter = true;
        }
        codes[kept++] = next;
    }
    for (size_t i = 0; i < kept; ++i) append_symbol(out, codes[i].code);
}

void append_normalized(std::string& out, std::string_view stretch) {
    std::vector<uint32_t> decomposed;
    for (size_t at = 0; at < stretch.size();) {
        const Symbol symbol = decode_symbol(stretch, at);
        append_decomposed(decomposed, symbol.code);
        at += symbol.bytes;
    }
    std::vector<OrderedCode> codes;
    codes.reserve(decomposed.size());
    for (uint32_t code : decomposed) codes.push_back({code, combining_class(code)});
    order_marks(codes);
    append_composed(out, codes);
}

}  // namespace

bool may_change_under_nfc(std::string_view text) {
    for (size_t at = 0; at < text.size();) {
        if (static_cast<uint8_t>(text[at]) < 0x80) {
            ++at;
            continue;
        }
        const Symbol symbol = decode_symbol(text, at);
        if (char_properties(symbol.code) & kNfcActive) return true;
        at += symbol.bytes;
    }
    return false;
}

std::string to_nfc(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    size_t copied = 0;    // text[0, copied) is already in out
    size_t previous = 0;  // begin of the last symbol read, when it is inactive
    for (size_t at = 0; at < text.size();) {
        Symbol symbol = decode_symbol(text, at);
        if (!(char_properties(symbol.code) & kNfcActive)) {
            previous = at;
            at += symbol.bytes;
            continue;
        }
        const size_t begin = at == 0 ? 0 : previous;
        while (at < text.size() && (char_properties(symbol.code) & kNfcActive)) {
            at += symbol.bytes;
            if (at < text.size()) symbol = decode_symbol(text, at);
        }
        out.append(text.substr(copied, begin - copied));
        append_normalized(out, text.substr(begin, at - begin));
        copied = at;
        previous = at;
    }
    out.append(text.substr(copied));
    return out;
}
