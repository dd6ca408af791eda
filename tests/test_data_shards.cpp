// Token shards: what is written is read back in both widths; what is damaged or foreign is refused with a
// message that says where; FineWeb-style shards without a manifest work.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>

#include "core/error.h"
#include "data/shards.h"

namespace {

class Shards : public testing::Test {
protected:
    void SetUp() override {
        std::string name = (std::filesystem::temp_directory_path() / "ingot-shards-XXXXXX").string();
        dir_ = mkdtemp(name.data());
    }
    void TearDown() override { std::filesystem::remove_all(dir_); }

    std::string path(const std::string& name) const { return dir_ + "/" + name; }
    void write_raw(const std::string& name, const std::vector<int32_t>& header,
                   const std::string& body) const {
        std::vector<int32_t> full(256);
        std::copy(header.begin(), header.end(), full.begin());
        std::ofstream out(path(name), std::ios::binary);
        out.write(reinterpret_cast<const char*>(full.data()), 1024);
        out.write(body.data(), static_cast<std::streamsize>(body.size()));
    }
    template <class F>
    static std::string message_of(F&& f) {
        try {
            f();
        } catch (const InputError& e) {
            return e.what();
        }
        return "(no InputError)";
    }
    static void expect_all(const std::string& message, const std::vector<std::string>& parts) {
        for (const std::string& part : parts) {
            EXPECT_NE(message.find(part), std::string::npos) << "no \"" << part << "\" in: " << message;
        }
    }
    // Three documents, 4 + 0 + 7 ids, in shards of 5 tokens.
    ShardTotals write_small(int64_t vocab_size, int32_t eot, const std::string& prefix = "train",
                            const std::string& tokenizer = "hash-a") const {
        ShardWriter writer(dir_, prefix, vocab_size, eot, 5);
        writer.add_document({1, 2, 3, 4}, 40);
        writer.add_document({}, 0);
        writer.add_document({11, 12, 13, 14, 15, 16, static_cast<int32_t>(vocab_size - 1)}, 70);
        return writer.finish(
            {.tokenizer_hash = tokenizer, .tokenizer_path = "tokenizer", .source_manifest_hash = "s"});
    }
    static std::vector<int32_t> all_tokens(const ShardSet& set) {
        std::vector<int32_t> tokens;
        for (const ShardReader& shard : set.shards()) {
            const size_t old = tokens.size();
            tokens.resize(old + static_cast<size_t>(shard.num_tokens()));
            shard.copy(0, shard.num_tokens(), tokens.data() + old);
        }
        return tokens;
    }

