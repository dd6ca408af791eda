// Errors, tensors, batches and the self backend.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>

#include "core/batch.h"
#include "core/error.h"
#include "core/tensor.h"

TEST(Error, PiecesPrintInFull) {
    EXPECT_EQ(cat({"n=", 5, ' ', 0.1, ' ', int64_t{-7}, ' ', 1e300, std::string(" s")}),
              "n=5 0.1 -7 1e+300 s");
}

TEST(Error, ComplaintLeavesOutEmptyFields) {
    const auto text = [](const Complaint& complaint) -> std::string {
        try {
            fail_input(complaint);
        } catch (const InputError& error) {
            return error.what();
        }
    };
    EXPECT_EQ(text({"bad shard", "x.bin byte 8", "version 1", "version 2", "rebuild it"}),
              "bad shard: x.bin byte 8: expected version 1, got version 2  hint: rebuild it");
    EXPECT_EQ(text({.what = "bad"}), "bad");
    EXPECT_EQ(text({.what = "bad", .actual = "y"}), "bad: got y");
    EXPECT_EQ(text({.what = "bad", .expected = "x"}), "bad: expected x");
}

TEST(Error, CheckNamesExpressionAndValues) {
    const int n = 3;
    try {
        CHECK(n > 4, cat({"n=", n}));
        FAIL();
    } catch (const InternalError& error) {
        EXPECT_NE(std::string(error.what()).find("CHECK(n > 4) failed: n=3"), std::string::npos)
            << error.what();
        EXPECT_NE(std::string(error.what()).find("test_core.cpp:"), std::string::npos) << error.what();
    }
}

namespace {

// Runs `body` under run_main in a child; gtest compares its exit code and stderr.
[[noreturn]] void exit_from(int (*body)(int, char**)) {
    char name[] = "program";
    char* argv[] = {name, nullptr};
    std::exit(run_main(1, argv, body));
}

}  // namespace

TEST(ErrorDeathTest, RunMainTurnsExceptionsIntoExitCodes) {
    using testing::ExitedWithCode;
    EXPECT_EXIT(exit_from([](int, char**) { return 0; }), ExitedWithCode(0), "^$");
    EXPECT_EXIT(exit_from([](int, char**) { return 7; }), ExitedWithCode(7), "^$");
    EXPECT_EXIT(exit_from([](int, char**) -> int { fail_input({.what = "bad\nfile", .hint = "mend it"}); }),
                ExitedWithCode(2), "^error: bad file  hint: mend it\n$");
    EXPECT_EXIT(exit_from([](int, char**) -> int {
                    CHECK(1 > 2, "no");
                    return 0;
                }),
                ExitedWithCode(1), "^internal error: .*CHECK.1 > 2. failed: no\n$");
    EXPECT_EXIT(exit_from([](int, char**) -> int { throw std::runtime_error("odd"); }), ExitedWithCode(1),
                "^internal error: odd\n$");
    EXPECT_EXIT(exit_from([](int, char**) -> int { throw std::bad_alloc(); }), ExitedWithCode(1),
                "^error: out of memory");
    EXPECT_EXIT(exit_from([](int, char**) -> int { throw 5; }), ExitedWithCode(1), "^internal error: ");
}

TEST(ErrorDeathTest, RunMainDoesNotTakeAFullDiskForSuccess) {
    const auto print = [](const char* mode) {
        if (std::freopen("/dev/full", "w", stdout) == nullptr) std::exit(99);
        std::setvbuf(stdout, nullptr, *mode == 'u' ? _IONBF : _IOFBF, 4096);
        exit_from([](int, char**) {
            std::puts("the result");
            return 0;
        });
    };
    const char* const kLine = "^error: cannot write to standard output: .*  hint: free some space.*\n$";
    EXPECT_EXIT(print("buffered"), testing::ExitedWithCode(2), kLine);
    EXPECT_EXIT(print("unbuffered"), testing::ExitedWithCode(2), kLine) << "failed before the end";
}

