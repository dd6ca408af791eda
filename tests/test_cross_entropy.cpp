// Fused head and cross-entropy against a float64 twin, its gradients against finite differences, the
// chunking, and what must not be hidden (NaN).
#include "kernels/cross_entropy.h"

#include "tests/on_device.h"
#include "tests/op_check.h"

namespace {

struct Case {
    int64_t rows, channels, vocab;
};

struct Gradients {
    Values losses, dhidden, dweight;
};

// Sum of scale * loss over counted rows, and everything on the way there; with bf16 logits if need be.
Gradients twin(const Values& hidden, const Values& weight, const std::vector<int32_t>& targets, Case c,
               double scale, bool bf16_logits = false) {
    Gradients g{Values(targets.size()), Values(hidden.size()), Values(weight.size())};
    const auto channels = static_cast<size_t>(c.channels), vocab = static_cast<size_t>(c.vocab);
    for (size_t n = 0; n < targets.size(); ++n) {
        if (targets[n] < 0) continue;
        Values logits(vocab);
        for (size_t v = 0; v < vocab; ++v) {
            for (size_t i = 0; i < channels; ++i)
                logits[v] += hidden[n * channels + i] * weight[v * channels + i];
        }
        if (bf16_logits) logits = representable<bf16>(logits);
        const double top = *std::max_element(logits.begin(), logits.end());
        double sum = 0;
        for (double logit : logits) sum += std::exp(logit - top);
        g.losses[n] = std::log(sum) + top - logits[static_cast<size_t>(targets[n])];
        for (size_t v = 0; v < vocab; ++v) {
            const double share = std::exp(logits[v] - top) / sum;
            const double dlogit = scale * (share - (static_cast<int32_t>(v) == targets[n]));
            for (size_t i = 0; i < channels; ++i) {
                g.dhidden[n * channels + i] += dlogit * weight[v * channels + i];
                g.dweight[v * channels + i] += dlogit * hidden[n * channels + i];
            }
        }
    }
    return g;
}

template <class T>
struct HeadRun {
    Guarded<float> losses, dweight;
    Guarded<T> dhidden;

    HeadRun(const Values& hidden, const Values& weight, const std::vector<int32_t>& targets, Case c,
            float scale, MatmulMath math, bool gradients, const Values& dweight_before = {},
            Device device = Device::cpu)
        : losses(c.rows), dweight(c.vocab * c.channels), dhidden(c.rows * c.channels) {
        OnDevice on(device);
        Guarded<T> hidden_data(hidden, 1), weight_data(weight);
        Guarded<int32_t> target_data(Values(targets.begin(), targets.end()));
        Guarded<float> dloss_scale(Values{scale});
        Guarded<uint8_t> scratch(cross_entropy_scratch_bytes(c.rows, c.vocab, dtype_of<T>(), device));
        for (size_t i = 0; i < dweight_before.size(); ++i) {
            dweight[static_cast<int64_t>(i)] = static_cast<float>(dweight_before[i]);
        }
        cross_entropy(on(losses.tensor()), gradients ? on(dhidden.tensor(c.rows, c.channels)) : Tensor{},
                      gradients ? on(dweight.tensor(c.vocab, c.channels)) : Tensor{},
                      on(hidden_data.tensor(c.rows, c.channels)), on(weight_data.tensor(c.vocab, c.channels)),
                      on(target_data.tensor()), gradients ? on(dloss_scale.tensor()) : Tensor{},
                      !dweight_before.empty(), math, on(scratch.tensor()));
        on.fetch();
    }
};

template <class T>
void check_case(Case c, MatmulMath math, Device device = Device::cpu) {
    SCOPED_TRACE(cat({dtype_name(dtype_of<T>()), " ", c.rows, " rows, ", c.channels, " channels, vocabulary ",
                      c.vocab, " on ", device_name(device)}));
    const auto exact = [&](const Values& values) {  // in the product's operands
        return math == MatmulMath::bf16 ? representable<bf16>(values) : representable<T>(values);
    };
    const Values hidden = exact(normal_values(c.rows * c.channels, 1));
    const Values weight = exact(normal_values(c.vocab * c.channels, 2));
    std::vector<int32_t> targets = random_ids(c.rows, 0, static_cast<int32_t>(c.vocab), 3);
    for (size_t n = 1; n < targets.size(); n += 5) targets[n] = -1;
    const double scale = 0.125;
    const bool bf16_logits = device != Device::cpu && std::is_same_v<T, bf16>;
    const Gradients expected = twin(hidden, weight, targets, c, scale, bf16_logits);

    const HeadRun<T> run(hidden, weight, targets, c, scale, math, true, {}, device);
    // Logits are f32 sums over the channels in either math, because the inputs are exact in it. Where they
    // are rounded to bf16, an error of 1e-6 in the sum may push one in thousands to its other neighbour, 2^-8
    // off.
    expect_close(run.losses.values(), expected.losses, bf16_logits ? 1.0 / 256 : 2e-5, "losses");
    // With bf16 math dlogits round to bf16 (2^-9) on their way into the products, and dhidden once more.
    const double relative = math == MatmulMath::bf16 ? 1.0 / 64 : 3e-5;
    expect_close(run.dhidden.values(), expected.dhidden, relative, "dhidden");
    expect_close(run.dweight.values(), expected.dweight, relative, "dweight");

    const Values before = representable<float>(normal_values(c.vocab * c.channels, 4));
    const HeadRun<T> added(hidden, weight, targets, c, scale, math, true, before, device);
    Values expected_sum = before;
    for (size_t i = 0; i < before.size(); ++i) expected_sum[i] += expected.dweight[i];
    expect_close(added.dweight.values(), expected_sum, relative, "dweight accumulated");

    const HeadRun<T> losses_only(hidden, weight, targets, c, scale, math, false, {}, device);
    EXPECT_TRUE(losses_only.losses.bytes() == run.losses.bytes());
    for (size_t n = 0; n < targets.size(); ++n) {
        EXPECT_TRUE(targets[n] >= 0 || run.losses[static_cast<int64_t>(n)] == 0.0f) << n;
    }
}

}  // namespace

