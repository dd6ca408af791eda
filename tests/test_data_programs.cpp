// build/curate and build/tokenize as people run them: curate -> train -> encode -> inspect -> decode, and bad
// input: one line that says what, where and what to try, exit code 2, nothing half written.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "data/document.h"
#include "data/shards.h"
#include "tests/run_program.h"
#include "tokenizer/tokenizer.h"

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Strings = std::vector<std::string>;

class DataPrograms : public testing::Test {
protected:
    void SetUp() override {
        std::string name = (fs::temp_directory_path() / "ingot-programs-XXXXXX").string();
        dir_ = mkdtemp(name.data());
    }
    void TearDown() override { fs::remove_all(dir_); }

    std::string path(const std::string& name) const { return dir_ + "/" + name; }
    std::string put(const std::string& name, const std::string& content) const {
        fs::create_directories(fs::path(path(name)).parent_path());
        write_file_atomic(path(name), content);
        return path(name);
    }
    // Forty documents with their declaration; returns sources.json.
    std::string put_corpus() const {
        for (int i = 0; i < 40; ++i) {
            std::string text;
            for (int k = 0; k < 60; ++k)
                text += cat({"line ", i * 61 + k * 7, " of caf\xc3\xa9 number ", i, "\n"});
            put(cat({"corpus/", i, ".txt"}), text);
        }
        return put("sources.json", R"([{"name": "texts", "path": "corpus", "license": "MIT"}])");
    }
    static Outcome tokenize(Strings arguments, const RunOptions& options = {}) {
        return run_program("tokenize", arguments, options);
    }
    static void expect_refusal(const Outcome& outcome, const Strings& fragments, const std::string& name) {
        SCOPED_TRACE(name);
        EXPECT_EQ(outcome.exit_code, 2) << outcome.err;
        const std::string line = outcome.error_line();
        EXPECT_EQ(line.find('\n'), line.size() - 1) << "one line, the last: " << line;
        for (const std::string& fragment : fragments)
            EXPECT_NE(line.find(fragment), std::string::npos) << "no \"" << fragment << "\" in: " << line;
    }
    std::string dir_;
};

