// Rung 2 of 8: tiles in shared memory.
//
// Idea: the 32 x 32 outputs of a block need 32 rows of inp and 32 of weight. The block copies a piece of
// these rows, 32 columns wide, into shared memory once, and all its threads read it there. Why it helps: each
// element comes from the caches N/32 or O/32 times instead of N or O times, and a warp loads 32 neighbours of
// one row, which is one cache line. (Rows in shared memory are one word longer than needed: else the 32 rows
// of a column would all lie in one of the 32 banks.) Cost: 2 N O C FLOPs; N O C / 8 bytes through L2. Each
// multiplication still reads two words of shared memory, and a multiprocessor gives 32 words a cycle for its
// 128 FMA units: 1/8 of their rate at best. Expected: 5 to 10 times rung 1. Not measured yet on a GPU.
#include "bench/ladder/ladder.h"
#include "kernels/gpu.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kTile = 32;

__global__ void shared_kernel(bf16* out, const bf16* inp, const bf16* weight, int64_t outputs,
                              int64_t inputs) {
    wait_for_previous();
    SHARED(float, a, [kTile][kTile + 1]);
    SHARED(float, b, [kTile][kTile + 1]);
    const int x = threadIdx.x % kTile, y = threadIdx.x / kTile;
    const bf16* const a_row = inp + (int64_t{blockIdx.y} * kTile + y) * inputs;
    const bf16* const b_row = weight + (int64_t{blockIdx.x} * kTile + y) * inputs;
    float sum = 0;
    for (int64_t c = 0; c < inputs; c += kTile) {
        __syncthreads();  // the last piece has been read by all
        a[y][x] = to_float(a_row[c + x]);
        b[y][x] = to_float(b_row[c + x]);
        __syncthreads();
        for (int k = 0; k < kTile; ++k) sum += a[y][k] * b[x][k];
    }
    out[(int64_t{blockIdx.y} * kTile + y) * outputs + int64_t{blockIdx.x} * kTile + x] =
        from_float<bf16>(sum);
}

}  // namespace

void gemm_2_shared(const GemmOperands& m) {
    const dim3 blocks(static_cast<unsigned>(m.outputs() / kTile), static_cast<unsigned>(m.rows() / kTile));
    launch(shared_kernel, blocks, kTile * kTile, 0, {}, m.out.as<bf16>(), m.inp.as<bf16>(),
           m.weight.as<bf16>(), m.outputs(), m.inputs());
}

}  // namespace GPU_NAMESPACE
