// One set of buffers per thread, shared by all instruction sets: compiled once, in the plain compilation.
#include "kernels/matmul_scratch.h"

#include "core/tensor.h"
#include "kernels/isa.h"

#ifdef ISA_PLAIN
namespace {
// A huge page each, so that streaming through a strip does not miss in the TLB.
constexpr int64_t kStripBytes = int64_t{2} << 20;
constexpr int64_t kSharedBytes = int64_t{8} << 20;
constexpr int64_t kPartialBytes = int64_t{4} << 20;
}  // namespace

float* matmul_scratch(MatmulScratch kind, int64_t num_floats) {
    thread_local Buffer buffers[3];
    Buffer& buffer = buffers[static_cast<int>(kind)];
    const int64_t least = kind == MatmulScratch::strip ? kStripBytes : 0;
    const int64_t bytes = num_floats * 4 > least ? num_floats * 4 : least;
    if (buffer.bytes() < bytes) buffer = Buffer(bytes);
    return static_cast<float*>(buffer.data());
}

int64_t matmul_scratch_bytes(int threads) { return threads * kStripBytes + kSharedBytes + kPartialBytes; }
#endif
