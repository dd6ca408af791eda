// What the wrappers of kernels/gpu.h and kernels/mma.h do: on the emulator as plain loops do it, and on a GPU
// bit by bit as on the emulator. A layout that the emulator's authors misread shows here, on a GPU, before it
// shows as a wrong gradient.
#include "tests/gpu_wrappers.h"

#include <bit>
#include <numeric>

#include "tests/on_device.h"

namespace on_simt {
void run_wrapper(Wrapper wrapper, Tensor out, Tensor inp);
}
#if defined(INGOT_CUDA)
namespace on_cuda {
void run_wrapper(Wrapper wrapper, Tensor out, Tensor inp);
}
#endif

void run_wrapper(Wrapper wrapper, Tensor out, Tensor inp) {
#if defined(INGOT_CUDA)
    if (out.device == Device::cuda) return on_cuda::run_wrapper(wrapper, out, inp);
#endif
    on_simt::run_wrapper(wrapper, out, inp);
}

WrapperShape wrapper_shape(Wrapper wrapper) {
    switch (wrapper) {
        case Wrapper::packs_f32:
        case Wrapper::packs_bf16:
        case Wrapper::packs_streaming: return {32, 128, 128};
        case Wrapper::from_float:
        case Wrapper::from_float_f32:
        case Wrapper::exp2_approx: return {128, 128, 128};
        case Wrapper::pack_bf16: return {64, 128, 64};
        case Wrapper::warp_sum:
        case Wrapper::warp_max: return {64, 64, 64};
        case Wrapper::block_sum_64: return {64, 64, 128};
        case Wrapper::block_sum_1024: return {1024, 1024, 2048};
        case Wrapper::block_max_96: return {96, 96, 192};
        case Wrapper::copies: return {64, 5 * 64, 4 * 64};
        case Wrapper::copies_in_groups: return {64, 12 * 64, 12 * 64};
        case Wrapper::ldmatrix:
        case Wrapper::ldmatrix_transposed: return {32, 32 + 64 * 4, 32 * 4};
        case Wrapper::mma: return {32, 32 * 10, 32 * 4};
        case Wrapper::overlapping_grids: return {256, 256, 2 * 256};
        case Wrapper::dynamic_shared: return {128, 128, 2 * 128};
    }
    return {};
}

namespace {

using Words = std::vector<uint32_t>;

Words random_words(int64_t count, uint32_t seed) {
    std::mt19937 engine(seed);
    Words words(static_cast<size_t>(count));
    for (uint32_t& word : words) word = static_cast<uint32_t>(engine());
    return words;
}
uint32_t bits(double x) { return std::bit_cast<uint32_t>(static_cast<float>(x)); }
float number(uint32_t word) { return std::bit_cast<float>(word); }
Words float_words(const Values& values) {
    Words words;
    for (double x : values) words.push_back(bits(x));
    return words;
}
float bf16_number(uint32_t bits) { return to_float(bf16{static_cast<uint16_t>(bits)}); }

Words run_on(Device device, Wrapper wrapper, const Words& inp) {
    const WrapperShape shape = wrapper_shape(wrapper);
    const int64_t count = static_cast<int64_t>(inp.size());
    EXPECT_EQ(count % shape.inputs, 0);
    Guarded<int32_t> from(count), to(count / shape.inputs * shape.outputs);
    std::memcpy(from.data(), inp.data(), inp.size() * 4);
    OnDevice on(device);
    run_wrapper(wrapper, on(to.tensor()), on(from.tensor()));
    on.fetch();
    Words out(static_cast<size_t>(to.size()));
    std::memcpy(out.data(), to.data(), out.size() * 4);
    return out;
}

// Expects the same words on every device.
void expect_words(Wrapper wrapper, const Words& inp, const Words& expected) {
    for (Device device : gpus()) {
        const Words out = run_on(device, wrapper, inp);
        ASSERT_EQ(out.size(), expected.size());
        for (size_t i = 0; i < out.size(); ++i) {
            ASSERT_EQ(out[i], expected[i]) << std::hex << "word " << i << " on " << device_name(device);
        }
    }
}

// Rounding's hard cases among random ones: ties to both sides, carries into the exponent, the ends of the
// range.
Words hard_floats() {
    Words words = {0x00000000, 0x80000000, 0x3f800000, 0x3f808000, 0x3f818000, 0x3f808001, 0x3f807fff,
                   0xbf808000, 0x7f7fffff, 0xff7fffff, 0x7f7f7fff, 0x7f7f8000, 0x7f800000, 0xff800000,
                   0x00000001, 0x00007fff, 0x00008000, 0x00008001, 0x007fffff, 0x00800000, 0x807f8000,
                   0x3fffffff, 0x3fff8000, 0x477fe000, 0x33800000, 0x00018000};
    const Words more = random_words(384 - static_cast<int64_t>(words.size()), 7);
    for (uint32_t word : more)
        words.push_back((word & 0x7f800000) == 0x7f800000 ? word & ~0x00800000u : word);
    return words;
}

}  // namespace

