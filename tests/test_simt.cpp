// The emulator of CUDA: indices, orders, collectives, matrices, and bugs that it must show. Shared memory and
// atomics are in test_simt_memory.cpp, messages in test_simt_rules.cpp, streams in test_simt_runtime.cpp,
// sm_90 in test_simt_hopper.cpp.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "kernels/mma.h"
#include "tests/simt_device.h"
#include "tests/simt_planted.h"

using namespace on_simt;

namespace {

class Simt : public testing::Test {
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
        for (uint64_t seed = 1; seed <= (order == simt::Order::random ? 10 : 1); ++seed) {
            SCOPED_TRACE(testing::Message() << "order " << static_cast<int>(order) << ", seed " << seed);
            simt::set_seed(seed);
            body();
        }
    }
}

// ---- indices and order ------------------------------------------------------------------------------------

__global__ void indices_kernel(int* visits, int* wrong) {
    wait_for_previous();
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    __syncthreads();
    const bool inside = threadIdx.x < blockDim.x && threadIdx.y < blockDim.y && threadIdx.z < blockDim.z &&
                        blockIdx.x < gridDim.x && blockIdx.y < gridDim.y && blockIdx.z < gridDim.z;
    if (!inside) atomicAdd(wrong, 1);
    atomicAdd(&visits[block * blockDim.x * blockDim.y * blockDim.z + thread], 1);
}
TEST_F(Simt, EveryThreadOfEveryBlockRunsOnce) {
    in_every_order([] {
        const dim3 grid(3, 2, 2), block(5, 4, 3);
        const DeviceArray<int> visits(std::vector<int>(12 * 60)), wrong(std::vector<int>(1));
        start(indices_kernel, {grid, block}, visits.data(), wrong.data());
        EXPECT_EQ(visits.values(), std::vector<int>(12 * 60, 1));
        EXPECT_EQ(wrong.values()[0], 0);
    });
}

__global__ void order_kernel(unsigned* order, unsigned* count) {
    wait_for_previous();
    order[atomicAdd(count, 1u)] = blockIdx.x * blockDim.x + threadIdx.x;
}
std::vector<unsigned> order_of_threads() {
    const DeviceArray<unsigned> order(4 * 64), count(std::vector<unsigned>(1));
    start(order_kernel, {4, 64}, order.data(), count.data());
    return order.values();
}
TEST_F(Simt, OrdersAreAsNamed) {
    simt::set_order(simt::Order::ascending);
    const std::vector<unsigned> ascending = order_of_threads();
    for (unsigned i = 0; i < 256; ++i) ASSERT_EQ(ascending[i], i);
    simt::set_order(simt::Order::descending);
    std::vector<unsigned> order = order_of_threads();
    std::reverse(order.begin(), order.end());
    EXPECT_EQ(order, ascending);
}
TEST_F(Simt, ASeedGivesOneOrder) {
    std::set<std::vector<unsigned>> orders;
    for (uint64_t seed = 0; seed < 10; ++seed) {
        simt::set_seed(seed);
        const std::vector<unsigned> order = order_of_threads();
        simt::set_seed(seed);
        EXPECT_EQ(order_of_threads(), order);
        EXPECT_EQ(std::set<unsigned>(order.begin(), order.end()).size(), 256u);
        orders.insert(order);
    }
    EXPECT_EQ(orders.size(), 10u);
}

// ---- collectives ------------------------------------------------------------------------------------------

