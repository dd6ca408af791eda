// What the wrappers of kernels/tma.h and kernels/wgmma.h do: on the emulator as plain loops do it, and on a
// Hopper GPU as on the emulator. Layouts, swizzles and descriptors that were misread show here, on a GPU,
// before they show as a wrong product.
#include "tests/gpu_wrappers_hopper.h"

#include <bit>

#include "tests/on_device.h"

namespace on_simt {
void run_hopper_wrapper(HopperWrapper wrapper, Tensor out, Tensor inp);
}
#if defined(INGOT_CUDA)
namespace on_cuda {
void run_hopper_wrapper(HopperWrapper wrapper, Tensor out, Tensor inp);
}
#endif

void run_hopper_wrapper(HopperWrapper wrapper, Tensor out, Tensor inp) {
#if defined(INGOT_CUDA)
    if (out.device == Device::cuda) return on_cuda::run_hopper_wrapper(wrapper, out, inp);
#endif
    on_simt::run_hopper_wrapper(wrapper, out, inp);
}

namespace {

// N of the wgmma wrappers, 0 of others.
int columns_of(HopperWrapper wrapper) {
    switch (wrapper) {
        case HopperWrapper::wgmma_64_k_k:
        case HopperWrapper::wgmma_64_registers_mn: return 64;
        case HopperWrapper::wgmma_128_k_mn:
        case HopperWrapper::wgmma_128_registers_k:
        case HopperWrapper::wgmma_e4m3:
        case HopperWrapper::wgmma_e5m2: return 128;
        case HopperWrapper::wgmma_192_mn_k:
        case HopperWrapper::wgmma_192_registers_k: return 192;
        case HopperWrapper::wgmma_256_mn_mn:
        case HopperWrapper::wgmma_256_k_k:
        case HopperWrapper::wgmma_256_registers_mn: return 256;
        default: return 0;
    }
}

}  // namespace

HopperShape hopper_shape(HopperWrapper wrapper) {
    switch (wrapper) {
        case HopperWrapper::mbarriers: return {128, 128, 4 * 128};
        case HopperWrapper::named_barriers: return {128, 64, 64};
        case HopperWrapper::registers: return {384, 384, 384};
        case HopperWrapper::bytes: return {64, 512, 512};
        case HopperWrapper::box_2d:
        case HopperWrapper::box_3d:
        case HopperWrapper::box_4d:
        case HopperWrapper::box_swizzle_32:
        case HopperWrapper::box_swizzle_64:
        case HopperWrapper::box_swizzle_128:
            return {32, kHopperTensorWords, kHopperBoxWords + kHopperTensorWords};
        default: return {128, (64 + columns_of(wrapper)) * 64 / 2, 64 * columns_of(wrapper)};
    }
}

namespace {

using Words = std::vector<uint32_t>;

Words random_words(int64_t count, uint32_t seed) {
    std::mt19937 engine(seed);
    Words words(static_cast<size_t>(count));
    for (uint32_t& word : words) word = static_cast<uint32_t>(engine());
    return words;
}

// Every device that has these instructions.
std::vector<Device> hoppers() {
    std::vector<Device> devices;
    for (Device device : gpus()) {
        if (device_info(device).capability == 90) devices.push_back(device);
    }
    return devices;
}

void expect_words(HopperWrapper wrapper, const Words& inp, const Words& expected) {
    const HopperShape shape = hopper_shape(wrapper);
    ASSERT_EQ(static_cast<int64_t>(inp.size()), shape.inputs);
    ASSERT_EQ(static_cast<int64_t>(expected.size()), shape.outputs);
    for (Device device : hoppers()) {
        Guarded<int32_t> from(shape.inputs), to(shape.outputs);
        std::memcpy(from.data(), inp.data(), inp.size() * 4);
        std::memset(to.data(), 0, expected.size() * 4);  // what boxes leave out
        OnDevice on(device);
        run_hopper_wrapper(wrapper, on(to.tensor()), on(from.tensor()));
        on.fetch();
        for (size_t i = 0; i < expected.size(); ++i) {
            ASSERT_EQ(static_cast<uint32_t>(to[static_cast<int64_t>(i)]), expected[i])
                << "word " << i << " on " << device_name(device);
        }
    }
}

}  // namespace

TEST(GpuWrappersHopper, PhasesEndWithTheLastArrival) {
    const Words inp = random_words(128, 1);
    Words expected;
    // Bit 0: whether phase 0 is over; bit 1: of the parity that counts as over before.
    for (size_t i = 0; i < 128; ++i) expected.insert(expected.end(), {2, 2, 1, inp[127 - i]});
    expect_words(HopperWrapper::mbarriers, inp, expected);
}

TEST(GpuWrappersHopper, NamedBarriersOrderTheirWarps) {
    const Words inp = random_words(64, 2);
    Words expected;
    for (size_t i = 0; i < 64; ++i) expected.push_back(inp[i / 32 * 32 + 31 - i % 32]);
    expect_words(HopperWrapper::named_barriers, inp, expected);
}

TEST(GpuWrappersHopper, WarpgroupsPassRegistersOn) {
    const Words inp = random_words(384, 3);
    Words expected;
    for (uint32_t word : inp) expected.push_back(word + 1);
    expect_words(HopperWrapper::registers, inp, expected);
}

TEST(GpuWrappersHopper, BytesComeAndGo) {
    const Words inp = random_words(512, 4);
    expect_words(HopperWrapper::bytes, inp, Words(inp.rbegin(), inp.rend()));
}

