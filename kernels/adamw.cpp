// AdamW on the CPU: one fused pass, 16 bytes read and 12 written per element (and 2 for param). Memory-bound:
// the square root, the division and the random bits hide behind the loads.
#include "kernels/adamw.h"

#include <cmath>

#include "kernels/check.h"
#include "kernels/elementwise.h"
#include "kernels/philox_simd.h"

namespace ISA_NAMESPACE {
namespace {

void check_adamw(Tensor param, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamWStep& step) {
    const ArgumentCheck check{"adamw_step", master.device};
    check.like("m", m, master);
    check.like("v", v, master);
    check.like("grad", grad, master);
    check.elements("master", master, DType::f32, master.size());
    if (!param.absent()) check.elements("param", param, DType::bf16, master.size());
    check.that(step.step >= 1, "step", "at least 1", static_cast<double>(step.step));
    check.that(step.first_index >= 0, "first_index", "at least 0", static_cast<double>(step.first_index));
}

// The step with everything that does not depend on the element folded in.
struct Constants {
    float grad_scale, beta1, beta2, keep1, keep2;  // keep = 1 - beta
    float step_size;                               // lr / (1 - beta1^t)
    float v_scale;                                 // 1 / (1 - beta2^t)
    float eps;
    float decay;  // 1 - lr weight_decay
};

Constants constants_of(const AdamWStep& s) {
    const double t = static_cast<double>(s.step);
    return {.grad_scale = s.grad_scale,
            .beta1 = s.beta1,
            .beta2 = s.beta2,
            .keep1 = 1 - s.beta1,
            .keep2 = 1 - s.beta2,
            .step_size = static_cast<float>(s.lr / (1 - std::pow(static_cast<double>(s.beta1), t))),
            .v_scale = static_cast<float>(1 / (1 - std::pow(static_cast<double>(s.beta2), t))),
            .eps = s.eps,
            .decay = static_cast<float>(1 - static_cast<double>(s.lr) * s.weight_decay)};
}

// Updates n elements of m, v and master; returns the new master.
SIMD_INLINE Vec update(float* master, float* m, float* v, const float* grad, int64_t n, const Constants& k) {
    const Vec g = load_first(grad, n) * k.grad_scale;
    const Vec m_new = fma(load_first(m, n), splat(k.beta1), g * k.keep1);
    const Vec v_new = fma(load_first(v, n), splat(k.beta2), g * g * k.keep2);
    const Vec direction = m_new / (sqrt(v_new * k.v_scale) + k.eps);
    const Vec master_new = load_first(master, n) * k.decay - direction * k.step_size;
    store_first(m, m_new, n);
    store_first(v, v_new, n);
    store_first(master, master_new, n);
    return master_new;
}

}  // namespace

void adamw_step(Tensor param, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamWStep& step, Stream) {
    check_adamw(param, master, m, v, grad, step);
    const Constants constants = constants_of(step);
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

KERNEL_ENTRY(void, adamw_step,
             (Tensor param, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamWStep& step,
              Stream stream),
             (param, master, m, v, grad, step, stream))
