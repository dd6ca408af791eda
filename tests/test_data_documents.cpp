// Documents as JSON lines, plain and zst: round trips, and bad input that is refused without stopping; repair
// and cutting of plain text.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "data/compressed.h"
#include "data/document.h"
#include "data/plain_text.h"

namespace {

class Documents : public testing::Test {
protected:
    void SetUp() override {
        std::string name = (std::filesystem::temp_directory_path() / "ingot-documents-XXXXXX").string();
        dir_ = mkdtemp(name.data());
    }
    void TearDown() override { std::filesystem::remove_all(dir_); }
    std::string put(const std::string& name, const std::string& content) const {
        std::ofstream(dir_ + "/" + name, std::ios::binary) << content;
        return dir_ + "/" + name;
    }
    static std::vector<Document> read_all(DocumentReader& reader) {
        std::vector<Document> documents;
        Document document;
        while (reader.next(document)) documents.push_back(document);
        EXPECT_FALSE(reader.next(document)) << "the end is the end";
        return documents;
    }
    std::string dir_;
};

Document nasty_document() {
    Document d;
    d.id = "a/b\"c\\d";
    using namespace std::string_literals;  // the text holds a NUL
    d.text = "tab\t quote\" newline\n nul\0 bell\x07 \xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80 </script>"s;
    d.source = "s";
    d.license = "MIT OR Apache-2.0";
    d.consent = "license";
    d.lang = "fr";
    d.added = "2026-01-02";
    d.metadata = R"({"url":"http://x/?a=\"b\"","n":[1,2.5,null]})";
    return d;
}

void expect_same(const Document& a, const Document& b) {
    EXPECT_EQ(a.id, b.id);
    EXPECT_EQ(a.text, b.text);
    EXPECT_EQ(a.source, b.source);
    EXPECT_EQ(a.license, b.license);
    EXPECT_EQ(a.consent, b.consent);
    EXPECT_EQ(a.lang, b.lang);
    EXPECT_EQ(a.added, b.added);
    EXPECT_EQ(a.metadata, b.metadata);
}

TEST_F(Documents, RoundTripPlainAndZst) {
    for (const std::string name : {"d.jsonl", "d.jsonl.zst"}) {
        const std::string path = dir_ + "/" + name;
        {
            DocumentWriter writer(path);
            writer.write(nasty_document());
            Document large;
            for (int i = 0; i < 300'000; ++i)
                large.text += static_cast<char>('a' + i % 1000 * i % 26);  // several chunks
            writer.write(large);
            EXPECT_FALSE(std::filesystem::exists(path));
            writer.commit();
            EXPECT_EQ(writer.num_documents(), 2);
            EXPECT_EQ(writer.text_bytes(), static_cast<int64_t>(300'000 + nasty_document().text.size()));
        }
        DocumentReader reader(path);
        const std::vector<Document> documents = read_all(reader);
        ASSERT_EQ(documents.size(), 2u) << name;
        expect_same(documents[0], nasty_document());
        EXPECT_EQ(documents[1].text.size(), 300'000u);
        EXPECT_EQ(documents[1].id, path + ":2") << "a document without an id is named by its place";
        EXPECT_TRUE(reader.rejects().empty());
        EXPECT_EQ(reader.bytes_consumed(), reader.file_bytes());
        reader.require_clean();
    }
    EXPECT_LT(file_bytes(dir_ + "/d.jsonl.zst"), file_bytes(dir_ + "/d.jsonl") / 2);
}

TEST_F(Documents, BadLinesAreKeptAside) {
    const std::string path = put("d.jsonl",
                                 "{\"text\": \"one\"}\n"
                                 "{\"text\": \"cut\n"
                                 "\n"
                                 "[1, 2]\n"
                                 "{\"txt\": \"no text\"}\r\n"
                                 "{\"text\": 5}\n"
                                 "{\"text\": \"x\", \"metadata\": 3}\n"
                                 "{\"text\": \"bad \xff utf8\"}\n"
                                 "{\"text\": \"x\", \"license\": [\"MIT\"]}\n"
                                 "{\"text\": \"two\", \"id\": 17, \"url\": \"u\", \"score\": 0.5}\r\n"
                                 "{\"text\": \"last\", \"lang\": null}");
    DocumentReader reader(path);
    const std::vector<Document> documents = read_all(reader);
    ASSERT_EQ(documents.size(), 3u);
    EXPECT_EQ(documents[0].text, "one");
    EXPECT_EQ(documents[1].id, "17");
    EXPECT_EQ(documents[1].metadata, R"({"url":"u","score":0.5})");
    EXPECT_EQ(documents[2].text, "last");
    const std::pair<int, const char*> expected[] = {
        {2, "not JSON"},
        {4, "not a JSON object"},
        {5, "no \"text\""},
        {6, "\"text\" is not a string"},
        {7, "\"metadata\" is not an object"},
        {8, "not JSON"},
        {9, "\"license\" is not a string"},
    };
    ASSERT_EQ(reader.rejects().size(), std::size(expected));
    for (size_t i = 0; i < std::size(expected); ++i) {
        EXPECT_EQ(reader.rejects()[i].where, cat({path, ":", expected[i].first}));
        EXPECT_NE(reader.rejects()[i].reason.find(expected[i].second), std::string::npos)
            << reader.rejects()[i].reason;
    }
    try {
        reader.require_clean();
        FAIL();
    } catch (const InputError& e) {
        const std::string message = e.what();
        for (const char* part : {"7 places", "d.jsonl:2", "not JSON", "hint:", "build/curate"}) {
            EXPECT_NE(message.find(part), std::string::npos) << part << " not in: " << message;
        }
    }
}

TEST_F(Documents, ForeignLinesAreUnderstood) {
    const std::string path = put("d.jsonl",
                                 "\xef\xbb\xbf{\"text\": \"bom\"}\n"
                                 "{\"text\": \"long\", \"hash\": 123456789012345678901234567890, "
                                 "\"ids\": [-98765432109876543210, 1, 1e400, 9007199254740993]}\n"
                                 "{\"text\": \"long\", \"s\": \"a \\\" 123456789012345678901\", "
                                 "\"hash\": 123456789012345678901, \"t\": 0.5}\n"
                                 "{\"text\": \"id\", \"id\": 123456789012345678901}\n"
                                 "{\"url\": \"outer\", \"text\": \"twice\", \"metadata\": {\"url\": "
                                 "\"inner\"}, \"n\": 1, \"n\": 2}\n"
                                 "{\"text\": \"bad\", \"hash\": 12345678901234567890123x}\n");
    DocumentReader reader(path);
    const std::vector<Document> documents = read_all(reader);
    ASSERT_EQ(reader.rejects().size(), 2u);
    EXPECT_EQ(reader.rejects()[0].where, path + ":2") << "1e400 is no number of ours";
    EXPECT_EQ(reader.rejects()[1].where, path + ":6");
    ASSERT_EQ(documents.size(), 4u);
    EXPECT_EQ(documents[0].text, "bom");
    EXPECT_EQ(documents[1].metadata,
              R"({"s":"a \" 123456789012345678901","hash":"123456789012345678901","t":0.5})");
    EXPECT_EQ(documents[2].id, "123456789012345678901");
    EXPECT_EQ(documents[3].metadata, R"({"url":"inner","n":1})");
}

TEST_F(Documents, DamagedZstGivesWhatCameBefore) {
    const std::string path = dir_ + "/d.jsonl.zst";
    {
        DocumentWriter writer(path);
        Document d;
        uint64_t state = 1;
        for (int i = 0; i < 4000; ++i) {  // text that does not compress: the file has many blocks
            d.text.clear();
            for (int k = 0; k < 200; ++k)
                d.text += static_cast<char>('!' + (state = state * 6364136223846793005u + 1) % 90);
            writer.write(d);
        }
        writer.commit();
    }
    const std::string whole = read_file(path);
    put("cut.jsonl.zst", whole.substr(0, whole.size() / 2));
    DocumentReader cut(dir_ + "/cut.jsonl.zst");
    const size_t before = read_all(cut).size();
    EXPECT_GT(before, 1000u);
    EXPECT_LT(before, 3000u);
    ASSERT_EQ(cut.rejects().size(), 1u);
    EXPECT_NE(cut.rejects()[0].reason.find("truncated zst"), std::string::npos) << cut.rejects()[0].reason;
    EXPECT_THROW(read_text_file(dir_ + "/cut.jsonl.zst"), InputError);

    std::string flipped = whole;
    flipped[whole.size() - 2] ^= 0x10;  // in the checksum
    put("flipped.jsonl.zst", flipped);
    DocumentReader damaged(dir_ + "/flipped.jsonl.zst");
    read_all(damaged);
    ASSERT_EQ(damaged.rejects().size(), 1u);
    EXPECT_NE(damaged.rejects()[0].reason.find("damaged zst"), std::string::npos)
        << damaged.rejects()[0].reason;

    for (const std::string content : {"", "not zst at all"}) {
        put("bad.jsonl.zst", content);
        DocumentReader bad(dir_ + "/bad.jsonl.zst");
        EXPECT_TRUE(read_all(bad).empty());
        EXPECT_EQ(bad.rejects().size(), 1u);
    }
    EXPECT_EQ(read_text_file(path).substr(0, 7), "{\"id\":\"");
    EXPECT_THROW(DocumentReader(dir_ + "/absent.jsonl"), InputError);
}

TEST_F(Documents, SeveralZstFramesAreOneFile) {
    std::string frames;
    for (const char* text : {"a", "b"}) {
        CompressedWriter writer(dir_ + "/f.zst");
        writer.write(std::string("{\"text\": \"") + text + "\"}\n");
        writer.commit();
        frames += read_file(dir_ + "/f.zst");
    }
    DocumentReader reader(put("two.jsonl.zst", frames));
    EXPECT_EQ(read_all(reader).size(), 2u);
    EXPECT_TRUE(reader.rejects().empty());
}

TEST_F(Documents, OverlongLinesAreSkipped) {
    // Two bytes over the limit as spaces: cheap to make and to compress.
    const std::string content = std::string(LineReader::kMaxLineBytes + 2, ' ') + "\n{\"text\": \"after\"}\n";
    for (const std::string name : {"long.jsonl", "long.jsonl.zst"}) {
        CompressedWriter writer(dir_ + "/" + name);
        writer.write(content);
        writer.commit();
        DocumentReader reader(dir_ + "/" + name);
        const std::vector<Document> documents = read_all(reader);
        ASSERT_EQ(documents.size(), 1u) << name;
        EXPECT_EQ(documents[0].text, "after");
        ASSERT_EQ(reader.rejects().size(), 1u);
        EXPECT_NE(reader.rejects()[0].reason.find("more than"), std::string::npos);
    }
}

TEST(PlainText, RepairsAndCounts) {
    struct Case {
        std::string in, out;
        int64_t invalid_utf8, controls, crlf;
    };
    const std::string r = "\xef\xbf\xbd";
    const Case cases[] = {
        {"", "", 0, 0, 0},
        {"plain \t\n", "plain \t\n", 0, 0, 0},
        {"\xef\xbb\xbf"
         "bom",
         "bom", 0, 0, 0},
        {"a\r\nb\rc\r\r\n", "a\nb\nc\n\n", 0, 0, 4},
        {std::string("n\0u\x01l\x7f\x1b", 7), "nul", 0, 4, 0},
        {"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", 0, 0, 0},
        {"caf\xe9 ol\xe9", "caf" + r + " ol" + r, 2, 0, 0},  // Latin-1
        {"\xc0\xaf", r + r, 2, 0, 0},                        // overlong
        {"\xed\xa0\x80", r + r + r, 3, 0, 0},                // a surrogate
        {"\xf4\x90\x80\x80", r + r + r + r, 4, 0, 0},        // over U+10FFFF
        {"\xe2\x82", r, 1, 0, 0},                            // cut short: one subpart
        {"\xf0\x9f\x98"
         "a",
         r + "a", 1, 0, 0},
        {"\x61\xf1\x80\x80\xe1\x80\xc2\x62\x80\x63\x80\xbf\x64",  // Unicode 16, table 3-11
         "a" + r + r + r + "b" + r + "c" + r + r + "d", 6, 0, 0},
    };
    for (const Case& c : cases) {
        RepairCounts counts;
        EXPECT_EQ(repair_text(c.in, counts), c.out);
        EXPECT_EQ(counts.invalid_utf8, c.invalid_utf8) << c.out;
        EXPECT_EQ(counts.controls, c.controls) << c.out;
        EXPECT_EQ(counts.crlf, c.crlf) << c.out;
    }
}

TEST(PlainText, NamesOfFilesBecomeText) {
    EXPECT_EQ(escape_invalid_utf8("plain \xc3\xa9.txt"), "plain \xc3\xa9.txt");
    EXPECT_EQ(escape_invalid_utf8("caf\xe9.txt"), "caf%E9.txt");
    EXPECT_EQ(escape_invalid_utf8("\xe2\x82 \xff"), "%E2%82 %FF");
}

TEST(PlainText, CutsWhereItIsNatural) {
    EXPECT_EQ(split_text("short", 8), (std::vector<std::string_view>{"short"}));
    EXPECT_EQ(split_text("", 8).size(), 1u);
    EXPECT_EQ(split_text("aaaa\n\nbbbb\n\n# C\ncc\n\ndd", 20),
              (std::vector<std::string_view>{"aaaa\n\nbbbb\n\n", "# C\ncc\n\ndd"}));
    EXPECT_EQ(split_text("aaaa bb\n\ncccc dddd eeee", 12),
              (std::vector<std::string_view>{"aaaa bb\n\n", "cccc dddd ", "eeee"}));
    // A space in the second half is better than a newline in the first; without one the newline will do.
    EXPECT_EQ(split_text("aa\nbb cc dd", 8), (std::vector<std::string_view>{"aa\nbb ", "cc dd"}));
    EXPECT_EQ(split_text("aa\nbbccdd ee", 8), (std::vector<std::string_view>{"aa\n", "bbccdd ", "ee"}));
    EXPECT_EQ(split_text("a aaaa\nb b", 8), (std::vector<std::string_view>{"a aaaa\n", "b b"}));
    EXPECT_EQ(split_text("a aaaaaaa", 8), (std::vector<std::string_view>{"a ", "aaaaaaa"}));
    EXPECT_EQ(split_text("aaaaaaaaaa", 4), (std::vector<std::string_view>{"aaaa", "aaaa", "aa"}));
    // No character is cut, nothing is lost, no piece is too long.
    std::string text;
    for (int i = 0; i < 5000; ++i)
        text += i % 7 == 0 ? "\xf0\x9f\x98\x80" : i % 31 == 0 ? "\n\n" : i % 5 == 0 ? " " : "\xc3\xa9";
    for (const int64_t limit : {4, 5, 6, 7, 64, 1000}) {
        std::string joined;
        for (const std::string_view piece : split_text(text, limit)) {
            EXPECT_LE(static_cast<int64_t>(piece.size()), limit);
            EXPECT_FALSE(piece.empty());
            EXPECT_NE(static_cast<uint8_t>(piece[0]) & 0xc0, 0x80) << "starts inside a character";
            joined += piece;
        }
        EXPECT_EQ(joined, text);
    }
}

}  // namespace
