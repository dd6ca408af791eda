// Classifier head and softmax cross-entropy in one: logits = hidden weight^T, loss[n] = lse(logits[n]) -
// logits[n,target]. Rows go through in chunks of cross_entropy_chunk_rows(N, V, device): logits exist for one
// chunk only, and become dlogits in place.
//   losses   out [N] f32 in nats, 0 where targets < 0
//   dhidden  out [N,C] hidden's dtype, set
//   dweight  out [V,C] f32, += (= when !accumulate). Both gradients absent: losses only
//   hidden   in  [N,C] f32|bf16      weight in [V,C] f32|bf16      targets in [N] i32 in [-1,V)
//   dloss_scale in [1] f32, absent with the gradients: gradient of the total with respect to each counted
//     loss, e.g. 1 / tokens of the whole optimizer step. A tensor, so that recorded work can run with another
//   scratch  cross_entropy_scratch_bytes(...) bytes, on a GPU aligned to 16
// Logits are f32; on a GPU they have hidden's dtype. Deterministic.
#pragma once
#include "core/tensor.h"
#include "kernels/matmul.h"

int64_t cross_entropy_chunk_rows(int64_t num_rows, int64_t vocab_size, Device device = Device::cpu);
int64_t cross_entropy_scratch_bytes(int64_t num_rows, int64_t vocab_size, DType hidden_dtype,
                                    Device device = Device::cpu);
void cross_entropy(Tensor losses, Tensor dhidden, Tensor dweight, Tensor hidden, Tensor weight,
                   Tensor targets, Tensor dloss_scale, bool accumulate, MatmulMath math, Tensor scratch,
                   Stream stream = {});

// Both backends'; throws InternalError.
void check_cross_entropy(Tensor losses, Tensor dhidden, Tensor dweight, Tensor hidden, Tensor weight,
                         Tensor targets, Tensor dloss_scale, Tensor scratch);
