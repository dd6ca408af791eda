// What a file holds, told by its name: the one list of suffixes, for every program that reads texts.
#pragma once
#include <cstdint>
#include <string>

enum class FileKind : uint8_t {
    text,   // .txt .text .md .markdown
    html,   // .html .htm .xhtml
    jsonl,  // .jsonl .ndjson, and .zst of these: one document a line
    other,
};

FileKind kind_of(const std::string& path);  // capitals are small letters
