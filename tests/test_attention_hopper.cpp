// Attention's kernels for Hopper (TMA and wgmma), asked for by name so that the emulator runs them too:
// against the float64 twin, documents that begin and end inside of tiles, windows, any order of the threads.
#include "tests/attention_check.h"

namespace {

class AttentionHopper : public testing::Test {
protected:
    void SetUp() override { force_attention_kernel(AttentionKernel::wgmma); }
    void TearDown() override {
        force_attention_kernel(AttentionKernel::fastest);
        simt::set_seed(1);
    }
};

// Tiles are 128 tokens, or 64 of what a block walks over. One token, less than a tile, just one, several and
// a rest; windows within a tile, across two and of just one; more tiles than blocks, so that a block goes on
// with its rings.
const Case kHopperCases[] = {
    {{1}, 1, 1, 64},
    {{5, 1, 0, 70, 2}, 2, 1, 64},
    {{128}, 1, 1, 64},
    {{129, 200}, 2, 1, 64},
    {{700}, 1, 1, 64},
    {{140, 0, 250}, 1, 1, 64, 100},
    {{330}, 1, 1, 64, 7, 0.5f},
    {{300}, 1, 1, 64, 160},
    {{60, 1, 131}, 4, 2, 128},
    {{300}, 3, 1, 128},
    {{127, 65}, 1, 1, 128, 64},
    {{260}, 1, 1, 128, 129},
};
// bf16 rounds q, k, v, P and dS by 2^-9 each, as the other kernels do (test_attention.cpp).
constexpr double kRounding = 0.06;

TEST_F(AttentionHopper, MatchesTwin) {
    for (Device device : gpus()) {
        SCOPED_TRACE(device_name(device));
        expect_twin<bf16, bf16>(kHopperCases, MatmulMath::bf16, kRounding, {.device = device, .offset = 0});
    }
}

// What TMA cannot read, and heads of other sizes, take the other kernels.
TEST_F(AttentionHopper, LeavesTheRestToOthers) {
    const Case unaligned[] = {{{70, 3}, 2, 1, 64}}, other[] = {{{70, 3}, 1, 1, 96}, {{40}, 1, 1, 56}};
    for (Device device : gpus()) {
        SCOPED_TRACE(device_name(device));
        expect_twin<bf16, bf16>(unaligned, MatmulMath::bf16, kRounding, {device, 1});
        expect_twin<bf16, bf16>(unaligned, MatmulMath::bf16, kRounding, {device, 0, 1});
        expect_twin<bf16, bf16>(other, MatmulMath::bf16, kRounding, {device, 0});
    }
}

// Sums of other tiles, and so in another order, round to other bits somewhere: both passes run on both
// kernels.
TEST_F(AttentionHopper, IsWhatRuns) {
    for (const Case& c : {Case{{300}, 1, 1, 64}, Case{{300}, 1, 1, 128}}) {
        const Values qkv = normal_values(c.num_tokens() * c.wide(), 5);
        const Values dout = normal_values(c.num_tokens() * c.channels(), 6);
        for (Device device : gpus()) {
            SCOPED_TRACE(cat({device_name(device), " ", c.text()}));
            const auto outputs = [&](AttentionKernel kernel) {
                force_attention_kernel(kernel);
                return run<bf16>(c, qkv, dout, MatmulMath::bf16, {device, 0});
            };
            const Outputs<bf16> hopper = outputs(AttentionKernel::wgmma),
                                other = outputs(AttentionKernel::mma);
            EXPECT_FALSE(hopper.out.bytes() == other.out.bytes());
            EXPECT_FALSE(hopper.dqkv.bytes() == other.dqkv.bytes());
        }
    }
}

TEST_F(AttentionHopper, SameBitsAloneOrPacked) {
    for (Device device : gpus()) {
        SCOPED_TRACE(device_name(device));
        for (const Case& c : {Case{{31, 1, 130, 97}, 2, 1, 64}, Case{{49, 140, 3}, 1, 1, 128, 30}}) {
            expect_same_bits_alone<bf16>(c, MatmulMath::bf16, {device, 0});
        }
    }
}

// In any order of the threads, and with cu_seqlens filled up to a fixed length.
TEST_F(AttentionHopper, SameBitsAgain) {
    for (const Case& c : {Case{{35, 0, 290}, 2, 1, 64}, Case{{20, 200}, 2, 2, 128, 90}}) {
        const Values qkv = normal_values(c.num_tokens() * c.wide(), 5);
        const Values dout = normal_values(c.num_tokens() * c.channels(), 6);
        for (Device device : gpus()) {
            SCOPED_TRACE(cat({device_name(device), " ", c.text()}));
            const auto bytes = all_bytes(run<bf16>(c, qkv, dout, MatmulMath::bf16, {device, 0}));
            for (int64_t padding = 0; padding < 8; ++padding) {
                simt::set_seed(static_cast<uint64_t>(padding + 2));
                EXPECT_TRUE(all_bytes(run<bf16>(c, qkv, dout, MatmulMath::bf16, {device, 0, 0, padding})) ==
                            bytes)
                    << padding;
            }
        }
    }
}

TEST_F(AttentionHopper, NothingToDo) {
    for (const Case& c : {Case{{}, 2, 1, 64}, Case{{0, 0}, 2, 1, 128}}) {
        for (Device device : gpus()) run<bf16>(c, {}, {}, MatmulMath::bf16, {device, 0});
    }
}

TEST_F(AttentionHopper, TokensByThemselvesHaveNoScoreGradient) {
    for (Device device : gpus()) {
        SCOPED_TRACE(device_name(device));
        expect_no_score_gradient<bf16>({{1, 1, 1}, 2, 1, 64}, MatmulMath::bf16, {device, 0});
    }
}

// Neighbours in a box of TMA, before and behind.
TEST_F(AttentionHopper, NanStaysInItsDocument) {
    for (Device device : gpus()) {
        SCOPED_TRACE(device_name(device));
        for (const Case& c : {Case{{20, 30, 10}, 1, 1, 64}, Case{{100, 150, 30}, 1, 1, 128}}) {
            expect_nan_stays<bf16>(c, MatmulMath::bf16, device);
        }
    }
}

TEST_F(AttentionHopper, RescalesAnyRow) {
    for (Device device : gpus()) {
        SCOPED_TRACE(device_name(device));
        for (int64_t query : {128, 137, 150, 191, 192, 255}) {
            expect_rescaled<bf16>({{256}, 1, 1, 64}, 128, query, MatmulMath::bf16, 0.02, device);
        }
    }
}

// Scores of +-3e4 leave one key per query; exp must neither overflow nor make NaN of masked entries.
TEST_F(AttentionHopper, LargeScores) {
    const Case c{{170, 5}, 2, 1, 64, 139};
    const Values qkv = representable<bf16>(normal_values(c.num_tokens() * c.wide(), 9, 100));
    const Values dout = representable<bf16>(normal_values(c.num_tokens() * c.channels(), 10));
    const Twin expected = twin(c, qkv, dout);
    for (Device device : gpus()) {
        expect_close(run<bf16>(c, qkv, dout, MatmulMath::bf16, {device, 0}).out.values(), expected.out, 0.01,
                     "out");
    }
}

}  // namespace
