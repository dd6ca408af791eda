// One small kernel for each wrapper of kernels/gpu.h and kernels/mma.h: 32-bit words in, 32-bit words out, so
// that what a GPU's instruction does can be compared bit by bit with what the emulator does, and both with
// plain loops (test_gpu_wrappers.cpp).
#pragma once
#include "core/device.h"

enum class Wrapper {
    packs_f32,         // 4 words a thread in and out: elements of a pack in reverse
    packs_bf16,        //   "
    packs_streaming,   //   "   by load128_streaming and store128_streaming, as f32
    from_float,        // 1 word: f32 bits -> bf16 bits
    from_float_f32,    // 1 word: f32 bits -> f32 bits
    pack_bf16,         // 2 words: f32 low, f32 high -> 1 word
    exp2_approx,       // 1 word: f32 bits -> f32 bits
    warp_sum,          // 1 word a lane -> 1 word
    warp_max,          //   "
    block_sum_64,      // 1 word a thread -> 2 words: the sum, and the sum of what each lacks of it
    block_sum_1024,    //   "
    block_max_96,      // 1 word a thread -> 2 words: the largest, and that of the negated
    copies,            // 5 words a thread: 4 of data, valid? -> 4 of data of the thread before, by cp_async16
    copies_in_groups,  // 12 words a thread -> 12: three groups in flight, waited for one by one
    ldmatrix,          // 32 addresses of rows, then 64 rows of 4 words -> r[4] of each lane
    ldmatrix_transposed,  //   "
    mma,                  // 10 words a lane: a[4], b[2], c[4] -> c[4]
    overlapping_grids,    // 1 word a thread -> 1 word: what two kernels in turn make of it
    dynamic_shared,       // 1 word a thread -> 1 word, by way of 96 KiB of shared memory, and 1: misaligned?
};

struct WrapperShape {
    int threads;              // of a block
    int64_t inputs, outputs;  // words of a block
};
WrapperShape wrapper_shape(Wrapper wrapper);

// Runs `blocks` blocks: out [blocks * outputs] i32, inp [blocks * inputs] i32, on one GPU or the emulator.
void run_wrapper(Wrapper wrapper, Tensor out, Tensor inp);
