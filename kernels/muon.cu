// Muon on the GPU. Nearly all of the time goes into the fifteen products of the Newton-Schulz iteration: five
// of 2 R^2 C FLOPs for R <= C, and ten, symmetric, of half of what they would be: in all 15 R^2 C + 5 R^3, or
// 20 R a parameter of a square matrix (in f32, where both halves are computed, 30). Around them, element-wise
// kernels move 34 bytes an element (38 where X is f32), bound by memory. Not measured yet on a GPU. One
// matrix fills a GPU badly: all of one shape go through together, muon_batch() of them at a time. Tall ones
// are multiplied as they lie, X^T X for X X^T and X B for B X. The norm never leaves the device. A step that
// is refused (kernels/step_guard.h) changes nothing, but its products run all the same, on what the scratch
// memory holds.
#include "kernels/muon.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "core/device.h"
#include "kernels/gpu.h"
#include "kernels/gpu_elements.h"
#include "kernels/gpu_random.h"
#include "kernels/matmul_gpu.h"
#include "kernels/step_guard.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kIterations = 5;
constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;  // as on the CPU: kernels/muon.cpp
constexpr int kThreads = 512;
static_assert(kMuonSums == kThreads, "each thread of a later block adds one of a matrix's sums");
constexpr int kVector = 8;  // elements that a thread takes at a time: 128 bits of bf16

// Where the matrices of a batch begin in the arenas; blockIdx.y is the matrix.
struct Offsets {
    int64_t of[kMuonMostMatrices];
};

// ---- momentum, and the sum of squares of what it gives

// With keep = 1 - mu:  momentum += keep (g - momentum),  u = momentum + keep (g - momentum).
struct Nesterov {
    float keep, grad_scale;
    const StepDecision* decision;

    __device__ bool refused() const { return decision != nullptr && decision->verdict != Verdict::apply; }
    // As the decision scales gradients.
    __device__ Nesterov decided() const {
        return {keep, decision != nullptr ? decision->grad_scale : grad_scale, nullptr};
    }
    __device__ float momentum(float g, float old) const { return fmaf(fmaf(g, grad_scale, -old), keep, old); }
    __device__ float u(float g, float momentum_now) const { return momentum(g, momentum_now); }
};

// partial[matrix][block] is the sum of squares of the u of the block's elements.
template <int kCount>
__global__ void __launch_bounds__(kThreads)
    momentum_kernel(Offsets offsets, float* momentum, float* partial, const float* grad, int64_t count,
                    Nesterov nesterov) {
    wait_for_previous();
    if (nesterov.refused()) return;
    nesterov = nesterov.decided();
    momentum += offsets.of[blockIdx.y];
    grad += offsets.of[blockIdx.y];
    float squares = 0;
    const auto update = [&](float g, float& m) {
        m = nesterov.momentum(g, m);
        const float u = nesterov.u(g, m);
        squares = fmaf(u, u, squares);
    };
    const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x,
                  threads = int64_t{gridDim.x} * kThreads;
    const int64_t vectors = count / kCount;
    for (int64_t v = first; v < vectors; v += threads) {
        const Floats<kCount> g = load_floats<kCount>(grad + v * kCount);
        Floats<kCount> m = load_floats<kCount>(momentum + v * kCount);
        UNROLL
        for (int k = 0; k < kCount; ++k) update(g[k], m[k]);
        store_floats(momentum + v * kCount, m);
    }
    for (int64_t i = vectors * kCount + first; i < count; i += threads) update(grad[i], momentum[i]);
    squares = block_sum<kThreads>(squares);
    if (threadIdx.x == 0) partial[blockIdx.y * kMuonSums + blockIdx.x] = squares;
}

