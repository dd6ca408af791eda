// Muon (Jordan et al. 2024): momentum, then the nearest semi-orthogonal matrix by five Newton-Schulz
// iterations. Of each matrix [R,C]:
//   momentum = mu momentum + (1-mu) g;  u = (1-mu) g + mu momentum (Nesterov)
//   X = u / (|u|_F + 1e-7), transposed if tall
//   5 x { A = X X^T;  B = b A + c A^2;  X = a X + B X },  (a,b,c) = (3.4445, -4.7750, 2.0315)
//   master = master (1 - lr wd) - lr * sqrt(max(1, rows/cols)) * X
//   param = bf16(master), stochastically rounded
// The matrices lie in flat arenas:
// master, momentum inout [N] f32    grad in [N] f32    param out [N] bf16 or absent
// scratch: muon_scratch_bytes() bytes, on a GPU aligned to 16.  Products use `math`; with MatmulMath::bf16 a
// GPU keeps X, A and B in bf16, as Jordan et al. do: operands are rounded to it anyhow, b A and a X so once
// more. A matrix has the same bits whatever else goes with it.
#pragma once
#include <vector>

#include "core/rng.h"
#include "core/tensor.h"
#include "kernels/matmul.h"

// Of one shape, each contiguous; they do not overlap.
struct MuonMatrices {
    int64_t rows = 0, cols = 0;
    std::vector<int64_t> offsets;  // elements from the arenas' start

    int64_t size() const { return rows * cols; }
    int64_t count() const { return static_cast<int64_t>(offsets.size()); }
};

struct MuonStep {
    float lr, momentum, weight_decay, grad_scale;
    RandomKey rounding;
    int64_t first_index;   // of the arenas' first element: as AdamWStep's
    Tensor decision = {};  // as AdamWStep's (kernels/adamw.h)
};
void muon_step(Tensor param, Tensor master, Tensor momentum, Tensor grad, const MuonMatrices& matrices,
               const MuonStep& step, MatmulMath math, Tensor scratch, Stream stream = {});

// How many of them go through together: on a GPU as many as keep it busy for four waves of tiles in the
// smallest product, in at most kMuonScratchBytes (unless one alone needs more), in batches of nearly equal
// sizes; on the CPU one.
constexpr int64_t kMuonMostMatrices = 64, kMuonScratchBytes = int64_t{256} << 20;
int64_t muon_batch(const MuonMatrices& matrices, MatmulMath math, Device device);
int64_t muon_scratch_bytes(const MuonMatrices& matrices, MatmulMath math, Device device);

// A matrix's part of a GPU's scratch memory: X twice, A, B, and in f32 sums of squares.
constexpr int64_t kMuonSums = 512;
struct MuonParts {
    int64_t x, a;  // elements of X and of A, rounded up to whole 128 bits
    int64_t bytes;
};
MuonParts muon_parts(int64_t rows, int64_t cols, MatmulMath math);

// Both backends'; throws InternalError.
void check_muon(Tensor param, Tensor master, Tensor momentum, Tensor grad, const MuonMatrices& matrices,
                const MuonStep& step, MatmulMath math, Tensor scratch);
