// Curation end to end: sources are declared or refused, duplicates go, the split is stable, the bytes of the
// output do not depend on the number of threads.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "core/io.h"
#include "core/log.h"
#include "core/threads.h"
#include "data/compressed.h"
#include "data/curate.h"
#include "data/dedup.h"
#include "data/document.h"
#include "data/ingest.h"
#include "data/split.h"

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

std::string long_text(int seed, int words = 40) {
    std::string text;
    for (int i = 0; i < words; ++i)
        text += cat({"word", (seed * 7919 + i * i) % 99991, i % 10 == 9 ? "\n" : " "});
    return text;
}

class Curate : public testing::Test {
protected:
    void SetUp() override {
        set_progress_enabled(false);
        std::string name = (fs::temp_directory_path() / "ingot-curate-XXXXXX").string();
        dir_ = mkdtemp(name.data());
    }
    void TearDown() override {
        set_num_threads(1);
        fs::remove_all(dir_);
    }
    void put(const std::string& name, const std::string& content) const {
        fs::create_directories(fs::path(dir_ + "/" + name).parent_path());
        std::ofstream(dir_ + "/" + name, std::ios::binary) << content;
    }
    // Text, HTML and JSONL under two licences, with every kind of thing that is refused.
    void put_corpus() const {
        for (int i = 0; i < 60; ++i) put(cat({"prose/", i / 10, "/", i, ".txt"}), long_text(i));
        put("prose/big.md", "# One\n\n" + long_text(1000, 4000) + "\n\n# Two\n\n" + long_text(1001, 400));
        put("prose/copy.txt", "  " + long_text(3) + "\n\n");  // of prose/0/3.txt, which comes first
        put("prose/short.txt", "tiny");
        put("prose/picture.png", "not read");
        put("prose/.hidden.txt", long_text(2000));
        put("prose/binary.txt", std::string(100, '\0') + long_text(2001));
        put("prose/latin1.txt", "caf\xe9 \r\n" + long_text(2002));
        put("web/page.html", "<title>Page</title><nav>menu</nav><p>" + long_text(3000) + "</p>");
        std::string lines;
        for (int i = 0; i < 300; ++i) {
            Document d;
            d.id = cat({"n", i % 290});  // ten ids come twice
            d.text = long_text(5000 + i);
            if (i % 50 == 7) d.license = "CC0-1.0";
            lines += document_json(d) + "\n";
            if (i == 100) lines += "{broken\n";
        }
        put("lines/part.jsonl", lines);
        put("unlicensed/a.txt", long_text(9000));
        put("sources.json", R"([
            {"name": "prose", "path": "prose", "license": "MIT", "consent": "license", "origin": "here", "lang": "en"},
            {"name": "web", "path": "web/page.html", "license": "CC-BY-4.0"},
            {"name": "lines", "path": "lines/", "license": "MIT", "added": "2026-01-02"},
            {"name": "unlicensed", "path": "unlicensed"}])");
    }
    CurateOptions options(const std::string& out) const {
        CurateOptions o;
        o.sources = dir_ + "/sources.json";
        o.out = dir_ + "/" + out;
        o.val_frac = 0.1;
        o.max_document_bytes = 8192;
        return o;
    }
    std::vector<Document> documents(const std::string& path) const {
        DocumentReader reader(dir_ + "/" + path);
        std::vector<Document> all;
        for (Document d; reader.next(d);) all.push_back(d);
        reader.require_clean();
        return all;
    }
    template <class F>
    static void expect_refusal(F&& f, const std::vector<std::string>& parts) {
        try {
            f();
            ADD_FAILURE() << "no InputError with " << parts[0];
        } catch (const InputError& e) {
            const std::string message = e.what();
            for (const std::string& part : parts) {
                EXPECT_NE(message.find(part), std::string::npos) << "no \"" << part << "\" in: " << message;
            }
        }
    }
    std::string dir_;
};

