// The loader: the order of samples is a pure function of (seed, sample index), prefetching or not; a
// sequential pass predicts every token once.
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <set>
#include <thread>

#include "core/error.h"
#include "data/loader.h"

namespace {

constexpr int32_t kEot = 0;

class LoaderTest : public testing::Test {
protected:
    // 3 shards of 50, 50 and 23 tokens whose ids are their place in the data, so that a row tells where it
    // came from; every 10th id is end-of-text.
    void SetUp() override {
        std::string name = (std::filesystem::temp_directory_path() / "ingot-loader-XXXXXX").string();
        dir_ = mkdtemp(name.data());
        ShardWriter writer(dir_, "train", 1000, kEot, 50);
        for (int32_t document = 0, next = 1; next < 123; ++document) {
            std::vector<int32_t> ids;
            for (int i = 0; i < 9 && next < 123; ++i) ids.push_back(next++);
            ++next;  // the place of the end-of-text token before the next document
            writer.add_document(ids, 9);
        }
        writer.finish({.tokenizer_hash = "h", .tokenizer_path = "", .source_manifest_hash = ""});
    }
    void TearDown() override { std::filesystem::remove_all(dir_); }
    Loader open(LoaderOptions options) const {
        return Loader(dir_ + "/train_*.bin", "--train-data", options);
    }
    static int32_t token_at(int32_t place) { return place % 10 == 0 ? kEot : place; }

    std::string dir_;
};

void expect_equal(const Batch& a, const Batch& b) {
    EXPECT_EQ(a.num_rows, b.num_rows);
    EXPECT_EQ(a.seq_len, b.seq_len);
    EXPECT_EQ(a.tokens, b.tokens);
    EXPECT_EQ(a.targets, b.targets);
    EXPECT_EQ(a.positions, b.positions);
    EXPECT_EQ(a.cu_seqlens, b.cu_seqlens);
}

TEST_F(LoaderTest, ShuffledEpochVisitsEveryWindowOnce) {
    const Loader loader = open({.seq_len = 7, .seed = 3});
    // floor(49/7) + floor(49/7) + floor(22/7)
    ASSERT_EQ(loader.num_windows(), 17);
    EXPECT_EQ(loader.tokens_per_epoch(), 17 * 7);
    std::vector<int64_t> orders[2];
    for (int epoch = 0; epoch < 2; ++epoch) {
        std::set<int64_t> seen;
        for (int64_t s = 0; s < 17; ++s) {
            const Batch batch = loader.batch_at(epoch * 17 + s, 1);
            // Two neighbouring tokens: at most one is end-of-text, the other tells the place.
            const int64_t place = batch.tokens[0] != kEot ? batch.tokens[0] : batch.tokens[1] - 1;
            for (int32_t i = 0; i < 7; ++i) {
                EXPECT_EQ(batch.tokens[i], token_at(static_cast<int32_t>(place) + i));
                EXPECT_EQ(batch.targets[i], token_at(static_cast<int32_t>(place) + i + 1));
            }
            EXPECT_EQ(place % 50 % 7, 0) << "a window starts off its grid";
            EXPECT_LE(place % 50 + 7, 49) << "a window crosses a shard";
            seen.insert(place);
            orders[epoch].push_back(place);
        }
        EXPECT_EQ(seen.size(), 17u);
    }
    EXPECT_NE(orders[0], orders[1]) << "epochs must differ in order";
    EXPECT_FALSE(std::is_sorted(orders[0].begin(), orders[0].end())) << "nothing was shuffled";
    const Loader other_seed = open({.seq_len = 7, .seed = 4});
    EXPECT_NE(other_seed.batch_at(0, 17).tokens, loader.batch_at(0, 17).tokens);
}

TEST_F(LoaderTest, BatchesAreAPureFunctionOfTheSampleIndex) {
    const Loader loader = open({.seq_len = 7, .micro_batch = 4, .seed = 9});
    const Batch whole = loader.batch_at(5, 20);  // crosses an epoch
    for (int64_t row = 0; row < 20; ++row) {
        const Batch one = open({.seq_len = 7, .micro_batch = 1, .seed = 9}).batch_at(5 + row, 1);
        EXPECT_TRUE(std::equal(one.tokens.begin(), one.tokens.end(), whole.tokens.begin() + row * 7))
            << "row " << row;
        EXPECT_TRUE(std::equal(one.targets.begin(), one.targets.end(), whole.targets.begin() + row * 7));
    }
}

TEST_F(LoaderTest, PrefetchChangesNothing) {
    const Loader reference = open({.seq_len = 7, .seed = 1});
    for (const int pause_us : {0, 300}) {
        Loader loader = open({.seq_len = 7, .micro_batch = 3, .seed = 1});
        for (int64_t sample = 0; sample < 60; sample += 3) {
            EXPECT_EQ(loader.next_sample(), sample);
            expect_equal(loader.next(), reference.batch_at(sample, 3));
            std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
        }
        // A seek drops what was prepared, both right after next() and after it had time to finish.
        for (const int64_t sample : {100, 4, 4, 1'000'000'007}) {
            loader.seek(sample);
            EXPECT_EQ(loader.next_sample(), sample);
            expect_equal(loader.next(), reference.batch_at(sample, 3));
        }
    }
    Loader resumed = open({.seq_len = 7, .micro_batch = 3, .seed = 1});
    resumed.seek(21);
    expect_equal(resumed.next(), reference.batch_at(21, 3));
}

TEST_F(LoaderTest, MicroBatchesEndWithTheStep) {
    Loader loader = open({.seq_len = 7, .micro_batch = 4, .seed = 1, .samples_per_step = 10});
    std::vector<int64_t> rows;
    for (int i = 0; i < 6; ++i) rows.push_back(loader.next().num_rows);
    EXPECT_EQ(rows, (std::vector<int64_t>{4, 4, 2, 4, 4, 2}));
}

TEST_F(LoaderTest, SharesOfAStepAreServedToRanks) {
    Loader all = open({.seq_len = 7, .micro_batch = 2, .seed = 1, .samples_per_step = 10});
    const Loader& reference = all;
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 4}, {4, 10}, {8, 10}, {0, 10}}) {
        Loader loader = open({.seq_len = 7,
                              .micro_batch = 2,
                              .seed = 1,
                              .samples_per_step = 10,
                              .share_begin = begin,
                              .share_end = end});
        for (const int64_t start : {0, 10, 50}) {
            if (start > 0) loader.seek(start);  // a new one begins at 0
            for (int64_t step = start; step < start + 30; step += 10) {
                for (int64_t sample = step + begin; sample < step + end; sample += 2) {
                    EXPECT_EQ(loader.next_sample(), sample);
                    expect_equal(loader.next(), reference.batch_at(sample, 2));
                }
            }
        }
    }
}