    std::string dir_;
};

TEST_F(Shards, RoundTripInBothWidths) {
    for (const auto& [vocab_size, token_bytes] : {std::pair<int64_t, int>{65536, 2}, {65537, 4}}) {
        const std::string prefix = "v" + std::to_string(vocab_size);
        std::filesystem::remove(path("manifest.json"));
        const ShardTotals totals = write_small(vocab_size, 0, prefix);
        EXPECT_EQ(totals.num_tokens, 14);  // 11 ids and 3 end-of-text
        EXPECT_EQ(totals.num_documents, 3);
        EXPECT_EQ(totals.text_bytes, 110);
        EXPECT_EQ(totals.num_shards, 3);
        const ShardSet set(path(prefix + "_*.bin"), "--train-data");
        ASSERT_EQ(set.shards().size(), 3u);
        EXPECT_EQ(set.shards()[0].num_tokens(), 5);
        EXPECT_EQ(set.shards()[2].num_tokens(), 4);
        EXPECT_EQ(set.shards()[0].token_bytes(), token_bytes);
        const std::vector<int32_t> expected = {0,  1,  2,  3,  4,  0,  0,
                                               11, 12, 13, 14, 15, 16, static_cast<int32_t>(vocab_size - 1)};
        EXPECT_EQ(all_tokens(set), expected);
        EXPECT_EQ(set.vocab_size(), vocab_size);
        EXPECT_EQ(set.eot(), 0);
        EXPECT_EQ(set.tokenizer_hash(), "hash-a");
        EXPECT_EQ(set.tokenizer_path(), dir_ + "/tokenizer");
        EXPECT_EQ(read_document_offsets(dir_, prefix), (std::vector<uint64_t>{0, 5, 6, 14}));
        set.verify_hashes();
    }
}

TEST_F(Shards, HeaderIsLlmC) {
    write_small(300, 0);
    const std::string bytes = read_file(path("train_000000.bin"));
    ASSERT_EQ(bytes.size(), 1024u + 5 * 2);
    int32_t header[4];
    std::memcpy(header, bytes.data(), sizeof header);
    EXPECT_EQ(header[0], 20240520);
    EXPECT_EQ(header[1], 1);
    EXPECT_EQ(header[2], 5);
    EXPECT_EQ(header[3], 0);
}

TEST_F(Shards, TwoSplitsShareAManifest) {
    write_small(300, 0, "train");
    write_small(300, 0, "val");
    const ShardSet both(path("train_*.bin") + "," + path("val_*.bin"), "--train-data");
    EXPECT_EQ(both.num_tokens(), 28);
    EXPECT_TRUE(both.has_manifest());
    EXPECT_EQ(both.data_hash().size(), 64u);
}

TEST_F(Shards, NothingAppearsBeforeFinish) {
    {
        ShardWriter writer(dir_, "train", 300, 0, 2);
        writer.add_document({1, 2, 3, 4, 5}, 5);
        EXPECT_FALSE(path_exists(path("train_000000.bin")));
    }
    EXPECT_TRUE(std::filesystem::is_empty(dir_)) << "an abandoned writer leaves files";
}

TEST_F(Shards, WriterRefusesToMix) {
    write_small(300, 0);
    expect_all(message_of([&] { write_small(300, 0); }), {"there already", "train_000000.bin", "hint:"});
    expect_all(message_of([&] { write_small(300, 0, "val", "hash-b"); }),
               {"another tokenizer", "hash-a", "hash-b"});
    expect_all(message_of([&] {
                   ShardWriter empty(dir_, "none", 300, -1);
                   empty.finish({});
               }),
               {"no tokens", "none"});
    ShardWriter writer(dir_, "test", 300, 0);
    EXPECT_THROW(writer.add_document({300}, 1), InternalError);
}

TEST_F(Shards, WorksWithoutManifest) {
    const uint16_t tokens[] = {50256, 7, 8, 9};
    write_raw("fineweb_train_000001.bin", {20240520, 1, 4}, {reinterpret_cast<const char*>(tokens), 8});
    const ShardSet set(path("fineweb_train_*.bin"), "--train-data", 50257, 50256);
    EXPECT_FALSE(set.has_manifest());
    EXPECT_EQ(set.eot(), 50256);
    EXPECT_EQ(set.tokenizer_path(), "");
    EXPECT_EQ(all_tokens(set), (std::vector<int32_t>{50256, 7, 8, 9}));
    EXPECT_EQ(ShardSet(path("fineweb_train_*.bin"), "--train-data").eot(), -1);
}

TEST_F(Shards, BadFilesAreRefused) {
    const auto open = [&](const std::string& name) {
        return message_of([&] { ShardReader reader(path(name)); });
    };
    expect_all(open("absent.bin"), {"absent.bin"});
    expect_all(message_of([&] { ShardSet set(path("absent_*.bin"), "--val-data"); }),
               {"absent_*.bin", "--val-data"});
    std::ofstream(path("empty.bin")).close();
    expect_all(open("empty.bin"), {"empty shard", "empty.bin", "1024", "0 bytes", "hint:"});
    std::ofstream(path("short.bin")) << "abc";
    expect_all(open("short.bin"), {"truncated", "3 bytes"});
    write_raw("foreign.bin", {20240326, 1, 0}, "");  // llm.c's model file
    expect_all(open("foreign.bin"), {"not a token shard", "byte 0", "20240520", "20240326", "hint:"});
    write_raw("version.bin", {20240520, 7, 0}, "");
    expect_all(open("version.bin"), {"version", "byte 4", "version 1", "got 7"});
    write_raw("truncated.bin", {20240520, 1, 4}, "1234567");
    expect_all(open("truncated.bin"), {"truncated shard", "1032 bytes", "4 tokens", "1031 bytes", "hint:"});
    write_raw("longer.bin", {20240801, 7, 1}, "12345");
    expect_all(open("longer.bin"), {"disagree", "1028 bytes", "1029 bytes"});
    write_raw("negative.bin", {20240520, 1, -5}, "");
    expect_all(open("negative.bin"), {"disagree", "-5 tokens"});
}

TEST_F(Shards, IdsOutsideTheVocabularyAreNamed) {
    std::vector<uint16_t> tokens(200'000, 5);  // more than one block of the scan
    tokens[150'001] = 999;
    tokens[150'002] = 1000;
    tokens[199'999] = 2000;
    write_raw("ids.bin", {20240520, 1, 200'000},
              {reinterpret_cast<const char*>(tokens.data()), tokens.size() * 2});
    expect_all(message_of([&] { ShardSet set(path("ids.bin"), "--train-data", 1000); }),
               {"ids.bin", "token 150002", cat({"byte ", 1024 + 300004}), "below 1000", "got 1000", "hint:"});
    const uint32_t huge[] = {1, 0x80000000u};
    write_raw("huge.bin", {20240801, 7, 2}, {reinterpret_cast<const char*>(huge), 8});
    expect_all(message_of([&] { ShardSet set(path("huge.bin"), "--train-data"); }),
               {"token 1 ", "2147483648"});
}

TEST_F(Shards, ManifestAndShardsMustAgree) {
    write_small(300, 0);
    // Another shard under a listed name: the count gives it away at once, the hash when asked.
    const uint16_t tokens[] = {1, 2, 3, 4, 6};
    write_raw("train_000001.bin", {20240520, 1, 4}, {reinterpret_cast<const char*>(tokens), 8});
    expect_all(message_of([&] { ShardSet set(path("train_*.bin"), "--train-data"); }),
               {"manifest disagree", "train_000001.bin", "5 tokens", "4 tokens"});
    write_raw("train_000001.bin", {20240520, 1, 5}, {reinterpret_cast<const char*>(tokens), 10});
    expect_all(message_of([&] { ShardSet set(path("train_*.bin"), "--train-data"); }),
               {"not the one", "train_000001.bin", "expected xxh3", "got xxh3", "hint:"});
    // Manifests of before the xxh3s were written: by sha256.
    std::string manifest = read_file(path("manifest.json"));
    for (size_t at; (at = manifest.find("\"xxh3\"")) != std::string::npos;) {
        const size_t comma = manifest.rfind(',', at);
        manifest.erase(comma, manifest.find('\n', at) - comma);
    }
    ASSERT_EQ(manifest.find("xxh3"), std::string::npos) << manifest;
    write_file_atomic(path("manifest.json"), manifest);
    expect_all(message_of([&] { ShardSet set(path("train_*.bin"), "--train-data"); }),
               {"not the one", "train_000001.bin", "expected sha256", "got sha256", "hint:"});

    std::ofstream(path("manifest.json")) << "{\"format\": \"other\"}";
    expect_all(message_of([&] { ShardSet damaged(path("train_*.bin"), "--train-data"); }),
               {"not a manifest", "manifest.json", "hint:"});
    std::ofstream(path("manifest.json")) << R"({"format": "ingot-shards-1", "splits": {}})";
    expect_all(message_of([&] { ShardSet damaged(path("train_*.bin"), "--train-data"); }),
               {"damaged manifest", "manifest.json"});
}

// Wrong types, missing names, hostile text: refused by the reader and by a writer that would join, which then
// leaves nothing of its own behind.
TEST_F(Shards, DamagedManifestsAreRefusedBeforeAnythingIsWritten) {
    write_small(300, 0);
    std::ifstream file(path("manifest.json"));
    const std::string good{std::istreambuf_iterator<char>(file), {}};
    const auto with = [&](const std::string& from, const std::string& to) {
        std::string text = good;
        const size_t at = text.find(from);
        EXPECT_NE(at, std::string::npos) << from << " in " << text;
        return text.replace(at, from.size(), to);
    };
    const std::string tokenizer =
        good.substr(good.find("\"tokenizer\""), good.find("\"vocab_size\"") - good.find("\"tokenizer\""));
    const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
    const std::pair<std::string, std::string> cases[] = {
        {"", "not a manifest"},
        {"[]", "not a manifest"},
        {R"({"format": 5})", "not a manifest"},
        {R"({"format": []})", "not a manifest"},
        {with("ingot-shards-1", "ingot-shards-2"), "not a manifest"},
        {with(tokenizer, ""), "damaged manifest"},
        {with(tokenizer, "\"tokenizer\": \"gpt2\","), "damaged manifest"},
        {with("\"hash-a\"", "7"), "damaged manifest"},
        {with("\"vocab_size\": 300", "\"vocab_size\": \"300\""), "damaged manifest"},
        {with("\"eot\": 0", "\"eot\": null"), "damaged manifest"},
        {with("\"splits\": {", "\"splits\": 1, \"x\": {"), "damaged manifest"},
        {with("\"eot\": 0", "\"eot\": " + deep), "levels of nesting"},
        {with("\"eot\": 0", "\"eot\": 1e999"), "not a manifest"},
    };
    for (const auto& [text, phrase] : cases) {
        SCOPED_TRACE(text.substr(0, 300));
        std::ofstream(path("manifest.json")) << text;
        const std::vector<std::string> before = list_directory(dir_);
        for (const std::string& line :
             {message_of([&] { ShardSet set(path("train_*.bin"), "--train-data"); }),
              message_of([&] { write_small(300, 0, "val"); })})
            expect_all(line, {phrase, "manifest.json", "hint:"});
        EXPECT_EQ(list_directory(dir_), before);
    }
}

TEST_F(Shards, AMissingOrUnlistedShardIsNoticed) {
    write_small(300, 0);
    write_small(300, 0, "val");
    const auto open = [&](const std::string& pattern) {
        return message_of([&] { ShardSet set(path(pattern), "--train-data"); });
    };
    EXPECT_EQ(open("train_*.bin"), "(no InputError)") << "the other split is another matter";
    EXPECT_EQ(open("train_000001.bin"), "(no InputError)") << "a part may be chosen";
    std::filesystem::copy_file(path("train_000000.bin"), path("train_000007.bin"));
    expect_all(open("train_*.bin"), {"does not list it", "train_000007.bin", "hint:"});
    std::filesystem::remove(path("train_000007.bin"));
    std::filesystem::remove(path("train_000001.bin"));
    expect_all(open("train_*.bin"), {"a shard is missing", "train_000001.bin", "3 shards", "train", "hint:"});
    EXPECT_EQ(open("val_*.bin"), "(no InputError)");
}

TEST_F(Shards, DataHashCoversNamesAndContent) {
    uint16_t tokens[] = {5, 7, 8, 9};
    const std::vector<int32_t> header = {20240520, 1, 4};
    const auto body = [&] { return std::string(reinterpret_cast<const char*>(tokens), sizeof tokens); };
    const auto hash = [&] { return ShardSet(path("*.bin"), "--train-data").data_hash(); };
    write_raw("a.bin", header, body());
    const std::string one = hash();
    EXPECT_EQ(one.size(), 64u);
    EXPECT_EQ(hash(), one);
    tokens[2] = 10;
    write_raw("a.bin", header, body());
    const std::string altered = hash();
    EXPECT_NE(altered, one);
    std::filesystem::rename(path("a.bin"), path("b.bin"));
    EXPECT_NE(hash(), altered) << "the order of the data is that of the names";
    write_raw("a.bin", header, body());
    const std::string two = hash();
    std::filesystem::remove(path("b.bin"));
    EXPECT_NE(hash(), two);
    write_small(300, 0);
    std::filesystem::remove(path("a.bin"));
    const std::string with_manifest = hash();
    std::filesystem::remove(path("manifest.json"));
    EXPECT_NE(hash(), with_manifest);
}

TEST_F(Shards, ContentHashSeesEveryBlock) {
    std::vector<uint32_t> tokens(3 * 65536 + 17, 1);
    const auto hash = [&](bool swapped) {
        if (swapped) std::swap_ranges(tokens.begin(), tokens.begin() + 65536, tokens.begin() + 65536);
        write_raw("blocks.bin", {20240801, 7, static_cast<int32_t>(tokens.size())},
                  {reinterpret_cast<const char*>(tokens.data()), tokens.size() * 4});
        return ShardReader(path("blocks.bin")).check_ids(100);
    };
    std::set<Hash128> seen = {hash(false)};
    for (const size_t at : {size_t{0}, size_t{65536}, size_t{131072}, tokens.size() - 1}) {
        tokens[at] = 2 + static_cast<uint32_t>(at % 7);
        EXPECT_TRUE(seen.insert(hash(false)).second) << "token " << at;
    }
    EXPECT_TRUE(seen.insert(hash(true)).second) << "blocks in another order";
}

TEST_F(Shards, TokenizerAndHeldOutShardsAreChecked) {
    write_small(300, 0);
    const ShardSet train(path("train_*.bin"), "--train-data");
    train.require_tokenizer("hash-a", "elsewhere");
    expect_all(message_of([&] { train.require_tokenizer("hash-b", "dir/tokenizer"); }),
               {"another tokenizer", "dir/tokenizer", "expected hash-a", "got hash-b", "hint:"});

    std::filesystem::create_directory(path("val"));
    const uint16_t tokens[] = {5, 7, 8, 9};
    write_raw("val/v.bin", {20240520, 1, 4}, {reinterpret_cast<const char*>(tokens), 8});
    train.require_disjoint(ShardSet(path("val/v.bin"), "--val-data"), "--val-data");
    const auto overlap = [&](const std::string& name) {
        return message_of([&] {
            train.require_disjoint(ShardSet(path(name) + "," + path("val/v.bin"), "--val-data"),
                                   "--val-data");
        });
    };
    expect_all(overlap("train_000001.bin"), {"also trained on", "--val-data", "train_000001.bin", "hint:"});
    std::filesystem::create_symlink(path("train_000002.bin"), path("val/link.bin"));
    expect_all(overlap("val/link.bin"), {"also trained on", "val/link.bin", "train_000002.bin"});
    std::filesystem::copy_file(path("train_000000.bin"), path("val/copy.bin"));
    expect_all(overlap("val/copy.bin"), {"also trained on", "val/copy.bin", "train_000000.bin"});
}

TEST_F(Shards, ManyShardsNeedFewDescriptors) {
    struct rlimit before;
    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    const struct rlimit few = {64, before.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    ShardWriter writer(dir_, "train", 300, 0, 5);
    const std::string message = message_of([&] {
        writer.add_document(std::vector<int32_t>(5 * 100, 7), 500);
        EXPECT_FALSE(path_exists(path("train_000000.bin"))) << "closed, but not yet visible";
        EXPECT_EQ(writer.finish({}).num_shards, 101);
    });
    setrlimit(RLIMIT_NOFILE, &before);
    EXPECT_EQ(message, "(no InputError)");
    EXPECT_EQ(read_file(path("train_000100.bin")).size(), 1024u + 2);
}

TEST_F(Shards, PrefixesThatBeginAlikeAreApart) {
    write_small(300, 0, "train_extra");
    write_small(300, 0, "train");
    expect_all(message_of([&] { write_small(300, 0, "train_extra"); }), {"there already"});
    for (const char* bad : {"", "../up", "a/b", ".hidden"}) {
        expect_all(message_of([&] { write_small(300, 0, bad); }), {"not a name for shards", "--prefix"});
    }
}

TEST_F(Shards, AFailedWriterLeavesNoDirectory) {
    const std::string made = path("made");
    {
        ShardWriter writer(made, "train", 300, 0);
        writer.add_document({1}, 1);
    }
    EXPECT_FALSE(path_exists(made));
    // finish() that fails halfway: the offsets cannot be written.
    std::filesystem::create_directories(made + "/train_documents.u64");
    ShardWriter writer(made, "train", 300, 0, 2);
    writer.add_document({1, 2, 3}, 3);
    EXPECT_NE(message_of([&] { writer.finish({}); }), "(no InputError)");
    EXPECT_EQ(list_directory(made), std::vector<std::string>{"train_documents.u64"});
}

TEST_F(Shards, TwoTokenizersAreRefused) {
    write_small(300, 0);
    const std::string first = dir_;
    dir_ += "/second";
    write_small(300, 0, "train", "hash-b");
    const std::string second = dir_;
    dir_ = first;
    expect_all(
        message_of([&] { ShardSet set(first + "/train_*.bin," + second + "/train_*.bin", "--train-data"); }),
        {"two tokenizers", "hash-a", "hash-b", "--train-data"});
}

}  // namespace
