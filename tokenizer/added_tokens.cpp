// See added_tokens.h. Names are few and begin with rare bytes ('<'), so a byte search finds the candidates.
#include "tokenizer/added_tokens.h"

#include <algorithm>
#include <set>

#include "core/error.h"
#include "tokenizer/unicode.h"

void check_added_names(const std::vector<std::string>& names) {
    std::set<std::string_view> seen;
    for (const std::string& name : names) {
        if (name.empty()) {
            fail_input({.what = "an added token has no text",
                        .hint = "give it a name that texts do not hold, as --special '<|name|>'"});
        }
        for (size_t at = 0; at < name.size();) {
            const Symbol symbol = decode_symbol(name, at);
            if (symbol.code >= kInvalidByte) {
                fail_input({.what = "the name of an added token is not UTF-8",
                            .where = cat({"byte ", at}),
                            .actual = name,
                            .hint = "write it in UTF-8"});
            }
            at += symbol.bytes;
        }
        if (!seen.insert(name).second) {
            fail_input(
                {.what = "an added token appears twice", .actual = name, .hint = "name each one once"});
        }
    }
}

void AddedTokenFinder::add(const AddedToken& token) {
    std::vector<AddedToken>& group = by_first_byte_[static_cast<uint8_t>(token.content.front())];
    if (group.empty()) first_bytes_ += token.content.front();
    group.push_back(token);
    std::stable_sort(group.begin(), group.end(), [](const AddedToken& a, const AddedToken& b) {
        return a.content.size() > b.content.size();
    });
    ++count_;
}

AddedTokenFinder::Match AddedTokenFinder::find(std::string_view text, size_t from) const {
    constexpr size_t npos = std::string_view::npos;
    if (empty()) return {npos, npos, -1};
    for (size_t at = text.find_first_of(first_bytes_, from); at != npos;
         at = text.find_first_of(first_bytes_, at + 1)) {
        for (const AddedToken& token : by_first_byte_[static_cast<uint8_t>(text[at])])
            if (text.substr(at).starts_with(token.content)) return {at, at + token.content.size(), token.id};
    }
    return {npos, npos, -1};
}