// x[matrix] = u / (|u| + 1e-7), where u is made again from the gradient and the new momentum: it is never
// stored in f32. All blocks add the partial sums in the same order.
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads)
    normalise_kernel(Offsets offsets, T* x, int64_t x_step, const float* momentum, const float* partial,
                     int num_partial, const float* grad, int64_t count, Nesterov nesterov) {
    wait_for_previous();
    nesterov = nesterov.decided();
    x += blockIdx.y * x_step;
    momentum += offsets.of[blockIdx.y];
    grad += offsets.of[blockIdx.y];
    const int mine = static_cast<int>(threadIdx.x);
    const float sum = mine < num_partial ? partial[blockIdx.y * kMuonSums + mine] : 0.0f;
    const float factor = 1.0f / (sqrtf(block_sum<kThreads>(sum)) + 1e-7f);
    const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x,
                  threads = int64_t{gridDim.x} * kThreads;
    const int64_t vectors = count / kCount;
    for (int64_t v = first; v < vectors; v += threads) {
        const Floats<kCount> g = load_floats<kCount>(grad + v * kCount);
        Floats<kCount> result = load_floats<kCount>(momentum + v * kCount);
        UNROLL
        for (int k = 0; k < kCount; ++k) result[k] = nesterov.u(g[k], result[k]) * factor;
        if constexpr (sizeof(T) == 2) {
            store_elements(x + v * kCount, rounded_to<T>(result));
        } else {
            store_floats(x + v * kCount, result);
        }
    }
    for (int64_t i = vectors * kCount + first; i < count; i += threads)
        x[i] = from_float<T>(nesterov.u(grad[i], momentum[i]) * factor);
}

// ---- the update

// master -= step_size (x + decay master), and param from it, stochastically rounded. A thread has the
// elements of one counter (gpu_random.h).
template <class T>
__global__ void __launch_bounds__(kThreads)
    apply_kernel(Offsets offsets, bf16* param, float* master, const T* x, int64_t x_step, int64_t count,
                 float step_size, float decay, RandomKey key, int64_t first_index,
                 const StepDecision* decision) {
    wait_for_previous();
    if (decision != nullptr && decision->verdict != Verdict::apply) return;
    const int64_t offset = offsets.of[blockIdx.y];
    master += offset;
    if (param != nullptr) param += offset;
    x += blockIdx.y * x_step;
    const DrawSlot slot(first_index + offset, int64_t{blockIdx.x} * kThreads + threadIdx.x);
    float old[kDraws] = {}, update[kDraws] = {};
    UNROLL
    for (int i = 0; i < kDraws; ++i) {
        const int64_t at = slot.element(i);
        if (at < 0 || at >= count) continue;
        old[i] = master[at];
        update[i] = to_float(x[at]);
    }
    Random4 random = {};
    if (param != nullptr) random = random4(key, slot.counter);
    UNROLL
    for (int i = 0; i < kDraws; ++i) {
        const int64_t at = slot.element(i);
        if (at < 0 || at >= count) continue;
        const float result = old[i] - step_size * fmaf(old[i], decay, update[i]);
        master[at] = result;
        if (param != nullptr) param[at] = to_bf16_stochastic(result, draw_of(random, i));
    }
}

// ---- the iteration

// X, [batch, rows, cols], becomes nearly orthogonal; returns where it is then: there or in `next`.
template <class T>
T* orthogonalise(T* x, T* next, T* a, T* b, int batch, int64_t rows, int64_t cols, MatmulMath math,
                 Stream stream) {
    const bool tall = rows > cols;
    const int64_t small = tall ? cols : rows, large = tall ? rows : cols;
    const MuonParts parts = muon_parts(rows, cols, math);
    const auto by = [](bool row, const Matrix& matrix) { return Operand{.lines = matrix, .by_row = row}; };
    const auto matrix_x = [&](T* data) { return Matrix{data, cols, dtype_of<T>(), parts.x}; };
    const Matrix matrix_a{a, small, dtype_of<T>(), parts.a}, matrix_b{b, small, dtype_of<T>(), parts.a};
    const auto product = [&](const Operand& left, const Operand& right, const Output& output, int64_t inner) {
        return Product{.a = left,
                       .b = right,
                       .output = output,
                       .inner = static_cast<int>(inner),
                       .bf16_math = math == MatmulMath::bf16,
                       .batch = batch};
    };
    const auto symmetric = [&](const Matrix& out, const Matrix& addend, float scale) {
        return Output{.out = out,
                      .addend = addend,
                      .scale = scale,
                      .addend_scale = kB,
                      .rows = static_cast<int>(small),
                      .columns = static_cast<int>(small),
                      .symmetric = true};
    };
    for (int iteration = 0; iteration < kIterations; ++iteration) {
        const Matrix from = matrix_x(x);
        // A = X X^T
        multiply_batch(product(by(!tall, from), by(!tall, from), symmetric(matrix_a, {}, 1), large), stream);
        // B = b A + c A^2
        multiply_batch(
            product(by(true, matrix_a), by(true, matrix_a), symmetric(matrix_b, matrix_a, kC), small),
            stream);
        // X = a X + B X
        multiply_batch(
            product(tall ? by(true, from) : by(true, matrix_b), tall ? by(true, matrix_b) : by(false, from),
                    {.out = matrix_x(next),
                     .addend = from,
                     .addend_scale = kA,
                     .rows = static_cast<int>(rows),
                     .columns = static_cast<int>(cols)},
                    small),
            stream);
        std::swap(x, next);
    }
    return x;
}

