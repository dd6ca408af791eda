// The machine's own limit: register-only multiply-adds of the instruction set in use, on all threads of the
// pool, in FLOP/s by wall clock. MatmulMath::bf16 measures the bf16 dot product where the set has one, else
// the f32 FMA that stands in for it. What reports a share of peak measures it in the same run.
#pragma once
#include "kernels/matmul.h"

// The best of `rounds` rounds of about 2 ms each.
double fma_peak_flops(MatmulMath math, int rounds = 8);
