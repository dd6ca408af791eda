// Hopper's matrix products (kernels/matmul_hopper.cu) against the same twins as all others: both tiles, every
// layout, epilogue and split, tiles that hang over every edge, rings that are not filled and that turn many
// times, more tiles than blocks.
#include "kernels/matmul_plan.h"
#include "tests/matmul_check.h"

namespace {

constexpr MatmulTile kWide = MatmulTile::hopper_wide, kSquare = MatmulTile::hopper_square;

TEST(MatmulHopper, PlansFollowTheShape) {
    const auto plan = [](int64_t m, int64_t n, int64_t k, bool may_split) {
        return plan_matmul(m, n, k, may_split, true);
    };
    EXPECT_EQ(plan(65536, 768, 768, false), (MatmulPlan{kWide, 1}));
    EXPECT_EQ(plan(8192, 50304, 768, false), (MatmulPlan{kWide, 1}));
    EXPECT_EQ(plan(2048, 768, 768, false), (MatmulPlan{kSquare, 1}))
        << "48 wide tiles, one wave of 96 square";
    EXPECT_EQ(plan(1024, 768, 768, false).tile, MatmulTile::small) << "48 square tiles";
    EXPECT_EQ(plan(768, 768, 65536, true), (MatmulPlan{kWide, 132 / 18})) << "18 tiles fill one wave of 132";
    EXPECT_EQ(plan(768, 768, 65536, false).splits, 1);
    EXPECT_EQ(plan(64, 64, 64, true).tile, MatmulTile::small);
    EXPECT_EQ(plan(0, 0, 0, true).splits, 1);
    for (int64_t m : {1, 64, 200, 768, 3072}) {
        for (const MatmulPlan& p : hopper_plans(m, 768, 1 << 20, true))
            EXPECT_LE(p.splits * m * 768 * 4, kMatmulSplitSumsBytes) << m;
    }
    const ForcedPlan forced({kWide, 3});
    EXPECT_EQ(plan(1, 1, 1, true), (MatmulPlan{kWide, 3}));
    EXPECT_EQ(plan_matmul(1, 1, 1, true, false), (MatmulPlan{MatmulTile::large, 3})) << "no Hopper";
}

// A result of more tiles than the emulator has multiprocessors, each edge of a tile and one more or less, and
// inner dimensions of less than a stage, of a stage and a bit, of more stages than a ring has.
TEST(MatmulHopper, ProductsEqualTheirTwins) {
    for_each_hopper_tile([](Device device) {
        for (const Shape& s : {Shape{1, 8, 8}, Shape{127, 64, 264}, Shape{129, 72, 128}, Shape{264, 8, 520},
                               Shape{64, 520, 136}, Shape{136, 264, 72}}) {
            check_products<float, bf16, bf16>(s, MatmulMath::bf16, {device, true});
        }
        check_products<bf16, bf16, bf16>({257, 136, 264}, MatmulMath::bf16, {device, true});
    });
}

// Lines that are not a multiple of 16 bytes cannot be copied, nor can what is not aligned or not bf16: other
// kernels do it.
TEST(MatmulHopper, WhatItCannotDoOthersDo) {
    for_each_hopper_tile([](Device device) {
        check_products<float, bf16, bf16>({35, 67, 31}, MatmulMath::bf16, {device, true});
        check_products<float, bf16, bf16>({35, 72, 64}, MatmulMath::bf16, {device, false});
        check_products<float, float, bf16>({35, 72, 64}, MatmulMath::bf16, {device, true});
        check_products<float, float, float>({35, 72, 64}, MatmulMath::f32, {device, true});
        check_empty_batch(device);
    });
}

TEST(MatmulHopper, Epilogues) {
    for_each_hopper_tile([](Device device) {
        check_epilogues<bf16>({131, 40, 264}, {device, true});
        check_epilogues<bf16, float>({67, 72, 136}, {device, true});
        check_accumulation<bf16>({131, 264, 72}, {device, true});
        check_scaled_sum<bf16>({19, 24, 104}, {device, true});
    });
}

TEST(MatmulHopper, SplitWeightGradients) {
    for (Device device : gpus()) {
        for (MatmulTile tile : {kSquare, kWide}) {
            for (int64_t splits : {2, 7}) {  // of 203 tokens: 2 steps of 64 and 1, the last one short
                SCOPED_TRACE(splits);
                const ForcedPlan forced({tile, splits});
                check_accumulation<bf16>({203, 72, 136}, {device, true});
            }
        }
    }
}

// A block's tiles take more turns than the ring has stages, so that who waits for his own tile's stages sees
// them full of others' before.
TEST(MatmulHopper, LongTilesInTurn) {
    for_each_hopper_tile([](Device device) {
        check_products<float, bf16, bf16>({1100, 8, 8 * 64}, MatmulMath::bf16, {device, true});
    });
}

// The result has more bands of tiles than one, the last one lower than the others.
TEST(MatmulHopper, Bands) {
    for (Device device : gpus()) {
        const ForcedPlan forced({kSquare, 1});
        check_products<float, bf16, bf16>({1160, 8, 136}, MatmulMath::bf16, {device, true});
    }
}

TEST(MatmulHopper, RowsDoNotDependOnTheirPlace) {
    for_each_hopper_tile([](Device device) { check_row_placement<bf16>({150, 72, 80}, device, 49); });
}

TEST(MatmulHopper, SameBitsHoweverItIsDone) {
    const Shape s{203, 136, 80};
    for (Device device : gpus()) {
        std::vector<uint8_t> once;
        {
            const ForcedPlan square({kSquare, 1});
            once = all_products<bf16>(s, device);
            expect_same_bits_on_gpus([&](Device on) { return all_products<bf16>(s, on); });
        }
        const ForcedPlan wide({kWide, 1});
        EXPECT_TRUE(all_products<bf16>(s, device) == once) << "wide tiles";
    }
    const ForcedPlan split({kWide, 3});
    expect_same_bits_on_gpus([&](Device device) { return all_products<bf16>(s, device); });
}

TEST(MatmulHopper, NotANumberStaysInItsRow) {
    const Shape s{140, 72, 264};
    Values x = normal_values(s.tokens * s.inputs, 1);
    x[static_cast<size_t>(4 * s.inputs)] = std::nan("");
    for_each_hopper_tile([&](Device device) {
        OnDevice on(device);
        const Guarded<bf16> x_data(x), w_data(normal_values(s.outputs * s.inputs, 2));
        Guarded<float> out(s.tokens * s.outputs);
        matmul_forward(on(out.tensor(s.tokens, s.outputs)), on(x_data.tensor(s.tokens, s.inputs)),
                       on(w_data.tensor(s.outputs, s.inputs)));
        on.fetch();
        for (int64_t i = 0; i < s.tokens * s.outputs; ++i)
            ASSERT_EQ(std::isnan(out[i]), i / s.outputs == 4) << i;
    });
}

}  // namespace
