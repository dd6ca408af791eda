// Keys and values of new tokens, kept for decoding: rows past .. past+n-1 of the caches are set.
//   k_cache, v_cache  out [maxT, K*D] f32|bf16      qkv in [n, (H+2K)*D] same dtype, after RoPE
#pragma once
#include "core/tensor.h"

void kv_cache_append(Tensor k_cache, Tensor v_cache, Tensor qkv, int64_t past, Stream stream = {});

void check_kv_cache_append(Tensor k_cache, Tensor v_cache, Tensor qkv, int64_t past);  // both backends'
