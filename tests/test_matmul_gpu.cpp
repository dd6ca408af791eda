// The GPU's matrix products against the same twins as the CPU's, in every way a product can be cut: both
// tiles, split sums, every layout and type of operands, aligned and not. Shapes have several tiles in both
// directions, several turns of each pipeline and ragged ends everywhere.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "core/io.h"
#include "kernels/matmul_plan.h"
#include "kernels/matmul_plan_cache.h"
#include "tests/matmul_check.h"

namespace {

constexpr MatmulPlan kSmall{MatmulTile::small, 1}, kLarge{MatmulTile::large, 1};

// Splits concern weight gradients alone.
template <class Run>
void for_each_plan(Run&& run) {
    for_each_tile({MatmulTile::small, MatmulTile::large}, run);
}

TEST(MatmulGpu, PlansFollowTheShape) {
    const auto plan = [](int64_t m, int64_t n, int64_t k, bool may_split) {
        return plan_matmul(m, n, k, may_split, false);
    };
    EXPECT_EQ(plan(65536, 768, 768, false).tile, MatmulTile::large);
    EXPECT_EQ(plan(65536, 768, 768, false).splits, 1);
    EXPECT_EQ(plan(64, 768, 768, false).tile, MatmulTile::small) << "too few large tiles";
    EXPECT_EQ(plan(768, 768, 65536, true).tile, MatmulTile::large);
    EXPECT_EQ(plan(768, 768, 65536, true).splits, 264 / 36) << "36 tiles fill one wave of 264";
    EXPECT_EQ(plan(768, 768, 65536, false).splits, 1);
    EXPECT_EQ(plan(768, 768, 600, true).tile, MatmulTile::small) << "too short to split";
    EXPECT_EQ(plan(768, 768, 600, true).splits, 1);
    EXPECT_EQ(plan(50257, 768, 4096, true).splits, 1) << "tiles enough";
    EXPECT_EQ(plan(0, 0, 0, true).splits, 1);
    for (int64_t m : {1, 64, 200, 768, 3072}) {
        const MatmulPlan p = plan(m, 768, 1 << 20, true);
        EXPECT_LE(p.splits * m * 768 * 4, kMatmulSplitSumsBytes) << m;
    }
}

TEST(MatmulPlanCache, KeepsPlansOfItsVersionsOnly) {
    const std::string directory = testing::TempDir() + "ingot_plans_" + std::to_string(getpid());
    const std::string path = directory + "/below/plans";  // directories are made
    const std::vector<uint8_t> one{0, 1, 254}, two{171};
    {
        MatmulPlanCache cache(path, "library 1");
        EXPECT_EQ(cache.find("a"), nullptr);
        cache.add("a", two);
        cache.add("a", one);
        cache.add("b", two);
        EXPECT_EQ(*cache.find("a"), one);
    }
    EXPECT_EQ(read_file(path), "library 1\na 0001fe\nb ab\n");
    const MatmulPlanCache again(path, "library 1"), newer(path, "library 2");
    ASSERT_NE(again.find("a"), nullptr);
    EXPECT_EQ(*again.find("a"), one);
    EXPECT_EQ(*again.find("b"), two);
    EXPECT_EQ(newer.find("a"), nullptr) << "of another library";
    write_file_atomic(path, "library 1\na 00x1\nb 001\nc \nno_space\nd 10\n");
    const MatmulPlanCache damaged(path, "library 1");
    for (const char* key : {"a", "b", "c", "no_space"}) EXPECT_EQ(damaged.find(key), nullptr) << key;
    EXPECT_NE(damaged.find("d"), nullptr) << "what can be read counts";

    MatmulPlanCache nowhere("", "v"), refused(path + "/is_no_directory/plans", "v");
    for (MatmulPlanCache* cache : {&nowhere, &refused}) {
        cache->add("a", one);
        EXPECT_EQ(*cache->find("a"), one) << "kept in memory";
    }
    std::filesystem::remove_all(directory);
}

TEST(MatmulPlanCache, LiesWhereTheEnvironmentSays) {
    const char* kept = std::getenv("INGOT_PLAN_CACHE");
    const std::string kept_value = kept != nullptr ? kept : "";
    setenv("INGOT_PLAN_CACHE", "/somewhere/plans", 1);
    EXPECT_EQ(matmul_plan_path(), "/somewhere/plans");
    unsetenv("INGOT_PLAN_CACHE");
    EXPECT_EQ(matmul_plan_path(), std::string(std::getenv("HOME")) + "/.cache/ingot/matmul_plans");
    if (kept != nullptr) setenv("INGOT_PLAN_CACHE", kept_value.c_str(), 1);
}

TEST(MatmulGpu, EveryLayoutDtypeAndShapeEqualsItsTwin) {
    for (Device device : gpus()) {
        for (const Shape& s : {Shape{1, 1, 1}, Shape{1, 7, 5}, Shape{5, 1, 3}, Shape{17, 31, 53}}) {
            check_all_dtypes<float>(s, {device});
            check_all_dtypes<bf16>(s, {device});
        }
        // Aligned, with and without whole chunks.
        for (const Shape& s : {Shape{19, 40, 72}, Shape{9, 44, 20}}) {
            check_all_dtypes<float>(s, {device, true});
            check_all_dtypes<bf16>(s, {device, true});
        }
    }
}

// In each direction two tiles and more of either size, the last one short; inner dimensions of one step up to
// more than twice the pipeline's stages.
TEST(MatmulGpu, TilesAndStages) {
    for_each_plan([](Device device) {
        for (const Shape& s : {Shape{131, 296, 72}, Shape{139, 72, 296}}) {
            check_products<float, bf16, bf16>(s, MatmulMath::bf16, {device, true});
            check_products<bf16, bf16, float>(s, MatmulMath::bf16, {device, true});
        }
        check_products<float, float, float>({137, 139, 67}, MatmulMath::f32, {device, true});
        check_products<float, float, bf16>({67, 72, 136}, MatmulMath::f32, {device, true});
        check_products<float, bf16, bf16>({73, 137, 139}, MatmulMath::bf16, {device});
    });
}

// More than one band of tiles (kernels/matmul_gpu_store.h), the last one lower than the others.
TEST(MatmulGpu, Bands) {
    for (Device device : gpus()) {
        const ForcedPlan forced(kSmall);
        check_products<float, bf16, bf16>({580, 72, 128}, MatmulMath::bf16, {device, true});
    }
}

TEST(MatmulGpu, SplitWeightGradients) {
    for (Device device : gpus()) {
        for (MatmulTile tile : {MatmulTile::small, MatmulTile::large}) {
            for (int64_t splits : {2, 7}) {  // of 203 tokens: 4 and 1 steps of 32, the last one short
                SCOPED_TRACE(splits);
                const ForcedPlan forced({tile, splits});
                check_accumulation<bf16>({203, 72, 136}, {device, true});
                check_accumulation<float>({203, 67, 35}, {device});
            }
        }
        const ForcedPlan forced({MatmulTile::small, 40});  // more than there are steps
        check_accumulation<bf16>({33, 9, 20}, {device, true});
        check_empty_batch(device);
    }
}

// Biases of several blocks, summed in one stage and in two (from 64 rows on).
TEST(MatmulGpu, BiasGradients) {
    for (Device device : gpus()) {
        for (const Shape& s : {Shape{63, 8, 520}, Shape{163, 8, 520}, Shape{163, 1, 259}}) {
            check_accumulation<bf16>(s, {device, true});
            check_accumulation<float>(s, {device, true});
        }
    }
}

TEST(MatmulGpu, Epilogues) {
    for (Device device : gpus()) {
        for (const Shape& s : {Shape{1, 7, 5}, Shape{71, 31, 83}}) {
            check_epilogues<float>(s, {device});
            check_epilogues<bf16>(s, {device});
            check_epilogues<bf16, float>(s, {device});
            check_epilogues<float, bf16>(s, {device});
        }
        check_epilogues<float>({67, 40, 72}, {device, true});
        check_epilogues<bf16, float>({67, 40, 72}, {device, true});
        check_epilogues<bf16>({64, 40, 72}, {device, true});
        check_accumulation<bf16>({64, 72, 136}, {device, true});
    }
    for_each_plan([](Device device) {
        check_epilogues<bf16>({131, 40, 136}, {device, true});
        check_epilogues<float, bf16>({131, 20, 136}, {device, true});
        check_accumulation<bf16>({131, 136, 72}, {device, true});
        check_accumulation<float>({131, 136, 20}, {device, true});
    });
}

TEST(MatmulGpu, GeneralScalesAndAdds) {
    for (Device device : gpus()) {
        check_scaled_sum<float>({19, 23, 101}, {device});
        check_scaled_sum<bf16>({19, 24, 104}, {device});
    }
}

TEST(MatmulGpu, EmptyBatch) {
    for (Device device : gpus()) check_empty_batch(device);
}

// These are promises of our own kernels, not of the library's.
TEST(MatmulGpu, RowsDoNotDependOnTheirPlace) {
    const ForcedPlan forced(kSmall);
    for (Device device : gpus()) {
        check_row_placement<float>({70, 35, 53}, device, 23);
        check_row_placement<bf16>({70, 72, 80}, device, 23);
    }
}

// Neither on the run, nor on the order of threads, nor on the tile, nor on how the operands were fetched.
template <class T>
void check_same_bits(const Shape& s) {
    expect_same_bits_on_gpus([&](Device device) { return all_products<T>(s, device); });
    for (Device device : gpus()) {
        std::vector<uint8_t> once;
        {
            const ForcedPlan small(kSmall);
            once = all_products<T>(s, device);
            EXPECT_TRUE(all_products<T>(s, device, 1) == once) << "unaligned";
        }
        const ForcedPlan large(kLarge);
        EXPECT_TRUE(all_products<T>(s, device) == once) << "large tiles";
    }
    std::vector<uint8_t> unsplit;
    {
        const ForcedPlan small(kSmall);
        unsplit = all_products<T>(s, Device::simt);
    }
    const ForcedPlan split({MatmulTile::small, 3});
    EXPECT_FALSE(all_products<T>(s, Device::simt) == unsplit) << "splits add in another order";
    expect_same_bits_on_gpus([&](Device device) { return all_products<T>(s, device); });
}
TEST(MatmulGpu, SameBitsHoweverItIsDone) {
    check_same_bits<bf16>({101, 72, 80});
    check_same_bits<float>({101, 36, 70});
}

TEST(MatmulGpu, NotANumberStaysInItsRow) {
    const Shape s{70, 40, 72};
    Values x = normal_values(s.tokens * s.inputs, 1);
    x[static_cast<size_t>(4 * s.inputs)] = std::nan("");
    for (Device device : gpus()) {
        OnDevice on(device);
        const Guarded<bf16> x_data(x), w_data(normal_values(s.outputs * s.inputs, 2));
        Guarded<float> out(s.tokens * s.outputs);
        matmul_forward(on(out.tensor(s.tokens, s.outputs)), on(x_data.tensor(s.tokens, s.inputs)),
                       on(w_data.tensor(s.outputs, s.inputs)));
        on.fetch();
        for (int64_t i = 0; i < s.tokens * s.outputs; ++i)
            ASSERT_EQ(std::isnan(out[i]), i / s.outputs == 4) << i;
    }
}

TEST(MatmulGpu, WrongArgumentsAreNamed) {
    const Guarded<float> data(normal_values(64, 1));
    for (Device device : gpus()) {
        OnDevice on(device);
        expect_mentions(
            check_failure(
                [&] { matmul_forward(on(data.tensor(2, 4)), on(data.tensor(2, 8)), on(data.tensor(4, 7))); }),
            {"matmul_forward", "weight", "[4,8]", "[4,7]"});
        expect_mentions(check_failure([&] {
                            matmul_forward(on(data.tensor(2, 4)), data.tensor(2, 8), on(data.tensor(4, 8)));
                        }),
                        {"matmul_forward", "inp", "on another device"});
    }
}

}  // namespace