// out[kind][lane] of one warp, for all four shuffles of the lane's own number times 10.
template <class T>
__global__ void shuffles_kernel(T* out, int source, int width) {
    wait_for_previous();
    const unsigned lane = threadIdx.x;
    const T mine = static_cast<T>(10 * lane);
    out[0 * 32 + lane] = __shfl_sync(kAllLanes, mine, source + static_cast<int>(lane) / 3, width);
    out[1 * 32 + lane] = __shfl_xor_sync(kAllLanes, mine, source, width);
    out[2 * 32 + lane] = __shfl_up_sync(kAllLanes, mine, static_cast<unsigned>(source), width);
    out[3 * 32 + lane] = __shfl_down_sync(kAllLanes, mine, static_cast<unsigned>(source), width);
}
template <class T>
void check_shuffles(int source, int width) {
    const DeviceArray<T> out(4 * 32);
    start(shuffles_kernel<T>, {1, 32}, out.data(), source, width);
    const std::vector<T> got = out.values();
    for (int lane = 0; lane < 32; ++lane) {
        const int segment = lane / width * width, end = segment + width;
        int from[4] = {segment + (source + lane / 3) % width, lane ^ source, lane - source, lane + source};
        if (from[1] >= end) from[1] = lane;
        if (from[2] < segment) from[2] = lane;
        if (from[3] >= end) from[3] = lane;
        for (int kind = 0; kind < 4; ++kind) {
            ASSERT_EQ(got[static_cast<size_t>(kind * 32 + lane)], static_cast<T>(10 * from[kind]))
                << "shuffle " << kind << ", lane " << lane << ", source " << source << ", width " << width;
        }
    }
}
TEST_F(Simt, ShufflesOfAllSourcesAndWidths) {
    for (int width = 1; width <= 32; width *= 2) {
        for (int source = 0; source < 32; ++source) {
            check_shuffles<float>(source, width);
            check_shuffles<int64_t>(source, width);
        }
    }
    check_shuffles<unsigned>(5, 32);
    check_shuffles<double>(5, 32);
}