TEST(GpuWrappers, PacksMove128Bits) {
    const Words inp = random_words(3 * 128, 1);
    Words as_f32, as_bf16;
    for (size_t i = 0; i < inp.size(); ++i) {
        const uint32_t word = inp[i / 4 * 4 + 3 - i % 4];
        as_f32.push_back(word);
        as_bf16.push_back(word >> 16 | word << 16);
    }
    expect_words(Wrapper::packs_f32, inp, as_f32);
    expect_words(Wrapper::packs_streaming, inp, as_f32);
    expect_words(Wrapper::packs_bf16, inp, as_bf16);
}

TEST(GpuWrappers, RoundingIsToNearestEven) {
    const Words inp = hard_floats();
    Words rounded, packed;
    for (uint32_t word : inp) {
        // By the neighbours: what is cut off against half of the last place that stays.
        const uint32_t kept = word >> 16, cut = word & 0xffff;
        rounded.push_back(kept + (cut > 0x8000 || (cut == 0x8000 && kept % 2)));
    }
    for (size_t i = 0; i < rounded.size(); i += 2) packed.push_back(rounded[i] | rounded[i + 1] << 16);
    expect_words(Wrapper::from_float, inp, rounded);
    expect_words(Wrapper::from_float_f32, inp, inp);
    expect_words(Wrapper::pack_bf16, inp, packed);
}

TEST(GpuWrappers, PowersOfTwoAreRightToTwoUlp) {
    Words inp;
    for (int i = 0; i < 256; ++i) inp.push_back(bits(static_cast<float>(i) * 0.6183f - 140));
    inp[7] = bits(0), inp[8] = bits(-INFINITY), inp[9] = bits(1), inp[10] = bits(-126.5f);
    for (Device device : gpus()) {
        const Words out = run_on(device, Wrapper::exp2_approx, inp);
        for (size_t i = 0; i < inp.size(); ++i) {
            const double x = number(inp[i]), expected = std::exp2(x), actual = number(out[i]);
            // A subnormal result may be flushed.
            const double bound = x < -126 ? 0x1p-126 : expected * 0x1p-22;
            EXPECT_NEAR(actual, expected, bound) << "2^" << x << " on " << device_name(device);
        }
        EXPECT_EQ(number(out[7]), 1);
        EXPECT_EQ(number(out[8]), 0);
        EXPECT_EQ(number(out[9]), 2);
    }
}

TEST(GpuWrappers, NansStayNans) {
    Words nans;
    for (uint32_t i = 0; i < 128; ++i) nans.push_back((i % 2 ? 0xff800000 : 0x7f800000) | 1u << i % 23);
    for (Device device : gpus()) {
        for (uint32_t word : run_on(device, Wrapper::from_float, nans)) {
            EXPECT_TRUE(std::isnan(bf16_number(word))) << std::hex << word << device_name(device);
        }
        for (uint32_t word : run_on(device, Wrapper::pack_bf16, nans)) {
            EXPECT_TRUE(std::isnan(bf16_number(word & 0xffff)) && std::isnan(bf16_number(word >> 16)))
                << std::hex << word << device_name(device);
        }
    }
}

