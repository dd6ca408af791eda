// The table of RoPE angles for every scaling variant, as transformers' modeling_rope_utils computes them:
// inverse frequencies and angles are rounded to f32 there, and so they are here, because that is what
// published models saw. Runs once per model; not a hot path.
#include <cmath>
#include <numbers>

#include "core/error.h"
#include "kernels/check.h"
#include "kernels/isa.h"
#include "kernels/rope.h"

namespace ISA_NAMESPACE {
namespace {

constexpr double kTwoPi = 2 * std::numbers::pi;

// The factor that yarn puts on cos and sin, and so twice on the attention scores.
double yarn_attention_factor(const RopeScaling& scaling) {
    if (scaling.attention_factor != 0) return scaling.attention_factor;
    const auto at_scale = [&](double mscale) {
        return scaling.factor <= 1 ? 1.0 : 0.1 * mscale * std::log(scaling.factor) + 1.0;
    };
    if (scaling.mscale != 0 && scaling.mscale_all_dim != 0) {
        return at_scale(scaling.mscale) / at_scale(scaling.mscale_all_dim);
    }
    return at_scale(1);
}

// Yarn keeps fast pairs, stretches slow ones by `factor`, and blends linearly between the pairs that turn
// beta_fast and beta_slow times within the original context.
double yarn_kept_share(int64_t pair, int64_t head_dim, double theta, const RopeScaling& scaling,
                       int64_t original) {
    const auto pair_turning = [&](double turns) {
        return static_cast<double>(head_dim) * std::log(static_cast<double>(original) / (turns * kTwoPi)) /
               (2 * std::log(theta));
    };
    double low = pair_turning(scaling.beta_fast), high = pair_turning(scaling.beta_slow);
    if (scaling.truncate) {
        low = std::floor(low);
        high = std::ceil(high);
    }
    low = std::fmax(low, 0);
    high = std::fmin(high, static_cast<double>(head_dim - 1));
    if (low == high) high += 0.001;  // as there: no division by zero
    return 1 - std::fmin(std::fmax((static_cast<double>(pair) - low) / (high - low), 0), 1);
}

// Llama 3.1: wavelengths short against the original context stay, long ones stretch by `factor`, with a blend
// between.
double llama3_frequency(double frequency, const RopeScaling& scaling, double original) {
    const double wavelength = kTwoPi / frequency;
    if (wavelength < original / scaling.high_freq_factor) return frequency;
    if (wavelength > original / scaling.low_freq_factor) return frequency / scaling.factor;
    const double smooth = (original / wavelength - scaling.low_freq_factor) /
                          (scaling.high_freq_factor - scaling.low_freq_factor);
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency;
}

// The base that `dynamic` raises for sequences longer than the model's context.
double dynamic_theta(double theta, const RopeScaling& scaling, int64_t head_dim, int64_t max_position,
                     int64_t seq_len) {
    const double longest = static_cast<double>(seq_len > max_position ? seq_len : max_position);
    const double stretch =
        scaling.factor * longest / static_cast<double>(max_position) - (scaling.factor - 1);
    return theta * std::pow(stretch, static_cast<double>(head_dim) / static_cast<double>(head_dim - 2));
}

void check_rope_table(Tensor table, double theta, const RopeScaling& scaling, int64_t max_position) {
    const ArgumentCheck check{"rope_table", table.device};
    check.tensor("table", table, DType::f32, {-1, -1});
    check.that(table.dims[1] > 0 && table.dims[1] % 2 == 0, "table", "an even head dim",
               static_cast<double>(table.dims[1]));
    check.that(max_position > 0, "max_position", "at least 1", static_cast<double>(max_position));
    check.that(theta > 0, "theta", "more than 0", theta);
    for (const char* known : {"default", "linear", "dynamic", "yarn", "llama3"}) {
        if (scaling.type == known) return;
    }
    fail_input({.what = "unknown rope_type",
                .expected = "default, linear, dynamic, yarn or llama3",
                .actual = scaling.type});
}

}  // namespace

void rope_table(Tensor table, double theta, const RopeScaling& scaling, int64_t max_position,
                int64_t seq_len) {
    check_rope_table(table, theta, scaling, max_position);
    const int64_t head_dim = table.dims[1], half = head_dim / 2;
    const int64_t original = scaling.original_max_position > 0 ? scaling.original_max_position : max_position;
    const bool is_yarn = scaling.type == "yarn";
    if (scaling.type == "dynamic" && head_dim > 2) {
        theta = dynamic_theta(theta, scaling, head_dim, max_position, seq_len);
    }
    const double attention_factor = is_yarn ? yarn_attention_factor(scaling) : 1.0;
    for (int64_t i = 0; i < half; ++i) {
        double frequency = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
        if (scaling.type == "linear") frequency /= scaling.factor;
        if (scaling.type == "llama3")
            frequency = llama3_frequency(frequency, scaling, static_cast<double>(original));
        if (is_yarn) {
            const double kept = yarn_kept_share(i, head_dim, theta, scaling, original);
            frequency = frequency * kept + frequency / scaling.factor * (1 - kept);
        }
        for (int64_t position = 0; position < table.dims[0]; ++position) {
            float* row = table.as<float>() + position * head_dim;
            const float angle = static_cast<float>(position) * static_cast<float>(frequency);
            row[i] = static_cast<float>(std::cos(static_cast<double>(angle)) * attention_factor);
            row[half + i] = static_cast<float>(std::sin(static_cast<double>(angle)) * attention_factor);
        }
    }
}

}  // namespace ISA_NAMESPACE

KERNEL_ENTRY(void, rope_table,
             (Tensor table, double theta, const RopeScaling& scaling, int64_t max_position, int64_t seq_len),
             (table, theta, scaling, max_position, seq_len))
