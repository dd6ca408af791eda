// What the wrappers of FP8 do: on the emulator as plain loops do it, and on a GPU as on the emulator.
#include "tests/gpu_wrappers_fp8.h"

#include <bit>

#include "tests/on_device.h"

namespace on_simt {
void run_fp8_wrapper(Fp8Wrapper wrapper, Tensor out, Tensor inp);
}
#if defined(INGOT_CUDA)
namespace on_cuda {
void run_fp8_wrapper(Fp8Wrapper wrapper, Tensor out, Tensor inp);
}
#endif

void run_fp8_wrapper(Fp8Wrapper wrapper, Tensor out, Tensor inp) {
#if defined(INGOT_CUDA)
    if (out.device == Device::cuda) return on_cuda::run_fp8_wrapper(wrapper, out, inp);
#endif
    on_simt::run_fp8_wrapper(wrapper, out, inp);
}

Fp8WrapperShape fp8_wrapper_shape(Fp8Wrapper wrapper) {
    switch (wrapper) {
        case Fp8Wrapper::pack_e4m3:
        case Fp8Wrapper::pack_e5m2: return {512, 1024, 512};
        case Fp8Wrapper::absmax: return {256, 256, 256};
        case Fp8Wrapper::mma_e4m3:
        case Fp8Wrapper::mma_e5m2: return {32, 32 * 10, 32 * 4};
    }
    return {};
}

namespace {

using Words = std::vector<uint32_t>;

uint32_t bits(double x) { return std::bit_cast<uint32_t>(static_cast<float>(x)); }
float number(uint32_t word) { return std::bit_cast<float>(word); }

// Every device that has FP8.
std::vector<Device> devices_with_fp8() {
    std::vector<Device> devices;
    for (Device device : gpus())
        if (device_info(device).capability >= 89) devices.push_back(device);
    return devices;
}

Words run_on(Device device, Fp8Wrapper wrapper, const Words& inp) {
    const Fp8WrapperShape shape = fp8_wrapper_shape(wrapper);
    EXPECT_EQ(static_cast<int64_t>(inp.size()), shape.inputs);
    Guarded<int32_t> from(shape.inputs), to(Values(static_cast<size_t>(shape.outputs), 0.0));
    std::memcpy(from.data(), inp.data(), inp.size() * 4);
    OnDevice on(device);
    run_fp8_wrapper(wrapper, on(to.tensor()), on(from.tensor()));
    on.fetch();
    Words out(static_cast<size_t>(shape.outputs));
    std::memcpy(out.data(), to.data(), out.size() * 4);
    return out;
}

// All codes' values, what lies halfway between two of them and on either side of it, and random numbers.
template <class T>
Words hard_numbers(size_t count) {
    Words words = {bits(0), bits(-0.0), bits(1e30), bits(-1e30), bits(INFINITY), bits(-INFINITY)};
    for (int code = 0; code < 256 && words.size() + 8 < count; ++code) {
        const float x = to_float(T{static_cast<uint8_t>(code)});
        const float next = to_float(T{static_cast<uint8_t>(code + 1)}), half = (x + next) / 2;
        if (!std::isfinite(half)) continue;
        for (float y : {x, half, std::nextafterf(half, x), std::nextafterf(half, next)})
            words.push_back(bits(y));
    }
    const Values more = normal_values(static_cast<int64_t>(count - words.size()), 5, 30);
    for (double x : more) words.push_back(bits(x));
    return words;
}

template <class T>
uint32_t code_of(float x) {
    if constexpr (std::is_same_v<T, e4m3>) return to_e4m3(x).bits;
    if constexpr (std::is_same_v<T, e5m2>) return to_e5m2(x).bits;
}

template <class T>
void expect_packed(Fp8Wrapper wrapper) {
    const Words inp = hard_numbers<T>(1024);
    for (Device device : devices_with_fp8()) {
        const Words out = run_on(device, wrapper, inp);
        for (size_t i = 0; i < out.size(); ++i) {
            const float low = number(inp[2 * i]), high = number(inp[2 * i + 1]);
            ASSERT_EQ(out[i], code_of<T>(low) | code_of<T>(high) << 8)
                << low << " " << high << " on " << device_name(device);
        }
    }
}

}  // namespace

TEST(GpuWrappersFp8, RoundingIsToNearestEvenAndSaturates) {
    expect_packed<e4m3>(Fp8Wrapper::pack_e4m3);
    expect_packed<e5m2>(Fp8Wrapper::pack_e5m2);
}

TEST(GpuWrappersFp8, NansStayNans) {
    const Words nans(1024, bits(NAN));
    for (Device device : devices_with_fp8()) {
        for (uint32_t word : run_on(device, Fp8Wrapper::pack_e4m3, nans))
            EXPECT_TRUE(std::isnan(to_float(e4m3{static_cast<uint8_t>(word)})));
        for (uint32_t word : run_on(device, Fp8Wrapper::pack_e5m2, nans))
            EXPECT_TRUE(std::isnan(to_float(e5m2{static_cast<uint8_t>(word >> 8)})));
    }
}

