// Muon on the CPU. The fifteen products of the Newton-Schulz iteration are nearly all of the time; the rest
// is five passes over the matrix. The iteration works on the wide orientation, so that its square matrices
// are small.
#include "kernels/muon.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/elementwise.h"
#include "kernels/global_norm.h"
#include "kernels/matmul_plan.h"
#include "kernels/philox_simd.h"
#include "kernels/step_guard.h"

#ifdef ISA_PLAIN
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t most_together(const MuonMatrices& matrices, MatmulMath math) {
    constexpr int64_t kWaves = 4;
    const MatmulTileShape tile = shape_of(MatmulTile::large);
    const int64_t down = std::max<int64_t>(1, ceil_div(std::min(matrices.rows, matrices.cols), tile.rows));
    const int64_t busy = ceil_div(kWaves * tile.blocks, down * (down + 1) / 2);
    const int64_t room = kMuonScratchBytes / muon_parts(matrices.rows, matrices.cols, math).bytes;
    return std::max<int64_t>(1, std::min({kMuonMostMatrices, busy, room}));
}

}  // namespace

MuonParts muon_parts(int64_t rows, int64_t cols, MatmulMath math) {
    constexpr int64_t kWhole = 8;
    const int64_t small = std::min(rows, cols), element = math == MatmulMath::bf16 ? 2 : 4;
    const int64_t x = ceil_div(rows * cols, kWhole) * kWhole, a = ceil_div(small * small, kWhole) * kWhole;
    return {.x = x, .a = a, .bytes = 2 * (x + a) * element + kMuonSums * 4};
}

int64_t muon_batch(const MuonMatrices& matrices, MatmulMath math, Device device) {
    if (device == Device::cpu || matrices.count() == 0) return 1;
    return ceil_div(matrices.count(), ceil_div(matrices.count(), most_together(matrices, math)));
}

int64_t muon_scratch_bytes(const MuonMatrices& matrices, MatmulMath math, Device device) {
    if (device != Device::cpu)
        return muon_batch(matrices, math, device) * muon_parts(matrices.rows, matrices.cols, math).bytes;
    const int64_t small = std::min(matrices.rows, matrices.cols);
    return 2 * (matrices.size() + small * small) * dtype_bytes(DType::f32);
}

void check_muon(Tensor param, Tensor master, Tensor momentum, Tensor grad, const MuonMatrices& matrices,
                const MuonStep& step, MatmulMath math, Tensor scratch) {
    const ArgumentCheck check{"muon_step", master.device};
    check.tensor("master", master, DType::f32, {-1});
    check.like("momentum", momentum, master);
    check.like("grad", grad, master);
    if (!param.absent()) check.tensor("param", param, DType::bf16, {master.dims[0]});
    for (const int64_t offset : matrices.offsets) {
        check.that(offset >= 0 && offset + matrices.size() <= master.dims[0], "offsets",
                   "matrices inside the arenas", static_cast<double>(offset));
    }
    check.scratch(scratch, muon_scratch_bytes(matrices, math, master.device));
    check.that(step.first_index >= 0, "first_index", "at least 0", static_cast<double>(step.first_index));
    check_decision("muon_step", master.device, step.decision);
}
#endif