// Halves of a warp go through collectives of their own, then all meet.
__global__ void halves_kernel(unsigned* out, const int* values) {
    wait_for_previous();
    const unsigned lane = threadIdx.x % 32, mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    const int value = values[threadIdx.x];
    int sum = value;
    for (int turn = 0; turn < (lane < 16 ? 3 : 1); ++turn) {
        sum = value;
        for (int lanes = 8; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(mask, sum, lanes);
    }
    unsigned* const mine = out + 10 * threadIdx.x;
    mine[0] = static_cast<unsigned>(sum);
    mine[1] = __ballot_sync(kAllLanes, value & 1);
    mine[2] = static_cast<unsigned>(__any_sync(mask, value == 7));
    mine[3] = static_cast<unsigned>(__all_sync(mask, value < 100));
    mine[4] = __match_any_sync(kAllLanes, value);
    mine[5] = static_cast<unsigned>(__reduce_add_sync(mask, value));
    mine[6] = static_cast<unsigned>(__reduce_min_sync(mask, value));
    mine[7] = __reduce_max_sync(mask, static_cast<unsigned>(value));
    mine[8] = static_cast<unsigned>(__reduce_max_sync(mask, value));
    mine[9] = __reduce_xor_sync(mask, static_cast<unsigned>(value));
}
TEST_F(Simt, VotesAndReductionsOfHalves) {
    std::vector<int> values(64);
    for (int i = 0; i < 64; ++i) values[static_cast<size_t>(i)] = i * i % 23 - 3 + (i == 40 ? 200 : 0);
    in_every_order([&] {
        const DeviceArray<int> inp(values);
        const DeviceArray<unsigned> out(64 * 10);
        start(halves_kernel, {1, 64}, out.data(), inp.data());
        const std::vector<unsigned> got = out.values();
        for (int i = 0; i < 64; ++i) {
            unsigned expected[10] = {0, 0, 0, 1, 0, 0, 0x7fffffffu, 0, 0x80000000u, 0};
            for (int other = i / 32 * 32; other < i / 32 * 32 + 32; ++other) {
                const int value = values[static_cast<size_t>(other)];
                const unsigned bits = static_cast<unsigned>(value), bit = 1u << other % 32;
                if (value & 1) expected[1] |= bit;
                if (value == values[static_cast<size_t>(i)]) expected[4] |= bit;
                if (other / 16 != i / 16) continue;
                expected[0] += bits;
                expected[2] |= value == 7;
                expected[3] &= value < 100;
                expected[5] += bits;
                expected[6] = static_cast<unsigned>(std::min(static_cast<int>(expected[6]), value));
                expected[7] = std::max(expected[7], bits);
                expected[8] = static_cast<unsigned>(std::max(static_cast<int>(expected[8]), value));
                expected[9] ^= bits;
            }
            for (int k = 0; k < 10; ++k) {
                ASSERT_EQ(got[static_cast<size_t>(10 * i + k)], expected[k]) << "thread " << i << ", " << k;
            }
        }
    });
}

__global__ void barriers_kernel(int* out, int rounds) {
    wait_for_previous();
    SHARED(int, next, [100]);
    const int thread = static_cast<int>(threadIdx.x);
    int value = thread;
    for (int round = 0; round < rounds; ++round) {
        next[(thread + 1) % 100] = value;
        __syncthreads();
        value = next[thread];
        __syncthreads();
    }
    out[4 * thread] = value;
    out[4 * thread + 1] = __syncthreads_count(thread < 30);
    out[4 * thread + 2] = __syncthreads_or(thread == 99);
    out[4 * thread + 3] = __syncthreads_and(thread != 99);
}
TEST_F(Simt, BarriersOfABlockThatIsNoWholeNumberOfWarps) {
    in_every_order([] {
        const DeviceArray<int> out(400);
        start(barriers_kernel, {1, 100}, out.data(), 7);
        const std::vector<int> got = out.values();
        for (int i = 0; i < 100; ++i) {
            const size_t at = static_cast<size_t>(4 * i);
            ASSERT_EQ(got[at], (i + 93) % 100);
            ASSERT_EQ(got[at + 1], 30);
            ASSERT_EQ(got[at + 2], 1);
            ASSERT_EQ(got[at + 3], 0);
        }
    });
}

// Thread 0 waits for all others without a barrier.
__global__ void spin_kernel(int* out) {
    wait_for_previous();
    if (threadIdx.x == 0) {
        while (atomicAdd(&out[0], 0) < 63) __nanosleep(20);
        out[1] = 1;
    } else {
        atomicAdd(&out[0], 1);
    }
}
TEST_F(Simt, ALoopThatWaitsLetsOthersGoOn) {
    in_every_order([] {
        const DeviceArray<int> out(std::vector<int>(2));
        start(spin_kernel, {1, 64}, out.data());
        EXPECT_EQ(out.values()[1], 1);
    });
}

// ---- matrices ---------------------------------------------------------------------------------------------

std::vector<bf16> random_matrix(size_t size, unsigned seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    std::vector<bf16> matrix(size);
    for (bf16& x : matrix) x = to_bf16(normal(generator));
    return matrix;
}

// C [16,8] = A [16,16] B [16,8] + C, with fragments loaded as the PTX manual draws them.
__global__ void mma_kernel(float* c, const bf16* a, const bf16* b) {
    wait_for_previous();
    const int group = threadIdx.x / 4, pair = 2 * (threadIdx.x % 4);
    const auto two = [](bf16 low, bf16 high) { return uint32_t{high.bits} << 16 | low.bits; };
    uint32_t fa[4], fb[2];
    for (int i = 0; i < 4; ++i) {
        const int row = group + (i & 1 ? 8 : 0), column = pair + (i & 2 ? 8 : 0);
        fa[i] = two(a[row * 16 + column], a[row * 16 + column + 1]);
    }
    for (int i = 0; i < 2; ++i) fb[i] = two(b[(pair + 8 * i) * 8 + group], b[(pair + 8 * i + 1) * 8 + group]);
    float fc[4];
    for (int i = 0; i < 4; ++i) fc[i] = c[(group + (i & 2 ? 8 : 0)) * 8 + pair + (i & 1)];
    mma_bf16(fc, fa, fb);
    for (int i = 0; i < 4; ++i) c[(group + (i & 2 ? 8 : 0)) * 8 + pair + (i & 1)] = fc[i];
}
TEST_F(Simt, MmaIsTheProduct) {
    const std::vector<bf16> a = random_matrix(256, 1), b = random_matrix(128, 2);
    std::vector<float> c(128);
    for (size_t i = 0; i < 128; ++i) c[i] = static_cast<float>(i) / 8;
    const DeviceArray<bf16> da(a), db(b);
    const DeviceArray<float> dc(c);
    start(mma_kernel, {1, 32}, dc.data(), da.data(), db.data());
    const std::vector<float> got = dc.values();
    for (size_t i = 0; i < 16; ++i) {
        for (size_t j = 0; j < 8; ++j) {
            double sum = c[i * 8 + j], size = std::abs(sum);
            for (size_t k = 0; k < 16; ++k) {
                const double product = double{to_float(a[i * 16 + k])} * double{to_float(b[k * 8 + j])};
                sum += product;
                size += std::abs(product);
            }
            // Products are exact in f32, the 16 sums round once each.
            EXPECT_NEAR(got[i * 8 + j], sum, 16 * size * 0x1p-24) << i << ", " << j;
        }
    }
}

// Matrix m of `inp` [count,8,8] by ldmatrix, and back to `out` by stmatrix; `fragments` [32,count].
__global__ void matrices_kernel(uint16_t* out, uint32_t* fragments, const uint16_t* inp, int count,
                                bool transposed_load, bool transposed_store) {
    wait_for_previous();
    SHARED(Pack<uint16_t>, rows, [32]);
    SHARED(Pack<uint16_t>, stored, [32]);
    const int lane = static_cast<int>(threadIdx.x);
    if (lane < 8 * count) rows[lane] = load128(inp + 8 * lane);
    __syncwarp();
    uint32_t r[4] = {};
    simt::load_matrices(r, &rows[lane], count, transposed_load);
    for (int m = 0; m < count; ++m) fragments[lane * count + m] = r[m];
    simt::store_matrices(&stored[lane], r, count, transposed_store);
    __syncwarp();
    if (lane < 8 * count) store128(out + 8 * lane, stored[lane]);
}
TEST_F(Simt, LdmatrixAndStmatrix) {
    for (const size_t count : {1, 2, 4}) {
        for (const bool transposed : {false, true}) {
            std::vector<uint16_t> inp(count * 64);
            for (size_t i = 0; i < inp.size(); ++i) inp[i] = static_cast<uint16_t>(1000 + i);
            const auto element = [&](size_t matrix, size_t row, size_t column) {
                return transposed ? inp[matrix * 64 + column * 8 + row] : inp[matrix * 64 + row * 8 + column];
            };
            const DeviceArray<uint16_t> from(inp), to(inp.size());
            const DeviceArray<uint32_t> fragments(32 * count);
            const auto run = [&](bool transposed_store) {
                start(matrices_kernel, {1, 32}, to.data(), fragments.data(), from.data(),
                      static_cast<int>(count), transposed, transposed_store);
                return to.values();
            };
            EXPECT_EQ(run(transposed), inp);
            const std::vector<uint16_t> turned = run(!transposed);
            const std::vector<uint32_t> r = fragments.values();
            for (size_t m = 0; m < count; ++m) {
                for (size_t i = 0; i < 64; ++i)
                    EXPECT_EQ(turned[m * 64 + i], inp[m * 64 + i % 8 * 8 + i / 8]);
                for (size_t lane = 0; lane < 32; ++lane) {
                    const uint32_t low = element(m, lane / 4, 2 * (lane % 4));
                    const uint32_t high = element(m, lane / 4, 2 * (lane % 4) + 1);
                    EXPECT_EQ(r[lane * count + m], high << 16 | low) << "matrix " << m << ", lane " << lane;
                }
            }
        }
    }
}

// ---- planted bugs that a plain build shows (simt_planted.cu) ----------------------------------------------

TEST_F(Simt, CorrectKernelsAreRight) {
    in_every_order([] {
        for (const char* name : {"reduce", "shift", "histogram", "reverse", "matmul"})
            EXPECT_TRUE(run_planted(name)) << name;
    });
}
TEST_F(Simt, PlantedBugsShowInEveryOrderAndForEverySeed) {
    if (kSanitized) GTEST_SKIP() << "scripts/simt_planted.sh looks for them with sanitizers";
    for (const char* bug :
         {"no_first_barrier", "no_second_barrier", "read_past_end", "unset_memory", "no_zero", "no_syncwarp",
          "wait_too_few", "no_barrier_after_wait", "no_barrier_before_reuse", "no_syncwarp_after_stmatrix"}) {
        for (const simt::Order order :
             {simt::Order::ascending, simt::Order::descending, simt::Order::random}) {
            simt::set_order(order);
            for (uint64_t seed = 1; seed <= (order == simt::Order::random ? 40 : 1); ++seed) {
                simt::set_seed(seed);
                EXPECT_FALSE(run_planted(bug))
                    << bug << ", order " << static_cast<int>(order) << ", seed " << seed;
            }
        }
    }
}

}  // namespace
