// As gpu_wrappers.h, for the wrappers of FP8 (kernels/gpu_fp8.h, kernels/gpu_absmax.h, mma_fp8 of
// kernels/mma.h): one small kernel each, 32-bit words in, 32-bit words out.
#pragma once
#include "core/device.h"

enum class Fp8Wrapper {
    pack_e4m3,  // 2 words a thread: f32 low, f32 high -> 1 word
    pack_e5m2,  //   "
    absmax,     // 1 word a thread: f32 bits -> the largest magnitude's bits in word 0; the others stay 0
    mma_e4m3,   // 10 words a lane: a[4], b[2], c[4] -> c[4]
    mma_e5m2,   //   "   A is e5m2
};
struct Fp8WrapperShape {
    int threads;              // of the one block
    int64_t inputs, outputs;  // words
};
Fp8WrapperShape fp8_wrapper_shape(Fp8Wrapper wrapper);

// out [outputs] i32, zeros; inp [inputs] i32; on a GPU of capability 8.9 or later, or the emulator.
void run_fp8_wrapper(Fp8Wrapper wrapper, Tensor out, Tensor inp);
