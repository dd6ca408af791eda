// Causal softmax attention within documents, tiled: T x T is never stored (Dao et al. 2022, FlashAttention;
// forward keeps the log-sum-exp only). Grouped-query: query head h reads kv head h / (H/K). scale = 1/sqrt(D)
// unless given.
//   out[n,h,:] = sum_m softmax_m(scale * q[n,h].k[m,h']) v[m,h']    over m in the same document with m <= n
//   and, with a window, n - m < window
//
//   out         out  [N, H*D]  f32|bf16
//   lse         out  [H, N]    f32, natural log, kept for backward
//   qkv         in   [N, (H+2K)*D]  same dtype as out, after RoPE
//   cu_seqlens  in   [S+1]     i32: 0 first, ascending, N last; equal neighbours (an empty document) may be
//                              anywhere, as padding of a fixed S
//   absmax      inout [1] f32 or absent, raised to the largest |out|, in the backward pass |dqkv|
//                              (kernels/quantize.h)
//
// window 0: unlimited. D: any multiple of 8 up to 256. bf16 tensors always multiply in bf16; MatmulMath::bf16
// rounds f32 operands (and, as for bf16 tensors, P and dS) to bf16. Sums, softmax and lse are f32. A token's
// result depends on its own document only: same bits alone or packed, for any number of threads. On a GPU
// too; there cu_seqlens is read by the kernels alone, so a captured graph may be replayed with other
// documents.
#pragma once
#include "core/tensor.h"
#include "kernels/matmul.h"  // MatmulMath

struct AttentionShape {
    int64_t num_heads = 0;     // H
    int64_t num_kv_heads = 0;  // K, divides H
    int64_t window = 0;
    float scale = 0;  // 0: 1/sqrt(D)
};

void attention_forward(Tensor out, Tensor lse, Tensor qkv, Tensor cu_seqlens, const AttentionShape& shape,
                       MatmulMath math, Tensor absmax = {}, Stream stream = {});

//   dqkv        out  [N, (H+2K)*D], set        dout, out  in  [N, H*D]
//   scratch     attention_backward_scratch_bytes(...), for the present threads and instruction set: ask after
//               set_num_threads and set_isa. Per thread 4 rows of D floats a token of the longest document;
//               with grouped queries also 2*N*H*D floats. On a GPU N*H floats.
int64_t attention_backward_scratch_bytes(int64_t num_tokens, int64_t max_seqlen, int64_t head_dim,
                                         const AttentionShape& shape, Device device = Device::cpu);
void attention_backward(Tensor dqkv, Tensor dout, Tensor out, Tensor lse, Tensor qkv, Tensor cu_seqlens,
                        const AttentionShape& shape, MatmulMath math, Tensor scratch, Tensor absmax = {},
                        Stream stream = {});

// Decoding: n new queries of one sequence at positions past .. past+n-1 against a cache that already holds
// their keys and values.   out [n, H*D]   qkv [n, (H+2K)*D] (queries are read)   k_cache, v_cache [maxT, K*D]
void attention_cached(Tensor out, Tensor qkv, Tensor k_cache, Tensor v_cache, int64_t past,
                      const AttentionShape& shape, Stream stream = {});

// On a GPU of capability 9.0, bf16 passes with heads of 64 and 128 and aligned tensors run on kernels of
// their own (attention_hopper.h), whose bits differ. For tests and benchmarks: mma, as on any other GPU;
// wgmma, in the emulator too, wherever it can be.
enum class AttentionKernel { fastest, mma, wgmma };
void force_attention_kernel(AttentionKernel kernel);
AttentionKernel forced_attention_kernel();

// Both backends'; each throws InternalError. What only the device can read is not checked.
void check_attention_forward(Tensor out, Tensor lse, Tensor qkv, Tensor cu_seqlens,
                             const AttentionShape& shape, Tensor absmax);
void check_attention_backward(Tensor dqkv, Tensor dout, Tensor out, Tensor lse, Tensor qkv, Tensor cu_seqlens,
                              const AttentionShape& shape, Tensor absmax);  // but for scratch
void check_attention_cached(Tensor out, Tensor qkv, Tensor k_cache, Tensor v_cache, int64_t past,
                            const AttentionShape& shape);
