// Pre-tokenization: text -> pieces, by hand-written scanners that equal the published regular expressions.
//   gpt2    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//   llama3  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
//   ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|
//           \s+(?!\S)|\s+
//   qwen2   as llama3 with \p{N} for \p{N}{1,3}
// Classes are Unicode 16.0's. A byte that is not part of well-formed UTF-8 is a symbol of its own that is no
// letter, no number and no white space. The pieces cover the text without gaps.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

enum class SplitPattern { gpt2, llama3, qwen2 };

const char* split_pattern_name(SplitPattern pattern);
const char* split_pattern_gguf_name(SplitPattern pattern);      // tokenizer.ggml.pre in a GGUF file
SplitPattern split_pattern_from_name(const std::string& name);  // InputError with the nearest name
std::vector<std::string> split_pattern_names();
std::string_view split_pattern_regex(SplitPattern pattern);

// End of the piece that begins at `begin` < text.size(). The scan sees all of text: the end of `text` is the
// end of the document to a look-ahead.
size_t next_piece(SplitPattern pattern, std::string_view text, size_t begin);
