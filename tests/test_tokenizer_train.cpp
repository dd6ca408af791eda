// Training: the merges of HF's trainer, its way with ties, and the same tokenizer for any number of threads.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/io.h"
#include "core/log.h"
#include "core/threads.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/train.h"

namespace {

using Json = nlohmann::json;

TokenizerModel train_on(const std::vector<std::pair<std::string, int64_t>>& pieces,
                        const TrainOptions& options) {
    set_progress_enabled(false);
    PieceCounts counts(options.pattern);
    for (const auto& [piece, count] : pieces) counts.add_piece(piece, count);
    return train_bpe(counts, options);
}

std::vector<std::string> merged_tokens(const TokenizerModel& model) {
    std::vector<std::string> tokens;
    for (const TokenizerModel::Merge& merge : model.merges)
        tokens.push_back(model.tokens[static_cast<size_t>(merge.left)] + "+" +
                         model.tokens[static_cast<size_t>(merge.right)]);
    return tokens;
}

TEST(Training, MergesAreThoseOfHuggingFace) {
    const Json vectors = Json::parse(std::ifstream("tests/data/tokenizer_vectors.json"));
    const std::string text = read_file("tests/data/tokenizer_text.txt");
    set_progress_enabled(false);
    PieceCounts counts(SplitPattern::llama3);
    counts.add({text});
    const TokenizerModel model =
        train_bpe(counts, {.vocab_size = 556, .pattern = SplitPattern::llama3, .specials = {}});
    std::vector<std::string> merges;
    for (const TokenizerModel::Merge& merge : model.merges)
        merges.push_back(to_byte_alphabet(model.tokens[static_cast<size_t>(merge.left)]) + " " +
                         to_byte_alphabet(model.tokens[static_cast<size_t>(merge.right)]));
    EXPECT_EQ(merges, vectors["training"]["merges"].get<std::vector<std::string>>());
}

TEST(Training, OfEqualCountsTheSmallerIdsGoFirst) {
    // '!' stands before 'a' stands before 'b' in the byte order; the order of the pieces does not matter.
    const TrainOptions options{.vocab_size = 260, .specials = {}, .min_frequency = 1};
    EXPECT_EQ(merged_tokens(train_on({{"ba", 5}, {"ab", 5}, {"a!", 5}, {"!b", 5}}, options)),
              (std::vector<std::string>{"!+b", "a+!", "a+b", "b+a"}));
    EXPECT_EQ(merged_tokens(train_on({{"!b", 5}, {"a!", 5}, {"ab", 5}, {"ba", 6}}, options)),
              (std::vector<std::string>{"b+a", "!+b", "a+!", "a+b"}));
}

TEST(Training, RunsOfOneLetterMergeFromTheLeft) {
    const TrainOptions options{.vocab_size = 258, .specials = {}, .min_frequency = 1};
    const TokenizerModel model = train_on({{"aaaaa", 3}}, options);
    EXPECT_EQ(merged_tokens(model), (std::vector<std::string>{"a+a", "aa+a"}));  // aa aa a, then aa aaa
}

TEST(Training, StopsAtTheSizeTheFrequencyAndTheEndOfPairs) {
    const TrainOptions options{.vocab_size = 300, .min_frequency = 2};
    const TokenizerModel model = train_on({{"ab", 2}, {"cd", 1}}, options);
    EXPECT_EQ(merged_tokens(model), (std::vector<std::string>{"a+b"}));
    EXPECT_EQ(model.tokens.size(), 258u);
    EXPECT_EQ(model.tokens[257], "<|endoftext|>");
    EXPECT_EQ(model.eot, 257);
    EXPECT_TRUE(train_on({}, options).merges.empty());
    try {
        train_on({}, {.vocab_size = 256});
        FAIL();
    } catch (const InputError& error) {
        EXPECT_STREQ(error.what(),
                     "the vocabulary is too small: expected at least 257 (256 bytes and the special "
                     "tokens), got 256  hint: --vocab-size 4096");
    }
}

TEST(Training, CountsBeyondThirtyTwoBits) {
    const int64_t many = int64_t{1} << 40;
    const TrainOptions options{.vocab_size = 258, .specials = {}, .min_frequency = 2};
    EXPECT_EQ(merged_tokens(train_on({{"ab", many}, {"cd", many + 1}}, options)),
              (std::vector<std::string>{"c+d", "a+b"}));
}

TEST(Training, SameTokenizerForAnyNumberOfThreadsAndOrderOfDocuments) {
    set_progress_enabled(false);
    const std::string text = read_file("tests/data/tokenizer_text.txt");
    std::vector<std::string> lines;
    for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find('\n', at), text.size() - 1) + 1;
        lines.push_back(text.substr(at, end - at));
        at = end;
    }
    std::vector<std::string> hashes;
    for (int threads : {1, 2, 3}) {
        set_num_threads(threads);
        for (bool reversed : {false, true}) {
            std::vector<std::string_view> documents(lines.begin(), lines.end());
            if (reversed) std::reverse(documents.begin(), documents.end());
            PieceCounts counts(SplitPattern::qwen2);
            counts.add(documents);
            hashes.push_back(
                Tokenizer(train_bpe(counts, {.vocab_size = 500, .pattern = SplitPattern::qwen2})).hash());
        }
    }
    set_num_threads(1);
    for (const std::string& hash : hashes) EXPECT_EQ(hash, hashes.front());
}

}  // namespace
