// As gpu_wrappers.h, for the wrappers of sm_90 (kernels/tma.h, kernels/wgmma.h): one small kernel each,
// 32-bit words in, 32-bit words out.
#pragma once
#include "core/device.h"

enum class HopperWrapper {
    mbarriers,  // 1 word a thread -> 4: before half of the threads arrive, before all, after, and the word
                // of the thread across
    named_barriers,  // 1 word of 64 threads -> those of the other pair's warps, one pair a barrier
    registers,       // 1 word a thread -> 1, by warpgroups of 40 and 232 registers
    bytes,   // 2 x 256 words -> the same in reverse, by load_bytes and store_bytes, twice through one place
    box_2d,  // a tensor of 12 x 20 words -> a box of it as it lies in shared memory, then a copy of the
             // tensor that has the box's part alone, zeros in the rest
    box_3d,  // 12 x 5 x 4
    box_4d,  // 12 x 5 x 2 x 2
    box_swizzle_32,  // 2 dimensions
    box_swizzle_64,
    box_swizzle_128,
    // A [64, 64] and B [N, 64] (its columns) of bf16, two a word, -> A B [64, N] twice: added to itself. A
    // contiguous operand index is the inner one (k) or the outer one (mn: [64, 64] or [64, N] in memory).
    wgmma_64_k_k,
    wgmma_128_k_mn,
    wgmma_192_mn_k,
    wgmma_256_mn_mn,
    wgmma_256_k_k,
    wgmma_64_registers_mn,
    wgmma_128_registers_k,
    wgmma_192_registers_k,
    wgmma_256_registers_mn,
    // A [64, 128] and B [128, 128] of FP8 by lines of inner indices, four a word, the same way. A is named, B
    // is e4m3.
    wgmma_e4m3,
    wgmma_e5m2,
};
constexpr int kHopperTensorWords = 240, kHopperBoxWords = 64;

struct HopperShape {
    int threads;              // of the one block
    int64_t inputs, outputs;  // words
};

// out [outputs] i32, inp [inputs] i32, on a GPU of capability 9.0 or the emulator.
HopperShape hopper_shape(HopperWrapper wrapper);
void run_hopper_wrapper(HopperWrapper wrapper, Tensor out, Tensor inp);
