// The benchmarks' flags: a list that is not wholly understood is refused, so that no line carries a wrong
// label.
#include <gtest/gtest.h>

#include <functional>

#include "bench/parse.h"

namespace {

std::string complaint(const std::function<void()>& body) {
    try {
        body();
    } catch (const InputError& error) {
        return error.what();
    }
    return "(accepted)";
}

}  // namespace

TEST(BenchParse, Precisions) {
    const auto all = parse_precisions("fp32,bf16,mixed", "--dtypes");
    ASSERT_EQ(all.size(), 3u);
    EXPECT_EQ(all[0].name, "fp32");
    EXPECT_TRUE(all[0].dtype == DType::f32 && all[0].math == MatmulMath::f32);
    EXPECT_TRUE(all[1].dtype == DType::bf16 && all[1].math == MatmulMath::bf16);
    EXPECT_TRUE(all[2].dtype == DType::f32 && all[2].math == MatmulMath::bf16);
    EXPECT_EQ(complaint([] { parse_precisions("fp32,fp23", "--dtypes"); }),
              "bad value: --dtypes: expected fp32, bf16 or mixed, got `fp23`  hint: --dtypes fp32,bf16");
    for (const char* empty : {"", ",", "fp32,", ",fp32", "fp32,,bf16"})
        EXPECT_EQ(complaint([&] { parse_precisions(empty, "--dtypes"); }),
                  cat({"empty part of a list: --dtypes: expected values with one comma between two, got `",
                       empty, "`  hint: --dtypes a,b"}));
}

TEST(BenchParse, Shapes) {
    const auto shapes = parse_shapes("4x64,1x1024", "--shapes");
    ASSERT_EQ(shapes.size(), 2u);
    EXPECT_EQ(shapes[0].rows, 4);
    EXPECT_EQ(shapes[0].seq_len, 64);
    EXPECT_EQ(shapes[1].rows, 1);
    EXPECT_EQ(shapes[1].seq_len, 1024);
    for (const char* bad : {"4x64zz", "4", "x", "4x", "x64", "0x64", "-4x64", "4x64x2", "4 x64", "+4x64",
                            "4X64", "99999999999999999999x1", "4x16777217"}) {
        const std::string text = complaint([&] { parse_shapes(cat({"1x8,", bad}), "--shapes"); });
        EXPECT_TRUE(text.starts_with("bad value: --shapes: expected a number from 1 to 16777216, got `"))
            << bad << ": " << text;
        EXPECT_TRUE(text.ends_with("  hint: --shapes 4x64,1x1024 (rows x tokens)")) << text;
    }
}

TEST(BenchParse, CountsAndInstructionSets) {
    EXPECT_EQ(parse_counts("256,1024", "--tokens"), (std::vector<int64_t>{256, 1024}));
    EXPECT_EQ(
        complaint([] { parse_counts("256,many", "--tokens"); }),
        "bad value: --tokens: expected a number from 1 to 16777216, got `many`  hint: --tokens 256,1024");
    EXPECT_EQ(parse_isas("plain,auto", "--isas"), (std::vector<Isa>{Isa::plain, best_isa()}));
    EXPECT_NE(complaint([] { parse_isas("plain,avx9", "--isas"); }).find("got avx9  hint: "),
              std::string::npos);
}

TEST(BenchParse, Quantiles) {
    EXPECT_EQ(quantile({3, 1, 2}, 0.5), 2);
    EXPECT_EQ(quantile({3, 1, 2}, 0), 1);
    EXPECT_EQ(quantile({3, 1, 2}, 1), 3);
    EXPECT_EQ(quantile({5}, 0.9), 5);
    EXPECT_EQ(quantile({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, 0.1), 2);
    EXPECT_THROW(quantile({}, 0.5), InternalError);
}
