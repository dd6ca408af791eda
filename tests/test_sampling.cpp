// Sampling: every draw against the definition written out with a full sort, ties, and the frequencies it
// yields.
#include "kernels/sampling.h"

#include <numeric>

#include "tests/on_device.h"

namespace {

// The header's definition, word for word.
int32_t twin(const Values& logits, const SamplingParams& params, double uniform) {
    std::vector<int32_t> ids(logits.size());
    std::iota(ids.begin(), ids.end(), 0);
    std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
        return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    if (params.temperature == 0) return ids[0];
    if (params.top_k > 0 && params.top_k < static_cast<int64_t>(ids.size()))
        ids.resize(static_cast<size_t>(params.top_k));
    Values weights;
    for (int32_t id : ids) {
        weights.push_back(std::exp((logits[static_cast<size_t>(id)] - logits[static_cast<size_t>(ids[0])]) /
                                   params.temperature));
    }
    const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
    double kept = 0;
    for (size_t rank = 0; params.top_p < 1 && rank < weights.size(); ++rank) {
        kept += weights[rank];
        if (kept >= params.top_p * total) weights.resize(rank + 1);
    }
    const double whole = std::accumulate(weights.begin(), weights.end(), 0.0);
    double sum = 0;
    for (size_t rank = 0; rank < weights.size(); ++rank) {
        sum += weights[rank];
        if (sum > uniform * whole) return ids[rank];
    }
    return ids[weights.size() - 1];
}

int32_t sample(const Values& logits, const SamplingParams& params, float uniform,
               Device device = Device::cpu) {
    Guarded<float> data(logits, 1);
    OnDevice on(device);
    return sample_token(on(data.tensor()), params, uniform);
}

}  // namespace

TEST(Sampling, FollowsTheDefinition) {
    for (int64_t vocab : {1, 2, 37, 5000}) {
        Values logits = representable<float>(normal_values(vocab, 1, 3));
        for (size_t i = 5; i < logits.size(); i += 7) logits[i] = logits[i - 5];  // ties
        for (double temperature : {0.0, 0.5, 1.0, 3.0}) {
            for (int64_t top_k : {int64_t{0}, int64_t{1}, int64_t{10}, int64_t{300}, int64_t{100000}}) {
                for (double top_p : {0.0, 0.3, 0.95, 1.0}) {
                    const SamplingParams params{.temperature = temperature, .top_k = top_k, .top_p = top_p};
                    for (float uniform : {0.0f, 0.123f, 0.5f, 0.77f, 0.99f}) {
                        ASSERT_EQ(sample(logits, params, uniform),
                                  twin(logits, params, static_cast<double>(uniform)))
                            << "vocabulary " << vocab << " temperature " << temperature << " top_k " << top_k
                            << " top_p " << top_p << " uniform " << uniform;
                    }
                }
            }
        }
    }
}

TEST(Sampling, TiesGoToTheLowestId) {
    const Values logits = {1, 3, 3, 2, 3};
    EXPECT_EQ(sample(logits, {.temperature = 0}, 0.9f), 1);
    EXPECT_EQ(sample(logits, {.top_k = 1}, 0.9f), 1);
    EXPECT_EQ(sample(logits, {.top_k = 2}, 0.9f), 2);
    EXPECT_EQ(sample(logits, {.top_p = 0.01}, 0.9f), 1);
}

TEST(Sampling, NeverDrawsAnImpossibleToken) {
    const Values logits = {-HUGE_VAL, 0, -HUGE_VAL, 0, -HUGE_VAL};
    for (float uniform : {0.0f, 0.49f}) EXPECT_EQ(sample(logits, {}, uniform), 1);
    for (float uniform : {0.5f, std::nextafter(1.0f, 0.0f)}) EXPECT_EQ(sample(logits, {}, uniform), 3);
}

TEST(Sampling, FrequenciesAreTheSoftmax) {
    const Values logits = {0, 1, 2};
    Values count(3);
    const int draws = 3000;
    for (int i = 0; i < draws; ++i) {
        count[static_cast<size_t>(
            sample(logits, {.temperature = 2}, (static_cast<float>(i) + 0.5f) / draws))] += 1;
    }
    const double total = 1 + std::exp(0.5) + std::exp(1.0);
    for (size_t i = 0; i < 3; ++i) {
        // An even grid of uniforms misses each share by at most one draw.
        EXPECT_NEAR(count[i], draws * std::exp(logits[i] / 2) / total, 1.01);
    }
}

TEST(Sampling, RefusesWhatCannotBeDrawn) {
    for (double temperature : {0.0, 1.0}) {
        EXPECT_EQ(sample({1, std::nan(""), 2}, {.temperature = temperature}, 0), -1);
        EXPECT_EQ(sample({HUGE_VAL, 1}, {.temperature = temperature}, 0), -1);
        EXPECT_EQ(sample({-HUGE_VAL}, {.temperature = temperature}, 0), -1);
    }
    expect_mentions(check_failure([] {
                        sample({0, 1}, {.temperature = -1}, 0);
                    }),
                    {"argument temperature", "-1"});
    expect_mentions(check_failure([] { sample({0, 1}, {.top_p = 1.5}, 0); }), {"argument top_p", "1.5"});
    expect_mentions(check_failure([] { sample({0, 1}, {}, 1); }), {"argument uniform"});
}

TEST(Sampling, FollowsTheDefinitionOnDevices) {
    for (Device device : gpus()) {
        for (int64_t vocab : {1, 37, 1500}) {
            Values logits = representable<float>(normal_values(vocab, 1, 3));
            for (size_t i = 5; i < logits.size(); i += 7) logits[i] = logits[i - 5];  // ties
            for (size_t i = 3; i < logits.size(); i += 11) logits[i] = i % 2 ? 0.0 : -0.0;
            for (const SamplingParams& params :
                 {SamplingParams{.temperature = 0}, SamplingParams{},
                  SamplingParams{.temperature = 0.5, .top_k = 10}, SamplingParams{.top_p = 0.3},
                  SamplingParams{.top_k = 1}, SamplingParams{.temperature = 3, .top_k = 300, .top_p = 0.95},
                  SamplingParams{.top_p = 0}}) {
                for (float uniform : {0.0f, 0.123f, 0.77f, std::nextafter(1.0f, 0.0f)}) {
                    ASSERT_EQ(sample(logits, params, uniform, device), twin(logits, params, double{uniform}))
                        << "vocabulary " << vocab << " temperature " << params.temperature << " top_k "
                        << params.top_k << " top_p " << params.top_p << " uniform " << uniform;
                }
            }
        }
    }
}

TEST(Sampling, OnDevicesTheImpossibleIsNotDrawnAndNansAreRefused) {
    for (Device device : gpus()) {
        const Values logits = {-HUGE_VAL, 0, -HUGE_VAL, 0, -HUGE_VAL};
        EXPECT_EQ(sample(logits, {}, 0.49f, device), 1);
        EXPECT_EQ(sample(logits, {}, 0.5f, device), 3);
        EXPECT_EQ(sample(logits, {}, std::nextafter(1.0f, 0.0f), device), 3);
        EXPECT_EQ(sample({1, 2, NAN, NAN}, {}, 0, device), -1);
        EXPECT_EQ(sample({1, HUGE_VAL}, {}, 0, device), -1);
        EXPECT_EQ(sample({-HUGE_VAL}, {.temperature = 0}, 0, device), -1);
    }
}