TEST_F(DataPrograms, FromTextToShardsAndBack) {
    const std::string sources = put_corpus();
    const Outcome curated = run_program(
        "curate", {"--quiet", "--sources", sources, "--out", path("curated"), "--val-frac", "0.2"});
    ASSERT_EQ(curated.exit_code, 0) << curated.err;
    EXPECT_NE(curated.out.find("texts"), std::string::npos) << curated.out;
    const Json curated_manifest = Json::parse(read_file(path("curated/manifest.json")));
    const int64_t val_documents = curated_manifest["total"]["val_documents"];
    EXPECT_EQ(val_documents + curated_manifest["total"]["train_documents"].get<int64_t>(), 40);

    const Outcome trained = tokenize({"train", "--quiet", "--input", path("curated/train.jsonl.zst"),
                                      "--vocab-size", "300", "--out", path("tokenizer")});
    ASSERT_EQ(trained.exit_code, 0) << trained.err;
    EXPECT_NE(trained.out.find("300 tokens"), std::string::npos) << trained.out;

    for (const std::string split : {"train", "val"}) {
        const Outcome encoded = tokenize({"encode", "--quiet", "--tokenizer", path("tokenizer"), "--input",
                                          path("curated/" + split + ".jsonl.zst"), "--out", path("shards"),
                                          "--prefix", split, "--shard-tokens", "5000"});
        ASSERT_EQ(encoded.exit_code, 0) << encoded.err;
    }
    const Tokenizer tokenizer = Tokenizer::load(path("tokenizer"));
    const ShardSet val(path("shards/val_*.bin"), "--val-data");
    val.require_tokenizer(tokenizer.hash(), path("tokenizer"));
    val.require_tokenizer(Tokenizer::load(val.tokenizer_path()).hash(), val.tokenizer_path());
    const Json manifest = Json::parse(read_file(path("shards/manifest.json")));
    EXPECT_EQ(manifest["splits"]["val"]["num_documents"], val_documents);
    EXPECT_EQ(manifest["splits"]["val"]["source_manifest"], sha256_file(path("curated/manifest.json")));
    EXPECT_GT(manifest["splits"]["train"]["shards"].size(), 1u);

    // The shards hold the curated texts, document after document.
    std::vector<int32_t> tokens;
    for (const ShardReader& shard : val.shards()) {
        const size_t old = tokens.size();
        tokens.resize(old + static_cast<size_t>(shard.num_tokens()));
        shard.copy(0, shard.num_tokens(), tokens.data() + old);
    }
    const std::vector<uint64_t> offsets = read_document_offsets(path("shards"), "val");
    DocumentReader reader(path("curated/val.jsonl.zst"));
    Document document;
    for (size_t d = 0; d + 1 < offsets.size(); ++d) {
        ASSERT_TRUE(reader.next(document));
        const auto begin = tokens.begin() + static_cast<int64_t>(offsets[d]);
        EXPECT_EQ(*begin, tokenizer.eot());
        EXPECT_EQ(tokenizer.decode({begin + 1, tokens.begin() + static_cast<int64_t>(offsets[d + 1])}),
                  document.text);
    }
    EXPECT_FALSE(reader.next(document));

    // Ids on stdout, and back: by argument, by stdin.
    const std::string text = "line 7 of caf\xc3\xa9, <|endoftext|>\n";
    const Outcome ids = tokenize({"encode", "--tokenizer", path("tokenizer"), "--text", text});
    EXPECT_EQ(tokenize({"encode", "--tokenizer", path("tokenizer")}, {.input = text}).out, ids.out);
    EXPECT_EQ(tokenize({"decode", "--tokenizer", path("tokenizer")}, {.input = ids.out}).out, text);
    EXPECT_EQ(tokenize({"decode", "--tokenizer", path("tokenizer"), "299", "72"}).out,
              tokenizer.decode({299, 72}));
    const Outcome inspected = tokenize({"inspect", "--tokenizer", path("tokenizer"), "--text", text});
    EXPECT_EQ(inspected.exit_code, 0);
    EXPECT_NE(inspected.last_line().find("31 bytes"), std::string::npos) << inspected.out;
    const Outcome special =
        tokenize({"encode", "--tokenizer", path("tokenizer"), "--allow-special", "--text", "<|endoftext|>"});
    EXPECT_EQ(special.out, cat({tokenizer.eot(), "\n"}));
    // The empty text is a text, not a wish for stdin.
    EXPECT_EQ(tokenize({"encode", "--tokenizer", path("tokenizer"), "--text", ""}, {.input = "not this"}).out,
              "\n");
    EXPECT_EQ(
        tokenize({"inspect", "--tokenizer", path("tokenizer"), "--text", ""}, {.input = "x"}).last_line(),
        "0 tokens, 0 pieces, 0 bytes, 0.00 bytes a token");
}

TEST_F(DataPrograms, EverySuffixIsReadAlike) {
    const std::string line = R"({"text": "the same text, whatever the name of its file is"})";
    ASSERT_EQ(tokenize({"train", "--quiet", "--input", put("t.txt", "some text"), "--vocab-size", "260",
                        "--out", path("tokenizer")})
                  .exit_code,
              0);
    std::string first;
    for (const char* name : {"a.jsonl", "a.ndjson", "A.JSONL"}) {
        const Outcome outcome = tokenize({"encode", "--quiet", "--tokenizer", path("tokenizer"), "--input",
                                          put(name, line + "\n" + line + "\n")});
        EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
        if (first.empty()) first = outcome.out;
        EXPECT_EQ(outcome.out, first) << name;
    }
    EXPECT_EQ(std::count(first.begin(), first.end(), '\n'), 2);
}

