// The words (distinct pieces) are arrays of ids. A heap holds each pair with its count and the words to
// visit; counts are refreshed lazily, when a pair reaches the top. A merge visits only the words that held
// its pair.
#include "tokenizer/train.h"

#include <algorithm>
#include <queue>

#include "core/error.h"
#include "core/log.h"
#include "core/threads.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/pair_map.h"
#include "tokenizer/unicode.h"

namespace {

constexpr int64_t kLongestPiece = int64_t{1} << 31;  // symbols of all words are indexed below this

struct Word {
    int64_t begin;  // in symbols_
    int32_t length;
    int64_t count;
};

struct Candidate {
    int64_t count;  // when it was pushed; the pair's own count may have fallen since
    int32_t left, right;
    int32_t list;  // of the words to visit
    // For std::priority_queue: less important than `other`.
    bool operator<(const Candidate& other) const {
        if (count != other.count) return count < other.count;
        if (left != other.left) return left > other.left;
        if (right != other.right) return right > other.right;
        return list > other.list;
    }
};

struct PairState {
    int64_t count = 0;
    int32_t new_list = -1;  // of the words where the pair appeared since candidates were last pushed
};

class MergeLearner {
public:
    MergeLearner(const PieceCounts& counts, TokenizerModel& model) : model_(model) {
        std::array<int32_t, 256> id_of_byte;
        for (size_t id = 0; id < 256; ++id) {
            id_of_byte[byte_order()[id]] = static_cast<int32_t>(id);
            add_token(std::string(1, static_cast<char>(byte_order()[id])));
        }
        for (const auto& [piece, count] : counts.pieces()) {
            if (piece.size() < 2) continue;  // no pair in it
            CHECK(static_cast<int64_t>(piece.size()) < kLongestPiece,
                  cat({"a piece of ", piece.size(), " bytes"}));
            words_.push_back(
                {static_cast<int64_t>(symbols_.size()), static_cast<int32_t>(piece.size()), count});
            for (char byte : piece) symbols_.push_back(id_of_byte[static_cast<uint8_t>(byte)]);
        }
        for (int32_t w = 0; w < static_cast<int32_t>(words_.size()); ++w) {
            const Word& word = words_[static_cast<size_t>(w)];
            const int32_t* symbols = symbols_.data() + word.begin;
            for (int32_t i = 0; i + 1 < word.length; ++i)
                count_pair(symbols[i], symbols[i + 1], word.count, w);
        }
        push_new_pairs();
    }

    // Merges until the model has `num_tokens` tokens or no pair occurs `min_frequency` times.
    void run(int64_t num_tokens, int64_t min_frequency) {
        Progress progress("merges", num_tokens, "tokens");
        while (static_cast<int64_t>(model_.tokens.size()) < num_tokens && !candidates_.empty()) {
            Candidate top = candidates_.top();
            candidates_.pop();
            const int64_t count = pairs_(top.left, top.right).count;
            if (top.count != count) {
                top.count = count;
                candidates_.push(top);
                continue;
            }
            if (count < std::max<int64_t>(min_frequency, 1)) break;
            merge(top);
            push_new_pairs();
            progress.update(static_cast<int64_t>(model_.tokens.size()));
        }
        progress.finish();
        keep_last_of_each_pair();
    }

private:
    int32_t add_token(const std::string& bytes) {
        const auto [place, is_new] = ids_.emplace(bytes, static_cast<int32_t>(model_.tokens.size()));
        if (is_new) model_.tokens.push_back(bytes);
        return place->second;
    }

    void count_pair(int32_t left, int32_t right, int64_t change, int32_t word) {
        PairState& pair = pairs_(left, right);
        const bool overflow = __builtin_add_overflow(pair.count, change, &pair.count);
        CHECK(!overflow, "a pair occurs more than 2^63 times");
        if (change <= 0) return;
        if (pair.new_list < 0) {
            pair.new_list = static_cast<int32_t>(lists_.size());
            lists_.emplace_back();
            new_pairs_.push_back({0, left, right, pair.new_list});
        }
        std::vector<int32_t>& list = lists_[static_cast<size_t>(pair.new_list)];
        if (list.empty() || list.back() != word) list.push_back(word);
    }

    void push_new_pairs() {
        for (Candidate candidate : new_pairs_) {
            PairState& pair = pairs_(candidate.left, candidate.right);
            pair.new_list = -1;
            candidate.count = pair.count;
            if (candidate.count > 0) candidates_.push(candidate);
        }
        new_pairs_.clear();
    }