TEST_F(Curate, TakesRefusesAndAccounts) {
    put_corpus();
    const CurateReport report = curate(options("out"));
    std::map<std::string, Document> by_id;
    int64_t bytes = 0, train_documents = 0;
    std::string val_text;
    for (const char* name : {"out/train.jsonl.zst", "out/val.jsonl.zst"}) {
        for (const Document& d : documents(name)) {
            EXPECT_TRUE(by_id.emplace(d.id, d).second) << "id twice: " << d.id;
            bytes += static_cast<int64_t>(d.text.size());
            const bool val = std::string(name).find("val") != std::string::npos;
            EXPECT_EQ(held_out(d.id, 0.1), val) << d.id;
            if (val) val_text += d.text;
            train_documents += !val;
        }
    }
    EXPECT_EQ(read_file(dir_ + "/out/val.txt"), val_text);
    EXPECT_EQ(report.total.train_documents, train_documents);
    EXPECT_EQ(report.total.train_bytes + report.total.val_bytes, bytes);
    EXPECT_GT(report.total.val_documents, 10);

    EXPECT_EQ(by_id.at("prose/0/3.txt").license, "MIT");
    EXPECT_EQ(by_id.at("prose/0/3.txt").metadata, R"({"path":"prose/0/3.txt","origin":"here"})");
    EXPECT_EQ(by_id.at("prose/latin1.txt").text.substr(0, 8), "caf\xef\xbf\xbd \n");
    EXPECT_EQ(by_id.at("web/page.html").text.substr(0, 4), "word");
    EXPECT_EQ(by_id.at("web/page.html").metadata, R"({"path":"web/page.html","title":"Page"})");
    EXPECT_EQ(by_id.at("n7").license, "CC0-1.0") << "a document's own licence stands";
    EXPECT_EQ(by_id.at("n8").license, "MIT");
    EXPECT_EQ(by_id.at("n8").added, "2026-01-02");
    EXPECT_EQ(by_id.count("lines/part.jsonl:292"), 1u) << "the second n0 is named by its line";
    std::string big;
    for (int i = 0; by_id.count(cat({"prose/big.md#000", i})); ++i) {
        const std::string& piece = by_id.at(cat({"prose/big.md#000", i})).text;
        EXPECT_LE(piece.size(), 8192u);
        big += piece;
    }
    EXPECT_EQ(big, read_file(dir_ + "/prose/big.md"));
    EXPECT_EQ(by_id.count("prose/.hidden.txt"), 0u);

    std::map<std::string, Json> rejects;
    std::istringstream lines(read_file(dir_ + "/out/rejects.jsonl"));
    for (std::string line; std::getline(lines, line);)
        rejects[Json::parse(line)["where"]] = Json::parse(line);
    const std::tuple<const char*, const char*, const char*> expected[] = {
        {"prose/copy.txt", "duplicate", "white space"},
        {"prose/short.txt", "length", "4 bytes"},
        {"prose/picture.png", "read", "not a kind"},
        {"prose/binary.txt", "read", "binary"},
        {"lines/part.jsonl:102", "read", "not JSON"},
        {"unlicensed/a.txt", "license", "no licence declared"},
    };
    EXPECT_EQ(rejects.size(), std::size(expected));
    for (const auto& [where, stage, reason] : expected) {
        ASSERT_TRUE(rejects.count(where)) << where;
        EXPECT_EQ(rejects[where]["stage"], stage);
        EXPECT_NE(rejects[where]["reason"].get<std::string>().find(reason), std::string::npos)
            << rejects[where];
    }
    EXPECT_EQ(rejects["prose/copy.txt"]["kept"], "prose/0/3.txt");
    EXPECT_EQ(report.total.rejected, 6);
    EXPECT_EQ(report.repairs.invalid_utf8, 1);
    EXPECT_EQ(report.repairs.crlf, 1);

    const std::string table = report.table();
    for (const char* part :
         {"prose", "unlicensed", "(none)", "MIT", "CC0-1.0", "total", "duplicate 1", "license 1"}) {
        EXPECT_NE(table.find(part), std::string::npos) << part << " not in\n" << table;
    }
    const Json manifest = Json::parse(read_file(dir_ + "/out/manifest.json"));
    EXPECT_EQ(manifest["outputs"].size(), 4u);
    for (const Json& output : manifest["outputs"]) {
        EXPECT_EQ(output["sha256"], sha256_file(dir_ + "/out/" + output["file"].get<std::string>()));
    }
    EXPECT_EQ(manifest["total"]["train_documents"], train_documents);
    EXPECT_EQ(manifest["inputs"].size(), 68u);  // all but the picture and the hidden file
    EXPECT_EQ(manifest["inputs"][0]["sha256"].get<std::string>().size(), 64u);
}

TEST_F(Curate, SameBytesForAnyNumberOfThreads) {
    put_corpus();
    std::map<std::string, std::string> first;
    for (const int threads : {1, 2, 3}) {
        set_num_threads(threads);
        const std::string out = cat({"out", threads});
        curate(options(out));
        std::map<std::string, std::string> files;
        for (const std::string& name : list_directory(dir_ + "/" + out)) {
            files[name] = read_file(dir_ + "/" + out + "/" + name);
        }
        EXPECT_EQ(files.size(), 5u);
        if (first.empty()) first = files;
        EXPECT_TRUE(files == first) << threads << " threads";
    }
}

TEST_F(Curate, PlainOutputHoldsTheSame) {
    put_corpus();
    CurateOptions plain = options("plain");
    plain.compress = false;
    curate(plain);
    curate(options("zst"));
    EXPECT_EQ(read_file(dir_ + "/plain/train.jsonl"), read_text_file(dir_ + "/zst/train.jsonl.zst"));
    // Curated documents are themselves a source, and come through unchanged.
    put("again.json", R"([{"name": "again", "path": "plain/train.jsonl"}])");
    CurateOptions again = options("again");
    again.sources = dir_ + "/again.json";
    again.val_frac = 0;
    curate(again);
    const auto before = documents("plain/train.jsonl"), after = documents("again/train.jsonl.zst");
    ASSERT_EQ(after.size(), before.size());
    for (size_t i = 0; i < after.size(); ++i) {
        EXPECT_EQ(after[i].id, before[i].id);
        EXPECT_EQ(after[i].text, before[i].text);
        EXPECT_EQ(after[i].license, before[i].license);
        EXPECT_EQ(after[i].metadata, before[i].metadata);
    }
}

