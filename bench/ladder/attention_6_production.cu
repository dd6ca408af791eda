// Rung 6 of 6: the attention that training runs (kernels/attention.h).
//
// What it has besides: documents of any length in one batch, sliding windows, heads of 8 to 256, f32, the
// log-sum-exp that the backward pass needs, tiles that suit each head size. Compare it with rung 5 to see
// what that and the last tuning are worth, and read kernels/attention.cu next. Expected: 1.2 to 1.5 times
// rung 5. Not measured yet on a GPU.
#include "bench/ladder/ladder.h"
#include "kernels/attention.h"
#include "kernels/gpu.h"

namespace GPU_NAMESPACE {

void attention_6_production(const AttentionOperands& a) {
    ::attention_forward(a.out, a.lse, a.qkv, a.cu_seqlens,
                        {.num_heads = a.num_heads, .num_kv_heads = a.num_kv_heads}, MatmulMath::bf16);
}

}  // namespace GPU_NAMESPACE
