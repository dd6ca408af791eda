// AdamW on the GPU: one pass, 16 bytes read and 12 written per element (and 2 for param); some 40
// instructions, Philox's share of them 10: bound by memory. Every operation is the CPU's (kernels/adamw.cpp),
// fused where it fuses, so that both give the same bits. Not measured yet on a GPU.
#include "kernels/adamw.h"

#include "kernels/gpu_elements.h"
#include "kernels/gpu_random.h"
#include "kernels/step_guard.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kThreads = 256;

__device__ inline float updated_master(float master, float& m, float& v, float grad,
                                       const AdamWConstants& k) {
    const float g = __fmul_rn(grad, k.grad_scale);  // rounded, not fused into the subtraction below
    m = fmaf(__fadd_rn(g, -m), k.keep1, m);
    v = fmaf(fmaf(g, g, -v), k.keep2, v);
    const float direction = __fmul_rn(m, k.m_scale) / (sqrtf(__fmul_rn(v, k.v_scale)) + k.eps);
    return fmaf(-k.lr, fmaf(master, k.weight_decay, direction), master);
}

// One counter of random bits per thread and its 8 elements (kernels/gpu_random.h), all of them under way at
// once.
template <bool kHasParam>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(bf16* param, float* master, float* m, float* v, const float* grad, int64_t count,
                 AdamWConstants constants, RandomKey key, int64_t first_index, const StepDecision* decision) {
    wait_for_previous();
    let_next_start();
    if (decision != nullptr) {
        if (decision->verdict != Verdict::apply) return;
        constants.grad_scale = decision->grad_scale;
    }
    const DrawSlot slot(first_index, int64_t{blockIdx.x} * kThreads + threadIdx.x);
    float g[kDraws] = {}, m_old[kDraws] = {}, v_old[kDraws] = {}, master_old[kDraws] = {};
    for (int draw = 0; draw < kDraws; ++draw) {
        const int64_t i = slot.element(draw);
        if (i < 0 || i >= count) continue;
        g[draw] = load_streaming<1>(grad + i)[0];
        m_old[draw] = load_streaming<1>(m + i)[0];
        v_old[draw] = load_streaming<1>(v + i)[0];
        master_old[draw] = load_streaming<1>(master + i)[0];
    }
    const Random4 random = kHasParam ? random4(key, slot.counter) : Random4{};
    for (int draw = 0; draw < kDraws; ++draw) {
        const int64_t i = slot.element(draw);
        if (i < 0 || i >= count) continue;
        const float updated = updated_master(master_old[draw], m_old[draw], v_old[draw], g[draw], constants);
        store_streaming(m + i, Elements<float, 1>{m_old[draw]});
        store_streaming(v + i, Elements<float, 1>{v_old[draw]});
        store_streaming(master + i, Elements<float, 1>{updated});
        if constexpr (kHasParam) param[i] = to_bf16_stochastic(updated, draw_of(random, draw));
    }
}

}  // namespace

void adamw_step(Tensor param, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamWStep& step,
                Stream stream) {
    check_adamw(param, master, m, v, grad, step);
    const int64_t count = master.size();
    launch(param.absent() ? adamw_kernel<false> : adamw_kernel<true>,
           ceil_div(num_counters(step.first_index, count), kThreads), kThreads, 0, stream,
           param.absent() ? nullptr : param.as<bf16>(), master.as<float>(), m.as<float>(), v.as<float>(),
           grad.as<float>(), count, adamw_constants(step), step.rounding, step.first_index,
           decision_data(step.decision));
}

}  // namespace GPU_NAMESPACE
