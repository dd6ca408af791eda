// See added_tokens.h. Names are few and begin with rare bytes ('<'), so a byte search finds the candidates.
#include "tokenizer/added_tokens.h"

#include <algorithm>

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
