// Plain text made safe, and long text cut into documents.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

struct RepairCounts {
    int64_t invalid_utf8 = 0;  // malformed sequences, each replaced by U+FFFD
    int64_t controls = 0;      // C0 characters (but tab and newline) and U+007F, dropped
    int64_t crlf = 0;          // CRLF or CR made LF
    void operator+=(const RepairCounts& other);
    int64_t total() const { return invalid_utf8 + controls + crlf; }
};

// Well-formed UTF-8 with "\n" line ends and without control characters or a leading byte order mark.
// Malformed input becomes one U+FFFD per maximal subpart (Unicode 16, section 3.9). No normalization.
std::string repair_text(std::string_view bytes, RepairCounts& counts);

// Cuts text longer than max_bytes into pieces of at most that, whose concatenation is the text. A piece ends
// at the last of the best kind of place in its second half: before a Markdown heading that follows a blank
// line, else after a blank line, else (in its whole length) after a newline, a space, a character.
std::vector<std::string_view> split_text(std::string_view text, int64_t max_bytes);
