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

// For names that are bytes (of files): every byte that is not of well-formed UTF-8 becomes %XX.
std::string escape_invalid_utf8(std::string_view bytes);

// Cuts text longer than max_bytes into pieces of at most that, whose concatenation is the text. A piece ends
// at the last of the best kind of place in its second half: before a Markdown heading that follows a blank
// line, else after a blank line, a newline, a space; else the same for newline and space in its first half;
// else after a character.
std::vector<std::string_view> split_text(std::string_view text, int64_t max_bytes);
