// Memory that matmul packs its operands into. It belongs to the thread that asks, grows to what that thread's
// products need, is kept until the thread ends, and is never above matmul_scratch_bytes() for all threads
// together.
#pragma once
#include <cstdint>

enum class MatmulScratch : int {
    strip,    // one task's strip: every thread
    shared,   // the operand shared by all tasks: the calling thread
    partial,  // sums between blocks: the calling thread
};

// 64-byte aligned, contents undefined, valid until the same thread asks for more of the same kind.
float* matmul_scratch(MatmulScratch kind, int64_t num_floats);

// The most that matmul holds beside its arguments, for the memory plan, when one thread calls it with
// `threads` threads in the pool.
int64_t matmul_scratch_bytes(int threads);
