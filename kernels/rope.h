// Rotary position embedding (Su et al. 2021) in Hugging Face's half-split layout: channel i pairs with i +
// D/2.
//   q'[i]     = q[i] cos - q[i+D/2] sin      angle = position * inv_freq[i],  inv_freq[i] = theta^(-2i/D),
//   then scaled q'[i+D/2] = q[i+D/2] cos + q[i] sin
// Scaling variants as `transformers` defines them ("rope_type"): default, linear, dynamic (NTK), yarn (Peng
// et al. 2023), llama3. yarn's attention factor multiplies cos and sin.
#pragma once
#include <string>

#include "core/tensor.h"

struct RopeScaling {
    std::string type = "default";  // default | linear | dynamic | yarn | llama3
    double factor = 1;
    double low_freq_factor = 1, high_freq_factor = 4;             // llama3
    int64_t original_max_position = 0;                            // llama3, yarn; 0: the model's max_position
    double beta_fast = 32, beta_slow = 1;                         // yarn
    double attention_factor = 0, mscale = 0, mscale_all_dim = 0;  // yarn; 0: not given
    bool truncate = true;                                         // yarn: round the correction range
    bool operator==(const RopeScaling&) const = default;
};

// Fills table [maxT, D] f32: D/2 cosines, then D/2 sines, for positions 0..maxT-1. `seq_len` matters to
// `dynamic` only.
void rope_table(Tensor table, double theta, const RopeScaling& scaling, int64_t max_position,
                int64_t seq_len);

//   qkv        inout [N, (H+2K)*D] f32|bf16: H query heads, K key heads, K value heads; values are untouched
//   table      in [maxT,D] f32       positions in [N] i32, in [0,maxT)
// backward rotates the gradient back (the rotation's transpose); same arguments, and
//   absmax     inout [1] f32 or absent: raised to the largest |dqkv|, values too (kernels/quantize.h)
void rope_forward(Tensor qkv, Tensor table, Tensor positions, int64_t num_heads, int64_t num_kv_heads,
                  Stream stream = {});
void rope_backward(Tensor dqkv, Tensor table, Tensor positions, int64_t num_heads, int64_t num_kv_heads,
                   Tensor absmax = {}, Stream stream = {});

// Both backends'; throws InternalError.
void check_rope(const char* op, Tensor qkv, Tensor table, Tensor positions, int64_t num_heads,
                int64_t num_kv_heads, Tensor absmax);
