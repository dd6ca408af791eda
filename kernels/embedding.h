// Token (and learned position) embedding.   out[n,:] = wte[tokens[n],:] + wpe[positions[n],:]
//   out        out [N,C] f32|bf16            wte  in [V,C] same dtype          wpe in [maxT,C] same dtype, or
//   absent tokens     in  [N] i32, in [0,V)         positions in [N] i32, in [0,maxT)
// backward: dwte[tokens[n],:] += dout[n,:], dwpe likewise; f32, accumulated. Summed in order of n:
// deterministic.
#pragma once
#include "core/tensor.h"

void embedding_forward(Tensor out, Tensor wte, Tensor wpe, Tensor tokens, Tensor positions,
                       Stream stream = {});
void embedding_backward(Tensor dwte, Tensor dwpe, Tensor dout, Tensor tokens, Tensor positions,
                        Stream stream = {});

// Both backends' (the tables are wte and wpe, or their gradients); throws InternalError.
void check_embedding(const char* op, Tensor activation, Tensor wte, Tensor wpe, DType table_dtype,
                     Tensor tokens, Tensor positions);
