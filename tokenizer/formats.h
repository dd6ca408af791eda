// The file formats: Hugging Face tokenizer.json (+ tokenizer_config.json) and tiktoken's .tiktoken. Reading
// refuses by name whatever this project does not implement; writing is canonical (equal models, equal bytes).
#pragma once
#include <string>
#include <string_view>

#include "tokenizer/tokenizer.h"

// `path` is for messages. eot stays -1: it is not said in this file.
TokenizerModel read_tokenizer_json(const std::string& path, std::string_view text);
std::string write_tokenizer_json(const TokenizerModel& model);

// The content of eos_token, or "" when the file does not name one.
std::string read_eos_token(const std::string& config_path, std::string_view text);
std::string write_tokenizer_config(const TokenizerModel& model);

TokenizerModel read_tiktoken(const std::string& path, std::string_view text, const LoadOptions& options);
// "" when the merge order is not the id order, which the format cannot say.
std::string write_tiktoken(const TokenizerModel& model);
