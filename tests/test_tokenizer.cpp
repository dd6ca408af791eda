// Tokenizer: ids against HF tokenizers and tiktoken (tests/data/tokenizer_vectors.json), merges against a
// naive twin, round trips, added tokens, files in and out.
#include "tokenizer/tokenizer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/io.h"
#include "core/log.h"
#include "core/rng.h"
#include "tokenizer/bpe.h"
#include "tokenizer/train.h"
#include "tokenizer/unicode.h"

namespace {

using Json = nlohmann::json;

class TokenizerTest : public testing::Test {
protected:
    void SetUp() override {
        set_progress_enabled(false);
        directory_ =
            (std::filesystem::temp_directory_path() / ("ingot-tokenizer-" + std::to_string(getpid())))
                .string();
        std::filesystem::create_directories(directory_);
    }
    void TearDown() override { std::filesystem::remove_all(directory_); }
    std::string path(const std::string& name) const { return directory_ + "/" + name; }
    std::string write(const std::string& name, const std::string& content) const {
        write_file_atomic(path(name), content);
        return path(name);
    }

    std::string directory_;
};

std::string from_hex(const std::string& text) {
    std::string bytes;
    for (size_t i = 0; i < text.size(); i += 2)
        bytes.push_back(static_cast<char>(std::stoi(text.substr(i, 2), nullptr, 16)));
    return bytes;
}

const Json& vectors() {
    static const Json json = Json::parse(std::ifstream("tests/data/tokenizer_vectors.json"));
    return json;
}

TokenizerModel small_model(SplitPattern pattern = SplitPattern::llama3, bool ranked_by_id = false) {
    PieceCounts counts(pattern);
    const std::string text = read_file("tests/data/tokenizer_text.txt");
    counts.add({text});
    return train_bpe(counts, {.vocab_size = 557, .pattern = pattern, .ranked_by_id = ranked_by_id});
}

std::string random_bytes(uint64_t sample, uint64_t most, bool ascii) {
    const RandomKey key{.seed = 17, .stream = sample};
    const uint64_t count = random_below(key, 0, most);
    std::string text;
    for (uint64_t i = 1; i <= count; ++i)
        text.push_back(
            static_cast<char>(ascii ? " ab'sT1.\n"[random_below(key, i, 9)] : random_below(key, i, 256)));
    return text;
}

std::vector<int32_t> encode_cached(Encoder& encoder, const std::string& text) {
    std::vector<int32_t> ids;
    encoder.append(text, ids);
    return ids;
}

// What `what()` of the InputError says, or "" when none is thrown.
template <class F>
std::string refusal(F&& f) {
    try {
        f();
    } catch (const InputError& error) {
        return error.what();
    }
    return "";
}

// ---- ids
// -----------------------------------------------------------------------------------------------------------

TEST_F(TokenizerTest, IdsAreThoseOfHuggingFaceAndOfTiktoken) {
    const Tokenizer hf(small_model());
    hf.save(path("saved"));
    const Tokenizer tiktoken =
        Tokenizer::load(path("saved/tokenizer.tiktoken"), {.pattern = "llama3", .specials = {}, .eot = {}});
    Encoder hf_encoder(hf), tiktoken_encoder(tiktoken);
    for (const Json& row : vectors()["training"]["cases"]) {
        const std::string text = from_hex(row["text"]);
        EXPECT_EQ(hf.encode(text), row["hf"].get<std::vector<int32_t>>()) << row["text"];
        EXPECT_EQ(encode_cached(hf_encoder, text), row["hf"].get<std::vector<int32_t>>()) << row["text"];
        EXPECT_EQ(tiktoken.encode(text), row["tiktoken"].get<std::vector<int32_t>>()) << row["text"];
        EXPECT_EQ(encode_cached(tiktoken_encoder, text), row["tiktoken"].get<std::vector<int32_t>>())
            << row["text"];
        EXPECT_EQ(hf.decode(hf.encode(text)), text);
    }
}

// The two rules differ where a token is not reachable by its merges: ("ab", "c") makes "abc", but in the
// piece "abc" the better ranked ("b", "c") comes first.
TEST_F(TokenizerTest, WholePiecesAndRanksOfJoinedBytes) {
    TokenizerModel model = small_model();
    model.tokens.resize(256);
    model.merges.clear();
    model.added.clear();
    model.eot = -1;
    const auto id = [&](const char* token) {
        return static_cast<int32_t>(std::find(model.tokens.begin(), model.tokens.end(), token) -
                                    model.tokens.begin());
    };
    for (const char* token : {"bc", "ab", "abc", "cd"}) model.tokens.push_back(token);
    const int32_t a = id("a"), b = id("b"), c = id("c"), d = id("d"), bc = 256, ab = 257, abc = 258, cd = 259;
    model.merges = {{b, c, bc}, {a, b, ab}, {ab, c, abc}, {c, d, cd}};
    EXPECT_EQ(Tokenizer(model).encode("abc"), (std::vector<int32_t>{a, bc}));
    EXPECT_EQ(Tokenizer(model).encode("abcd"), (std::vector<int32_t>{a, bc, d}));
    model.whole_piece_first = true;
    EXPECT_EQ(Tokenizer(model).encode("abc"), (std::vector<int32_t>{abc}));
    EXPECT_EQ(Tokenizer(model).encode("abcd"), (std::vector<int32_t>{a, bc, d}));
    model.ranked_by_id = true;  // now (a, bc) joins to a token as well
    EXPECT_EQ(Tokenizer(model).encode("abcd"), (std::vector<int32_t>{abc, d}));
}

// The definition, as directly as it can be written: again and again the leftmost pair of the lowest rank.
std::vector<int32_t> merge_naively(const TokenizerModel& model, std::string_view piece) {
    std::map<std::pair<int32_t, int32_t>, std::pair<size_t, int32_t>> rules;
    for (size_t rank = 0; rank < model.merges.size(); ++rank)
        rules[{model.merges[rank].left, model.merges[rank].right}] = {rank, model.merges[rank].merged};
    std::vector<int32_t> ids;
    for (char byte : piece)
        for (int32_t id = 0; id < 256; ++id)
            if (model.tokens[static_cast<size_t>(id)] == std::string(1, byte)) ids.push_back(id);
    for (;;) {
        size_t best = ids.size(), best_rank = rules.size();
        for (size_t i = 0; i + 1 < ids.size(); ++i) {
            const auto rule = rules.find({ids[i], ids[i + 1]});
            if (rule == rules.end() || rule->second.first >= best_rank) continue;
            best = i;
            best_rank = rule->second.first;
        }
        if (best == ids.size()) return ids;
        ids[best] = rules[{ids[best], ids[best + 1]}].second;
        ids.erase(ids.begin() + static_cast<int64_t>(best) + 1);
    }
}

TEST_F(TokenizerTest, ShortAndLongPiecesMergeAsTheDefinitionSays) {
    const TokenizerModel model = small_model();
    const Tokenizer tokenizer(model);
    for (uint64_t sample = 0; sample < 120; ++sample) {
        const RandomKey key{.seed = 5, .stream = sample};
        std::string piece;
        const uint64_t length =
            1 + random_below(key, 0, sample < 60 ? 70 : 200);  // either side of the two forms' border
        const char* alphabet = sample % 2 ? "the a" : "aab";
        for (uint64_t i = 1; i <= length; ++i)
            piece.push_back(alphabet[random_below(key, i, sample % 2 ? 5 : 3)]);
        EXPECT_EQ(tokenizer.encode_piece(piece), merge_naively(model, piece)) << piece;
    }
}

TEST_F(TokenizerTest, AMegabyteOfOneLetterIsNotQuadratic) {
    const Tokenizer tokenizer(small_model());
    const std::string text(1 << 20, 'a');
    const double begin = seconds_now();
    const std::vector<int32_t> ids = tokenizer.encode(text);
    EXPECT_LT(seconds_now() - begin, 5.0);  // 0.1 s here; quadratic would be hours
    EXPECT_EQ(tokenizer.decode(ids), text);
}

TEST_F(TokenizerTest, AnyBytesComeBack) {
    for (SplitPattern pattern : {SplitPattern::gpt2, SplitPattern::llama3, SplitPattern::qwen2}) {
        for (bool ranked_by_id : {false, true}) {
            const Tokenizer tokenizer(small_model(pattern, ranked_by_id));
            Encoder encoder(tokenizer);
            for (uint64_t sample = 0; sample < 400; ++sample) {
                const std::string text = random_bytes(sample, 120, sample % 2 == 0);
                const std::vector<int32_t> ids = tokenizer.encode(text);
                const std::string back = pattern == SplitPattern::qwen2 ? to_nfc(text) : text;
                ASSERT_EQ(tokenizer.decode(ids), back);
                ASSERT_EQ(encode_cached(encoder, text), ids) << "the cache changes nothing";
                ASSERT_EQ(encode_cached(encoder, text), ids) << "nor when it knows the text";
            }
        }
    }
    EXPECT_TRUE(Tokenizer(small_model()).encode("").empty());
}

// ---- added tokens
// --------------------------------------------------------------------------------------------------

TEST_F(TokenizerTest, SpecialTokensAreTextUnlessAllowed) {
    const Tokenizer tokenizer(small_model());
    const int32_t eot = tokenizer.eot();
    EXPECT_EQ(eot, tokenizer.vocab_size() - 1);
    EXPECT_EQ(tokenizer.special_id("<|endoftext|>"), eot);
    EXPECT_EQ(tokenizer.special_id("<|other|>"), -1);
    const std::string text = "a<|endoftext|> b";
    const std::vector<int32_t> plain = tokenizer.encode(text),
                               allowed = tokenizer.encode(text, Specials::allowed);
    EXPECT_EQ(std::count(plain.begin(), plain.end(), eot), 0);
    EXPECT_EQ(std::count(allowed.begin(), allowed.end(), eot), 1);
    EXPECT_EQ(tokenizer.decode(plain), text);
    EXPECT_EQ(tokenizer.decode(allowed), text);
    // The text on either side ends there: the run of spaces before the name is whole.
    EXPECT_EQ(tokenizer.pieces("x  <|endoftext|>", Specials::allowed),
              (std::vector<std::string>{"x", "  ", "<|endoftext|>"}));
}

TEST_F(TokenizerTest, TheLongestNameWinsAndOrdinaryAddedTokensAlwaysCount) {
    TokenizerModel model = small_model();
    const auto add = [&](const std::string& name, bool special) {
        model.added.push_back(
            {.content = name, .id = static_cast<int32_t>(model.tokens.size()), .special = special});
        model.tokens.push_back(name);
    };
    add("<a>", true);
    add("<a><b>", true);
    add("[tool]", false);
    const Tokenizer tokenizer(std::move(model));
    const int32_t first = tokenizer.special_id("<a>");
    EXPECT_EQ(tokenizer.encode("<a><b><a>", Specials::allowed), (std::vector<int32_t>{first + 1, first}));
    EXPECT_EQ(tokenizer.encode("[tool]"), (std::vector<int32_t>{first + 2}));
    tokenizer.save(path("added"));
    EXPECT_EQ(Tokenizer::load(path("added")).encode("[tool]<a><b>", Specials::allowed),
              (std::vector<int32_t>{first + 2, first + 1}));
}

// ---- files
// ---------------------------------------------------------------------------------------------------------

TEST_F(TokenizerTest, SavedTokenizersAreTheSame) {
    for (SplitPattern pattern : {SplitPattern::gpt2, SplitPattern::llama3, SplitPattern::qwen2}) {
        for (bool ranked_by_id : {false, true}) {
            const std::string place =
                path(std::string(split_pattern_name(pattern)) + (ranked_by_id ? "-ranked" : ""));
            const Tokenizer tokenizer(small_model(pattern, ranked_by_id));
            tokenizer.save(place);
            const Tokenizer directory = Tokenizer::load(place);
            EXPECT_EQ(directory.hash(), tokenizer.hash());
            EXPECT_EQ(directory.eot(), tokenizer.eot());
            EXPECT_EQ(Tokenizer::load(place + "/tokenizer.json").hash(), tokenizer.hash());
            EXPECT_EQ(directory.model().pattern, pattern);
            EXPECT_EQ(directory.model().nfc, pattern == SplitPattern::qwen2);
            const Tokenizer tiktoken = Tokenizer::load(
                place + "/tokenizer.tiktoken",
                {.pattern = split_pattern_name(pattern), .specials = {"<|endoftext|>"}, .eot = {}});
            EXPECT_EQ(tiktoken.eot(), tokenizer.eot());
            EXPECT_TRUE(!ranked_by_id || tiktoken.hash() == tokenizer.hash());
            for (uint64_t sample = 0; sample < 100; ++sample) {
                const std::string text = random_bytes(sample, 80, true);
                EXPECT_EQ(directory.encode(text), tokenizer.encode(text));
            }
            EXPECT_NE(refusal([&] { tokenizer.save(place); }), "") << "never over an existing directory";
        }
    }
}

TEST_F(TokenizerTest, BothFormsOfMergesAndUnsortedIds) {
    const Tokenizer tokenizer(small_model());
    Json json = Json::parse(tokenizer.tokenizer_json());
    for (Json& merge : json["model"]["merges"]) {
        const std::string text = merge;
        const size_t space = text.find(' ');
        merge = {text.substr(0, space), text.substr(space + 1)};
    }
    EXPECT_EQ(Tokenizer::load(write("lists.json", json.dump())).hash(), tokenizer.hash());

    // Ids reversed: the merges' order alone decides, and no .tiktoken can say that.
    const int32_t last = static_cast<int32_t>(tokenizer.vocab_size()) - 1;
    for (Json& id : json["model"]["vocab"]) id = last - id.get<int32_t>();
    json["added_tokens"][0]["id"] = 0;
    const Tokenizer reversed = Tokenizer::load(write("reversed.json", json.dump()));
    for (uint64_t sample = 0; sample < 100; ++sample) {
        const std::string text = random_bytes(sample, 80, true);
        std::vector<int32_t> ids = tokenizer.encode(text);
        for (int32_t& id : ids) id = last - id;
        EXPECT_EQ(reversed.encode(text), ids);
    }
    reversed.save(path("reversed"));
    EXPECT_FALSE(path_exists(path("reversed/tokenizer.tiktoken")));
    EXPECT_EQ(reversed.eot(), 0);
}

TEST_F(TokenizerTest, EndOfTextFromTheConfigurationOrByName) {
    TokenizerModel model = small_model();
    model.added.push_back({.content = "<eos>", .id = static_cast<int32_t>(model.tokens.size())});
    model.tokens.push_back("<eos>");
    const Tokenizer tokenizer(std::move(model));
    const int32_t eos = tokenizer.special_id("<eos>");
    tokenizer.save(path("t"));
    EXPECT_EQ(Tokenizer::load(path("t")).eot(), eos - 1);
    write("t/tokenizer_config.json", R"({"eos_token": {"content": "<eos>"}})");
    EXPECT_EQ(Tokenizer::load(path("t")).eot(), eos);
    EXPECT_EQ(Tokenizer::load(path("t"), {.pattern = {}, .specials = {}, .eot = "<|endoftext|>"}).eot(),
              eos - 1);
    EXPECT_EQ(refusal([&] { Tokenizer::load(path("t"), {.pattern = {}, .specials = {}, .eot = "<x>"}); }),
              "no such end-of-text token: " + path("t") + ": got <x>");
}

TEST_F(TokenizerTest, RefusesByNameWhatItDoesNotImplement) {
    const Json good = Json::parse(Tokenizer(small_model()).tokenizer_json());
    struct Case {
        const char* pointer;
        Json value;
        const char* expected;
    };
    const Case cases[] = {
        {"/model/type", "Unigram", "model Unigram is not supported"},
        {"/model/dropout", 0.1, "dropout is not supported"},
        {"/model/continuing_subword_prefix", "##", "continuing_subword_prefix is not supported"},
        {"/model/end_of_word_suffix", "</w>", "end_of_word_suffix is not supported"},
        {"/model/byte_fallback", true, "byte_fallback is not supported"},
        {"/normalizer", {{"type", "NFKC"}}, "normalizer NFKC is not supported"},
        {"/pre_tokenizer", {{"type", "Metaspace"}}, "pre-tokenizer Metaspace is not supported"},
        {"/pre_tokenizer", nullptr, "no pre-tokenizer: not supported"},
        {"/pre_tokenizer",
         {{"type", "ByteLevel"}, {"add_prefix_space", true}},
         "add_prefix_space is not supported"},
        {"/pre_tokenizer/pretokenizers/0/type", "Digits", "pre-tokenizer Digits is not supported"},
        {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\\w+", "this split pattern is not supported"},
        {"/pre_tokenizer/pretokenizers/0/behavior", "Removed", "this behaviour of pre-tokenizer Split"},
        {"/pre_tokenizer/pretokenizers/1/use_regex", true, "this use_regex of pre-tokenizer ByteLevel"},
        {"/decoder/type", "Metaspace", "decoder Metaspace is not supported"},
        {"/post_processor", {{"type", "BertProcessing"}}, "post-processor BertProcessing is not supported"},
        {"/truncation", {{"max_length", 512}}, "truncation is not supported"},
        {"/padding", {{"length", 512}}, "padding is not supported"},
        {"/added_tokens/0/lstrip", true, "lstrip of added token <|endoftext|> is not supported"},
        {"/added_tokens/0/rstrip", true, "rstrip of added token <|endoftext|> is not supported"},
        {"/added_tokens/0/single_word", true, "single_word of added token <|endoftext|> is not supported"},
        {"/model/merges/0", "a b c", "not a merge"},
        {"/model/merges/0", {"a"}, "not a merge"},
        {"/model/merges/0", {"zz", "y"}, "which is not in the vocabulary"},
        {"/model/vocab/a", -1, "not a tokenizer.json"},
        {"/model/vocab/a", 1e12, "not a tokenizer.json"},
        {"/model/vocab/a", 5, "two tokens with one id"},
        {"/model/vocab", 5, "not a tokenizer.json"},
        {"/model", nullptr, "not a tokenizer.json"},
        {"/added_tokens/0/content", "", "an added token has no text"},
    };
    for (const Case& one : cases) {
        Json json = good;
        json[Json::json_pointer(one.pointer)] = one.value;
        const std::string file = write("tokenizer.json", json.dump());
        const std::string said = refusal([&] { Tokenizer::load(file); });
        EXPECT_NE(said.find(one.expected), std::string::npos) << one.pointer << " said: " << said;
        EXPECT_NE(said.find(file), std::string::npos) << one.pointer << " said: " << said;
    }
    Json json = good;
    json["model"]["vocab"].erase("a");
    json["model"]["merges"] = Json::array();
    const std::string file = write("tokenizer.json", json.dump());
    EXPECT_NE(refusal([&] { Tokenizer::load(file); }).find("none for byte 97"), std::string::npos);
    json = good;
    json["normalizer"] = {{"type", "NFC"}};
    json["added_tokens"][0]["normalized"] = true;
    const std::string nfc = write("tokenizer.json", json.dump());
    EXPECT_NE(refusal([&] { Tokenizer::load(nfc); }).find("under normalizer NFC is not supported"),
              std::string::npos);
}

TEST_F(TokenizerTest, MissingTruncatedAndForeignFiles) {
    const std::string json = Tokenizer(small_model()).tokenizer_json();
    EXPECT_EQ(refusal([&] { Tokenizer::load(path("none")); }),
              "no tokenizer here: " + path("none") +
                  ": expected an HF directory, a tokenizer.json or a .tiktoken file, got nothing");
    EXPECT_NE(refusal([&] { Tokenizer::load(directory_); }).find("a directory without tokenizer.json"),
              std::string::npos);
    for (size_t bytes : {size_t{0}, size_t{1}, json.size() / 2, json.size() - 3}) {
        const std::string file = write("cut.json", json.substr(0, bytes));
        EXPECT_NE(refusal([&] { Tokenizer::load(file); }).find("not JSON (truncated or damaged): " + file),
                  std::string::npos);
    }
    for (const char* other : {"[]", "3", "null", "{}", "{\"model\": 3}", "{\"model\": {}}"}) {
        const std::string file = write("other.json", other);
        EXPECT_NE(refusal([&] { Tokenizer::load(file); }).find(file), std::string::npos) << other;
    }
    const LoadOptions gpt2{.pattern = "gpt2", .specials = {}, .eot = {}};
    const auto tiktoken = [&](const std::string& content) {
        const std::string file = write("x.tiktoken", content);
        return refusal([&] { Tokenizer::load(file, gpt2); });
    };
    EXPECT_NE(tiktoken("").find("an empty file"), std::string::npos);
    EXPECT_NE(tiktoken("IQ== 0\nIg==\n").find("line 2: expected base64, a space and a rank, got Ig=="),
              std::string::npos);
    EXPECT_NE(tiktoken("I*== 0\n").find("line 1: expected base64"), std::string::npos);
    EXPECT_NE(tiktoken("IQ== x\n").find("expected a rank"), std::string::npos);
    EXPECT_NE(tiktoken("IQ== 99999999999\n").find("expected a rank"), std::string::npos);
    EXPECT_NE(tiktoken("IQ== 0\nIg== 0\n").find("line 2: expected each rank once"), std::string::npos);
    EXPECT_NE(tiktoken("IQ== 0\n").find("none for byte 0"), std::string::npos);
    EXPECT_NE(tiktoken("IQ== 0\nIQ== 1\n").find("ids 0 and 1 for the same bytes"), std::string::npos);
    const std::string file = write("y.tiktoken", "IQ== 0\n");
    EXPECT_NE(refusal([&] { Tokenizer::load(file); }).find("unknown split pattern"), std::string::npos);
}

TEST_F(TokenizerTest, IdsOutOfRange) {
    const Tokenizer tokenizer(small_model());
    const int32_t size = static_cast<int32_t>(tokenizer.vocab_size());
    const std::string said = cat({"token id out of range: expected 0 to ", size - 1, ", got "});
    EXPECT_EQ(refusal([&] { tokenizer.decode({0, size}); }), cat({said, size}));
    EXPECT_EQ(refusal([&] { tokenizer.decode({-1}); }), said + "-1");
}

}  // namespace
