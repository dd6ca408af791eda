// The emulator of sm_90: named barriers, mbarriers, bulk copies with and without swizzles, wgmma.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels/simt/hopper.h"
#include "tests/simt_device.h"
#include "tests/simt_planted.h"

using namespace on_simt;

namespace {

class SimtHopper : public testing::Test {
protected:
    void SetUp() override {
        simt::set_order(simt::Order::random);
        simt::set_seed(1);
    }
};
template <class Body>
void in_every_order(Body body) {
    for (const simt::Order order : {simt::Order::ascending, simt::Order::descending, simt::Order::random}) {
        simt::set_order(order);
        for (uint64_t seed = 1; seed <= (order == simt::Order::random ? 40 : 1); ++seed) {
            SCOPED_TRACE(testing::Message() << "order " << static_cast<int>(order) << ", seed " << seed);
            simt::set_seed(seed);
            body();
        }
    }
}

// ---- barriers ---------------------------------------------------------------------------------------------

// Two warps write for two others, each pair with a barrier of its own; writers do not wait.
__global__ void named_kernel(int* out) {
    wait_for_previous();
    SHARED(int, values, [2][32]);
    const int lane = threadIdx.x % 32, pair = threadIdx.x / 32 % 2;
    if (threadIdx.x < 64) {
        values[pair][lane] = 100 * pair + lane;
        simt::named_barrier(1 + pair, 64, false);
    } else {
        simt::named_barrier(1 + pair, 64, true);
        out[32 * pair + lane] = values[pair][31 - lane];
    }
}
TEST_F(SimtHopper, NamedBarriers) {
    in_every_order([] {
        const DeviceArray<int> out(64);
        start(named_kernel, {1, 128}, out.data());
        const std::vector<int> got = out.values();
        for (int i = 0; i < 64; ++i) EXPECT_EQ(got[static_cast<size_t>(i)], 100 * (i / 32) + 31 - i % 32);
    });
}

// A ring of stages that bulk copies fill and two warps read (simt_planted.cu).
TEST_F(SimtHopper, ARingOfBulkCopies) {
    in_every_order([] { EXPECT_TRUE(run_planted("ring")); });
}
TEST_F(SimtHopper, ARingThatIsFilledTooEarlyShows) {
    if (kSanitized) GTEST_SKIP() << "scripts/simt_planted.sh looks for it with sanitizers";
    for (uint64_t seed = 1; seed <= 40; ++seed) {
        simt::set_seed(seed);
        const auto run = [] {
            if (run_planted("no_empty_wait")) return;
            std::fputs("wrong sums", stderr);
            std::abort();
        };
        EXPECT_DEATH(run(), "wrong sums|all 1 threads have arrived already");
    }
}

// ---- boxes ------------------------------------------------------------------------------------------------

struct Corner {
    int v[3];
};
// The box at `at` of `map`, to `out` as it lies in shared memory, and back to `copy`.
__global__ void box_kernel(uint32_t* out, simt::TensorMap map, simt::TensorMap copy, Corner at) {
    wait_for_previous();
    DYN_SHARED(uint32_t, box);
    SHARED(uint64_t, arrived, [1]);
    const int words = static_cast<int>(simt::box_bytes(map) / 4);
    if (threadIdx.x == 0) {
        simt::mbarrier_init(arrived, 1);
        simt::mbarrier_expect_bytes(arrived, 4 * words);
        simt::load_box(box, map, at.v, arrived);
        simt::mbarrier_arrive(arrived);
    }
    __syncthreads();
    simt::mbarrier_wait(arrived, 0);
    for (int i = static_cast<int>(threadIdx.x); i < words; i += 32) out[i] = box[i];
    if (threadIdx.x == 0) {
        simt::store_box(copy, at.v, box);
        simt::store_commit();
        simt::store_wait(0);
    }
}
TEST_F(SimtHopper, BoxesWithSwizzlesAndZeros) {
    // [3][10][40] elements of 4 bytes; the box [2][8][inner] hangs over the edges.
    std::vector<uint32_t> tensor(3 * 10 * 40);
    for (size_t i = 0; i < tensor.size(); ++i) tensor[i] = static_cast<uint32_t>(i + 1);
    const DeviceArray<uint32_t> from(tensor);
    for (const int swizzle : {0, 32, 64, 128}) {
        const int inner = swizzle ? swizzle / 4 : 12;
        simt::TensorMap map;
        map.data = from.data();
        map.rank = 3;
        map.element_bytes = 4;
        const int64_t dims[3] = {40, 10, 3}, strides[3] = {4, 160, 1600};
        const int box[3] = {inner, 8, 2};
        for (int d = 0; d < 3; ++d) {
            map.dims[d] = dims[d];
            map.strides_bytes[d] = strides[d];
            map.box[d] = box[d];
        }
        map.swizzle_bytes = swizzle;
        for (const Corner at : {Corner{{0, 0, 0}}, Corner{{-3, 5, 2}}, Corner{{35, -2, -1}}}) {
            const int words = inner * 16;
            const DeviceArray<uint32_t> out(static_cast<size_t>(words)),
                to(std::vector<uint32_t>(tensor.size()));
            simt::TensorMap copy = map;
            copy.data = to.data();
            start(box_kernel, {1, 32, 4 * words}, out.data(), map, copy, at);
            const std::vector<uint32_t> got = out.values();
            std::vector<uint32_t> expected(tensor.size());
            for (int i = 0; i < words; ++i) {
                const int x = at.v[0] + i % inner, y = at.v[1] + i / inner % 8, z = at.v[2] + i / inner / 8;
                const bool inside = x >= 0 && x < 40 && y >= 0 && y < 10 && z >= 0 && z < 3;
                const size_t index = static_cast<size_t>((z * 10 + y) * 40 + x);
                if (inside) expected[index] = tensor[index];
                const int bytes = 4 * i,
                          turned = swizzle ? bytes ^ (bytes >> 7 & (swizzle / 16 - 1)) << 4 : bytes;
                ASSERT_EQ(got[static_cast<size_t>(turned / 4)], inside ? tensor[index] : 0u)
                    << "swizzle " << swizzle << ", word " << i;
            }
            EXPECT_EQ(to.values(), expected);
        }
    }
}

// ---- wgmma ------------------------------------------------------------------------------------------------

constexpr int kN = 24, kDepth = 32;
// Where element (outer, k) lies, and what its descriptor says; `outer` is a row of A or a column of B.
struct Layout {
    bool mn_major;
    int swizzle_bytes;
    int leading, stride;  // bytes
    int element_bytes = 2;
    // Written down from the layouts' pictures, not from the emulator's formula.
    int offset(int outer, int k) const {
        if (!mn_major) {
            const int along = k * element_bytes;
            if (swizzle_bytes == 0)
                return outer / 8 * stride + along / 16 * leading + outer % 8 * 16 + along % 16;
            const int plain = outer / 8 * stride + outer % 8 * swizzle_bytes + along;
            return plain ^ (plain >> 7 & (swizzle_bytes / 16 - 1)) << 4;
        }
        if (swizzle_bytes == 0) return outer / 8 * stride + k / 8 * leading + k % 8 * 16 + outer % 8 * 2;
        const int across = swizzle_bytes / 2;
        const int plain =
            outer / across * leading + k / 8 * stride + k % 8 * swizzle_bytes + outer % across * 2;
        return plain ^ (plain >> 7 & (swizzle_bytes / 16 - 1)) << 4;
    }
    int bytes_per_step() const {  // of one wgmma
        if (mn_major) return swizzle_bytes == 0 ? 2 * leading : 2 * stride;
        return swizzle_bytes == 0 ? 2 * leading : 32;
    }
    uint64_t descriptor(uint32_t begin) const {
        const uint64_t mode = swizzle_bytes == 0 ? 0 : swizzle_bytes == 128 ? 1 : swizzle_bytes == 64 ? 2 : 3;
        return uint64_t{begin >> 4} | static_cast<uint64_t>(leading >> 4) << 16 |
               static_cast<uint64_t>(stride >> 4) << 32 | mode << 62;
    }
};
constexpr int kMatrixBytes = 16 << 10;

__global__ void wgmma_kernel(float* out, float* early, const bf16* a, const bf16* b, Layout la, Layout lb,
                             bool a_in_registers, int pending) {
    wait_for_previous();
    DYN_SHARED(char, memory);
    char* const shared_b = memory + kMatrixBytes;
    const auto put = [](char* at, bf16 x) { *reinterpret_cast<bf16*>(at) = x; };
    for (int i = static_cast<int>(threadIdx.x); i < 64 * kDepth; i += 128)
        put(memory + la.offset(i / kDepth, i % kDepth), a[i]);
    for (int i = static_cast<int>(threadIdx.x); i < kN * kDepth; i += 128)
        put(shared_b + lb.offset(i / kDepth, i % kDepth), b[i]);
    __syncthreads();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float d[kN / 2];
    for (float& x : d) x = 1.0f;
    simt::wgmma_fence();
    for (int step = 0; step < kDepth / 16; ++step) {
        uint32_t fragment[4];
        for (int i = 0; i < 4; ++i) {
            const int row = 16 * warp + lane / 4 + 8 * (i % 2), k = 16 * step + 2 * (lane % 4) + 8 * (i / 2);
            fragment[i] = uint32_t{a[row * kDepth + k + 1].bits} << 16 | a[row * kDepth + k].bits;
        }
        simt::wgmma(d, {kN, true, a_in_registers ? fragment : nullptr,
                        la.descriptor(simt::shared_offset(memory + step * la.bytes_per_step())),
                        lb.descriptor(simt::shared_offset(shared_b + step * lb.bytes_per_step())),
                        la.mn_major, lb.mn_major});
        simt::wgmma_commit();
    }
    if (pending > 0) simt::wgmma_wait(pending);
    early[threadIdx.x] = d[0];
    simt::wgmma_wait(0);
    for (int i = 0; i < kN / 2; ++i) {
        const int row = 16 * warp + lane / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
        out[row * kN + column] = d[i];
    }
}
TEST_F(SimtHopper, WgmmaInEveryLayout) {
    std::vector<bf16> a(64 * kDepth), b(kN * kDepth);  // [row][k], [column][k]
    for (size_t i = 0; i < a.size(); ++i) a[i] = to_bf16(static_cast<float>(i * 7 % 11) - 5.0f);
    for (size_t i = 0; i < b.size(); ++i) b[i] = to_bf16(static_cast<float>(i * 5 % 13) - 6.0f);
    std::vector<float> expected(64 * kN, 1.0f);
    for (size_t row = 0; row < 64; ++row) {
        for (size_t column = 0; column < kN; ++column) {
            for (size_t k = 0; k < kDepth; ++k) {
                expected[row * kN + column] +=
                    to_float(a[row * kDepth + k]) * to_float(b[column * kDepth + k]);
            }
        }
    }
    const std::vector<Layout> layouts = {
        {false, 0, 128, 1024}, {false, 0, 1024, 128},  {false, 32, 16, 256 * 1},
        {false, 64, 16, 512},  {false, 128, 16, 1024}, {true, 0, 1024, 128},
        {true, 32, 1024, 256}, {true, 64, 2048, 512},  {true, 128, 4096, 1024}};
    const DeviceArray<bf16> da(a), db(b);
    const DeviceArray<float> out(64 * kN), early(128);
    for (size_t i = 0; i < layouts.size(); ++i) {
        for (size_t j = 0; j < layouts.size(); ++j) {
            const Layout la = layouts[i], lb = layouts[j];
            // A row of 32 bytes holds 16 k only.
            if ((!la.mn_major && la.swizzle_bytes == 32) || (!lb.mn_major && lb.swizzle_bytes == 32))
                continue;
            for (const bool registers : {false, true}) {
                start(wgmma_kernel, {1, 128, 2 * kMatrixBytes}, out.data(), early.data(), da.data(),
                      db.data(), la, lb, registers, 0);
                ASSERT_EQ(out.values(), expected) << "layouts " << i << ", " << j;
            }
        }
    }
}
// One wgmma of codes, every one of A's in some place of B's column 0 to kN - 1.
__global__ void wgmma_fp8_kernel(float* out, const uint8_t* a, const uint8_t* b, Layout la, Layout lb,
                                 simt::WgmmaNumbers numbers) {
    wait_for_previous();
    DYN_SHARED(uint8_t, memory);
    uint8_t* const shared_b = memory + kMatrixBytes;
    for (int i = static_cast<int>(threadIdx.x); i < 64 * 32; i += 128)
        memory[la.offset(i / 32, i % 32)] = a[i];
    for (int i = static_cast<int>(threadIdx.x); i < kN * 32; i += 128)
        shared_b[lb.offset(i / 32, i % 32)] = b[i];
    __syncthreads();
    float d[kN / 2] = {};
    simt::wgmma_fence();
    simt::wgmma(d, {kN, true, nullptr, la.descriptor(simt::shared_offset(memory)),
                    lb.descriptor(simt::shared_offset(shared_b)), la.mn_major, lb.mn_major, numbers});
    simt::wgmma_commit();
    simt::wgmma_wait(0);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int i = 0; i < kN / 2; ++i) {
        const int row = 16 * warp + lane / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
        out[row * kN + column] = d[i];
    }
}
TEST_F(SimtHopper, WgmmaOfFp8InEveryLayout) {
    const std::vector<Layout> layouts = {{false, 0, 128, 1024, 1},
                                         {false, 0, 1024, 128, 1},
                                         {false, 32, 16, 256, 1},
                                         {false, 64, 16, 512, 1},
                                         {false, 128, 16, 1024, 1}};
    for (const bool wide : {false, true}) {
        // Small integers of either sign: the sums are exact.
        const auto code = [&](int x, bool e5m2) {
            return e5m2 ? to_e5m2(static_cast<float>(x)).bits : to_e4m3(static_cast<float>(x)).bits;
        };
        std::vector<uint8_t> a(64 * 32), b(kN * 32);
        std::vector<float> expected(64 * kN);
        const auto of_a = [](int row, int k) { return (row * 5 + k * 3) % 9 - 4; };
        const auto of_b = [](int column, int k) { return (column * 7 + k * 2) % 13 - 6; };
        for (int row = 0; row < 64; ++row) {
            for (int column = 0; column < kN; ++column) {
                for (int k = 0; k < 32; ++k) {
                    a[static_cast<size_t>(row * 32 + k)] = code(of_a(row, k), wide);
                    b[static_cast<size_t>(column * 32 + k)] = code(of_b(column, k), false);
                    expected[static_cast<size_t>(row * kN + column)] +=
                        static_cast<float>(of_a(row, k) * of_b(column, k));
                }
            }
        }
        const DeviceArray<uint8_t> da(a), db(b);
        const DeviceArray<float> out(64 * kN);
        for (const Layout& la : layouts) {
            for (const Layout& lb : layouts) {
                start(wgmma_fp8_kernel, {1, 128, 2 * kMatrixBytes}, out.data(), da.data(), db.data(), la, lb,
                      wide ? simt::WgmmaNumbers::e5m2 : simt::WgmmaNumbers::e4m3);
                ASSERT_EQ(out.values(), expected)
                    << "swizzles " << la.swizzle_bytes << ", " << lb.swizzle_bytes;
            }
        }
    }
}
TEST_F(SimtHopper, WgmmasSumsAreUndefinedUntilWaitedFor) {
    const DeviceArray<bf16> a(std::vector<bf16>(64 * kDepth)), b(std::vector<bf16>(kN * kDepth));
    const DeviceArray<float> out(64 * kN), early(128);
    const Layout layout{false, 128, 16, 1024};
    for (const int pending : {0, 1}) {
        int unset = 0;
        for (uint64_t seed = 1; seed <= 20; ++seed) {
            simt::set_seed(seed);
            start(wgmma_kernel, {1, 128, 2 * kMatrixBytes}, out.data(), early.data(), a.data(), b.data(),
                  layout, layout, false, pending);
            for (const float x : early.values()) unset += std::isnan(x);
            EXPECT_EQ(out.values(), std::vector<float>(64 * kN, 1.0f));
        }
        EXPECT_GT(unset, 20 * 128 / 4);
    }
}