TEST(GpuWrappersFp8, TheLargestMagnitudeIsFound) {
    for (double largest : {700.0, double{INFINITY}, double{NAN}}) {
        for (size_t place : {0, 31, 32, 255}) {
            Words inp;
            for (double x : normal_values(256, 1, 100))
                inp.push_back(bits(std::max(-600.0, std::min(600.0, x))));
            inp[place] = bits(-largest);
            Words expected(256, 0);
            expected[0] = bits(-largest) & 0x7fffffffu;
            for (Device device : devices_with_fp8()) {
                EXPECT_EQ(run_on(device, Fp8Wrapper::absmax, inp), expected)
                    << largest << " at " << place << " on " << device_name(device);
            }
        }
    }
}

namespace {

// C [16,8] += A [16,32] B [32,8] of codes, A of type T.
struct Product {
    uint8_t a[16][32] = {}, b[32][8] = {};
    float c[16][8] = {};

    // As mma.m16n8k32's fragments are drawn in the PTX manual: with group = lane / 4, pair = lane % 4, word
    // half of A's column 16 half + 4 pair + 0..3.
    Words words() const {
        Words words;
        const auto four = [](auto at) { return at(0) | at(1) << 8 | at(2) << 16 | at(3) << 24; };
        for (int lane = 0; lane < 32; ++lane) {
            const int group = lane / 4, first = 4 * (lane % 4);
            for (int half : {0, 16}) {
                for (int row : {group, group + 8}) {
                    words.push_back(four([&](int i) { return uint32_t{a[row][half + first + i]}; }));
                }
            }
            for (int half : {0, 16}) {
                words.push_back(four([&](int i) { return uint32_t{b[half + first + i][group]}; }));
            }
            for (int row : {group, group + 8}) {
                for (int column : {first / 2, first / 2 + 1}) words.push_back(bits(c[row][column]));
            }
        }
        return words;
    }
};

// Within `relative` of the sum of the terms' magnitudes.
template <class A>
void expect_product(Fp8Wrapper wrapper, const Product& p, double relative) {
    for (Device device : devices_with_fp8()) {
        const Words out = run_on(device, wrapper, p.words());
        for (size_t i = 0; i < out.size(); ++i) {
            const int lane = static_cast<int>(i / 4), k = static_cast<int>(i % 4);
            const int row = lane / 4 + 8 * (k / 2), column = 2 * (lane % 4) + k % 2;
            double sum = p.c[row][column], magnitudes = std::abs(sum);
            for (int inner = 0; inner < 32; ++inner) {
                const double x = double{to_float(A{p.a[row][inner]})} * to_float(e4m3{p.b[inner][column]});
                sum += x, magnitudes += std::abs(x);
            }
            ASSERT_NEAR(number(out[i]), sum, relative * magnitudes)
                << "C[" << row << "][" << column << "] on " << device_name(device);
        }
    }
}

template <class A>
void expect_products(Fp8Wrapper wrapper) {
    // Small integers, of which every sum is exact; each inner index by itself, then all.
    for (int only = 0; only <= 32; ++only) {
        Product p;
        for (int row = 0; row < 16; ++row) {
            for (int k = 0; k < 32; ++k) {
                const float x = static_cast<float>((row * 5 + k * 3) % 9 - 4);
                if (only == k || only == 32) p.a[row][k] = static_cast<uint8_t>(code_of<A>(x));
            }
            for (int column = 0; column < 8; ++column) p.c[row][column] = static_cast<float>(row - column);
        }
        for (int k = 0; k < 32; ++k) {
            for (int column = 0; column < 8; ++column)
                p.b[k][column] = to_e4m3(static_cast<float>((k + column * 7) % 15 - 7)).bits;
        }
        expect_product<A>(wrapper, p, 0);
    }
    // Any finite codes. Hopper is reported to keep 14 bits of the sums of one instruction.
    std::mt19937 engine(3);
    for (int round = 0; round < 5; ++round) {
        Product p;
        const auto draw = [&](uint32_t finite) {
            return static_cast<uint8_t>(engine() % finite | (engine() & 128));
        };
        for (auto& row : p.a)
            for (uint8_t& code : row) code = draw(std::is_same_v<A, e4m3> ? 0x7f : 0x7c);
        for (auto& row : p.b)
            for (uint8_t& code : row) code = draw(0x7f);
        expect_product<A>(wrapper, p, 0x1p-12);
    }
}

}  // namespace

TEST(GpuWrappersFp8, MmaMultiplies) {
    expect_products<e4m3>(Fp8Wrapper::mma_e4m3);
    expect_products<e5m2>(Fp8Wrapper::mma_e5m2);
}
