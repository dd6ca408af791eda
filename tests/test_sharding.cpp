// Who holds what: everything once, as even as whole matrices allow; and sums and hashes that do not know it.
#include "model/sharding.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "tests/fake_comm.h"
#include "tests/tiny_model.h"

namespace {

// Every element's owner; -1: nobody.
std::vector<int> owners_of(const Sharding& sharding, int64_t arena_size) {
    std::vector<int> owners(static_cast<size_t>(arena_size), -1);
    for (int rank = 0; rank < sharding.num_ranks(); ++rank) {
        int64_t end = 0;
        for (const ArenaSegment& s : sharding.own(rank)) {
            EXPECT_GE(s.local, end) << "places overlap";
            EXPECT_EQ(s.local % kSlotAlign, s.begin % kSlotAlign);
            end = s.local + s.size;
            for (int64_t i = s.begin; i < s.begin + s.size; ++i) {
                EXPECT_EQ(owners[static_cast<size_t>(i)], -1) << "element " << i;
                owners[static_cast<size_t>(i)] = rank;
            }
        }
        EXPECT_EQ(sharding.own_size(rank), end);
    }
    return owners;
}

}  // namespace

TEST(Units, AreTheWholeArenaInOrder) {
    for (const std::string& family : kTinyFamilies) {
        const ModelConfig config = config_preset(family);
        const ParamTable table(config);
        ASSERT_EQ(table.num_units(), config.num_layers + 2);
        EXPECT_EQ(table.unit_begin(0), 0);
        EXPECT_EQ(table.unit_begin(table.num_units()), table.arena_size());
        for (const ParamInfo& row : table.rows()) {
            const bool front = row.slot == Slot::wte || row.slot == Slot::wpe;
            const int64_t unit = row.layer >= 0 ? row.layer + 1 : front ? 0 : config.num_layers + 1;
            EXPECT_GE(row.offset, table.unit_begin(unit)) << row.hf_name;
            EXPECT_LE(row.offset + row.size(), table.unit_begin(unit + 1)) << row.hf_name;
        }
    }
}

TEST(Sharding, EverythingIsOwnedOnceAndMuonsMatricesWhole) {
    for (const std::string& family : kTinyFamilies) {
        const ParamTable table(config_preset(family));
        for (const bool muon : {false, true}) {
            for (const int ranks : {1, 2, 3, 4, 7, 64}) {
                SCOPED_TRACE(cat({family, muon ? " Muon" : " AdamW", ", ", ranks, " ranks"}));
                const Sharding sharding(table, muon, 1, ranks);
                const std::vector<int> owners = owners_of(sharding, table.arena_size());
                EXPECT_EQ(std::count(owners.begin(), owners.end(), -1), 0);
                for (const ParamInfo& row : table.rows()) {
                    if (!muon || !row.muon) continue;
                    const int64_t block = row.size() / row.muon_blocks;
                    for (int64_t i = 0; i < row.muon_blocks; ++i) {
                        const auto first = owners.begin() + row.offset + i * block;
                        EXPECT_EQ(std::count(first, first + block, *first), block) << row.hf_name;
                    }
                }
            }
        }
    }
}

// What one layer gives a rank too much the next one takes back.
TEST(Sharding, PartsOfARealModelAreEven) {
    const ParamTable table(config_preset("gpt2-124m"));
    for (const bool muon : {false, true}) {
        for (const int ranks : {2, 3, 8}) {
            const Sharding sharding(table, muon, 1, ranks);
            for (int rank = 0; rank < ranks; ++rank) {
                const double share = static_cast<double>(sharding.own_size(rank)) * ranks /
                                     static_cast<double>(table.arena_size());
                EXPECT_NEAR(share, 1, muon ? 0.1 : 0.01) << rank << " of " << ranks;
            }
        }
    }
}

TEST(Sharding, PlacesOfNeighboursDiffer) {
    for (const std::string& family : kTinyFamilies) {
        const ModelConfig config = config_preset(family);
        const ParamTable table(config);
        const UnitPlaces places(table, config.tied_head);
        const int64_t last = table.num_units() - 1;
        for (int64_t unit = 0; unit <= last; ++unit)
            EXPECT_GE(places.sizes[places.of(unit)], table.unit_size(unit));
        for (int64_t unit = 0; unit < last; ++unit) EXPECT_NE(places.of(unit), places.of(unit + 1));
        EXPECT_EQ(places.of(0) == places.of(last), !config.tied_head);
    }
}

// Sums of squares and hashes of parts, put together, are those of the whole.
TEST(Sharding, NormsAndHashesKnowNoRanks) {
    TinyModel model("tiny-qwen3");
    const Tensor arena = model.params();
    double expected = 0;
    GradientNorm(model.table, true, nullptr).into(tensor_of(&expected, 1), arena);
    double reference = 0;
    for (const ParamInfo& row : model.table.rows())
        for (int64_t i = 0; i < row.size(); ++i)
            reference += double(model.values()[row.offset + i]) * model.values()[row.offset + i];
    EXPECT_NEAR(expected, reference, 1e-12 * reference);
    const std::string hash = weights_hash(model.table, arena);

    // Padding is in neither.
    const std::vector<Chunk> chunks = chunks_of(model.table, true);
    int64_t covered = 0;
    for (const Chunk& chunk : chunks) covered += chunk.size;
    EXPECT_EQ(covered, model.table.num_params());

    // One rank of three, whose others are played by sums kept from before.
    class Collector final : public FakeComm {
    public:
        Collector() : FakeComm(0, 3) {}
        void all_reduce_sum(Tensor t) override {
            so_far_.resize(static_cast<size_t>(t.size()));
            for (size_t i = 0; i < so_far_.size(); ++i) t.as<double>()[i] = so_far_[i] += t.as<double>()[i];
        }

    private:
        std::vector<double> so_far_;
    };
    const Sharding sharding(model.table, true, 1, 3);
    Collector norms, hashes;
    GradientNorm norm(model.table, true, &norms);
    double last = 0;
    std::string last_hash;
    for (int rank = 0; rank < 3; ++rank) {
        const ArenaPart part(arena, sharding.own(rank), true);
        norm.into(tensor_of(&last, 1), part);
        last_hash = weights_hash(model.table, part, &hashes);
    }
    EXPECT_EQ(last, expected) << "the last one sees the sums of all";
    EXPECT_EQ(last_hash, hash);
    model.values()[model.table.rows().back().offset] += 1;
    EXPECT_NE(weights_hash(model.table, arena), hash);
}

TEST(Sharding, WhatIsHeldFollowsTheStage) {
    const ParamTable table(config_preset("tiny-llama"));
    for (int stage = 0; stage <= 3; ++stage) {
        const Sharding sharding(table, false, stage, 2);
        for (int from = 1; from <= 3; ++from) {
            const bool part = stage >= from;
            EXPECT_EQ(sharding.held_size(1, from), part ? sharding.own_size(1) : table.arena_size());
            EXPECT_EQ(sharding.held({}, 1, from).whole, !part);
        }
        EXPECT_EQ(sharding.updated(1).size(), stage == 0 ? 1u : static_cast<size_t>(table.num_units()));
    }
    EXPECT_THROW(Sharding(table, false, 4, 1), InternalError);
}
