// Training: the merges of HF's trainer, its way with ties, and the same tokenizer for any number of threads.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
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

std::string refusal_of(const std::function<void()>& body) {
    try {
        body();
    } catch (const InputError& error) {
        return error.what();
    }
    return "(no InputError)";
}

TEST(Training, SpecialsThatCouldNotBeReadBackAreRefused) {
    const auto refused = [&](const std::vector<std::string>& specials) {
        return refusal_of([&] {
            Tokenizer(train_on({{"the", 9}, {" the", 9}}, {.vocab_size = 300, .specials = specials}));
        });
    };
    EXPECT_EQ(refused({"<|endoftext|>", "<|the|>", "a b", "\xc3\xa9t\xc3\xa9"}), "(no InputError)");
    const std::pair<std::vector<std::string>, const char*> cases[] = {
        {{"the"}, "name of an ordinary one"},
        {{"x", "a"}, "name of an ordinary one"},       // a byte
        {{"\xc4\xa0the"}, "name of an ordinary one"},  // " the" in the byte alphabet
        {{"<a>", "<b>", "<a>"}, "appears twice"},
        {{""}, "has no text"},
        {{"caf\xe9"}, "not UTF-8"},
    };
    for (const auto& [specials, part] : cases) {
        const std::string message = refused(specials);
        EXPECT_NE(message.find(part), std::string::npos) << part << " not in: " << message;
        EXPECT_NE(message.find("hint:"), std::string::npos) << message;
    }
}

TEST(Training, TiktokenSpecialsTakeTheIdsTheyAreGiven) {
    std::string dir = (std::filesystem::temp_directory_path() / "ingot-tiktoken-XXXXXX").string();
    ASSERT_NE(mkdtemp(dir.data()), nullptr);
    // A file with a gap (ids 256 to 259) and the line ends of another system.
    const Tokenizer trained(train_on({{"ab", 9}}, {.vocab_size = 257, .specials = {}, .ranked_by_id = true}));
    trained.save(dir + "/t");
    std::string lines = read_file(dir + "/t/tokenizer.tiktoken"), gap;
    for (const char c : lines) gap += c == '\n' ? "\r\n" : std::string(1, c);
    const size_t last = gap.rfind(" 256");
    ASSERT_NE(last, std::string::npos);
    gap.replace(last, 4, " 260");
    const std::string path = dir + "/gap.tiktoken";
    write_file_atomic(path, gap);
    const auto load = [&](const std::vector<std::string>& specials) {
        return Tokenizer::load(path, {.pattern = "gpt2", .specials = specials, .eot = {}});
    };
    const Tokenizer plain = load({"<|a|>", "<|b|>"});
    EXPECT_EQ(plain.special_id("<|a|>"), 261);
    EXPECT_EQ(plain.special_id("<|b|>"), 262);
    const Tokenizer placed = load({"<|end|>=300", "<|gap|>=257", "<|next|>", "x=y", "<|n|>="});
    EXPECT_EQ(placed.special_id("<|end|>"), 300);
    EXPECT_EQ(placed.eot(), 300) << "the first one";
    EXPECT_EQ(placed.special_id("<|gap|>"), 257);
    EXPECT_EQ(placed.special_id("<|next|>"), 301);
    EXPECT_EQ(placed.special_id("x=y"), 302) << "no number, no id";
    EXPECT_EQ(placed.special_id("<|n|>="), 303);
    EXPECT_EQ(placed.vocab_size(), 304);
    EXPECT_EQ(placed.encode("ab<|gap|>", Specials::allowed), (std::vector<int32_t>{260, 257}));
    placed.save(dir + "/placed");
    EXPECT_EQ(Tokenizer::load(dir + "/placed").encode("ab<|end|>", Specials::allowed),
              (std::vector<int32_t>{260, 300}));
    const std::pair<std::vector<std::string>, std::vector<std::string>> bad[] = {
        {{"<|a|>=260"}, {"is taken", "--special <|a|>=260", "hint:"}},
        {{"<|a|>=256", "<|b|>=256"}, {"is taken", "<|b|>=256"}},
        {{"<|a|>=99999999999999999999"}, {"out of range", "hint:"}},
        {{"=257"}, {"has no text", "hint:"}},
        {{"ab"}, {"name of an ordinary one", "260", "hint:"}},
    };
    for (const auto& [specials, parts] : bad) {
        const std::string message = refusal_of([&] { load(specials); });
        for (const std::string& part : parts)
            EXPECT_NE(message.find(part), std::string::npos) << part << " not in: " << message;
    }
    write_file_atomic(path, "IQ== 0\nIg== zero\n");
    EXPECT_EQ(refusal_of([&] { load({}); }),
              "not a .tiktoken file: " + path +
                  ", line 2: expected a rank of 0 to 16777216, got Ig== zero  hint: "
                  "get the file again, or give a tokenizer.json");
    std::filesystem::remove_all(dir);
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
