// The emulator of CUDA: the message of every rule that a kernel or a launch may break.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/mma.h"
#include "tests/simt_device.h"
#include "tests/simt_planted.h"

using namespace on_simt;

namespace {

class SimtRules : public testing::Test {
protected:
    void SetUp() override {
        simt::set_order(simt::Order::random);
        simt::set_seed(1);
    }
};

TEST_F(SimtRules, PlantedBugs) {
    EXPECT_DEATH(
        run_planted("divergent_barrier"),
        "simt: __syncthreads in divergent code: other threads wait in __syncthreads at "
        ".*simt_planted.cu:[0-9]+: "
        "at .*simt_planted.cu:[0-9]+: block \\(0,0,0\\), thread \\([0-9]+,0,0\\) of the kernel launched at "
        ".*simt_planted.cu:[0-9]+");
    EXPECT_DEATH(run_planted("no_wait_for_previous"), "simt: a thread ended without wait_for_previous\\(\\)");
    EXPECT_DEATH(run_planted("host_pointer"),
                 "simt: launch: argument 1 \\(0x.*\\) does not point to device memory");
    EXPECT_DEATH(run_planted("write_past_end"),
                 "a kernel wrote past the end of an allocation of 4000 bytes|heap-buffer-overflow");
    EXPECT_DEATH(run_planted("shared_past_end"),
                 "a shared array was written past its 32 bytes|use-after-poison");
}

// ---- broken rules and their messages ----------------------------------------------------------------------

enum class Break {
    divergent_shuffle,
    divergent_lines,
    masks_differ,
    not_in_mask,
    source_not_in_mask,
    lane_ended,
    ends_while_waited_for,
    ends_at_barrier,
    deadlock,
    spins,
    trap,
    misaligned_load,
    misaligned_store,
    misaligned_copy,
    copy_outside,
    copy_to_global,
    misaligned_ldmatrix,
    static_limit,
    shared_limit,
    null_pointer,
    stack,
};

__device__ int use_stack(int depth) {
    volatile char frame[4096];
    frame[depth % 4096] = 1;
    return depth == 0 ? frame[0] : use_stack(depth - 1) + frame[1];
}

template <Break kBreak>
__global__ void break_kernel(int* data) {
    wait_for_previous();
    const unsigned lane = threadIdx.x;
    SHARED(int, small, [64]);
    switch (kBreak) {
        case Break::divergent_shuffle:
            if (lane < 16) {
                __shfl_xor_sync(kAllLanes, 1, 1);
            } else {
                __ballot_sync(kAllLanes, 1);
            }
            break;
        case Break::divergent_lines:
            if (lane < 16) {
                __syncwarp();
            } else {
                __syncwarp();
            }
            break;
        case Break::masks_differ: __syncwarp(lane == 1 ? 0x0000ffffu : 0xffffffffu); break;
        case Break::not_in_mask: __syncwarp(0x0000ffffu); break;
        case Break::source_not_in_mask:
            if (lane < 16) __shfl_sync(0x0000ffffu, 1, 20);
            break;
        case Break::lane_ended:
            if (lane == 3) return;
            __nanosleep(1);
            __syncwarp();
            break;
        case Break::ends_while_waited_for:
            if (lane != 3) __syncwarp();
            break;
        case Break::ends_at_barrier:
            if (lane != 3) __syncthreads();
            break;
        case Break::deadlock:
            if (lane >= 32 && lane < 48) __syncwarp();
            __syncthreads();
            break;
        case Break::spins:
            while (atomicAdd(data, 0) != 12345) __nanosleep(1);
            break;
        case Break::trap: __trap(); break;
        case Break::misaligned_load: data[0] = load128(data + 1)[0]; break;
        case Break::misaligned_store: store128(data + 2, Pack<int>{}); break;
        case Break::misaligned_copy: cp_async16(small, data + 1); break;
        case Break::copy_outside: cp_async16(small, small + 4); break;
        case Break::copy_to_global: cp_async16(data, data); break;
        case Break::misaligned_ldmatrix: {
            uint32_t r[4];
            ldmatrix_x4(r, small + 1);
            break;
        }
        case Break::static_limit: {
            SHARED(char, large, [48 << 10]);
            large[lane] = 1;
            break;
        }
        case Break::shared_limit: {
            SHARED(char, large, [40 << 10]);
            large[lane] = 1;
            break;
        }
        case Break::null_pointer: *static_cast<volatile int*>(data) = 1; break;
        case Break::stack: data[0] = use_stack(1000 + data[1]); break;
    }
}
template <Break kBreak>
void break_rule(int threads = 64, int64_t smem_bytes = 0, simt::Order order = simt::Order::random) {
    simt::set_order(order);
    const DeviceArray<int> data(std::vector<int>(64));
    start(break_kernel<kBreak>, {1, static_cast<unsigned>(threads), smem_bytes},
          kBreak == Break::null_pointer ? nullptr : data.data());
    cudaDeviceSynchronize();
}

TEST_F(SimtRules, Collectives) {
    EXPECT_DEATH(
        break_rule<Break::divergent_shuffle>(32),
        "(__shfl_xor_sync|__ballot_sync) in divergent code: lane [0-9]+ waits in "
        "(__shfl_xor_sync|__ballot_sync) "
        "at .*test_simt_rules.cpp:[0-9]+: at .*test_simt_rules.cpp:[0-9]+: block \\(0,0,0\\), thread");
    EXPECT_DEATH(break_rule<Break::divergent_lines>(32),
                 "__syncwarp in divergent code: lane [0-9]+ waits in __syncwarp");
    EXPECT_DEATH(break_rule<Break::masks_differ>(32),
                 "__syncwarp: lane [0-9]+ has mask [0-9a-f]+, lane [0-9]+ has");
    EXPECT_DEATH(break_rule<Break::not_in_mask>(32),
                 "__syncwarp: lane [0-9]+ is not in its own mask 0000ffff");
    EXPECT_DEATH(break_rule<Break::source_not_in_mask>(32),
                 "__shfl_sync: lane [0-9]+ reads lane 20, which is not in mask 0000ffff");
    EXPECT_DEATH(break_rule<Break::lane_ended>(32, 0, simt::Order::ascending),
                 "__syncwarp: lane 3 of mask ffffffff has ended or does not exist");
    EXPECT_DEATH(break_rule<Break::ends_while_waited_for>(32, 0, simt::Order::ascending),
                 "a thread ended while lane 0 waits for it in __syncwarp at .*test_simt_rules.cpp");
    EXPECT_DEATH(break_rule<Break::divergent_shuffle>(20),
                 "lane 20 of mask ffffffff has ended or does not exist");
}
TEST_F(SimtRules, Barriers) {
    EXPECT_DEATH(break_rule<Break::ends_at_barrier>(64, 0, simt::Order::ascending),
                 "a thread ended while others wait in __syncthreads at .*test_simt_rules.cpp");
    EXPECT_DEATH(break_rule<Break::ends_at_barrier>(4, 0, simt::Order::descending),
                 "__syncthreads after 1 of 4 threads have ended: at .*test_simt_rules.cpp");
    EXPECT_DEATH(break_rule<Break::deadlock>(),
                 "deadlock: no thread can go on: 48 threads \\(first: 0\\) in __syncthreads at "
                 ".*test_simt_rules.cpp:[0-9]+, "
                 "16 threads \\(first: 32\\) in __syncwarp at .*test_simt_rules.cpp:[0-9]+; 0 have ended");
    EXPECT_DEATH(break_rule<Break::spins>(32), "threads spin and none of them gets on");
    EXPECT_DEATH(break_rule<Break::trap>(32), "__trap: at .*test_simt_rules.cpp");
}
TEST_F(SimtRules, Alignment) {
    const char* const message = "128-bit access to 0x[0-9a-f]+, which is not aligned to 16 bytes: block";
    EXPECT_DEATH(break_rule<Break::misaligned_load>(), message);
    EXPECT_DEATH(break_rule<Break::misaligned_store>(), message);
}
TEST_F(SimtRules, SharedMemory) {
    EXPECT_DEATH(break_rule<Break::misaligned_copy>(),
                 "cp.async: global address .* is not aligned to 16 bytes");
    EXPECT_DEATH(break_rule<Break::copy_outside>(), "cp.async: 16 bytes at .* are not in device memory");
    EXPECT_DEATH(break_rule<Break::copy_to_global>(), "cp.async: .* is not in shared memory");
    EXPECT_DEATH(break_rule<Break::misaligned_ldmatrix>(),
                 "ldmatrix: shared address .* is not aligned to 16 bytes");
    EXPECT_DEATH(break_rule<Break::static_limit>(),
                 "shared arrays take 49408 bytes: more than 48 KiB must be dynamic");
    EXPECT_DEATH(break_rule<Break::shared_limit>(64, 200 << 10),
                 "shared memory takes 246016 bytes: the limit is 227 KiB");
}

TEST_F(SimtRules, Crashes) {
    EXPECT_DEATH(break_rule<Break::null_pointer>(),
                 "memory fault at \\(nil\\): a null pointer, or .*: block .0,0,0., thread|null pointer|SEGV");
    EXPECT_DEATH(break_rule<Break::stack>(1), "a kernel used more than its 256 KiB of stack|stack-overflow");
}

__global__ void nothing_kernel() { wait_for_previous(); }
TEST_F(SimtRules, Launches) {
    EXPECT_DEATH(start(nothing_kernel, {1, 1025}),
                 "launch of blocks of 1025 threads: expected 1 to 1024: at .*test_simt_rules.cpp");
    EXPECT_DEATH(start(nothing_kernel, {1, dim3(0)}), "launch of blocks of 0 threads");
    EXPECT_DEATH(start(nothing_kernel, {dim3(1, 65536), 32}),
                 "launch of a grid of \\(1,65536,1\\) blocks: the limits are");
    EXPECT_DEATH(start(nothing_kernel, {1, 32, (227 << 10) + 1}),
                 "launch with 232449 bytes of dynamic shared memory");
    start(nothing_kernel, {1, 1024, 227 << 10});
    cudaDeviceSynchronize();
}

}  // namespace
