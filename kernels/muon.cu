// Muon on the GPU. Nearly all of the time goes into the fifteen products of the Newton-Schulz iteration (10
// R^2 C FLOPs and more for R <= C); around them, element-wise kernels move 10 f32 an element (12 for tall
// matrices), bound by memory. Not measured yet on a GPU. The norm never leaves the device. A step that is
// refused (kernels/step_guard.h) changes nothing, but its products run all the same, on what the scratch
// memory holds.
#include "kernels/muon.h"

#include <cmath>
#include <utility>

#include "core/device.h"
#include "kernels/gpu.h"
#include "kernels/gpu_random.h"
#include "kernels/step_guard.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kIterations = 5;
constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;  // as on the CPU: kernels/muon.cpp
constexpr int kThreads = 512;
// Of kernels that go over all elements: they fill the largest GPUs (132 multiprocessors of 2048 threads), and
// each thread of a later block adds one of their sums.
constexpr int64_t kMostBlocks = kThreads;

// ---- momentum, and the sum of squares of what it gives
// -------------------------------------------------------------

// partial[block] is the sum of squares of the u that the block wrote. With keep = 1 - mu:
// momentum += keep (g - momentum),  u = momentum + keep (g - momentum).
__global__ void nesterov_kernel(float* u, float* momentum, float* partial, const float* grad, int64_t count,
                                float keep, float grad_scale, bool packed, const StepDecision* decision) {
    wait_for_previous();
    if (decision != nullptr) {
        if (decision->verdict != Verdict::apply) return;
        grad_scale = decision->grad_scale;
    }
    constexpr int kSize = Pack<float>::kSize;
    float squares = 0;
    const auto step = [&](float g, float& old) {
        const float m = fmaf(fmaf(g, grad_scale, -old), keep, old);
        const float next = fmaf(fmaf(g, grad_scale, -m), keep, m);
        old = m;
        squares = fmaf(next, next, squares);
        return next;
    };
    const int64_t threads = int64_t{gridDim.x} * kThreads;
    int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (packed) {
        const int64_t packs = count / kSize;
        for (int64_t p = i; p < packs; p += threads) {
            const Pack<float> g = load128_streaming(grad + p * kSize);
            Pack<float> m = load128(momentum + p * kSize), out;
            UNROLL
            for (int k = 0; k < kSize; ++k) out[k] = step(g[k], m[k]);
            store128(momentum + p * kSize, m);
            store128(u + p * kSize, out);
        }
        i += packs * kSize;
    }
    for (; i < count; i += threads) u[i] = step(grad[i], momentum[i]);
    squares = block_sum<kThreads>(squares);
    if (threadIdx.x == 0) partial[blockIdx.x] = squares;
}

// ---- normalisation
// -------------------------------------------------------------------------------------------------

// 1 / (|u| + 1e-7), the same bits in every block: all add the partial sums in the same order.
__device__ inline float inverse_norm(const float* partial, int num_partial) {
    const int mine = static_cast<int>(threadIdx.x);
    const float sum = mine < num_partial ? partial[mine] : 0.0f;
    return 1.0f / (sqrtf(block_sum<kThreads>(sum)) + 1e-7f);
}

// x is aligned to 16 bytes.
__global__ void scale_kernel(float* x, const float* partial, int num_partial, int64_t count) {
    wait_for_previous();
    constexpr int kSize = Pack<float>::kSize;
    const float factor = inverse_norm(partial, num_partial);
    const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x, packs = count / kSize;
    for (int64_t p = first; p < packs; p += int64_t{gridDim.x} * kThreads) {
        Pack<float> pack = load128(x + p * kSize);
        UNROLL
        for (int k = 0; k < kSize; ++k) pack[k] *= factor;
        store128(x + p * kSize, pack);
    }
    if (first < count % kSize) x[packs * kSize + first] *= factor;
}

// out[c,r] = inp[r,c], times 1 / (|u| + 1e-7) where there are partial sums. A block turns kTile x kTile
// elements in shared memory, so that both sides go by whole lines.
constexpr int kTile = 32;
__global__ void transpose_kernel(float* out, const float* inp, const float* partial, int num_partial,
                                 int64_t rows, int64_t cols) {
    wait_for_previous();
    SHARED(float, tile, [kTile][kTile + 1]);
    const float factor = partial != nullptr ? inverse_norm(partial, num_partial) : 1.0f;
    const int x = static_cast<int>(threadIdx.x) % kTile, y = static_cast<int>(threadIdx.x) / kTile;
    const int64_t across = (cols + kTile - 1) / kTile;
    const int64_t row = blockIdx.x / across * kTile, col = blockIdx.x % across * kTile;
    for (int r = y; r < kTile; r += kThreads / kTile) {
        if (row + r < rows && col + x < cols) tile[r][x] = inp[(row + r) * cols + col + x] * factor;
    }
    __syncthreads();
    for (int c = y; c < kTile; c += kThreads / kTile) {
        if (col + c < cols && row + x < rows) out[(col + c) * rows + row + x] = tile[x][c];
    }
}