namespace {

// The fixed order: pairs of lanes 16 apart, then 8, 4, 2, 1.
template <class Combine>
Words reduce_lanes(const Words& inp, Combine combine) {
    Words x = inp;
    for (size_t lanes = 16; lanes > 0; lanes /= 2) {
        Words next;
        for (size_t i = 0; i < x.size(); ++i)
            next.push_back(bits(combine(number(x[i]), number(x[i ^ lanes]))));
        x = next;
    }
    return x;
}
// Each warp's result by itself, then the same of these, absent ones being `nothing`.
template <class Combine>
float reduce_threads(const Words& inp, float nothing, Combine combine) {
    const Words lanes = reduce_lanes(inp, combine);
    Words warps(32, bits(nothing));
    for (size_t warp = 0; warp < inp.size() / 32; ++warp) warps[warp] = lanes[warp * 32];
    return number(reduce_lanes(warps, combine)[0]);
}
float add(float a, float b) { return a + b; }
float larger(float a, float b) { return std::max(a, b); }

void expect_block_reductions(Wrapper wrapper, bool largest) {
    const size_t threads = static_cast<size_t>(wrapper_shape(wrapper).threads);
    Words inp, expected;
    for (uint32_t block = 0; block < 3; ++block) {
        const Words x =
            float_words(normal_values(static_cast<int64_t>(threads), block, 100, largest ? -500 : 3));
        const float first = largest ? reduce_threads(x, number(x[0]), larger) : reduce_threads(x, 0, add);
        Words rest;
        for (uint32_t word : x) rest.push_back(bits(largest ? -number(word) : first - number(word)));
        const float second =
            largest ? reduce_threads(rest, number(rest[0]), larger) : reduce_threads(rest, 0, add);
        for (size_t i = 0; i < threads; ++i) expected.insert(expected.end(), {bits(first), bits(second)});
        inp.insert(inp.end(), x.begin(), x.end());
    }
    expect_words(wrapper, inp, expected);
}

}  // namespace

TEST(GpuWrappers, WarpsReduceInOneOrder) {
    const Words inp = float_words(normal_values(192, 2, 1000, -500));
    expect_words(Wrapper::warp_sum, inp, reduce_lanes(inp, add));
    expect_words(Wrapper::warp_max, inp, reduce_lanes(inp, larger));
    const Words negative = float_words(Values(64, -3.5));  // nothing of a warp stands in for an element
    expect_words(Wrapper::warp_max, negative, negative);
}

TEST(GpuWrappers, BlocksReduceInOneOrder) {
    expect_block_reductions(Wrapper::block_sum_64, false);
    expect_block_reductions(Wrapper::block_sum_1024, false);
    expect_block_reductions(Wrapper::block_max_96, true);
}

TEST(GpuWrappers, AsynchronousCopiesBring16BytesOrZeros) {
    Words inp, expected;
    for (uint32_t block = 0; block < 3; ++block) {
        const Words data = random_words(4 * 64, 10 + block);
        Words valid = random_words(64, 20 + block);
        for (uint32_t& word : valid) word = block == 1 ? 1 : word % 2;
        for (size_t thread = 0; thread < 64; ++thread) {
            const size_t from = (thread + 63) % 64;
            for (size_t k = 0; k < 4; ++k) expected.push_back(valid[from] ? data[4 * from + k] : 0);
        }
        inp.insert(inp.end(), data.begin(), data.end());
        inp.insert(inp.end(), valid.begin(), valid.end());
    }
    expect_words(Wrapper::copies, inp, expected);
    const Words groups = random_words(2 * 12 * 64, 30);
    expect_words(Wrapper::copies_in_groups, groups, groups);
}

TEST(GpuWrappers, LdmatrixDistributesRowsOfAnyAddress) {
    Words inp, expected, expected_transposed;
    for (uint32_t block = 0; block < 4; ++block) {
        Words places(64);  // 32 of 64 rows, in any order; in the last block some twice
        std::iota(places.begin(), places.end(), 0u);
        std::shuffle(places.begin(), places.end(), std::mt19937(block));
        if (block == 3) places[5] = places[17] = places[30];
        const Words rows = random_words(64 * 4, 40 + block);
        const auto element = [&](size_t matrix, size_t row, size_t column) {
            const uint32_t word = rows[places[8 * matrix + row] * 4 + column / 2];
            return column % 2 ? word >> 16 : word & 0xffff;
        };
        for (size_t lane = 0; lane < 32; ++lane) {
            for (size_t m = 0; m < 4; ++m) {
                const size_t a = lane / 4, b = 2 * (lane % 4);
                expected.push_back(element(m, a, b) | element(m, a, b + 1) << 16);
                expected_transposed.push_back(element(m, b, a) | element(m, b + 1, a) << 16);
            }
        }
        inp.insert(inp.end(), places.begin(), places.begin() + 32);
        inp.insert(inp.end(), rows.begin(), rows.end());
    }
    expect_words(Wrapper::ldmatrix, inp, expected);
    expect_words(Wrapper::ldmatrix_transposed, inp, expected_transposed);
}

namespace {

// A product of one warp: its operands as matrices, and as the words of its lanes.
struct Product {
    float a[16][16], b[16][8], c[16][8];

