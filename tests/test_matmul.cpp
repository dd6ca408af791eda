// The matrix products against double twins: every layout, every mix of dtypes, every instruction set, shapes
// that divide nothing; epilogues, accumulation, gradients, and the promise of equal bits. On GPUs:
// test_matmul_gpu.cpp.
#include "kernels/matmul.h"

#include "kernels/fma_peak.h"
#include "kernels/matmul_scratch.h"
#include "tests/matmul_check.h"

namespace {

// One of everything; primes below and above a tile; several blocks of the inner dimension in each of the
// three products; several strips; a batch wider than one shared chunk.
constexpr Shape kShapes[] = {{1, 1, 1},    {1, 7, 5},    {5, 1, 3},    {3, 67, 1},
                             {8, 48, 48},  {17, 31, 53}, {97, 131, 2}, {1, 801, 211},
                             {50, 803, 7}, {7, 13, 809}, {800, 9, 51}, {1201, 5, 7}};

TEST(Matmul, EveryLayoutDtypeAndShapeEqualsItsTwin) {
    for_each_isa([] {
        for (const Shape& s : kShapes) {
            check_all_dtypes<float>(s);
            check_all_dtypes<bf16>(s);
        }
    });
}

// The inner dimension does not fit the scratch at once: operands come in phases and sums are kept between.
template <class T>
void check_phases(const Shape& s, const Values& x, const Values& w, const Values& expected) {
    const Guarded<T> x_data(x), w_data(w);
    Guarded<T> out(s.tokens * s.outputs);
    matmul_forward(out.tensor(s.tokens, s.outputs), x_data.tensor(s.tokens, s.inputs),
                   w_data.tensor(s.outputs, s.inputs));
    // 1e-4: the chain of additions is up to 50 times longer than in the other tests, see kTolerance.
    expect_close(out.values(), expected, std::max(kTolerance<T>, 1e-4), dtype_name(dtype_of<T>()));
}
TEST(Matmul, LongInnerDimensionGoesInPhases) {
    const Shape s{50, 44'501, 51};
    const Values x = representable<bf16>(normal_values(s.tokens * s.inputs, 1)),
                 w = representable<bf16>(normal_values(s.outputs * s.inputs, 2)),
                 expected = twin_forward(s, x, w);
    for_each_isa([&] {
        check_phases<float>(s, x, w, expected);
        check_phases<bf16>(s, x, w, expected);
    });
}

// Wider and longer than everything that is packed or kept at once, against the same product in pieces that
// are not (those equal their twins above). Bit for bit.
TEST(Matmul, LargeProductEqualsItsPieces) {
    for (const Shape& s : {Shape{1201, 2001, 1213}, Shape{1201, 5, 1213}}) {
        const Guarded<float> x(normal_values(s.tokens * s.inputs, 1)),
            w(normal_values(s.outputs * s.inputs, 2));
        Guarded<float> whole(s.tokens * s.outputs), pieces(s.tokens * s.outputs);
        const Tensor x_all = x.tensor(s.tokens, s.inputs), weight = w.tensor(s.outputs, s.inputs);
        matmul_forward(whole.tensor(s.tokens, s.outputs), x_all, weight);
        for (int64_t n = 0; n < s.tokens; n += 50) {
            const int64_t count = std::min<int64_t>(50, s.tokens - n);
            matmul_forward(pieces.tensor(s.tokens, s.outputs).rows(n, count), x_all.rows(n, count), weight);
        }
        EXPECT_TRUE(whole.bytes() == pieces.bytes());
    }
}

// A large aligned weight gradient is written past the caches, an unaligned one is not.
TEST(Matmul, LargeWeightGradient) {
    const Shape s{19, 800, 1003};
    for_each_isa([&] {
        const Guarded<float> d(normal_values(s.tokens * s.outputs, 1)),
            x(normal_values(s.tokens * s.inputs, 2));
        Guarded<float> aligned(s.outputs * s.inputs), unaligned(s.outputs * s.inputs, 1);
        for (Guarded<float>* dweight : {&aligned, &unaligned}) {
            matmul_backward_weight(dweight->tensor(s.outputs, s.inputs), {}, d.tensor(s.tokens, s.outputs),
                                   x.tensor(s.tokens, s.inputs), false);
        }
        EXPECT_TRUE(aligned.bytes() == unaligned.bytes());
        expect_close(aligned.values(), twin_backward_weight(s, d.values(), x.values()), kTolerance<float>,
                     "dweight");
    });
}

TEST(Matmul, EmptyBatch) {
    for_each_isa([] { check_empty_batch(Device::cpu); });
}

TEST(Matmul, Epilogues) {
    for_each_isa([] {
        for (const Shape& s : {Shape{1, 7, 5}, Shape{17, 31, 53}, Shape{10, 803, 100}, Shape{64, 48, 96}}) {
            check_epilogues<float>(s);
            check_epilogues<bf16>(s);
            check_epilogues<bf16, float>(s);
            check_epilogues<float, bf16>(s);
        }
    });
}

TEST(Matmul, Accumulation) {
    for_each_isa([] {
        for (const Shape& s : {Shape{5, 7, 3}, Shape{17, 53, 31}, Shape{803, 10, 100}, Shape{64, 96, 48}}) {
            check_accumulation<float>(s);
            check_accumulation<bf16>(s);
        }
    });
}

TEST(Matmul, GeneralScalesAndAdds) {
    for_each_isa([] { check_scaled_sum<float>({19, 23, 101}); });
}

// loss = sum(dout * (x w^T + b)): its numeric gradients against the backward products.
TEST(Matmul, GradientsAreThoseOfForward) {
    const Shape s{3, 5, 4};
    const Values x = representable<float>(normal_values(s.tokens * s.inputs, 1)),
                 w = representable<float>(normal_values(s.outputs * s.inputs, 2)),
                 d = representable<float>(normal_values(s.tokens * s.outputs, 3)),
                 bias = representable<float>(normal_values(s.outputs, 4));
    const auto loss = [&](const Values& x_, const Values& w_, const Values& bias_) {
        Values out = twin_forward(s, x_, w_);
        for (size_t i = 0; i < out.size(); ++i) out[i] += bias_[i % bias_.size()];
        return dot(d, out);
    };
    const Guarded<float> x_data(x), w_data(w), d_data(d);
    Guarded<float> dinp(s.tokens * s.inputs), dweight(s.outputs * s.inputs), dbias(s.outputs);
    matmul_backward_input(dinp.tensor(s.tokens, s.inputs), d_data.tensor(s.tokens, s.outputs),
                          w_data.tensor(s.outputs, s.inputs));
    matmul_backward_weight(dweight.tensor(s.outputs, s.inputs), dbias.tensor(),
                           d_data.tensor(s.tokens, s.outputs), x_data.tensor(s.tokens, s.inputs), false);
    // f32 rounding of sums of five terms; the loss is linear, so the differences are exact to ~1e-11.
    const double tolerance = 1e-6;
    expect_close(dinp.values(), numeric_gradient([&](const Values& v) { return loss(v, w, bias); }, x),
                 tolerance, "dinp");
    expect_close(dweight.values(), numeric_gradient([&](const Values& v) { return loss(x, v, bias); }, w),
                 tolerance, "dweight");
    expect_close(dbias.values(), numeric_gradient([&](const Values& v) { return loss(x, w, v); }, bias),
                 tolerance, "dbias");
}

// And through the fused GELU: gelu(x) enters a product, gelu_pre = x comes back out of it.
TEST(Matmul, FusedGeluGradient) {
    const Shape s{3, 5, 4};
    const Values pre = representable<float>(normal_values(s.tokens * s.inputs, 1)),
                 w = representable<float>(normal_values(s.outputs * s.inputs, 2)),
                 d = representable<float>(normal_values(s.tokens * s.outputs, 3));
    const auto loss = [&](Values x) {
        for (double& v : x) v = twin_gelu(v);
        return dot(d, twin_forward(s, x, w));
    };
    for_each_isa([&] {
        const Guarded<float> pre_data(pre), w_data(w), d_data(d);
        Guarded<float> dpre(s.tokens * s.inputs);
        matmul_backward_input(dpre.tensor(s.tokens, s.inputs), d_data.tensor(s.tokens, s.outputs),
                              w_data.tensor(s.outputs, s.inputs), false, pre_data.tensor(s.tokens, s.inputs));
        expect_close(dpre.values(), numeric_gradient(loss, pre), 2e-6,
                     "dpre");  // gelu' errs by a few roundings
    });
}

TEST(Matmul, SameBitsForAnyNumberOfThreads) {
    for_each_isa([] {
        for (const Shape& s :
             {Shape{37, 101, 515}, Shape{2, 811, 30}, Shape{811, 64, 96}, Shape{50, 23'001, 51}}) {
            expect_same_bits_for_any_threads([&] { return all_products<float>(s); });
            expect_same_bits_for_any_threads([&] { return all_products<bf16>(s); });
        }
    });
}

TEST(Matmul, RowsDoNotDependOnTheirPlace) {
    for_each_isa([] {
        for (const Shape& s : {Shape{21, 35, 53}, Shape{61, 803, 19}}) {
            check_row_placement<float>(s);
            check_row_placement<bf16>(s);
        }
    });
}

TEST(Matmul, NotANumberStaysInItsRow) {
    const Shape s{9, 16, 5};
    for_each_isa([&] {
        Values x = normal_values(s.tokens * s.inputs, 1);
        x[static_cast<size_t>(4 * s.inputs)] = std::nan("");
        const Guarded<float> x_data(x), w_data(normal_values(s.outputs * s.inputs, 2));
        Guarded<float> out(s.tokens * s.outputs);
        matmul_forward(out.tensor(s.tokens, s.outputs), x_data.tensor(s.tokens, s.inputs),
                       w_data.tensor(s.outputs, s.inputs));
        for (int64_t i = 0; i < s.tokens * s.outputs; ++i)
            EXPECT_EQ(std::isnan(out[i]), i / s.outputs == 4) << i;
    });
}

TEST(Matmul, WrongArgumentsAreNamed) {
    const Guarded<float> data(normal_values(64, 1));
    expect_mentions(
        check_failure([&] { matmul_forward(data.tensor(2, 4), data.tensor(2, 8), data.tensor(4, 7)); }),
        {"matmul_forward", "weight", "[4,8]", "[4,7]"});
    expect_mentions(check_failure([&] {
                        matmul_backward_input(data.tensor(2, 4), data.tensor(3, 8), data.tensor(8, 4));
                    }),
                    {"matmul_backward_input", "dout", "[2,*]", "[3,8]"});
    const Guarded<bf16> half(64);
    expect_mentions(check_failure([&] {
                        matmul_backward_weight(half.tensor(4, 4), {}, data.tensor(2, 4), data.tensor(2, 4),
                                               false);
                    }),
                    {"matmul_backward_weight", "dweight", "f32", "bf16"});
    expect_mentions(
        check_failure(
            [&] { matmul_forward(data.tensor(2, 4), data.tensor(2, 8), data.tensor(4, 8), {.gelu = true}); }),
        {"matmul_forward", "pre_activation", "no tensor"});
}

TEST(Matmul, ScratchGrowsAndIsAligned) {
    float* small = matmul_scratch(MatmulScratch::partial, 16);
    small[15] = 1;
    float* large = matmul_scratch(MatmulScratch::partial, 1 << 20);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(large) % 64, 0u);
    large[(1 << 20) - 1] = 1;
    EXPECT_EQ(matmul_scratch(MatmulScratch::partial, 16), large) << "kept, not allocated again";
    EXPECT_GT(matmul_scratch_bytes(2), matmul_scratch_bytes(1));
}

TEST(FmaPeak, IsASpeed) {
    for_each_isa([] {
        // Any processor that runs this multiplies at more than 0.1 GFLOP/s and less than 1000 TFLOP/s.
        for (MatmulMath math : {MatmulMath::f32, MatmulMath::bf16}) {
            const double flops = fma_peak_flops(math, 1);
            EXPECT_GT(flops, 1e8);
            EXPECT_LT(flops, 1e15);
        }
    });
}

}  // namespace