TEST_F(DataPrograms, BadInputToCurate) {
    const std::string sources = put_corpus();
    const std::string out = path("out");
    put("lone/a.txt", "one document of more than thirty-two bytes");
    const struct {
        const char* name;
        Strings arguments, fragments;
    } rows[] = {
        {"no sources", {"--out", out}, {"--sources", "hint:"}},
        {"absent sources", {"--sources", path("no.json"), "--out", out}, {"no.json"}},
        {"sources that are none",
         {"--sources", put("s.json", "{}"), "--out", out},
         {"not a list of sources", "s.json", "hint:"}},
        {"an unknown key",
         {"--sources", put("k.json", R"([{"name": "a", "path": "corpus", "licence": "MIT"}])"), "--out", out},
         {"unknown key", "licence", "did you mean \"license\""}},
        {"an absent path",
         {"--sources", put("p.json", R"([{"name": "a", "path": "nowhere", "license": "MIT"}])"), "--out",
          out},
         {"is not there", "nowhere", "hint:"}},
        {"no licence",
         {"--sources", put("l.json", R"([{"name": "a", "path": "corpus"}])"), "--out", out},
         {"no document was taken, 40 were refused", "no licence declared", "hint:"}},
        {"one document",
         {"--sources", put("o.json", R"([{"name": "a", "path": "lone", "license": "MIT"}])"), "--out", out},
         {"cannot be trained on and held out", "--val-frac", "hint:"}},
        {"an output that is there",
         {"--sources", sources, "--out", path("corpus")},
         {"there already", "corpus", "hint:"}},
        {"an output nowhere", {"--sources", sources, "--out", path("no/where/out")}, {"no/where", "hint:"}},
        {"a fraction out of range",
         {"--sources", sources, "--out", out, "--val-frac", "0.9"},
         {"--val-frac", "0.9"}},
        {"an unknown flag", {"--sources", sources, "--ot", out}, {"--ot", "hint:"}},
    };
    const Strings before = list_directory(dir_);
    for (const auto& row : rows)
        expect_refusal(run_program("curate", row.arguments), row.fragments, row.name);
    EXPECT_EQ(list_directory(dir_), before) << "nothing half written";
    expect_refusal(
        run_program("curate", {"--quiet", "--sources", sources, "--out", out}, {.max_file_bytes = 1000}),
        {"cannot write file", out}, "a full disk");
    EXPECT_EQ(list_directory(dir_), before);
}