TEST_F(LoaderTest, SequentialPredictsEveryTokenOnce) {
    for (const int64_t seq_len : {1, 7, 22, 49, 64}) {
        Loader loader = open({.seq_len = seq_len, .micro_batch = 3, .order = LoaderOrder::sequential});
        std::vector<int32_t> predicted;
        int64_t windows = 0;
        for (Batch batch = loader.next(); batch.num_rows > 0; batch = loader.next()) {
            windows += batch.num_rows;
            for (size_t i = 0; i < batch.targets.size(); ++i) {
                if (batch.targets[i] >= 0) predicted.push_back(batch.targets[i]);
                EXPECT_TRUE(batch.targets[i] >= 0 || batch.tokens[i] == 0) << "padding is token 0";
            }
        }
        std::vector<int32_t> expected;
        for (int32_t place = 0; place < 123; ++place) {
            if (place % 50 != 0) expected.push_back(token_at(place));  // all but each shard's first
        }
        EXPECT_EQ(predicted, expected) << "T=" << seq_len;
        EXPECT_EQ(windows, loader.num_windows());
        EXPECT_EQ(loader.tokens_per_epoch(), 120);
        EXPECT_EQ(loader.batch_at(loader.num_windows() - 1, 5).num_rows, 1);
        EXPECT_EQ(loader.batch_at(loader.num_windows(), 5).num_rows, 0);
    }
}

TEST_F(LoaderTest, DocumentsAreMaskedUnlessToldOtherwise) {
    const Batch masked = open({.seq_len = 25, .order = LoaderOrder::sequential}).batch_at(0, 1);
    EXPECT_EQ(masked.cu_seqlens, (std::vector<int32_t>{0, 10, 20, 25}));
    EXPECT_EQ(masked.positions[9], 9);
    EXPECT_EQ(masked.positions[10], 0);
    const Batch open_rows =
        open({.seq_len = 25, .order = LoaderOrder::sequential, .mask_documents = false}).batch_at(0, 1);
    EXPECT_EQ(open_rows.cu_seqlens, (std::vector<int32_t>{0, 25}));
    EXPECT_EQ(open_rows.positions[24], 24);
    std::filesystem::remove(dir_ + "/manifest.json");
    EXPECT_EQ(open({.seq_len = 25, .order = LoaderOrder::sequential}).batch_at(0, 1).cu_seqlens,
              open_rows.cu_seqlens);
    EXPECT_EQ(open({.seq_len = 25, .order = LoaderOrder::sequential, .eot = kEot}).batch_at(0, 1).cu_seqlens,
              masked.cu_seqlens);
}

TEST_F(LoaderTest, TooLittleDataIsSaid) {
    try {
        open({.seq_len = 50});
        FAIL() << "no window of 51 tokens fits into shards of 50";
    } catch (const InputError& e) {
        const std::string message = e.what();
        for (const char* part : {"--train-data", "51 tokens", "123 tokens in 3 shards", "--seq-len"}) {
            EXPECT_NE(message.find(part), std::string::npos) << part << " not in: " << message;
        }
    }
    EXPECT_EQ(open({.seq_len = 49}).num_windows(), 2);
}

}  // namespace