TEST_F(Curate, SourcesMustBeDeclared) {
    const auto read = [&](const std::string& json) {
        put("sources.json", json);
        return read_sources(dir_ + "/sources.json");
    };
    put("a.txt", "x");
    EXPECT_EQ(read(R"([{"name": "a", "path": "a.txt"}])").at(0).root, dir_ + "/a.txt");
    expect_refusal([&] { read("{"); }, {"not a list of sources", "sources.json", "hint:"});
    expect_refusal([&] { read("[]"); }, {"not a list of sources"});
    expect_refusal([&] { read("[3]"); }, {"not an object", "source 0"});
    expect_refusal([&] { read(R"([{"name": "a", "path": "a.txt", "licence": "MIT"}])"); },
                   {"unknown key \"licence\"", "did you mean \"license\"?"});
    expect_refusal([&] { read(R"([{"name": "a", "path": 3}])"); }, {"\"path\" is not a string"});
    expect_refusal([&] { read(R"([{"name": "a"}])"); }, {"needs \"name\" and \"path\""});
    expect_refusal([&] { read(R"([{"name": "a", "path": "a.txt"}, {"name": "a", "path": "a.txt"}])"); },
                   {"two sources are called \"a\"", "source 1"});
    expect_refusal([&] { read(R"([{"name": "a", "path": "absent"}])"); },
                   {"source \"a\" is not there", "/absent"});
    expect_refusal([&] { read_sources(dir_ + "/absent.json"); }, {"absent.json"});
}

TEST_F(Curate, BadRunsLeaveNothing) {
    put("a/a.txt", long_text(1));
    put("sources.json", R"([{"name": "a", "path": "a", "license": "NOASSERTION"}])");
    expect_refusal([&] { curate(options("out")); },
                   {"no document was taken, 1 were refused", "NOASSERTION", "hint:"});
    put("sources.json", R"([{"name": "a", "path": "a", "license": "see <LICENSE>"}])");
    expect_refusal([&] { curate(options("out")); }, {"not an SPDX expression"});
    EXPECT_EQ(list_directory(dir_), (std::vector<std::string>{"a", "sources.json"})) << "half-made outputs";

    put("sources.json", R"([{"name": "a", "path": "a", "license": "MIT"}])");
    CurateOptions few = options("out");
    few.val_frac = 1e-9;
    expect_refusal([&] { curate(few); }, {"none of 1 documents was held out", "--val-frac"});
    few.val_frac = 0;
    curate(few);
    EXPECT_EQ(documents("out/train.jsonl.zst").size(), 1u);
    EXPECT_TRUE(documents("out/val.jsonl.zst").empty());
    expect_refusal([&] { curate(few); }, {"there already", "--out"});
}

TEST(Dedup, IgnoresWhiteSpaceOnly) {
    EXPECT_EQ(normalized_text_hash("a b\n\tc"), normalized_text_hash("  a  b c \r\n"));
    EXPECT_NE(normalized_text_hash("a b c"), normalized_text_hash("ab c"));
    EXPECT_NE(normalized_text_hash("a b c"), normalized_text_hash("A b c"));
    ExactDedup dedup;
    EXPECT_EQ(dedup.seen_before(normalized_text_hash("x"), "first"), "");
    EXPECT_EQ(dedup.seen_before(normalized_text_hash("y"), "other"), "");
    EXPECT_EQ(dedup.seen_before(normalized_text_hash(" x "), "second"), "first");
}

TEST(Split, IsAFunctionOfTheId) {
    // Pinned: were these to move, corpora made before would leak their held-out documents into training.
    std::set<int> pinned;
    for (int i = 0; i < 100; ++i) {
        if (held_out(cat({"document/", i, ".txt"}), 0.05)) pinned.insert(i);
    }
    EXPECT_EQ(pinned, (std::set<int>{24, 41, 54, 81}));
    int64_t small = 0, large = 0;
    for (int i = 0; i < 100'000; ++i) {
        const std::string id = cat({"d", i});
        small += held_out(id, 0.02);
        large += held_out(id, 0.3);
        EXPECT_LE(held_out(id, 0.02), held_out(id, 0.3)) << "a larger fraction must contain a smaller one";
        EXPECT_FALSE(held_out(id, 0.0));
    }
    // Binomial: 4 standard deviations are 177 of 2000 and 580 of 30000.
    EXPECT_NEAR(static_cast<double>(small), 2000, 177);
    EXPECT_NEAR(static_cast<double>(large), 30000, 580);
}

}  // namespace