    // A pair that joins to a token that exists takes its id, as HF's trainer has it: the merge is new, the
    // token is not. The merged pair's count is left as it was, also as there: should such a shared token make
    // the pair appear again, it is merged again and ranks where it was merged last.
    void merge(const Candidate& top) {
        const int32_t merged = add_token(model_.tokens[static_cast<size_t>(top.left)] +
                                         model_.tokens[static_cast<size_t>(top.right)]);
        model_.merges.push_back({top.left, top.right, merged});
        const std::vector<int32_t> visits = std::move(lists_[static_cast<size_t>(top.list)]);
        for (int32_t w : visits) merge_in_word(w, top.left, top.right, merged);
    }

    void merge_in_word(int32_t w, int32_t left, int32_t right, int32_t merged) {
        Word& word = words_[static_cast<size_t>(w)];
        int32_t* symbols = symbols_.data() + word.begin;
        int32_t kept = 0;
        for (int32_t i = 0; i < word.length; ++i) {
            const bool here = i + 1 < word.length && symbols[i] == left && symbols[i + 1] == right;
            if (!here) {
                symbols[kept++] = symbols[i];
                continue;
            }
            if (kept > 0) {
                count_pair(symbols[kept - 1], left, -word.count, w);
                count_pair(symbols[kept - 1], merged, word.count, w);
            }
            if (i + 2 < word.length) {
                count_pair(right, symbols[i + 2], -word.count, w);
                count_pair(merged, symbols[i + 2], word.count, w);
            }
            symbols[kept++] = merged;
            ++i;
        }
        word.length = kept;
    }

    void keep_last_of_each_pair() {
        PairMap<int32_t> last;
        for (size_t rank = 0; rank < model_.merges.size(); ++rank)
            last(model_.merges[rank].left, model_.merges[rank].right) = static_cast<int32_t>(rank);
        std::vector<TokenizerModel::Merge> kept;
        for (size_t rank = 0; rank < model_.merges.size(); ++rank) {
            const TokenizerModel::Merge& merge = model_.merges[rank];
            if (*last.find(merge.left, merge.right) == static_cast<int32_t>(rank)) kept.push_back(merge);
        }
        model_.merges = std::move(kept);
    }

    TokenizerModel& model_;
    std::unordered_map<std::string, int32_t> ids_;
    std::vector<Word> words_;
    std::vector<int32_t> symbols_;
    PairMap<PairState> pairs_;
    std::vector<std::vector<int32_t>> lists_;
    std::vector<Candidate> new_pairs_;
    std::priority_queue<Candidate> candidates_;
};

}  // namespace

PieceCounts::PieceCounts(SplitPattern pattern) : pattern_(pattern) {}

void PieceCounts::add_piece(std::string_view piece, int64_t count) {
    const auto found = pieces_.find(piece);
    if (found != pieces_.end()) {
        found->second += count;
    } else {
        pieces_.emplace(piece, count);
    }
}

void PieceCounts::add(const std::vector<std::string_view>& documents) {
    // Sums of integers: how the documents fall into groups does not matter.
    const int64_t groups = std::min<int64_t>(num_threads(), static_cast<int64_t>(documents.size()));
    std::vector<PieceCounts> counts(static_cast<size_t>(groups), PieceCounts(pattern_));
    parallel_for(groups, [&](int64_t group) {
        PieceCounts& mine = counts[static_cast<size_t>(group)];
        for (size_t d = static_cast<size_t>(group); d < documents.size(); d += static_cast<size_t>(groups)) {
            std::string_view text = documents[d];
            std::string normalized;
            if (pattern_ == SplitPattern::qwen2 && may_change_under_nfc(text))
                text = normalized = to_nfc(text);
            for (size_t at = 0; at < text.size();) {
                const size_t end = next_piece(pattern_, text, at);
                mine.add_piece(text.substr(at, end - at), 1);
                at = end;
            }
        }
    });
    for (const PieceCounts& mine : counts)
        for (const auto& [piece, count] : mine.pieces_) add_piece(piece, count);
}

TokenizerModel train_bpe(const PieceCounts& counts, const TrainOptions& options) {
    const int64_t smallest = 256 + static_cast<int64_t>(options.specials.size());
    if (options.vocab_size < smallest)
        fail_input({.what = "the vocabulary is too small",
                    .expected = cat({"at least ", smallest, " (256 bytes and the special tokens)"}),
                    .actual = cat({options.vocab_size}),
                    .hint = "--vocab-size 4096"});
    TokenizerModel model;
    model.pattern = options.pattern;
    model.nfc = options.pattern == SplitPattern::qwen2;
    model.ranked_by_id = options.ranked_by_id;
    model.whole_piece_first = options.ranked_by_id;
    MergeLearner learner(counts, model);
    learner.run(options.vocab_size - static_cast<int64_t>(options.specials.size()), options.min_frequency);
    for (const std::string& special : options.specials) {
        model.added.push_back({.content = special, .id = static_cast<int32_t>(model.tokens.size())});
        model.tokens.push_back(special);
    }
    if (!model.added.empty()) model.eot = model.added.front().id;
    return model;
}
