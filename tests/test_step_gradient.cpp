// Who adds up what in a step, and that nobody's share changes the sum.
#include "model/step_gradient.h"

#include <gtest/gtest.h>

#include "core/device.h"
#include "core/error.h"
#include "model/weights.h"
#include "tests/device_training.h"

namespace {

// As text: "((0 1) (2 3))".
std::string tree_of(int64_t num_parts, int num_ranks) {
    const StepParts parts = StepParts::of(num_parts, num_parts, num_ranks);
    PartStack all(parts.num_parts);
    std::vector<std::string> texts;
    for (int rank = 0; rank < num_ranks; ++rank) {
        std::vector<std::string> own;
        PartStack stack(parts.num_parts);
        const auto joins = [](std::vector<std::string>& list) {
            return [&list] {
                const std::string right = list.back();
                list.pop_back();
                list.back() = "(" + list.back() + " " + right + ")";
            };
        };
        for (int64_t part = parts.first_part(rank); part < parts.first_part(rank + 1); ++part) {
            own.push_back(std::to_string(part));
            stack.push({0, part}, joins(own));
        }
        EXPECT_EQ(stack.nodes(), parts.sums(rank));
        EXPECT_EQ(own.size(), stack.nodes().size());
        for (size_t i = 0; i < own.size(); ++i) {
            texts.push_back(own[i]);
            all.push(stack.nodes()[i], joins(texts));
        }
    }
    EXPECT_EQ(texts.size(), 1u);
    return texts[0];
}

}  // namespace

TEST(StepParts, TheTreeIsTheSameForAnyNumberOfRanks) {
    EXPECT_EQ(tree_of(1, 1), "0");
    EXPECT_EQ(tree_of(3, 1), "((0 1) 2)");
    EXPECT_EQ(tree_of(4, 1), "((0 1) (2 3))");
    EXPECT_EQ(tree_of(7, 1), "(((0 1) (2 3)) ((4 5) 6))");
    for (int64_t num_parts = 1; num_parts <= 33; ++num_parts) {
        const std::string alone = tree_of(num_parts, 1);
        for (int num_ranks = 2; num_ranks <= num_parts; ++num_ranks)
            ASSERT_EQ(tree_of(num_parts, num_ranks), alone)
                << num_parts << " parts, " << num_ranks << " ranks";
    }
}

TEST(StepParts, EveryMicroBatchIsOneRanks) {
    for (int64_t micro_batches = 1; micro_batches <= 20; ++micro_batches) {
        for (const int64_t tree : {0, 1, 3, 4, 16}) {
            for (int ranks = 1; ranks <= std::min<int64_t>(micro_batches, tree > 0 ? tree : 20); ++ranks) {
                const StepParts parts = StepParts::of(micro_batches, tree, ranks);
                EXPECT_EQ(parts.num_parts, tree > 0 ? std::min(tree, micro_batches) : ranks);
                EXPECT_EQ(parts.begin(0), 0);
                EXPECT_EQ(parts.begin(ranks), micro_batches);
                for (int rank = 0; rank < ranks; ++rank) {
                    EXPECT_LT(parts.begin(rank), parts.begin(rank + 1)) << "nothing to do";
                    EXPECT_LE(parts.num_arenas(rank), 5);
                    if (parts.num_parts == ranks) {
                        EXPECT_EQ(parts.num_arenas(rank), 0);
                    }
                }
            }
        }
    }
    EXPECT_EQ(StepParts::of(4, 4, 1).num_arenas(0), 2);
    EXPECT_EQ(StepParts::of(16, 16, 1).num_arenas(0), 4);
    EXPECT_EQ(StepParts::of(4, 4, 2).num_arenas(1), 1);
}

TEST(StepParts, NobodyMayBeIdle) {
    for (const auto& [micro_batches, tree, ranks, words] :
         {std::tuple{2, 4, 3, "more ranks than micro-batches in a step: --batch-tokens: expected at least 3"},
          {8, 4, 5, "--deterministic-reduce: expected at least 5, got 4"}}) {
        try {
            StepParts::of(micro_batches, tree, ranks);
            ADD_FAILURE() << "not refused";
        } catch (const InputError& error) {
            EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
        }
    }
}