void transpose(float* out, const float* inp, const float* partial, int num_partial, int64_t rows,
               int64_t cols, Stream stream) {
    launch(transpose_kernel, ceil_div(rows, kTile) * ceil_div(cols, kTile), kThreads, 0, stream, out, inp,
           partial, num_partial, rows, cols);
}

// ---- the update
// ----------------------------------------------------------------------------------------------------

// master -= step_size (x + decay master), and param from it, stochastically rounded. A thread has the
// elements of one counter (gpu_random.h).
__global__ void apply_kernel(bf16* param, float* master, const float* x, int64_t count, float step_size,
                             float decay, RandomKey key, int64_t first_index, int64_t counters,
                             const StepDecision* decision) {
    wait_for_previous();
    if (decision != nullptr && decision->verdict != Verdict::apply) return;
    const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (thread >= counters) return;
    const DrawSlot slot(first_index, thread);
    float old[kDraws] = {}, update[kDraws] = {};
    UNROLL
    for (int i = 0; i < kDraws; ++i) {
        const int64_t at = slot.element(i);
        if (at < 0 || at >= count) continue;
        old[i] = master[at];
        update[i] = x[at];
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

void apply(Tensor param, Tensor master, const float* x, float step_size, float decay, const MuonStep& step,
           Stream stream) {
    const int64_t count = master.size(), counters = num_counters(step.first_index, count);
    launch(apply_kernel, ceil_div(counters, kThreads), kThreads, 0, stream,
           param.absent() ? nullptr : param.as<bf16>(), master.as<float>(), x, count, step_size, decay,
           step.rounding, step.first_index, counters, decision_data(step.decision));
}

}  // namespace

void muon_step(Tensor param, Tensor master, Tensor momentum, Tensor grad, const MuonStep& step,
               MatmulMath math, Tensor scratch, Stream stream) {
    check_muon(param, master, momentum, grad, scratch, step);
    CHECK(is_aligned128(scratch.data), "scratch begins at a multiple of 16 bytes");
    const int64_t rows = master.dims[0], cols = master.dims[1], count = rows * cols;
    if (count == 0) return;
    const bool tall = rows > cols;
    const int64_t small = tall ? cols : rows, large = tall ? rows : cols;
    float* const memory = static_cast<float*>(scratch.data);
    const auto matrix = [](float* data, int64_t d0, int64_t d1) {
        Tensor t = tensor_of(data, d0, d1);
        t.device = kThisDevice;
        return t;
    };
    Tensor x = matrix(memory, small, large), next = matrix(memory + count, small, large);
    const Tensor a = matrix(memory + 2 * count, small, small);
    const Tensor b = matrix(memory + 2 * count + small * small, small, small);

    // The partial sums lie where A will, and there are no more of them than find room there.
    float* const partial = a.as<float>();
    float* const u = tall ? next.as<float>() : x.as<float>();
    int64_t blocks = ceil_div(count, kThreads * Pack<float>::kSize);
    if (blocks > kMostBlocks) blocks = kMostBlocks;
    if (blocks > 2 * small * small) blocks = 2 * small * small;
    launch(nesterov_kernel, blocks, kThreads, 0, stream, u, momentum.as<float>(), partial, grad.as<float>(),
           count, 1 - step.momentum, step.grad_scale, is_aligned128(u, momentum.data, grad.data),
           decision_data(step.decision));
    const int num_partial = static_cast<int>(blocks);
    if (tall) {
        transpose(x.as<float>(), u, partial, num_partial, rows, cols, stream);
    } else {
        launch(scale_kernel, blocks, kThreads, 0, stream, u, partial, num_partial, count);
    }

    for (int iteration = 0; iteration < kIterations; ++iteration) {
        matmul_general(a, x, x, true, 1, 0, {}, math, stream);      // A = X X^T, symmetric
        matmul_general(b, a, a, true, kC, kB, a, math, stream);     // B = b A + c A^2
        matmul_general(next, b, x, false, 1, kA, x, math, stream);  // X = a X + B X
        std::swap(x, next);
    }
    if (tall) {
        transpose(next.as<float>(), x.as<float>(), nullptr, 0, small, large, stream);
        std::swap(x, next);
    }
    const double stretch = tall ? std::sqrt(static_cast<double>(rows) / static_cast<double>(cols)) : 1.0;
    apply(param, master, x.as<float>(), static_cast<float>(step.lr * stretch),
          static_cast<float>(step.weight_decay / stretch), step, stream);
}

}  // namespace GPU_NAMESPACE