    Words words() const {
        Words words;
        const auto two = [](float low, float high) {
            return uint32_t{to_bf16(low).bits} | uint32_t{to_bf16(high).bits} << 16;
        };
        for (int lane = 0; lane < 32; ++lane) {
            const int group = lane / 4, pair = 2 * (lane % 4);
            for (int half : {0, 8}) {
                for (int row : {group, group + 8}) {
                    words.push_back(two(a[row][pair + half], a[row][pair + half + 1]));
                }
            }
            for (int half : {0, 8}) {
                words.push_back(two(b[pair + half][group], b[pair + half + 1][group]));
            }
            for (int row : {group, group + 8}) {
                for (int column : {pair, pair + 1}) words.push_back(bits(c[row][column]));
            }
        }
        return words;
    }
    double sum(int row, int column, bool of_magnitudes) const {
        double sum = of_magnitudes ? std::abs(c[row][column]) : c[row][column];
        for (int k = 0; k < 16; ++k) {
            const double product = double{a[row][k]} * b[k][column];
            sum += of_magnitudes ? std::abs(product) : product;
        }
        return sum;
    }
};

template <class Draw>
Product product_of(Draw draw) {
    Product p;
    for (auto& row : p.a)
        for (float& x : row) x = to_float(to_bf16(draw()));
    for (auto& row : p.b)
        for (float& x : row) x = to_float(to_bf16(draw()));
    for (auto& row : p.c)
        for (float& x : row) x = draw();
    return p;
}

// Every sum within `relative` of the sum of its terms' magnitudes.
void expect_products(const std::vector<Product>& products, double relative) {
    Words inp;
    for (const Product& p : products) {
        const Words words = p.words();
        inp.insert(inp.end(), words.begin(), words.end());
    }
    for (Device device : gpus()) {
        const Words out = run_on(device, Wrapper::mma, inp);
        for (size_t i = 0; i < out.size(); ++i) {
            const int lane = static_cast<int>(i / 4 % 32), k = static_cast<int>(i % 4);
            const int row = lane / 4 + 8 * (k / 2), column = 2 * (lane % 4) + k % 2;
            const Product& p = products[i / 128];
            ASSERT_NEAR(number(out[i]), p.sum(row, column, false), relative * p.sum(row, column, true))
                << "C[" << row << "][" << column << "] of product " << i / 128 << " on "
                << device_name(device);
        }
    }
}

}  // namespace

TEST(GpuWrappers, MmaMultipliesIntegersExactly) {
    std::mt19937 engine(3);
    std::vector<Product> products;
    for (int i = 0; i < 5; ++i)
        products.push_back(
            product_of([&] { return static_cast<float>(static_cast<int>(engine() % 63) - 31); }));
    // One element of A and of B at a time: each k reaches each row and column by itself.
    for (int k = 0; k < 16; ++k) {
        Product p = product_of([] { return 0.0f; });
        for (int i = 0; i < 16; ++i) p.a[i][k] = static_cast<float>(i + 1);
        for (int i = 0; i < 8; ++i) p.b[k][i] = static_cast<float>(10 * (i + k));
        products.push_back(p);
    }
    expect_products(products, 0);
}

TEST(GpuWrappers, MmaSumsInF32) {
    std::mt19937 engine(4);
    std::normal_distribution<float> normal(0, 1);
    std::vector<Product> products;
    for (int i = 0; i < 8; ++i) {
        const float scale = std::ldexp(1.0f, 6 * (i - 4));
        products.push_back(product_of([&] { return scale * normal(engine); }));
    }
    // 17 terms, each rounded or cut to 24 bits of the largest partial sum: at most 2^-20 of their magnitudes.
    expect_products(products, 0x1p-20);
}

TEST(GpuWrappers, AGridSeesWhatTheOneBeforeItWrote) {
    const Words inp = random_words(256 * 5, 50);
    const size_t count = inp.size();
    Words late;
    for (uint32_t x : inp) {
        for (int round = 0; round < 1000; ++round) x = x * 1664525u + 1013904223u;
        late.push_back(x);
    }
    Words expected;
    for (size_t i = 0; i < count; ++i) expected.push_back(late[(i + count / 2) % count] + 1);
    expected.insert(expected.end(), late.begin(), late.end());
    expect_words(Wrapper::overlapping_grids, inp, expected);
}

TEST(GpuWrappers, DynamicSharedMemoryIsLargeAndAligned) {
    const Words inp = random_words(2 * 128, 60);
    Words expected;
    for (size_t i = 0; i < inp.size(); ++i)
        expected.insert(expected.end(), {inp[i / 128 * 128 + 127 - i % 128], 0});
    expect_words(Wrapper::dynamic_shared, inp, expected);
}