// Dealt micro-batches and neighbouring parts: each is exactly one rank's.
TEST(StepParts, DealtOutInTurn) {
    for (int64_t micro_batches = 1; micro_batches <= 12; ++micro_batches) {
        for (int ranks = 1; ranks <= micro_batches; ++ranks) {
            const StepParts parts = StepParts::of(micro_batches, 2, ranks, true);
            std::vector<int> owners(static_cast<size_t>(micro_batches));
            for (int rank = 0; rank < ranks; ++rank) {
                int64_t count = 0;
                for (int64_t i = parts.begin(rank); i < parts.end(rank); i += parts.stride(), ++count)
                    ++owners[static_cast<size_t>(i)];
                EXPECT_EQ(parts.count(rank), count);
            }
            EXPECT_EQ(owners, std::vector<int>(static_cast<size_t>(micro_batches), 1));
            for (int64_t i = 0; i < micro_batches; ++i) {
                const int64_t part = parts.part_of(i);
                EXPECT_TRUE(parts.part_begin(part) <= i && i < parts.part_begin(part + 1)) << i;
            }
        }
    }
    // Of each round's end: four parts of one leave 1, 2 ..; eight in one round leave their sum.
    EXPECT_EQ(StepParts::of(4, 4, 1, true).num_arenas(0), 2);
    EXPECT_EQ(StepParts::of(8, 8, 1, true).num_arenas(0), 3);
    EXPECT_EQ(StepParts::of(8, 8, 4, true).num_arenas(0), 1);
    EXPECT_EQ(StepParts::of(8, 8, 8, true).num_arenas(0), 1);
    EXPECT_EQ(StepParts::of(8, 1, 2, true).num_arenas(0), 1);
}

// The arenas really hold the sums of the tree: the gradient of a step is what the parts' own gradients give
// when they are added as the tree says, at every stage.
TEST(StepGradient, IsTheTreeOfItsParts) {
    const std::unique_ptr<Comm> alone = make_self_comm();
    for (const char* preset : {"tiny-llama", "tiny-gpt2"}) {  // an untied head, and a tied one
        const ModelConfig config = config_preset(preset);
        const ParamTable table(config);
        Buffer initial(table.arena_size() * 4);
        init_params(table, initial.tensor(DType::f32), 1);
        for (const auto& [micro_batches, tree] : {std::pair{6, 6}, {7, 4}, {5, 3}, {3, 1}, {1, 4}}) {
            Transformer whole(config, {.num_rows = kRows, .seq_len = kTokens});
            copy_tensor(whole.params(), initial.tensor(DType::f32));
            const auto batch = [&](int64_t i) { return batch_of(config, static_cast<uint64_t>(i)); };
            const float scale = 1e-2f;

            using Gradient = std::vector<float>;
            const auto add = [](Gradient& sum, const Gradient& addend) {
                for (size_t k = 0; k < sum.size(); ++k) sum[k] += addend[k];
            };
            const StepParts plain = StepParts::of(micro_batches, tree, 1);
            std::vector<Gradient> sums;
            PartStack stack(plain.num_parts);
            double loss = 0;
            for (int64_t part = 0; part < plain.num_parts; ++part) {
                double part_loss = 0;
                for (int64_t i = plain.part_begin(part); i < plain.part_begin(part + 1); ++i) {
                    whole.forward_backward(batch(i), scale, false);
                    part_loss += whole.total_loss();
                    const float* const grads = whole.grads().as<float>();
                    const Gradient own(grads, grads + whole.grads().size());
                    if (i == plain.part_begin(part))
                        sums.push_back(own);
                    else
                        add(sums.back(), own);
                }
                loss += part_loss;
                stack.push({0, part}, [&] {
                    add(sums[sums.size() - 2], sums.back());
                    sums.pop_back();
                });
            }
            for (int stage = 0; stage <= 3; ++stage) {
                SCOPED_TRACE(
                    cat({preset, ", stage ", stage, ", ", micro_batches, " micro-batches, tree of ", tree}));
                const Sharding sharding(table, false, stage, 1);
                Transformer model(
                    config,
                    {.num_rows = kRows, .seq_len = kTokens, .has_params = stage < 3, .has_grads = stage < 2});
                Weights weights(*alone, table, config, sharding, DType::f32, model.params());
                weights.own().for_each_piece(0, table.arena_size(), [&](Tensor piece, int64_t at) {
                    copy_tensor(piece, initial.tensor(DType::f32).rows(at, piece.size()));
                });
                weights.changed();
                model.set_weights(&weights);
                StepGradient gradient(*alone, model, StepParts::of(micro_batches, tree, 1, stage >= 2),
                                      sharding);
                for (int repetition = 0; repetition < 2; ++repetition) {
                    for (int64_t i = 0; i < micro_batches; ++i) gradient.add(batch(i), scale);
                    EXPECT_EQ(*gradient.finish().as<double>(), loss);
                    Gradient result(static_cast<size_t>(table.arena_size()));
                    gradient.gradient().for_each_piece(0, table.arena_size(), [&](Tensor piece, int64_t at) {
                        std::copy_n(piece.as<float>(), piece.size(), result.data() + at);
                    });
                    EXPECT_EQ(result, sums[0]);
                }
            }
        }
    }
}
