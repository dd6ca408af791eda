// Muon (Jordan et al. 2024): momentum, then the nearest semi-orthogonal matrix by five Newton-Schulz
// iterations.
//   momentum = mu momentum + (1-mu) g;  u = (1-mu) g + mu momentum (Nesterov)
//   X = u / (|u|_F + 1e-7), transposed if tall
//   5 x { A = X X^T;  B = b A + c A^2;  X = a X + B X },  (a,b,c) = (3.4445, -4.7750, 2.0315)
//   master = master (1 - lr wd) - lr * sqrt(max(1, rows/cols)) * X
//   param = bf16(master), stochastically rounded
// master, momentum inout [R,C] f32    grad in [R,C] f32    param out [R,C] bf16 or absent
// scratch: muon_scratch_bytes(R, C) bytes, on a GPU aligned to 16.  Products use `math`.
#pragma once
#include "core/rng.h"
#include "core/tensor.h"
#include "kernels/matmul.h"

struct MuonStep {
    float lr, momentum, weight_decay, grad_scale;
    RandomKey rounding;
    int64_t first_index;
    Tensor decision = {};  // as AdamWStep's (kernels/adamw.h)
};
int64_t muon_scratch_bytes(int64_t rows, int64_t cols);
void muon_step(Tensor param, Tensor master, Tensor momentum, Tensor grad, const MuonStep& step,
               MatmulMath math, Tensor scratch, Stream stream = {});

// Both backends'; throws InternalError.
void check_muon(Tensor param, Tensor master, Tensor momentum, Tensor grad, Tensor scratch,
                const MuonStep& step);
