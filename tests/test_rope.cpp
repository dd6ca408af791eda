// RoPE: the table against transformers' own frequencies, the rotation against its float64 twin, backward as
// the transpose of forward.
#include "kernels/rope.h"

#include "tests/absmax_check.h"

namespace {

struct Reference {
    const char* name;
    RopeScaling scaling;
    double theta;
    int64_t max_position, seq_len;
    double attention_factor;
    Values inv_freq;  // head dim 16
};

// Printed by transformers 5.23.0: ROPE_INIT_FUNCTIONS[type](LlamaConfig(head_dim=16, ...), "cpu", seq_len).
const Reference kReferences[] = {
    {"default",
     {},
     1e4,
     4096,
     0,
     1.0,
     {1, 0.316227764, 0.100000001, 0.0316227786, 0.00999999978, 0.00316227786, 0.00100000005,
      0.000316227786}},
    {"linear",
     {.type = "linear", .factor = 4},
     1e4,
     4096,
     0,
     1.0,
     {0.25, 0.079056941, 0.0250000004, 0.00790569466, 0.00249999994, 0.000790569466, 0.000250000012,
      7.90569466e-05}},
    {"dynamic, short sequence",
     {.type = "dynamic", .factor = 2},
     1e4,
     4096,
     100,
     1.0,
     {1, 0.316227764, 0.100000001, 0.0316227786, 0.00999999978, 0.00316227786, 0.00100000005,
      0.000316227786}},
    {"dynamic, long sequence",
     {.type = "dynamic", .factor = 2},
     1e4,
     4096,
     10000,
     1.0,
     {1, 0.260517091, 0.0678691566, 0.0176810753, 0.00460622227, 0.00119999971, 0.000312620425,
      8.14429659e-05}},
    {"yarn",
     {.type = "yarn", .factor = 4, .original_max_position = 4096},
     1e4,
     16384,
     0,
     1.138629436111989,
     {1, 0.316227764, 0.100000001, 0.025693506, 0.00624999963, 0.00138349656, 0.000250000012,
      7.90569466e-05}},
    {"yarn with mscale, range not rounded",
     {.type = "yarn",
      .factor = 40,
      .original_max_position = 4096,
      .beta_fast = 16,
      .beta_slow = 2,
      .mscale = 1,
      .mscale_all_dim = 0.707,
      .truncate = false},
     1e4,
     163840,
     0,
     1.0857263992561355,
     {1, 0.316227764, 0.100000001, 0.0316227786, 0.00579010462, 0.000123952457, 2.49999994e-05,
      7.90569447e-06}},
    {"yarn with attention_factor",
     {.type = "yarn", .factor = 2, .original_max_position = 2048, .attention_factor = 0.75},
     1e6,
     4096,
     0,
     0.75,
     {1, 0.177827939, 0.0263523161, 0.00374894217, 0.000500000024, 8.89139701e-05, 1.58113871e-05,
      2.81170674e-06}},
    {"llama3",
     {.type = "llama3", .factor = 8, .original_max_position = 8192},
     5e5,
     131072,
     0,
     1.0,
     {1, 0.193922758, 0.0376060307, 0.00729266508, 0.000524846022, 3.42810235e-05, 6.64786967e-06,
      1.28917316e-06}},
    {"llama3, short original context",
     {.type = "llama3", .factor = 32, .original_max_position = 256},
     1e4,
     131072,
     0,
     1.0,
     {1, 0.316227764, 0.100000001, 0.0039334991, 0.000312499993, 9.88211832e-05, 3.12500015e-05,
      9.88211832e-06}},
};

struct Shape {
    int64_t tokens, heads, kv_heads, head_dim;
    int64_t width() const { return (heads + 2 * kv_heads) * head_dim; }
};
constexpr Shape kShapes[] = {{1, 1, 1, 2},    {3, 4, 2, 8},     {17, 3, 1, 38},
                             {5, 12, 12, 64}, {300, 2, 1, 128}, {0, 2, 2, 8}};
// On a GPU: vectors of memory and single elements, and more of them in a token than a block has threads.
constexpr Shape kGpuShapes[] = {{1, 1, 1, 2},    {3, 4, 2, 8},    {17, 3, 1, 38}, {5, 12, 12, 64},
                                {3, 40, 2, 128}, {19, 2, 1, 128}, {0, 2, 2, 8},   {2, 0, 0, 8}};
constexpr int64_t kMaxPosition = 97;

Values twin(const Values& qkv, const Guarded<float>& table, const std::vector<int32_t>& positions, Shape s,
            double sign) {
    Values result = qkv;
    const int64_t half = s.head_dim / 2;
    for (int64_t n = 0; n < s.tokens; ++n) {
        for (int64_t head = 0; head < s.heads + s.kv_heads; ++head) {
            for (int64_t i = 0; i < half; ++i) {
                const double c = table[positions[static_cast<size_t>(n)] * s.head_dim + i];
                const double sine = sign * table[positions[static_cast<size_t>(n)] * s.head_dim + half + i];
                const auto low = static_cast<size_t>(n * s.width() + head * s.head_dim + i),
                           high = low + static_cast<size_t>(half);
                result[low] = qkv[low] * c - qkv[high] * sine;
                result[high] = qkv[high] * c + qkv[low] * sine;
            }
        }
    }
    return result;
}

Guarded<float> default_table(int64_t head_dim) {
    Guarded<float> table(kMaxPosition * head_dim);
    rope_table(table.tensor(kMaxPosition, head_dim), 1e4, {}, kMaxPosition, 0);
    return table;
}

Guarded<int32_t> guarded_ids(const std::vector<int32_t>& ids) {
    return Guarded<int32_t>(Values(ids.begin(), ids.end()));
}

// On a GPU odd_ones says which tensors are misaligned (tests/on_device.h).
template <class T>
void check_shape(Shape s, Device device, uint32_t odd_ones = 0) {
    SCOPED_TRACE(cat({device_name(device), " ", dtype_name(dtype_of<T>()), " ", s.tokens,
                      " tokens, head dim ", s.head_dim, ", odd ", odd_ones}));
    const int64_t offset = device == Device::cpu;
    const Values x = representable<T>(normal_values(s.tokens * s.width(), 1));
    const std::vector<int32_t> positions = random_ids(s.tokens, 0, kMaxPosition, 2);
    const Guarded<float> table = default_table(s.head_dim);
    const Guarded<int32_t> position_data = guarded_ids(positions);
    for (double sign : {1.0, -1.0}) {
        Guarded<T> qkv(x, offset);
        RaisedAbsmax absmax(device);
        OnDevice on(device, odd_ones);
        const Tensor tensor = on(qkv.tensor(s.tokens, s.width())),
                     angles = on(table.tensor(kMaxPosition, s.head_dim)),
                     position = on(position_data.tensor());
        if (sign > 0) {
            rope_forward(tensor, angles, position, s.heads, s.kv_heads);
        } else {
            rope_backward(tensor, angles, position, s.heads, s.kv_heads, absmax.tensor());
        }
        on.fetch();
        if (sign < 0) absmax.expect(qkv, "dqkv");
        expect_close(qkv.values(), twin(x, table, positions, s, sign), kTolerance<T>,
                     sign > 0 ? "forward" : "backward");
        for (int64_t n = 0; n < s.tokens; ++n) {
            for (int64_t i = (s.heads + s.kv_heads) * s.head_dim; i < s.width(); ++i) {
                ASSERT_EQ(to_double(qkv[n * s.width() + i]), x[static_cast<size_t>(n * s.width() + i)])
                    << "a value changed";
            }
        }
    }
}

}  // namespace