TEST(Tensor, ShapesAndViews) {
    float data[24] = {};
    const Tensor t = tensor_of(data, 4, 6);
    EXPECT_EQ(t.size(), 24);
    EXPECT_EQ(t.bytes(), 96);
    EXPECT_EQ(shape_text(t), "f32[4,6]");
    EXPECT_EQ(t.rows(1, 2).as<float>(), data + 6);
    EXPECT_EQ(shape_text(t.rows(1, 2)), "f32[2,6]");
    EXPECT_EQ(t.rows(4, 0).size(), 0);
    EXPECT_EQ(shape_text(t.view(2, 3, 4)), "f32[2,3,4]");
    EXPECT_EQ(t.view(24).data, data);
    EXPECT_EQ(tensor_of(data, 0, 6).size(), 0);
    EXPECT_FALSE(tensor_of(data, 0).absent());
    EXPECT_TRUE(Tensor{}.absent());
    EXPECT_EQ(Tensor{}.size(), 0);
    EXPECT_EQ(shape_text(tensor_of(static_cast<const bf16*>(nullptr), 2, 3, 4, 5)), "bf16[2,3,4,5]");
}

TEST(Tensor, MistakesAreInternalErrors) {
    float data[24] = {};
    const Tensor t = tensor_of(data, 4, 6);
    EXPECT_THROW(t.as<bf16>(), InternalError);
    EXPECT_THROW(t.rows(3, 2), InternalError);
    EXPECT_THROW(t.rows(-1, 2), InternalError);
    EXPECT_THROW(t.rows(1, std::numeric_limits<int64_t>::max()), InternalError);
    EXPECT_THROW(t.view(5, 5), InternalError);
    EXPECT_THROW(tensor_of(data, -1), InternalError);
    EXPECT_THROW(tensor_of(data, 2, -1, 3), InternalError);
    EXPECT_THROW(tensor_of(data, 2, -2), InternalError);
}

TEST(Tensor, Bf16RoundsToNearestEvenAndKeepsNan) {
    EXPECT_EQ(to_float(to_bf16(1.00390625f)), 1.0f);       // 1 + 2^-8: a tie, to even
    EXPECT_EQ(to_float(to_bf16(1.01171875f)), 1.015625f);  // 1 + 3 * 2^-8: a tie, to even
    EXPECT_EQ(to_float(to_bf16(std::nextafter(1.00390625f, 2.0f))), 1.0078125f);
    EXPECT_TRUE(std::isinf(to_float(to_bf16(std::numeric_limits<float>::max()))));
    EXPECT_TRUE(std::isnan(to_float(to_bf16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(Buffer, IsZeroedAlignedAndMovable) {
    for (const int64_t bytes :
         {int64_t{1}, int64_t{64}, int64_t{4097}, int64_t{2} << 20, (int64_t{5} << 20) + 3}) {
        Buffer buffer(bytes);
        EXPECT_EQ(buffer.bytes(), bytes);
        EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
        unsigned char* const data = static_cast<unsigned char*>(buffer.data());
        int64_t not_zero = 0;
        for (int64_t i = 0; i < bytes; ++i) not_zero += data[i] != 0;
        EXPECT_EQ(not_zero, 0) << bytes;
        data[bytes - 1] = 9;
        Buffer other(std::move(buffer));
        EXPECT_EQ(buffer.data(), nullptr);
        buffer = std::move(other);
        EXPECT_EQ(static_cast<unsigned char*>(buffer.data())[bytes - 1], 9);
        EXPECT_EQ(other.bytes(), 0);
    }
    EXPECT_EQ(Buffer(0).data(), nullptr);
    EXPECT_THROW(Buffer(-1), InternalError);
}

TEST(Buffer, AnImpossibleSizeIsAnInputError) { EXPECT_THROW(Buffer(int64_t{1} << 60), InputError); }

TEST(Batch, DocumentsStartAtRowsAndAtEndOfText) {
    Batch batch;
    batch.num_rows = 2;
    batch.seq_len = 4;
    batch.tokens = {5, 9, 6, 9, 9, 7, 7, 9};
    set_document_bounds(batch, 9);
    EXPECT_EQ(batch.positions, (std::vector<int32_t>{0, 0, 1, 0, 0, 1, 2, 0}));
    EXPECT_EQ(batch.cu_seqlens, (std::vector<int32_t>{0, 1, 3, 4, 7, 8}));
    for (const auto& [eot, mask] : {std::pair{-1, true}, std::pair{9, false}}) {
        set_document_bounds(batch, eot, mask);
        EXPECT_EQ(batch.positions, (std::vector<int32_t>{0, 1, 2, 3, 0, 1, 2, 3}));
        EXPECT_EQ(batch.cu_seqlens, (std::vector<int32_t>{0, 4, 8}));
    }
    batch.seq_len = 3;
    EXPECT_THROW(set_document_bounds(batch, 9), InternalError);
    batch = {};
    set_document_bounds(batch, 9);
    EXPECT_EQ(batch.cu_seqlens, (std::vector<int32_t>{0}));
}
