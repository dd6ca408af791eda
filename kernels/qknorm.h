// QK-norm (Henry et al. 2020, as in Qwen3): RMSNorm of every query head with wq and of every key head with
// wk, over D.
//   qkv   inout [N,(H+2K)*D] f32|bf16, in place; values untouched     rstd out [N,H+K] f32, kept for backward
//   raw   out   [N,(H+K)*D] same dtype, the q and k before the norm, kept for backward; absent when no
//   backward follows wq, wk in   [D] same dtype
// backward: dqkv in place (= gradient before the norm), dwq += and dwk += in f32. Deterministic.
//   absmax inout [1] f32 or absent: raised to the largest |dqkv|, values too (kernels/quantize.h)
// On a GPU D <= kMaxQkNormHeadDim.
#pragma once
#include "core/tensor.h"

constexpr int kMaxQkNormHeadDim = 512;  // a head lies in the registers of one warp

void qknorm_forward(Tensor qkv, Tensor rstd, Tensor raw, Tensor wq, Tensor wk, float eps, int64_t num_heads,
                    int64_t num_kv_heads, Stream stream = {});
void qknorm_backward(Tensor dqkv, Tensor dwq, Tensor dwk, Tensor raw, Tensor rstd, Tensor wq, Tensor wk,
                     int64_t num_heads, int64_t num_kv_heads, Tensor absmax = {}, Stream stream = {});

// Both backends'; they throw InternalError.
void check_qknorm_forward(Tensor qkv, Tensor rstd, Tensor raw, Tensor wq, Tensor wk, int64_t num_heads,
                          int64_t num_kv_heads);
void check_qknorm_backward(Tensor dqkv, Tensor dwq, Tensor dwk, Tensor raw, Tensor rstd, Tensor wq, Tensor wk,
                           int64_t num_heads, int64_t num_kv_heads, Tensor absmax);
