// Attention against a float64 twin (forward, log-sum-exp, backward), the twin's backward against finite
// differences, packed documents and any number of threads bit for bit, decoding against the forward pass.
#include "kernels/attention.h"

#include "tests/attention_check.h"

namespace {

const Case kCases[] = {
    {{1}, 1, 1, 8},
    {{7}, 2, 2, 8},
    {{13}, 4, 1, 24},
    {{97}, 2, 2, 64},
    {{193}, 1, 1, 64},
    {{101}, 4, 4, 40},
    {{61}, 8, 2, 80},
    {{53}, 3, 1, 128},
    {{50}, 2, 1, 256},
    {{5, 1, 1, 40, 2}, 4, 2, 16},
    {{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 2, 1, 32},
    {{0, 3, 0, 0, 110, 0}, 2, 2, 24},
    {{130}, 2, 2, 32, 1},
    {{200, 31}, 2, 1, 16, 5},
    {{230}, 1, 1, 64, 100},
    {{66}, 2, 2, 48, 66},
    {{35}, 2, 2, 72, 0, 0.5f},
    {{389, 17}, 1, 1, 8},
};

TEST(Attention, TwinGradientIsTheDerivative) {
    for (const Case& c : {Case{{3, 5}, 4, 2, 8}, Case{{6}, 2, 2, 8, 3}, Case{{4}, 2, 1, 8, 0, 0.7f}}) {
        SCOPED_TRACE(c.text());
        const Values qkv = normal_values(c.num_tokens() * c.wide(), 3);
        const Values dout = normal_values(c.num_tokens() * c.channels(), 4);
        const Values numeric =
            numeric_gradient([&](const Values& x) { return dot(twin(c, x, dout).out, dout); }, qkv);
        expect_close(twin(c, qkv, dout).dqkv, numeric, 1e-6, "dqkv");
    }
}

// f32: sums of up to 400 products and a 2^x good to 1 ulp; errors of a few 1e-6 relative to the tensor's rms.
TEST(Attention, MatchesTwinF32) {
    for_each_isa([] { expect_twin<float, float>(kCases, MatmulMath::f32, 2e-5); });
}
// bf16 carries 8 bits: relative rounding 2^-9 = 0.002 for each of q, k, v, P, dS and the result. Scores of
// order 3 move by 0.01, so P does too; five such errors in a row stay below 0.06 of the rms.
TEST(Attention, MatchesTwinBf16) {
    for_each_isa([] { expect_twin<bf16, bf16>(kCases, MatmulMath::bf16, 0.06); });
}
TEST(Attention, MatchesTwinF32TensorsBf16Products) {
    for_each_isa([] { expect_twin<float, bf16>(kCases, MatmulMath::bf16, 0.06); });
}

// ---- on GPUs: every compiled head size, with several tiles of queries and of keys whoever walks over them
// ----

const Case kTensorCoreCases[] = {
    {{1}, 1, 1, 8},
    {{389, 17}, 1, 1, 8},
    {{5, 1, 1, 40, 2}, 4, 2, 16},
    {{0, 3, 0, 0, 110, 0}, 2, 1, 24},
    {{130}, 2, 2, 32, 2},
    {{270}, 1, 1, 64},
    {{61, 190}, 2, 1, 40, 63},
    {{70, 1, 131}, 1, 1, 80},
    {{35}, 2, 2, 72, 0, 0.5f},
    {{33, 170}, 1, 1, 128, 95},
    {{40}, 3, 1, 104},
    {{135}, 1, 1, 256},
    {{20, 90}, 2, 1, 200, 30},
};
const Case kF32Cases[] = {
    {{1}, 1, 1, 8},       {{5, 1, 1, 40, 2}, 4, 2, 16}, {{0, 3, 0, 0, 140, 0}, 1, 1, 24},
    {{70}, 2, 1, 64, 20}, {{70, 11}, 1, 1, 72},         {{40}, 4, 2, 128, 20, 0.5f},
    {{40, 3}, 2, 1, 256}, {{35}, 2, 2, 136, 34},
};
const Case kConvertedCases[] = {
    {{100, 41}, 1, 1, 24}, {{135}, 1, 1, 64}, {{80}, 1, 1, 96, 33}, {{70}, 2, 1, 128}, {{70}, 1, 1, 256},
};
const Case kUnalignedCases[] = {{{70, 3}, 2, 1, 40}, {{33}, 1, 1, 104, 7}, {{19}, 1, 1, 136}};

template <class T, class Operand, class Cases>
void expect_twin_on_gpus(const Cases& cases, MatmulMath math, double tolerance) {
    for (Device device : gpus()) {
        SCOPED_TRACE(device_name(device));
        expect_twin<T, Operand>(cases, math, tolerance, {.device = device, .offset = 0});
        expect_twin<T, Operand>(kUnalignedCases, math, tolerance, {.device = device, .offset = 1});
    }
}
TEST(Attention, GpuMatchesTwinF32) { expect_twin_on_gpus<float, float>(kF32Cases, MatmulMath::f32, 2e-5); }
TEST(Attention, GpuMatchesTwinBf16) {
    expect_twin_on_gpus<bf16, bf16>(kTensorCoreCases, MatmulMath::bf16, 0.06);
}
TEST(Attention, GpuMatchesTwinF32TensorsBf16Products) {
    expect_twin_on_gpus<float, bf16>(kConvertedCases, MatmulMath::bf16, 0.06);
}

TEST(Attention, SameBitsForAnyThreads) {
    for (const Case& c : {Case{{700, 3, 200}, 2, 2, 16}, Case{{300, 40}, 6, 2, 24, 77}}) {
        SCOPED_TRACE(c.text());
        const Values qkv = normal_values(c.num_tokens() * c.wide(), 5);
        const Values dout = normal_values(c.num_tokens() * c.channels(), 6);
        for_each_isa([&] {
            expect_same_bits_for_any_threads(
                [&] { return all_bytes(run<float>(c, qkv, dout, MatmulMath::f32)); });
            expect_same_bits_for_any_threads(
                [&] { return all_bytes(run<bf16>(c, qkv, dout, MatmulMath::bf16)); });
        });
    }
}

TEST(Attention, SameBitsAloneOrPacked) {
    for (const Case& c : {Case{{31, 1, 250, 97, 2, 96, 1}, 4, 2, 24}, Case{{130, 49, 300}, 2, 2, 64, 60}}) {
        SCOPED_TRACE(c.text());
        for_each_isa([&] {
            expect_same_bits_alone<float>(c, MatmulMath::f32);
            expect_same_bits_alone<float>(c, MatmulMath::bf16);
            expect_same_bits_alone<bf16>(c, MatmulMath::bf16);
        });
    }
}

TEST(Attention, GpuSameBitsAloneOrPacked) {
    for (Device device : gpus()) {
        SCOPED_TRACE(device_name(device));
        const Case narrow{{31, 1, 97, 2, 96, 1}, 2, 1, 24}, wide{{49, 70}, 1, 1, 128, 30};
        expect_same_bits_alone<float>(narrow, MatmulMath::f32, {device, 0});
        expect_same_bits_alone<bf16>(narrow, MatmulMath::bf16, {device, 0});
        expect_same_bits_alone<bf16>(wide, MatmulMath::bf16, {device, 0});
    }
}

// Also in other orders of the threads, at other addresses, and with cu_seqlens filled up to a fixed length.
template <class T>
void expect_same_bits_again(const Case& c, MatmulMath math, Device device) {
    const Values qkv = normal_values(c.num_tokens() * c.wide(), 5);
    const Values dout = normal_values(c.num_tokens() * c.channels(), 6);
    const auto bytes = all_bytes(run<T>(c, qkv, dout, math, {device, 0}));
    for (int64_t padding : {1, 1200}) {
        simt::set_seed(static_cast<uint64_t>(padding));
        EXPECT_TRUE(all_bytes(run<T>(c, qkv, dout, math, {device, 0, 0, padding})) == bytes) << padding;
    }
    EXPECT_TRUE(all_bytes(run<T>(c, qkv, dout, math, {device, 0, 1})) == bytes) << "unaligned qkv";
    EXPECT_TRUE(all_bytes(run<T>(c, qkv, dout, math, {device, 1, 0})) == bytes) << "unaligned others";
}
TEST(Attention, GpuSameBitsAgain) {
    for (Device device : gpus()) {
        SCOPED_TRACE(device_name(device));
        const Case c{{35, 1, 0, 30}, 2, 1, 24, 20};
        expect_same_bits_again<float>(c, MatmulMath::f32, device);
        expect_same_bits_again<float>(c, MatmulMath::bf16, device);
        expect_same_bits_again<bf16>(c, MatmulMath::bf16, device);
    }
}
// More documents than one look of a warp tells apart, and more of them in a tile.
TEST(Attention, GpuFindsAnyOfManyDocuments) {
    Case many{{}, 1, 1, 8}, long_last{std::vector<int32_t>(66, 1), 1, 1, 8};
    for (int32_t i = 0; i < 120; ++i) many.lengths.push_back(i % 7 == 3 ? 9 : i % 3 == 0);
    long_last.lengths.push_back(150);
    for (Device device : gpus()) {
        SCOPED_TRACE(device_name(device));
        expect_twin<bf16, bf16>(std::vector<Case>{many}, MatmulMath::bf16, 0.06, {device, 0, 0, 1000});
        expect_twin<float, float>(std::vector<Case>{many}, MatmulMath::f32, 2e-5, {device, 0, 0, 1000});
        expect_twin<bf16, bf16>(std::vector<Case>{long_last}, MatmulMath::bf16, 0.06, {device, 0});
    }
}

TEST(Attention, NothingToDo) {
    for (const Case& c : {Case{{}, 2, 1, 8}, Case{{0, 0}, 2, 1, 8}}) {
        run<float>(c, {}, {}, MatmulMath::f32);
        for (Device device : gpus()) {
            run<float>(c, {}, {}, MatmulMath::f32, {device});
            run<bf16>(c, {}, {}, MatmulMath::bf16, {device});
        }
    }
}

// Scores of +-3e4 leave one key per query; exp must neither overflow nor make NaN of masked entries.
TEST(Attention, LargeScores) {
    const Case c{{70, 5}, 2, 1, 16, 9};
    Values qkv = representable<float>(normal_values(c.num_tokens() * c.wide(), 9, 150));
    const Values dout = representable<float>(normal_values(c.num_tokens() * c.channels(), 10));
    const Twin expected = twin(c, qkv, dout);
    for_each_isa([&] {
        // Scores of 3e4 have an f32 spacing of 2^-9; where two keys tie to that, P moves by as much.
        expect_close(run<float>(c, qkv, dout, MatmulMath::f32).out.values(), expected.out, 0.01, "out");
    });
    const Values rounded_qkv = representable<bf16>(qkv);
    const Twin rounded = twin(c, rounded_qkv, dout);
    for (Device device : gpus()) {
        expect_close(run<float>(c, qkv, dout, MatmulMath::f32, {device}).out.values(), expected.out, 0.01,
                     "out");
        expect_close(run<bf16>(c, rounded_qkv, dout, MatmulMath::bf16, {device}).out.values(), rounded.out,
                     0.01, "out");
    }
}

TEST(Attention, GpuRescalesAnyRow) {
    const Case c{{100}, 1, 1, 8};
    for (Device device : gpus()) {
        for (int64_t query : {64, 73, 80, 99}) {
            expect_rescaled<bf16>(c, 64, query, MatmulMath::bf16, 0.02, device);
            expect_rescaled<float>(c, 64, query, MatmulMath::f32, 2e-5, device);
        }
    }
}

TEST(Attention, TokensByThemselvesHaveNoScoreGradient) {
    const Case c{{1, 1, 1}, 2, 1, 72};
    std::vector<Device> devices = gpus();
    devices.push_back(Device::cpu);
    for (Device device : devices) {
        SCOPED_TRACE(device_name(device));
        expect_no_score_gradient<float>(c, MatmulMath::f32, {device});
        expect_no_score_gradient<float>(c, MatmulMath::bf16, {device});
        expect_no_score_gradient<bf16>(c, MatmulMath::bf16, {device});
    }
}

TEST(Attention, NanReachesEveryLaterTokenOfItsDocumentOnly) {
    const Case c{{50, 120}, 1, 1, 8};
    for (int64_t poisoned :
         {0, 8, 16}) {  // a query, a key, a value of token 60, which is the second document's 10th
        Values qkv = normal_values(c.num_tokens() * c.wide(), 11);
        qkv[static_cast<size_t>(60 * c.wide() + poisoned)] = NAN;
        const Values dout = normal_values(c.num_tokens() * c.channels(), 12);
        for_each_isa([&] {
            const Values out = run<float>(c, qkv, dout, MatmulMath::f32).out.values();
            const auto has_nan = [&](int64_t token) {
                const auto row = out.begin() + token * c.channels();
                return std::any_of(row, row + c.channels(), [](double x) { return std::isnan(x); });
            };
            EXPECT_TRUE(has_nan(60));
            for (int64_t n = 0; n < 50; ++n) EXPECT_FALSE(has_nan(n)) << n;
            for (int64_t n = 61; n < 170 && poisoned > 0; ++n) EXPECT_TRUE(has_nan(n)) << n;
        });
    }
}

TEST(Attention, GpuNanStaysInItsDocument) {
    for (Device device : gpus()) {
        SCOPED_TRACE(device_name(device));
        for (const Case& c : {Case{{20, 30, 10}, 1, 1, 8}, Case{{3, 12, 4}, 1, 1, 72}}) {
            expect_nan_stays<float>(c, MatmulMath::f32, device);
            expect_nan_stays<float>(c, MatmulMath::bf16, device);
            expect_nan_stays<bf16>(c, MatmulMath::bf16, device);
        }
    }
}

// The last n rows of a forward pass, computed from a cache. Both sum in f32, in other orders and, for bf16
// tensors, with or without rounding P: tolerances as against the twin.
template <class T>
void expect_cached_like_forward(std::initializer_list<Case> cases, double tolerance,
                                const Place& place = {}) {
    for (const Case& c : cases) {
        const int64_t total = c.num_tokens(), kv = c.num_kv_heads * c.dim;
        const Values qkv_values = representable<T>(normal_values(total * c.wide(), 13));
        const Values expected = twin(c, qkv_values, Values(static_cast<size_t>(total * c.channels()))).out;
        const Guarded<T> k((total + 2) * kv, place.offset), v((total + 2) * kv, place.offset);  // two unused
        for (int64_t n = 0; n < total; ++n) {
            for (int64_t i = 0; i < kv; ++i) {
                k[n * kv + i] = rounded<T>(qkv_values[n * c.wide() + c.channels() + i]);
                v[n * kv + i] = rounded<T>(qkv_values[n * c.wide() + c.channels() + kv + i]);
            }
        }
        for (int64_t n : {int64_t{0}, int64_t{1}, int64_t{3}, int64_t{9}, int64_t{16}, total}) {
            if (n > total) continue;
            SCOPED_TRACE(c.text() + cat({" n=", n}));
            const Guarded<T> qkv(Values(qkv_values.end() - n * c.wide(), qkv_values.end()), place.offset);
            const Guarded<T> out(n * c.channels(), place.offset);
            OnDevice on(place.device);
            attention_cached(on(out.tensor(n, c.channels())), on(qkv.tensor(n, c.wide())),
                             on(k.tensor(total + 2, kv)), on(v.tensor(total + 2, kv)), total - n, c.shape());
            on.fetch();
            expect_close(out.values(), Values(expected.end() - n * c.channels(), expected.end()), tolerance,
                         "out");
        }
    }
}
TEST(Attention, CachedMatchesTwin) {
    const std::initializer_list<Case> cases = {{{150}, 4, 2, 64}, {{37}, 8, 1, 24}, {{300}, 2, 2, 128, 33},
                                               {{20}, 18, 2, 8},  {{9}, 1, 1, 80},  {{90}, 3, 3, 256}};
    for_each_isa([&] {
        expect_cached_like_forward<float>(cases, 2e-5);
        expect_cached_like_forward<bf16>(cases, 0.06);
    });
}
// Three rounds of the block over the keys: 4 keys a thread at a time, 32 threads for a head of 256, 4 for 32.
TEST(Attention, GpuCachedMatchesTwin) {
    const std::initializer_list<Case> cases = {{{70}, 1, 1, 256},
                                               {{150}, 2, 1, 64, 133},
                                               {{140}, 2, 2, 128, 33},
                                               {{20}, 18, 2, 8},
                                               {{50}, 6, 1, 64}};
    const std::initializer_list<Case> unaligned = {{{70}, 3, 1, 40}, {{30}, 1, 1, 96}};
    for (Device device : gpus()) {
        SCOPED_TRACE(device_name(device));
        expect_cached_like_forward<float>(cases, 2e-5, {device, 0});
        expect_cached_like_forward<bf16>(cases, 0.06, {device, 0});
        expect_cached_like_forward<float>(unaligned, 2e-5, {device, 1});
        expect_cached_like_forward<bf16>(unaligned, 0.06, {device, 1});
    }
}

TEST(Attention, RefusesWrongArguments) {
    float memory[64] = {};
    int32_t bounds[] = {0, 2};
    const Tensor qkv = tensor_of(memory, 2, 24), out = tensor_of(memory, 2, 8), lse = tensor_of(memory, 1, 2);
    const auto message = [&](const Tensor& o, const Tensor& cu, const AttentionShape& shape) {
        return check_failure([&] { attention_forward(o, lse, qkv, cu, shape, MatmulMath::f32); });
    };
    const Tensor cu = tensor_of(bounds, 2);
    expect_mentions(message(tensor_of(memory, 2, 16), cu, {1, 1}), {"attention_forward", "out", "f32[2,16]"});
    expect_mentions(message(out, cu, {3, 2}), {"num_heads", "3"});
    expect_mentions(message(out, cu, {1, 1, -1}), {"window", "-1"});
    bounds[1] = 3;
    expect_mentions(message(out, cu, {1, 1}), {"cu_seqlens", "3"});
    bounds[1] = 2;
    const Tensor small = make_tensor(memory, DType::u8, 16);
    expect_mentions(check_failure([&] {
                        attention_backward(qkv, out, out, lse, qkv, cu, {1, 1}, MatmulMath::f32, small);
                    }),
                    {"attention_backward", "scratch"});
    for (Device device : gpus()) {
        OnDevice on(device);
        const Tensor lots = on(tensor_of(memory, 64));
        const auto part = [&](DType dtype, int64_t d0, int64_t d1 = -1) {
            Tensor t = make_tensor(lots.data, dtype, d0, d1);
            t.device = device;
            return t;
        };
        const Tensor rows = part(DType::f32, 2, 8), wide = part(DType::f32, 2, 24);
        const Tensor two = part(DType::f32, 1, 2), seqlens = part(DType::i32, 2);
        expect_mentions(check_failure([&] {
                            attention_backward(wide, rows, rows, two, wide, seqlens, {1, 1}, MatmulMath::f32,
                                               part(DType::u8, 7));
                        }),
                        {"attention_backward", "scratch", "8 bytes"});
        expect_mentions(check_failure([&] {
                            attention_forward(rows, lse, wide, seqlens, {1, 1}, MatmulMath::f32);
                        }),
                        {"attention_forward", "lse", "another device"});
    }
}

}  // namespace
