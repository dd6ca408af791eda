// A corpus that a tiny model learns in seconds, and runs on it: a tokenizer trained on sentences of a small
// grammar, token shards beside it, the flags of a short run. Everything lies in one temporary directory.
#pragma once
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/io.h"
#include "core/rng.h"
#include "data/shards.h"
#include "tests/run_program.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/train.h"

// Subject, verb, object: about 2.5 nats a word, so a model that learns the grammar beats one that only
// counts.
inline std::string toy_document(uint64_t seed, int64_t num_sentences) {
    static const char* const kSubjects[] = {"the baker", "a sailor", "my sister", "the old king"};
    static const char* const kVerbs[] = {"sees", "paints", "remembers"};
    static const char* const kObjects[] = {"the harbour", "seven lamps", "a quiet garden", "his letters"};
    std::string text;
    uint64_t draw = 0;
    const auto pick = [&](const auto& words) {
        return words[random_below({.seed = seed, .stream = 1}, draw++, std::size(words))];
    };
    for (int64_t i = 0; i < num_sentences; ++i) {
        text += std::string(pick(kSubjects)) + " " + pick(kVerbs) + " " + pick(kObjects) + ".\n";
    }
    return text;
}

struct ToyCorpus {
    // num_documents of about 150 tokens each; another seed, other text and another tokenizer.
    static void write(const std::string& directory, uint64_t seed = 1, int64_t num_documents = 60) {
        std::vector<std::string> documents;
        for (int64_t i = 0; i < num_documents; ++i)
            documents.push_back(toy_document(seed * 1000 + static_cast<uint64_t>(i), 20));
        PieceCounts counts(SplitPattern::gpt2);
        counts.add({documents.begin(), documents.end()});
        const Tokenizer tokenizer(train_bpe(
            counts, {.vocab_size = 290 + static_cast<int64_t>(seed)}));  // tiny models have 512 rows
        make_directories(directory);
        tokenizer.save(directory + "/tokenizer");
        const ShardOrigin origin{
            .tokenizer_hash = tokenizer.hash(), .tokenizer_path = "tokenizer", .source_manifest_hash = {}};
        ShardWriter train(directory, "train", tokenizer.vocab_size(), tokenizer.eot());
        ShardWriter val(directory, "val", tokenizer.vocab_size(), tokenizer.eot());
        for (size_t i = 0; i < documents.size(); ++i) {
            (i % 10 == 0 ? val : train)
                .add_document(tokenizer.encode(documents[i]), static_cast<int64_t>(documents[i].size()));
        }
        train.finish(origin);
        val.finish(origin);
    }
};

class ToyRun : public testing::Test {
protected:
    static void SetUpTestSuite() {
        std::string pattern = (std::filesystem::temp_directory_path() / "ingot-toy-XXXXXX").string();
        root_ = mkdtemp(pattern.data());
        ToyCorpus::write(root_ + "/shards");
    }
    static void TearDownTestSuite() { std::filesystem::remove_all(root_); }

    static std::string path(const std::string& name) { return root_ + "/" + name; }
    // A directory that no other test uses.
    static std::string fresh(const std::string& name = "run") {
        static int count = 0;
        return path(name + "-" + std::to_string(++count));
    }

    // The flags of a short run into `out`; each of `changes` overrides its namesake ("--lr", "1e-3", ...).
    static std::vector<std::string> flags(const std::string& out,
                                          const std::vector<std::string>& changes = {}) {
        std::vector<std::string> all = {
            "--init",    "tiny-llama", "--train-data",  path("shards/train_*.bin"),
            "--out",     out,          "--steps",       "20",
            "--seq-len", "32",         "--micro-batch", "4",
            "--lr",      "3e-3",       "--threads",     "2"};
        all.insert(all.end(), {"--sample-tokens", "8"});
        for (size_t i = 0; i + 1 < changes.size(); i += 2) {
            size_t at = 0;
            while (at < all.size() && all[at] != changes[i]) at += 2;
            if (at < all.size()) {
                all[at + 1] = changes[i + 1];
            } else {
                all.insert(all.end(), {changes[i], changes[i + 1]});
            }
        }
        all.push_back("--quiet");
        return all;
    }
    static Outcome train(const std::string& out, const std::vector<std::string>& changes = {},
                         const RunOptions& options = {}) {
        return run_program("train", flags(out, changes), options);
    }
    // Runs to its end and returns the hash that the last line of stdout gives.
    static std::string hash_of(const std::string& out, const std::vector<std::string>& changes = {}) {
        const Outcome outcome = train(out, changes);
        EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
        return weights(outcome);
    }
    static std::string weights(const Outcome& outcome) {
        const std::string line = outcome.last_line();
        const size_t at = line.find("weights=");
        return at == std::string::npos ? "(no weights in: " + line + ")" : line.substr(at + 8);
    }

    // Every line of the run's log that is of `kind`; "" takes all. A line that is not JSON is a failure.
    static std::vector<nlohmann::json> log_lines(const std::string& out, const std::string& kind) {
        std::vector<nlohmann::json> lines;
        const std::string text = read_file(out + "/log.jsonl");
        EXPECT_TRUE(text.empty() || text.back() == '\n') << "the log ends within a line";
        for (size_t begin = 0; begin < text.size();) {
            const size_t end = std::min(text.find('\n', begin), text.size());
            const auto line = nlohmann::json::parse(text.substr(begin, end - begin), nullptr, false);
            EXPECT_TRUE(line.is_object()) << "log line: " << text.substr(begin, end - begin);
            if (line.is_object() && (kind.empty() || line.value("kind", "") == kind)) lines.push_back(line);
            begin = end + 1;
        }
        return lines;
    }
    static std::function<bool()> log_contains(const std::string& out, const std::string& text) {
        return [log = out + "/log.jsonl", text] {
            return path_exists(log) && read_file(log).find(text) != std::string::npos;
        };
    }
    // Every file under `directory` with its content: what must be the same before and after a refusal.
    static std::string contents_of(const std::string& directory) {
        std::string all;
        if (!path_exists(directory)) return "(absent)";
        for (const std::string& name : list_directory(directory)) {
            const std::string file = directory + "/" + name;
            all += name + ":" + (is_directory(file) ? contents_of(file) : sha256_file(file)) + "\n";
        }
        return all;
    }

    inline static std::string root_;
};