TEST(GpuWrappersHopper, BoxesHaveZerosOutsideAndSwizzles) {
    struct Case {
        HopperWrapper wrapper;
        int dims[4], box[4], at[4], swizzle;
    };
    for (const Case& c :
         {Case{HopperWrapper::box_2d, {12, 20, 1, 1}, {8, 8, 1, 1}, {-4, 15, 0, 0}, 0},
          Case{HopperWrapper::box_3d, {12, 5, 4, 1}, {8, 4, 2, 1}, {8, -1, 3, 0}, 0},
          Case{HopperWrapper::box_4d, {12, 5, 2, 2}, {8, 2, 2, 2}, {4, 4, 1, -1}, 0},
          Case{HopperWrapper::box_swizzle_32, {12, 20, 1, 1}, {8, 8, 1, 1}, {-4, 18, 0, 0}, 32},
          Case{HopperWrapper::box_swizzle_64, {12, 20, 1, 1}, {16, 4, 1, 1}, {-4, 18, 0, 0}, 64},
          Case{HopperWrapper::box_swizzle_128, {12, 20, 1, 1}, {32, 2, 1, 1}, {-4, 18, 0, 0}, 128}}) {
        const Words inp = random_words(kHopperTensorWords, 5);
        Words box(kHopperBoxWords), copy(kHopperTensorWords);
        for (int i = 0; i < kHopperBoxWords; ++i) {
            int at[4], rest = i, index = 0;
            bool inside = true;
            for (int d = 0; d < 4; ++d) {
                at[d] = c.at[d] + rest % c.box[d];
                rest /= c.box[d];
                inside = inside && at[d] >= 0 && at[d] < c.dims[d];
            }
            for (int d = 3; d >= 0; --d) index = index * c.dims[d] + at[d];
            const int bytes = 4 * i, unit = c.swizzle > 0 ? bytes / 128 % (c.swizzle / 16) : 0;
            const size_t lies = static_cast<size_t>((bytes ^ unit * 16) / 4);
            box[lies] = inside ? inp[static_cast<size_t>(index)] : 0;
            if (inside) copy[static_cast<size_t>(index)] = box[lies];
        }
        box.insert(box.end(), copy.begin(), copy.end());
        SCOPED_TRACE(static_cast<int>(c.wrapper));
        expect_words(c.wrapper, inp, box);
    }
}

namespace {

uint32_t code_of(bf16 x) { return x.bits; }
uint32_t code_of(e4m3 x) { return x.bits; }
uint32_t code_of(e5m2 x) { return x.bits; }
template <class T>
T number(float x) {
    if constexpr (std::is_same_v<T, e4m3>) return to_e4m3(x);
    if constexpr (std::is_same_v<T, e5m2>) return to_e5m2(x);
    if constexpr (std::is_same_v<T, bf16>) return to_bf16(x);
}

// Operands are integers up to `largest`, so small that every order of summation gives the same bits.
template <class A, class B>
void expect_product(HopperWrapper wrapper, bool a_mn_major, bool b_mn_major, int largest) {
    SCOPED_TRACE(static_cast<int>(wrapper));
    const size_t n = static_cast<size_t>(columns_of(wrapper)), depth = 128 / sizeof(A);
    std::mt19937 engine(6);
    const auto draw = [&](size_t outer) {
        std::vector<float> x(outer * depth);
        for (float& v : x) {
            v = static_cast<float>(static_cast<int>(engine() % static_cast<uint32_t>(2 * largest + 1)) -
                                   largest);
        }
        return x;
    };
    const std::vector<float> a = draw(64), b = draw(n);  // [outer][k]
    Words inp, expected;
    const auto add_words = [&]<class T>(T, const std::vector<float>& x, size_t outer, bool mn_major) {
        constexpr size_t kPerWord = 4 / sizeof(T);
        for (size_t i = 0; i < outer * depth; ++i) {
            if (i % kPerWord == 0) inp.push_back(0);
            const size_t at = mn_major ? i % outer * depth + i / outer : i;
            inp.back() |= code_of(number<T>(x[at])) << 32 / kPerWord * (i % kPerWord);
        }
    };
    add_words(A{}, a, 64, a_mn_major);
    add_words(B{}, b, n, b_mn_major);
    for (size_t row = 0; row < 64; ++row) {
        for (size_t column = 0; column < n; ++column) {
            float sum = 0;
            for (size_t k = 0; k < depth; ++k) sum += a[row * depth + k] * b[column * depth + k];
            expected.push_back(std::bit_cast<uint32_t>(2 * sum));
        }
    }
    expect_words(wrapper, inp, expected);
}
void expect_product(HopperWrapper wrapper, bool a_mn_major, bool b_mn_major) {
    expect_product<bf16, bf16>(wrapper, a_mn_major, b_mn_major, 15);
}

}  // namespace

TEST(GpuWrappersHopper, WgmmaMultipliesIntegersExactly) {
    expect_product(HopperWrapper::wgmma_64_k_k, false, false);
    expect_product(HopperWrapper::wgmma_128_k_mn, false, true);
    expect_product(HopperWrapper::wgmma_192_mn_k, true, false);
    expect_product(HopperWrapper::wgmma_256_mn_mn, true, true);
    expect_product(HopperWrapper::wgmma_256_k_k, false, false);
    expect_product(HopperWrapper::wgmma_64_registers_mn, false, true);
    expect_product(HopperWrapper::wgmma_128_registers_k, false, false);
    expect_product(HopperWrapper::wgmma_192_registers_k, false, false);
    expect_product(HopperWrapper::wgmma_256_registers_mn, false, true);
}

// Numbers that leave the 14 bits of a sum that Hopper is reported to keep enough room.
TEST(GpuWrappersHopper, WgmmaMultipliesFp8IntegersExactly) {
    expect_product<e4m3, e4m3>(HopperWrapper::wgmma_e4m3, false, false, 3);
    expect_product<e5m2, e4m3>(HopperWrapper::wgmma_e5m2, false, false, 3);
}
