// The rungs in order.
#include "bench/ladder/ladder.h"

#if defined(INGOT_CUDA)
#define RUNG(name, idea) \
    { #name, idea, on_simt::name, on_cuda::name }
#else
#define RUNG(name, idea) \
    { #name, idea, on_simt::name, nullptr }
#endif

const std::vector<Rung<GemmOperands>>& gemm_ladder() {
    static const std::vector<Rung<GemmOperands>> rungs = {
        RUNG(gemm_1_naive, "a thread an output"),
        RUNG(gemm_2_shared, "tiles in shared memory"),
        RUNG(gemm_3_registers, "4 x 4 outputs a thread"),
        RUNG(gemm_4_packs, "8 x 8 outputs, 128 bits at a time"),
        RUNG(gemm_5_tensor_cores, "mma instead of FMA"),
        RUNG(gemm_6_pipeline, "copies that nobody waits for"),
        RUNG(gemm_7_large_tiles, "a tile four times as large"),
        RUNG(gemm_8_production, "matmul_forward"),
    };
    return rungs;
}

const std::vector<Rung<AttentionOperands>>& attention_ladder() {
    static const std::vector<Rung<AttentionOperands>> rungs = {
        RUNG(attention_1_naive, "three kernels, T x T scores in memory"),
        RUNG(attention_2_online, "softmax on the way: no T x T"),
        RUNG(attention_3_tiles, "64 queries share a tile of keys"),
        RUNG(attention_4_tensor_cores, "mma instead of FMA"),
        RUNG(attention_5_pipeline, "the next tile comes meanwhile"),
        RUNG(attention_6_production, "attention_forward"),
    };
    return rungs;
}
