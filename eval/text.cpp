// The path from prompt to shown text. Bytes wait until they are whole characters and cannot be the start of a
// stop string.
#include "eval/text.h"

#include <algorithm>

#include "core/error.h"

namespace {

// How many bytes at the end of `text` begin a UTF-8 character that is not complete yet (0..3).
size_t incomplete_tail(std::string_view text) {
    for (size_t back = 1; back <= std::min<size_t>(3, text.size()); ++back) {
        const uint8_t byte = static_cast<uint8_t>(text[text.size() - back]);
        if ((byte & 0xc0) == 0x80) continue;  // continuation: its lead byte is further back
        const size_t length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
        return length > back ? back : 0;
    }
    return 0;
}

// How many bytes at the end of `text` could still become a stop string.
size_t stop_prefix_tail(std::string_view text, const std::vector<std::string>& stops) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
        for (size_t n = std::min(stop.size() - 1, text.size()); n > longest; --n) {
            if (text.substr(text.size() - n) == std::string_view(stop).substr(0, n)) longest = n;
        }
    }
    return longest;
}

}  // namespace

int64_t room_for_text(const Tokenizer& tokenizer, const ModelConfig& config, const std::string& prompt,
                      int64_t max_new_tokens, const char* flag) {
    const int64_t prompt_tokens = static_cast<int64_t>(tokenizer.encode(prompt).size());
    if (prompt_tokens + 2 > config.max_position) {  // end-of-text before it, one token behind it
        fail_input({.what = "the sample prompt does not fit the model",
                    .where = flag,
                    .expected = cat({"at most ", config.max_position - 2, " tokens"}),
                    .actual = cat({prompt_tokens}),
                    .hint = "give a shorter one"});
    }
    return std::min(prompt_tokens + 1 + max_new_tokens, config.max_position);
}

std::string generate_text(Decoder& decoder, const Tokenizer& tokenizer, std::string_view prompt,
                          const TextParams& params, bool begin_document,
                          const std::function<void(std::string_view)>& show) {
    std::vector<int32_t> ids = tokenizer.encode(prompt);
    if ((begin_document || ids.empty()) && tokenizer.eot() >= 0) ids.insert(ids.begin(), tokenizer.eot());

    GenerateParams generate_params = params.generate;
    generate_params.num_ids = tokenizer.vocab_size();
    if (tokenizer.eot() >= 0) generate_params.stop_tokens.push_back(tokenizer.eot());
    std::vector<std::string> stops;
    for (const std::string& stop : params.stop_strings) {
        if (!stop.empty()) stops.push_back(stop);
    }

    std::string text;
    size_t shown = 0;
    const auto show_up_to = [&](size_t end) {
        if (end > shown && show) show(std::string_view(text).substr(shown, end - shown));
        shown = std::max(shown, end);
    };
    bool stopped = false;
    generate(decoder, ids, generate_params, [&](int32_t id) {
        text += tokenizer.token_bytes(id);
        // A stop string found now ends inside the newest token, so it cannot begin before `shown`. The one
        // that begins first decides.
        size_t end = std::string::npos;
        for (const std::string& stop : stops) end = std::min(end, text.find(stop, shown));
        stopped = end != std::string::npos;
        if (stopped) text.resize(end);
        if (stopped) return false;
        const size_t held = std::max(incomplete_tail(text), stop_prefix_tail(text, stops));
        show_up_to(text.size() - held);
        return true;
    });
    show_up_to(text.size());
    return text;
}