TEST_F(DataPrograms, BadInputToTokenize) {
    const std::string text = put("t.txt", "the\nthe\nthe\nthe text that the tokenizer is trained on");
    const std::string tokenizer = path("tokenizer"), out = path("shards");
    ASSERT_EQ(
        tokenize({"train", "--quiet", "--input", text, "--vocab-size", "260", "--out", tokenizer}).exit_code,
        0);
    const std::string damaged = put("damaged.jsonl", "{\"text\": \"good\"}\n{\"text\": \"cut\n");
    const std::string ranks = put("r.tiktoken", "IQ== 0\n!!\n");
    std::string json = read_file(tokenizer + "/tokenizer.json");
    const std::string truncated = put("cut/tokenizer.json", json.substr(0, json.size() / 2));
    const size_t id = json.find("\"id\": 259");
    ASSERT_NE(id, std::string::npos);
    const std::string conflict = put("conflict/tokenizer.json", json.replace(id, 9, "\"id\": 7"));
    const auto train = [&](Strings more) {
        Strings all = {"train", "--quiet", "--input", text, "--vocab-size", "270", "--out", path("new")};
        all.insert(all.end(), more.begin(), more.end());
        return all;
    };
    const auto encode = [&](const std::string& with, Strings more) {
        Strings all = {"encode", "--quiet", "--tokenizer", with};
        all.insert(all.end(), more.begin(), more.end());
        return all;
    };
    const struct {
        const char* name;
        Strings arguments, fragments;
    } rows[] = {
        {"no command", {}, {"hint:"}},
        {"unknown command", {"encod"}, {"encod"}},
        {"no such input", {"train", "--input", path("no*.txt"), "--out", path("new")}, {"no*.txt", "hint:"}},
        {"a tokenizer that is there",
         {"train", "--input", text, "--out", tokenizer},
         {"exists already", tokenizer, "hint:"}},
        {"a vocabulary too small",
         {"train", "--input", text, "--vocab-size", "257", "--special", "<a>", "--special", "<b>", "--out",
          path("new")},
         {"too small", "hint:"}},
        {"a special that is a word",
         train({"--special", "the"}),
         {"ordinary one", "the", "hint: --special '<|the|>'"}},
        {"a special that is a byte", train({"--special", "t"}), {"ordinary one", "hint:"}},
        {"a special twice", train({"--special", "<a>", "--special", "<a>"}), {"twice", "<a>", "hint:"}},
        {"a special that is not UTF-8", train({"--special", "caf\xe9"}), {"not UTF-8", "hint:"}},
        {"no tokenizer", encode(path("absent"), {"--text", "x"}), {"no tokenizer here", "absent"}},
        {"half a tokenizer", encode(truncated, {"--text", "x"}), {"not JSON", "tokenizer.json, byte"}},
        {"two tokens of one id", encode(conflict, {"--text", "x"}), {"two tokens with one id", "hint:"}},
        {"ranks that are none",
         encode(ranks, {"--pattern", "gpt2", "--text", "x"}),
         {"not a .tiktoken", "line 2", "hint:"}},
        {"a damaged line",
         encode(tokenizer, {"--input", damaged, "--out", out}),
         {"unreadable documents", "damaged.jsonl:2", "hint:"}},
        {"a prefix with a way out",
         encode(tokenizer, {"--input", text, "--out", out, "--prefix", "../x"}),
         {"not a name", "--prefix", "../x"}},
        {"an end of text that is none",
         encode(tokenizer, {"--input", text, "--out", out, "--eot", "<x>"}),
         {"no such end-of-text", "<x>"}},
        {"a word for an id", {"decode", "--tokenizer", tokenizer, "12", "x1"}, {"not a token id", "x1"}},
        {"an id beyond", {"decode", "--tokenizer", tokenizer, "260"}, {"out of range", "0 to 259", "260"}},
    };
    const Strings before = list_directory(dir_);
    for (const auto& row : rows) expect_refusal(tokenize(row.arguments), row.fragments, row.name);
    EXPECT_EQ(list_directory(dir_), before) << "nothing half written, not even a directory";

    // A directory of other shards stays as it was.
    ASSERT_EQ(tokenize(encode(tokenizer, {"--input", text, "--out", out})).exit_code, 0);
    ASSERT_EQ(tokenize(train({"--special", "<other>"})).exit_code, 0);
    const Strings shards = list_directory(out);
    expect_refusal(tokenize(encode(tokenizer, {"--input", text, "--out", out})), {"there already", "hint:"},
                   "again");
    expect_refusal(tokenize(encode(path("new"), {"--input", text, "--out", out, "--prefix", "val"})),
                   {"another tokenizer", "hint:"}, "another tokenizer");
    expect_refusal(tokenize(encode(tokenizer, {"--input", damaged, "--out", out, "--prefix", "val"})),
                   {"unreadable documents"}, "a damaged line");
    EXPECT_EQ(list_directory(out), shards);
    const std::string large = put("large.txt", std::string(100'000, 'x'));
    expect_refusal(
        tokenize(encode(tokenizer, {"--input", large, "--out", path("full")}), {.max_file_bytes = 30'000}),
        {"cannot write file", path("full")}, "a full disk");
    EXPECT_FALSE(path_exists(path("full")));
}

}  // namespace
