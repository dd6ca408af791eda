// Text in, text out: a prompt through tokenizer and decoder and back, with streaming that never shows half a
// UTF-8 character and stop strings that are never shown at all.
#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "model/generate.h"
#include "tokenizer/tokenizer.h"

struct TextParams {
    GenerateParams generate;
    std::vector<std::string> stop_strings;
};

// Tokens that a text of the trainer's may have at most: end-of-text, the prompt and max_new_tokens, as far as
// the model's positions reach. InputError when the prompt leaves no room; `flag` is named.
int64_t room_for_text(const Tokenizer& tokenizer, const ModelConfig& config, const std::string& prompt,
                      int64_t max_new_tokens, const char* flag);

// Begins with end-of-text when the prompt is empty or `begin_document`, as training documents do. `show` (may
// be empty) receives the continuation piece by piece. Returns the continuation without the prompt.
std::string generate_text(Decoder& decoder, const Tokenizer& tokenizer, std::string_view prompt,
                          const TextParams& params, bool begin_document = true,
                          const std::function<void(std::string_view)>& show = {});