// ---- broken rules -----------------------------------------------------------------------------------------

enum class Break { no_init, too_many, not_waited, no_fence, transposed, deadlock, outside };
template <Break kBreak>
__global__ void break_kernel(const float* x) {
    wait_for_previous();
    SHARED(uint64_t, barrier, [1]);
    SHARED(Pack<float>, memory, [8]);
    if (kBreak == Break::no_init) simt::mbarrier_arrive(barrier);
    simt::mbarrier_init(barrier, 1);
    if (kBreak == Break::too_many) {
        simt::mbarrier_expect_bytes(barrier, 16);
        simt::mbarrier_arrive(barrier);
        simt::mbarrier_arrive(barrier);
    }
    if (kBreak == Break::not_waited) {
        simt::mbarrier_expect_bytes(barrier, 16);
        simt::load_bytes(memory, x, 16, barrier);
    }
    if (kBreak == Break::outside) simt::load_bytes(memory, x + 64, 16, barrier);
    if (kBreak == Break::deadlock) simt::mbarrier_wait(barrier, 0);
    float d[4] = {};
    if (kBreak == Break::no_fence) simt::wgmma(d, {8, false, nullptr, 0, 0, false, false});
    if (kBreak == Break::transposed)
        simt::wgmma(d, {8, false, nullptr, 0, 0, false, true, simt::WgmmaNumbers::e4m3});
}
template <Break kBreak>
void break_rule() {
    simt::set_order(simt::Order::ascending);
    const DeviceArray<float> x(std::vector<float>(64));
    start(break_kernel<kBreak>, {1, 1}, x.data());
}
TEST_F(SimtHopper, Rules) {
    EXPECT_DEATH(break_rule<Break::no_init>(),
                 "mbarrier.arrive: the barrier was never initialised: at .*test_simt_hopper.cpp");
    EXPECT_DEATH(break_rule<Break::too_many>(), "mbarrier.arrive: all 1 threads have arrived already");
    EXPECT_DEATH(break_rule<Break::not_waited>(),
                 "cp.async.bulk.tensor was not waited for before the block's end");
    EXPECT_DEATH(break_rule<Break::outside>(),
                 "cp.async.bulk.tensor: the box's 16 bytes at .* are not in device memory");
    EXPECT_DEATH(break_rule<Break::no_fence>(), "wgmma without a wgmma.fence before it");
    EXPECT_DEATH(break_rule<Break::transposed>(), "wgmma of FP8 numbers: both operands lie in shared memory");
    EXPECT_DEATH(break_rule<Break::deadlock>(),
                 "deadlock: no thread can go on: 1 threads .first: 0. in mbarrier.try_wait at");
}

}  // namespace