// The matrices at `offsets`, all of a batch.
template <class T>
void update(Tensor param, Tensor master, Tensor momentum, Tensor grad, std::span<const int64_t> offsets,
            int64_t rows, int64_t cols, const MuonStep& step, MatmulMath math, void* scratch, Stream stream) {
    const int64_t count = rows * cols, batch = static_cast<int64_t>(offsets.size());
    const MuonParts parts = muon_parts(rows, cols, math);
    T *const x = static_cast<T*>(scratch), *const next = x + batch * parts.x;
    T *const a = next + batch * parts.x, *const b = a + batch * parts.a;
    float* const partial = reinterpret_cast<float*>(b + batch * parts.a);

    Offsets at = {};
    bool packed = is_aligned128(momentum.data, grad.data);
    int64_t counters = 0;
    for (int64_t i = 0; i < batch; ++i) {
        at.of[i] = offsets[static_cast<size_t>(i)];
        packed = packed && at.of[i] % Pack<float>::kSize == 0;
        counters = std::max(counters, num_counters(step.first_index + at.of[i], count));
    }
    const auto grid = [&](int64_t blocks) {
        return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(batch));
    };
    const int64_t blocks = std::min(kMuonSums, ceil_div(count, kThreads * kVector));
    const StepDecision* const decision = decision_data(step.decision);
    const Nesterov nesterov{1 - step.momentum, step.grad_scale, decision};
    launch(packed ? momentum_kernel<kVector> : momentum_kernel<1>, grid(blocks), kThreads, 0, stream, at,
           momentum.as<float>(), partial, grad.as<float>(), count, nesterov);
    launch(packed ? normalise_kernel<T, kVector> : normalise_kernel<T, 1>, grid(blocks), kThreads, 0, stream,
           at, x, parts.x, momentum.as<float>(), partial, static_cast<int>(blocks), grad.as<float>(), count,
           nesterov);
    const T* const result = orthogonalise(x, next, a, b, static_cast<int>(batch), rows, cols, math, stream);
    const double stretch = std::sqrt(std::max(1.0, static_cast<double>(rows) / static_cast<double>(cols)));
    launch(apply_kernel<T>, grid(ceil_div(counters, kThreads)), kThreads, 0, stream, at,
           param.absent() ? nullptr : param.as<bf16>(), master.as<float>(), result, parts.x, count,
           static_cast<float>(step.lr * stretch), static_cast<float>(step.weight_decay / stretch),
           step.rounding, step.first_index, decision);
}

}  // namespace

void muon_step(Tensor param, Tensor master, Tensor momentum, Tensor grad, const MuonMatrices& matrices,
               const MuonStep& step, MatmulMath math, Tensor scratch, Stream stream) {
    check_muon(param, master, momentum, grad, matrices, step, math, scratch);
    CHECK(is_aligned128(scratch.data), "scratch begins at a multiple of 16 bytes");
    if (matrices.size() == 0) return;
    const auto update_batch = math == MatmulMath::bf16 ? update<bf16> : update<float>;
    std::span<const int64_t> left = matrices.offsets;
    const size_t most = static_cast<size_t>(muon_batch(matrices, math, kThisDevice));
    while (!left.empty()) {
        const size_t batch = std::min(most, left.size());
        update_batch(param, master, momentum, grad, left.first(batch), matrices.rows, matrices.cols, step,
                     math, scratch.data, stream);
        left = left.subspan(batch);
    }
}

}  // namespace GPU_NAMESPACE
