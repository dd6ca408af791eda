// AdamW on the CPU: one fused pass, 16 bytes read and 12 written per element (and 2 for param). Memory-bound:
// the square root, the division and the random bits hide behind the loads.
#include "kernels/adamw.h"

#include <cmath>

#include "kernels/check.h"
#include "kernels/elementwise.h"
#include "kernels/philox_simd.h"
#include "kernels/step_guard.h"

#ifdef ISA_PLAIN
void check_adamw(Tensor param, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamWStep& step) {
    const ArgumentCheck check{"adamw_step", master.device};
    check.like("m", m, master);
    check.like("v", v, master);
    check.like("grad", grad, master);
    check.elements("master", master, DType::f32, master.size());
    if (!param.absent()) check.elements("param", param, DType::bf16, master.size());
    check.that(step.step >= 1, "step", "at least 1", static_cast<double>(step.step));
    check.that(step.first_index >= 0, "first_index", "at least 0", static_cast<double>(step.first_index));
    check_decision("adamw_step", master.device, step.decision);
}

AdamWConstants adamw_constants(const AdamWStep& s) {
    const auto correction = [&](float beta) {
        return static_cast<float>(1 / (1 - std::pow(static_cast<double>(beta), static_cast<double>(s.step))));
    };
    return {s.grad_scale,        1 - s.beta1, 1 - s.beta2,    correction(s.beta1),
            correction(s.beta2), s.eps,       s.weight_decay, s.lr};
}
#endif

namespace ISA_NAMESPACE {
namespace {

// Updates n elements of m, v and master; returns the new master. Every sum has one product in it, so that the
// compiler can fuse it in one way only: an element gets the same bits at any place of any shard.
SIMD_INLINE Vec update(float* master, float* m, float* v, const float* grad, int64_t n,
                       const AdamWConstants& k) {
    const Vec g = load_first(grad, n) * k.grad_scale, m_old = load_first(m, n), v_old = load_first(v, n);
    const Vec m_new = fma(g - m_old, splat(k.keep1), m_old);
    const Vec v_new = fma(g * g - v_old, splat(k.keep2), v_old);
    const Vec direction = m_new * k.m_scale / (sqrt(v_new * k.v_scale) + k.eps);
    const Vec master_old = load_first(master, n);
    const Vec master_new = master_old - k.lr * fma(master_old, splat(k.weight_decay), direction);
    store_first(m, m_new, n);
    store_first(v, v_new, n);
    store_first(master, master_new, n);
    return master_new;
}

}  // namespace

void adamw_step(Tensor param, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamWStep& step, Stream) {
    check_adamw(param, master, m, v, grad, step);
    AdamWConstants constants = adamw_constants(step);
    if (const StepDecision* decision = decision_data(step.decision)) {
        if (decision->verdict != Verdict::apply) return;
        constants.grad_scale = decision->grad_scale;
    }
    float *master_data = master.as<float>(), *m_data = m.as<float>(), *v_data = v.as<float>();
    const float* grad_data = grad.as<float>();
    if (param.absent()) {
        return for_each_vec(master.size(), [=](int64_t i, int64_t n) ALWAYS_INLINE {
            update(master_data + i, m_data + i, v_data + i, grad_data + i, n, constants);
        });
    }
    bf16* param_data = param.as<bf16>();
    parallel_ranges(master.size(), kElementGrain, [=](int64_t begin, int64_t end) {
        for_each_random_vec(begin, end, step.first_index, step.rounding,
                            [=](int64_t i, int64_t n, const uint16_t* draws) ALWAYS_INLINE {
                                const Vec master_new = update(master_data + i, m_data + i, v_data + i,
                                                              grad_data + i, n, constants);
                                store_first(param_data + i, round_stochastic(master_new, draws), n);
                            });
    });
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(master.device, void, adamw_step,
             (Tensor param, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamWStep& step,
              Stream stream),
             (param, master, m, v, grad, step, stream))