TEST(CrossEntropy, EqualsItsTwinOnEveryInstructionSet) {
    for_each_isa([] {
        for (Case c : {Case{1, 1, 1}, {3, 5, 7}, {17, 24, 131}, {300, 9, 33}}) {  // 300 rows: two chunks
            check_case<float>(c, MatmulMath::f32);
            check_case<bf16>(c, MatmulMath::bf16);
        }
    });
}

// Vocabularies of less than a pack, of whole packs and not, of one turn of the block's threads and several in
// both sizes of block; rows of one chunk and of several.
TEST(CrossEntropy, EqualsItsTwinOnEveryGpu) {
    for (Device device : gpus()) {
        for (Case c : {Case{1, 1, 1}, {3, 5, 7}, {17, 24, 131}, {150, 8, 64}, {3, 8, 1100}, {3, 8, 8300}}) {
            check_case<float>(c, MatmulMath::f32, device);
            check_case<bf16>(c, MatmulMath::bf16, device);
        }
        check_case<float>({40, 24, 50}, MatmulMath::bf16, device);
    }
}

TEST(CrossEntropy, TwinGradientIsTheFiniteDifference) {
    const Case c{4, 3, 5};
    const std::vector<int32_t> targets = {4, -1, 0, 2};
    const Values hidden = normal_values(12, 1), weight = normal_values(15, 2);
    const Gradients g = twin(hidden, weight, targets, c, 0.25);
    const auto loss = [&](const Values& h, const Values& w) {
        double sum = 0;
        for (double l : twin(h, w, targets, c, 0.25).losses) sum += 0.25 * l;
        return sum;
    };
    expect_close(g.dhidden, numeric_gradient([&](const Values& v) { return loss(v, weight); }, hidden), 1e-6,
                 "dhidden");
    expect_close(g.dweight, numeric_gradient([&](const Values& v) { return loss(hidden, v); }, weight), 1e-6,
                 "dweight");
}

TEST(CrossEntropy, ChunksKeepTheLogitsSmall) {
    EXPECT_EQ(cross_entropy_chunk_rows(10, 50257), 10);
    EXPECT_EQ(cross_entropy_chunk_rows(4096, 50257), 256);
    EXPECT_EQ(cross_entropy_chunk_rows(4096, 151936), 192);
    EXPECT_EQ(cross_entropy_chunk_rows(0, 100), 0);
    EXPECT_LE(cross_entropy_scratch_bytes(4096, 151936, DType::bf16), int64_t{128} << 20);
    // The emulator's are smaller, so that small tests have several, but follow the same rule.
    EXPECT_EQ(cross_entropy_chunk_rows(10, 64, Device::simt), 10);
    EXPECT_EQ(cross_entropy_chunk_rows(200, 63, Device::simt), 128) << "whole tiles";
    EXPECT_EQ(cross_entropy_chunk_rows(300, 131, Device::simt), 60) << "rows of 136 logits";
    EXPECT_EQ(cross_entropy_chunk_rows(300, 50257, Device::simt), 1);
    EXPECT_EQ(cross_entropy_chunk_rows(0, 100, Device::simt), 0);
    EXPECT_EQ(cross_entropy_scratch_bytes(3, 50257, DType::bf16, Device::simt), 2 * 50264);
    EXPECT_EQ(cross_entropy_scratch_bytes(3, 9, DType::f32, Device::simt), 3 * 4 * 16);
}

