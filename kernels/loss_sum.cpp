// Summing losses on the CPU: one thread, in order of n.
#include "kernels/loss_sum.h"

#include "kernels/check.h"
#include "kernels/isa.h"

#ifdef ISA_PLAIN
void check_loss_sum(Tensor total, Tensor losses) {
    const ArgumentCheck check{"loss_sum", losses.device};
    check.tensor("total", total, DType::f64, {1});
    check.tensor("losses", losses, DType::f32, {-1});
}
#endif

namespace ISA_NAMESPACE {

void loss_sum(Tensor total, Tensor losses, bool accumulate, Stream) {
    check_loss_sum(total, losses);
    double* sum = total.as<double>();
    double micro_batch = 0;
    for (int64_t n = 0; n < losses.size(); ++n) micro_batch += losses.as<float>()[n];
    *sum = accumulate ? *sum + micro_batch : micro_batch;
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(losses.device, void, loss_sum, (Tensor total, Tensor losses, bool accumulate, Stream stream),
             (total, losses, accumulate, stream))
