// The emulator of CUDA: shared memory, asynchronous copies, atomics and arithmetic.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/gpu.h"
#include "tests/simt_device.h"

using namespace on_simt;

namespace {

class SimtMemory : public testing::Test {
protected:
    void SetUp() override {
        simt::set_order(simt::Order::random);
        simt::set_seed(1);
    }
};

// ---- shared memory and asynchronous copies ----------------------------------------------------------------

template <int kCount>
__device__ unsigned* array_of_a_template() {
    SHARED(unsigned, array, [kCount]);
    return array;
}
__global__ void shared_kernel(unsigned* out) {
    wait_for_previous();
    SHARED(unsigned, first, [3]);
    SHARED(double, second, [2][5]);
    DYN_SHARED(unsigned, dynamic);
    unsigned* const third = array_of_a_template<4>();
    unsigned* const fourth = array_of_a_template<5>();
    unsigned* const mine = out + 6 * blockIdx.x;
    if (threadIdx.x == 0) {
        mine[0] = first[2];
        mine[1] = static_cast<unsigned>(std::isnan(second[1][4]));
        mine[2] = dynamic[99];
        mine[3] = reinterpret_cast<uintptr_t>(dynamic) % 1024 + reinterpret_cast<uintptr_t>(second) % 8;
        mine[4] = third != fourth && third == array_of_a_template<4>();
        mine[5] = __isShared(first) + __isShared(dynamic) + __isShared(out);
    }
    __syncthreads();
    dynamic[threadIdx.x] = 7;
    if (threadIdx.x < 3) first[threadIdx.x] = 7;
    if (threadIdx.x < 10) second[threadIdx.x / 5][threadIdx.x % 5] = 7.0;
}
TEST_F(SimtMemory, SharedMemoryIsUndefinedAtEachBlocksStart) {
    const DeviceArray<unsigned> out(3 * 6);
    start(shared_kernel, {3, 100, 400}, out.data());
    const std::vector<unsigned> got = out.values();
    for (size_t b = 0; b < 3; ++b) {
        const std::vector<unsigned> block(got.begin() + static_cast<long>(6 * b),
                                          got.begin() + static_cast<long>(6 * b + 6));
        EXPECT_EQ(block, (std::vector<unsigned>{0xffffffffu, 1, 0xffffffffu, 0, 1, 2}));
    }
}

// Of three groups of copies: what is seen at once and after waiting for all but one, and the zeros of an
// invalid one.
__global__ void copies_kernel(int* out, const int* inp) {
    wait_for_previous();
    SHARED(Pack<int>, tile, [4][32]);
    const unsigned lane = threadIdx.x;
    for (int group = 0; group < 3; ++group) {
        cp_async16(&tile[group][lane], inp + 4 * (32 * static_cast<unsigned>(group) + lane));
        if (group == 0) out[lane] = kSanitized ? -1 : tile[0][lane][3];
        if (group == 1) cp_async16(&tile[3][lane], inp, false);
        cp_async_commit();
    }
    cp_async_wait<1>();
    out[32 + lane] = tile[0][lane][3];
    out[64 + lane] = tile[1][lane][3] + tile[3][lane][0];
    out[96 + lane] = kSanitized ? -1 : tile[2][lane][3];
    cp_async_wait<0>();
    out[128 + lane] = tile[2][lane][3];
}
TEST_F(SimtMemory, CopiesArriveWhenTheirGroupIsWaitedFor) {
    std::vector<int> values(4 * 96);
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int>(i);
    int early = 0, late = 0;
    for (uint64_t seed = 1; seed <= 20; ++seed) {
        simt::set_seed(seed);
        const DeviceArray<int> inp(values), out(160);
        start(copies_kernel, {1, 32}, out.data(), inp.data());
        const std::vector<int> got = out.values();
        for (int lane = 0; lane < 32; ++lane) {
            const auto at = [&](int row) { return got[static_cast<size_t>(32 * row + lane)]; };
            EXPECT_EQ(at(0), -1);
            EXPECT_EQ(at(1), 4 * lane + 3);
            EXPECT_EQ(at(2), 128 + 4 * lane + 3);
            EXPECT_EQ(at(4), 256 + 4 * lane + 3);
            ++(at(3) == -1 ? late : early);
        }
    }
    EXPECT_TRUE(early > 0 || kSanitized);  // by chance, at the commit
    EXPECT_GT(late, 0);
}

// ---- atomics and arithmetic -------------------------------------------------------------------------------

__global__ void atomics_kernel(unsigned* u, int* i, unsigned long long* l) {
    wait_for_previous();
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&u[0], thread);
    atomicMax(&u[1], thread);
    atomicOr(&u[2], 1u << thread % 32);
    atomicInc(&u[3], 6u);
    if (atomicCAS(&u[4], 0u, 1u) == 0) atomicAdd(&u[5], 1u);
    atomicExch(&u[6], 9u);
    atomicMin(&i[0], -static_cast<int>(thread));
    atomicMax(&i[1], -static_cast<int>(thread));
    atomicAdd(&i[2], -1);
    atomicAdd(&l[0], 1ull << 33);
}
TEST_F(SimtMemory, Atomics) {
    const DeviceArray<unsigned> u(std::vector<unsigned>(7));
    const DeviceArray<int> i(std::vector<int>{5, -1000, 0});
    const DeviceArray<unsigned long long> l(std::vector<unsigned long long>(1));
    start(atomics_kernel, {4, 64}, u.data(), i.data(), l.data());
    EXPECT_EQ(u.values(), (std::vector<unsigned>{255 * 128, 255, 0xffffffffu, 256 % 7, 1, 1, 9}));
    EXPECT_EQ(i.values(), (std::vector<int>{-255, 0, -256}));
    EXPECT_EQ(l.values()[0], 256ull << 33);
}

TEST_F(SimtMemory, Arithmetic) {
    EXPECT_EQ(__popc(0xf0f0u), 8);
    EXPECT_EQ(__clz(1), 31);
    EXPECT_EQ(__clz(0), 32);
    EXPECT_EQ(__ffs(8), 4);
    EXPECT_EQ(__ffs(0), 0);
    EXPECT_EQ(__brev(1u), 0x80000000u);
    EXPECT_EQ(__umulhi(0x80000000u, 6u), 3u);
    EXPECT_EQ(__float_as_uint(1.0f), 0x3f800000u);
    EXPECT_EQ(__int_as_float(0x40000000), 2.0f);
    EXPECT_EQ(rsqrtf(4.0f), 0.5f);
    EXPECT_EQ(__frcp_rn(8.0f), 0.125f);
    EXPECT_EQ(__fmaf_rn(2.0f, 3.0f, 4.0f), 10.0f);
    EXPECT_FLOAT_EQ(__expf(1.0f), 2.7182818f);
    EXPECT_FLOAT_EQ(__logf(10.0f), 2.3025851f);
    EXPECT_EQ(min(3, -4), -4);
    EXPECT_EQ(max(3.0f, NAN), 3.0f);
}

}  // namespace