namespace ISA_NAMESPACE {
namespace {

constexpr int kIterations = 5;
constexpr float kA = 3.4445f, kB = -4.7750f,
                kC = 2.0315f;  // Jordan et al.: steepest at zero that still converges

// With keep = 1 - mu:  momentum += keep (g - momentum),  u = momentum + keep (g - momentum). Here and below
// every sum has one product in it: it can be fused in one way only, and an element's bits do not depend on
// its place.
void nesterov(float* u, float* momentum, const float* grad, int64_t count, float keep, float grad_scale) {
    for_each_vec(count, [=](int64_t i, int64_t n) ALWAYS_INLINE {
        const Vec g = load_first(grad + i, n), old = load_first(momentum + i, n);
        const Vec m = fma(g * grad_scale - old, splat(keep), old);
        store_first(momentum + i, m, n);
        store_first(u + i, fma(g * grad_scale - m, splat(keep), m), n);
    });
}

// out[c,r] = inp[r,c], in tiles that keep both sides' lines in L1.
void transpose(float* out, const float* inp, int64_t rows, int64_t cols) {
    constexpr int64_t kTile = 32;
    parallel_ranges(cols, kTile, [=](int64_t col_begin, int64_t col_end) {
        for (int64_t row_begin = 0; row_begin < rows; row_begin += kTile) {
            const int64_t row_end = row_begin + kTile < rows ? row_begin + kTile : rows;
            for (int64_t c = col_begin; c < col_end; ++c) {
                for (int64_t r = row_begin; r < row_end; ++r) out[c * rows + r] = inp[r * cols + c];
            }
        }
    });
}

// master -= step_size (x + decay master), and param from it.
void apply(Tensor param, float* master, const float* x, int64_t count, float step_size, float decay,
           const MuonStep& step) {
    const auto update = [=](int64_t i, int64_t n) ALWAYS_INLINE {
        const Vec old = load_first(master + i, n);
        const Vec result = old - step_size * fma(old, splat(decay), load_first(x + i, n));
        store_first(master + i, result, n);
        return result;
    };
    if (param.absent()) return for_each_vec(count, [=](int64_t i, int64_t n) ALWAYS_INLINE { update(i, n); });
    bf16* rounded = param.as<bf16>();
    parallel_ranges(count, kElementGrain, [=](int64_t begin, int64_t end) {
        for_each_random_vec(begin, end, step.first_index, step.rounding,
                            [=](int64_t i, int64_t n, const uint16_t* draws) ALWAYS_INLINE {
                                store_first(rounded + i, round_stochastic(update(i, n), draws), n);
                            });
    });
}

// Of one matrix, all [rows,cols].
void update(Tensor param, Tensor master, Tensor momentum, Tensor grad, const MuonStep& step, MatmulMath math,
            Tensor scratch, Stream stream) {
    const int64_t rows = master.dims[0], cols = master.dims[1], count = rows * cols;
    const bool tall = rows > cols;
    const int64_t small = tall ? cols : rows, large = tall ? rows : cols;
    float* memory = static_cast<float*>(scratch.data);
    Tensor x = tensor_of(memory, small, large), next = tensor_of(memory + count, small, large);
    const Tensor a = tensor_of(memory + 2 * count, small, small);
    const Tensor b = tensor_of(memory + 2 * count + small * small, small, small);

    float* u = tall ? next.as<float>() : x.as<float>();
    nesterov(u, momentum.as<float>(), grad.as<float>(), count, 1 - step.momentum, step.grad_scale);
    if (tall) transpose(x.as<float>(), u, rows, cols);
    const double norm = std::sqrt(sum_of_squares(x.view(count), stream));
    float* x_data = x.as<float>();
    const float inverse_norm = static_cast<float>(1 / (norm + 1e-7));
    for_each_vec(count, [=](int64_t i, int64_t n) ALWAYS_INLINE {
        store_first(x_data + i, load_first(x_data + i, n) * inverse_norm, n);
    });

    for (int iteration = 0; iteration < kIterations; ++iteration) {
        matmul_general(a, x, x, true, 1, 0, {}, math, stream);      // A = X X^T, symmetric
        matmul_general(b, a, a, true, kC, kB, a, math, stream);     // B = b A + c A^2
        matmul_general(next, b, x, false, 1, kA, x, math, stream);  // X = a X + B X
        std::swap(x, next);
    }
    if (tall) {
        transpose(next.as<float>(), x.as<float>(), small, large);
        std::swap(x, next);
    }
    const double stretch = tall ? std::sqrt(static_cast<double>(rows) / static_cast<double>(cols)) : 1.0;
    apply(param, master.as<float>(), x.as<float>(), count, static_cast<float>(step.lr * stretch),
          static_cast<float>(step.weight_decay / stretch), step);
}

}  // namespace

void muon_step(Tensor param, Tensor master, Tensor momentum, Tensor grad, const MuonMatrices& matrices,
               const MuonStep& step, MatmulMath math, Tensor scratch, Stream stream) {
    check_muon(param, master, momentum, grad, matrices, step, math, scratch);
    if (matrices.size() == 0) return;
    const StepDecision* const decision = decision_data(step.decision);
    if (decision != nullptr && decision->verdict != Verdict::apply) return;
    for (const int64_t offset : matrices.offsets) {
        const auto matrix = [&](Tensor arena) {
            return arena.absent() ? arena
                                  : arena.rows(offset, matrices.size()).view(matrices.rows, matrices.cols);
        };
        MuonStep own = step;
        own.first_index += offset;
        if (decision != nullptr) own.grad_scale = decision->grad_scale;
        update(matrix(param), matrix(master), matrix(momentum), matrix(grad), own, math, scratch, stream);
    }
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(master.device, void, muon_step,
             (Tensor param, Tensor master, Tensor momentum, Tensor grad, const MuonMatrices& matrices,
              const MuonStep& step, MatmulMath math, Tensor scratch, Stream stream),
             (param, master, momentum, grad, matrices, step, math, scratch, stream))
