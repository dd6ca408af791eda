// Suffixes of file names.
#include "data/file_kind.h"

#include <algorithm>
#include <cctype>
#include <string_view>
#include <utility>

FileKind kind_of(const std::string& path) {
    static constexpr std::pair<std::string_view, FileKind> kSuffixes[] = {
        {".txt", FileKind::text},        {".text", FileKind::text},        {".md", FileKind::text},
        {".markdown", FileKind::text},   {".html", FileKind::html},        {".htm", FileKind::html},
        {".xhtml", FileKind::html},      {".jsonl", FileKind::jsonl},      {".ndjson", FileKind::jsonl},
        {".jsonl.zst", FileKind::jsonl}, {".ndjson.zst", FileKind::jsonl},
    };
    std::string lower = path;
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char c) { return std::tolower(c); });
    for (const auto& [suffix, kind] : kSuffixes) {
        if (lower.ends_with(suffix)) return kind;
    }
    return FileKind::other;
}