TEST(RopeTable, HasTheFrequenciesOfTransformers) {
    for (const Reference& r : kReferences) {
        SCOPED_TRACE(r.name);
        Guarded<float> table(2 * 16);
        rope_table(table.tensor(2, 16), r.theta, r.scaling, r.max_position, r.seq_len);
        for (int64_t i = 0; i < 8; ++i) {
            EXPECT_FLOAT_EQ(table[i], static_cast<float>(r.attention_factor));  // position 0
            EXPECT_EQ(table[8 + i], 0.0f);
            const double cosine = table[16 + i], sine = table[24 + i];
            // f32 cosines and sines carry the angle and the factor to about 1e-7; HF's own frequencies are
            // f32.
            EXPECT_NEAR(std::atan2(sine, cosine) / r.inv_freq[static_cast<size_t>(i)], 1, 2e-6)
                << "pair " << i;
            EXPECT_NEAR(std::hypot(sine, cosine), r.attention_factor, 2e-7);
        }
    }
}

TEST(RopeTable, AnglesAreProductsOfPositionAndFrequencyInF32) {
    Guarded<float> table(5000 * 16);
    rope_table(table.tensor(5000, 16), 1e4, {}, 5000, 0);
    const float angle = 4999.0f * 0.316227764f;
    EXPECT_NEAR(table[4999 * 16 + 1], std::cos(static_cast<double>(angle)), 1e-7);
    EXPECT_NEAR(table[4999 * 16 + 9], std::sin(static_cast<double>(angle)), 1e-7);
}