void check_extremes(Device device) {
    const Case c{3, 1, 40};
    Values weight(40, 0.0);
    weight[7] = 1;  // logits are 0 but for token 7, which has the hidden value
    const HeadRun<float> run({300, -300, std::nan("")}, weight, {0, 7, 3}, c, 1, MatmulMath::f32, true, {},
                             device);
    EXPECT_FLOAT_EQ(run.losses[0], 300.0f);
    EXPECT_NEAR(run.losses[1], 300 + std::log(39.0), 1e-3);
    EXPECT_TRUE(std::isnan(run.losses[2]));
    EXPECT_TRUE(std::isnan(run.dhidden[2]));
    EXPECT_FALSE(std::isnan(run.dhidden[0]));
}
TEST(CrossEntropy, ExtremeLogitsStayFiniteAndNaNIsNotHidden) {
    for_each_isa([] { check_extremes(Device::cpu); });
    for (Device device : gpus()) check_extremes(device);
}

// A thread all of whose logits are minus infinity must not spoil the row.
TEST(CrossEntropy, InfinitiesAreNoNaNs) {
    for (Device device : gpus()) {
        const Case c{1, 1, 600};
        const double infinity = std::numeric_limits<double>::infinity();
        Values weight(600, -infinity);
        weight[590] = 2;
        weight[3] = 2;
        const HeadRun<float> run({1}, weight, {590}, c, 1, MatmulMath::f32, true, {}, device);
        EXPECT_NEAR(run.losses[0], std::log(2.0), 1e-6);
        EXPECT_NEAR(run.dweight[3], 0.5, 1e-6);
        EXPECT_NEAR(run.dweight[590], -0.5, 1e-6);
        EXPECT_EQ(run.dweight[400], 0.0f);
    }
}

TEST(CrossEntropy, NoRowsSetTheGradientToZero) {
    std::vector<Device> devices = gpus();
    devices.push_back(Device::cpu);
    for (Device device : devices) {
        const HeadRun<float> run({}, normal_values(15, 1), {}, {0, 3, 5}, 1, MatmulMath::f32, true, {},
                                 device);
        EXPECT_TRUE(run.dweight.values() == Values(15, 0.0)) << device_name(device);
    }
}

TEST(CrossEntropy, SameBitsAgainOnEveryGpu) {
    const Case c{70, 16, 501};
    const Values hidden = normal_values(c.rows * c.channels, 1),
                 weight = normal_values(c.vocab * c.channels, 2);
    const std::vector<int32_t> targets = random_ids(c.rows, -1, static_cast<int32_t>(c.vocab), 3);
    expect_same_bits_on_gpus([&](Device device) {
        const HeadRun<bf16> run(hidden, weight, targets, c, 0.5, MatmulMath::bf16, true, {}, device);
        return joined({run.losses.bytes(), run.dhidden.bytes(), run.dweight.bytes()});
    });
}

TEST(CrossEntropy, SameBitsForAnyNumberOfThreads) {
    const Case c{290, 16, 501};
    const Values hidden = normal_values(c.rows * c.channels, 1),
                 weight = normal_values(c.vocab * c.channels, 2);
    const std::vector<int32_t> targets = random_ids(c.rows, -1, static_cast<int32_t>(c.vocab), 3);
    expect_same_bits_for_any_threads([&] {
        const HeadRun<float> run(hidden, weight, targets, c, 0.5, MatmulMath::f32, true);
        return joined({run.losses.bytes(), run.dhidden.bytes(), run.dweight.bytes()});
    });
}

TEST(CrossEntropy, NamesTheWrongArgument) {
    const Case c{2, 3, 5};
    const auto run = [&](int32_t target, Case shape) {
        return check_failure([&] {
            HeadRun<float>(Values(6, 1.0), Values(15, 1.0), {0, target}, shape, 1, MatmulMath::f32, true);
        });
    };
    EXPECT_EQ(run(4, c), "");
    expect_mentions(run(5, c), {"cross_entropy", "argument targets", "[-1,5)", "5 at 1"});
    Guarded<float> hidden(Values(6, 1.0)), weight(Values(15, 1.0)), losses(2), scratch(9);
    Guarded<int32_t> targets(Values{0, 1});
    expect_mentions(check_failure([&] {
                        cross_entropy(losses.tensor(), {}, {}, hidden.tensor(2, 3), weight.tensor(5, 3),
                                      targets.tensor(), {}, false, MatmulMath::f32, scratch.tensor());
                    }),
                    {"argument scratch", "at least 40 bytes", "f32[9]"});
    Guarded<float> dhidden(6), dweight(15), enough(10);
    expect_mentions(check_failure([&] {
                        cross_entropy(losses.tensor(), dhidden.tensor(2, 3), dweight.tensor(5, 3),
                                      hidden.tensor(2, 3), weight.tensor(5, 3), targets.tensor(), {}, false,
                                      MatmulMath::f32, enough.tensor());
                    }),
                    {"argument dloss_scale", "f32[1]", "no tensor"});
}