TEST(RopeTable, RefusesAnUnknownType) {
    Guarded<float> table(16);
    try {
        rope_table(table.tensor(1, 16), 1e4, {.type = "longrope"}, 1, 0);
        FAIL() << "no error";
    } catch (const InputError& error) {
        expect_mentions(error.what(), {"rope_type", "longrope", "llama3"});
    }
}

TEST(Rope, EqualsItsTwinOnEveryInstructionSet) {
    for_each_isa([] {
        for (Shape s : kShapes) {
            check_shape<float>(s, Device::cpu);
            check_shape<bf16>(s, Device::cpu);
        }
    });
}

TEST(Rope, EqualsItsTwinOnGpus) {
    for (Device device : gpus()) {
        for (Shape s : kGpuShapes) {
            for (uint32_t odd_ones : misalignments(3)) {
                check_shape<float>(s, device, odd_ones);
                check_shape<bf16>(s, device, odd_ones);
            }
        }
    }
}

TEST(Rope, BackwardIsTheGradientOfForward) {
    const Shape s{3, 2, 1, 6};
    const Values x = normal_values(s.tokens * s.width(), 1),
                 dy = representable<float>(normal_values(s.tokens * s.width(), 2));
    const std::vector<int32_t> positions = {0, 96, 13};
    const Guarded<float> table = default_table(s.head_dim);
    const Values expected =
        numeric_gradient([&](const Values& v) { return dot(dy, twin(v, table, positions, s, 1)); }, x);
    Guarded<float> gradient(dy);
    rope_backward(gradient.tensor(s.tokens, s.width()), table.tensor(kMaxPosition, s.head_dim),
                  guarded_ids(positions).tensor(), s.heads, s.kv_heads);
    expect_close(gradient.values(), expected, kTolerance<float>, "dqkv");
}

TEST(Rope, SameBitsForAnyNumberOfThreads) {
    const Shape s{801, 3, 1, 40};
    const Guarded<float> table = default_table(s.head_dim);
    const Guarded<int32_t> positions = guarded_ids(random_ids(s.tokens, 0, kMaxPosition, 2));
    const Values x = normal_values(s.tokens * s.width(), 1);
    expect_same_bits_for_any_threads([&] {
        Guarded<bf16> qkv(x);
        rope_forward(qkv.tensor(s.tokens, s.width()), table.tensor(kMaxPosition, s.head_dim),
                     positions.tensor(), s.heads, s.kv_heads);
        return qkv.bytes();
    });
}

TEST(Rope, NamesTheWrongArgument) {
    Guarded<float> qkv(Values(2 * 32, 1.0)), table = default_table(8);
    const auto run = [&](int32_t position, int64_t heads) {
        const Guarded<int32_t> positions = guarded_ids({0, position});
        return check_failure([&] {
            rope_forward(qkv.tensor(2, 32), table.tensor(kMaxPosition, 8), positions.tensor(), heads, 1);
        });
    };
    EXPECT_EQ(run(96, 2), "");
    expect_mentions(run(97, 2), {"rope_forward", "argument positions", "[0,97)", "97 at 1"});
    expect_mentions(run(0, 3), {"argument qkv", "[*,40]", "f32[2,32]"});
}
