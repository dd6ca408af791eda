// Fused head and cross-entropy on the CPU. Logits are f32, whatever the inputs, and turn into f32 gradients
// in place: the products round them to bf16 while packing where `math` says so, and nothing is lost before.
// The products (three per chunk) are all but a few percent of the time; softmax reads a row from L2 three
// times.
#include "kernels/cross_entropy.h"

#include <cmath>

#include "kernels/check.h"
#include "kernels/elementwise.h"

#ifdef ISA_PLAIN
void check_cross_entropy(Tensor losses, Tensor dhidden, Tensor dweight, Tensor hidden, Tensor weight,
                         Tensor targets, Tensor dloss_scale, Tensor scratch) {
    const ArgumentCheck check{"cross_entropy", hidden.device};
    check.floats("hidden", hidden, {-1, -1});
    const int64_t num_rows = hidden.dims[0], vocab_size = weight.dims[0];
    check.floats("weight", weight, {-1, hidden.dims[1]});
    check.tensor("losses", losses, DType::f32, {num_rows});
    check.ids("targets", targets, num_rows, -1, vocab_size);
    if (!dhidden.absent() || !dweight.absent()) {
        check.like("dhidden", dhidden, hidden);
        check.tensor("dweight", dweight, DType::f32, {vocab_size, hidden.dims[1]});
        check.tensor("dloss_scale", dloss_scale, DType::f32, {1});
    }
    check.scratch(scratch, cross_entropy_scratch_bytes(num_rows, vocab_size, hidden.dtype, hidden.device));
}
#endif

namespace ISA_NAMESPACE {
namespace {

// 256 rows amortise the pass over dweight ([V,C] f32, read and written per chunk: 64 FLOP per byte); a
// vocabulary so large that 256 rows of logits pass 128 MiB gets fewer.
constexpr int64_t kMaxRows = 256, kMinRows = 32, kMaxLogits = int64_t{32} << 20;

// The largest logit; NaNs are passed over here and surface in the sum.
float largest(const float* logits, int64_t vocab_size) {
    Vec best[2] = {splat(-__builtin_inff()), splat(-__builtin_inff())};
    int64_t i = 0;
    for (; i + 2 * kWidth <= vocab_size; i += 2 * kWidth) {
        best[0] = max(load(logits + i), best[0]);
        best[1] = max(load(logits + i + kWidth), best[1]);
    }
    for_each_vec_of(i, vocab_size, [&](int64_t at, int64_t n) ALWAYS_INLINE {
        best[0] = max(load_first(logits + at, n, -__builtin_inff()), best[0]);
    });
    return reduce_max(max(best[0], best[1]));
}

// The loss of one row; with `gradient`, logits become scale * (softmax - one_hot(target)).
float row_loss(float* logits, int64_t vocab_size, int32_t target, float scale, bool gradient) {
    const float top = largest(logits, vocab_size);
    const float target_logit = logits[target];
    const float sum = sum_over(vocab_size, [&](int64_t i, int64_t n) ALWAYS_INLINE {
        const Vec e = exp(load_first(logits + i, n, -__builtin_inff()) - top);
        if (gradient) store_first(logits + i, e, n);
        return e;
    });
    if (gradient) {
        const float factor = scale / sum;
        for_each_vec_of(0, vocab_size, [&](int64_t i, int64_t n) ALWAYS_INLINE {
            store_first(logits + i, load_first(logits + i, n) * factor, n);
        });
        logits[target] -= scale;
    }
    return static_cast<float>(std::log(static_cast<double>(sum)) + static_cast<double>(top) -
                              static_cast<double>(target_logit));
}

}  // namespace

int64_t cross_entropy_chunk_rows(int64_t num_rows, int64_t vocab_size, Device) {
    int64_t rows = kMaxLogits / (vocab_size > 0 ? vocab_size : 1) / kMinRows * kMinRows;
    rows = rows < kMinRows ? kMinRows : rows > kMaxRows ? kMaxRows : rows;
    return num_rows < rows ? num_rows : rows;
}

int64_t cross_entropy_scratch_bytes(int64_t num_rows, int64_t vocab_size, DType, Device) {
    return ::cross_entropy_chunk_rows(num_rows, vocab_size, Device::cpu) * vocab_size *
           static_cast<int64_t>(sizeof(float));
}

void cross_entropy(Tensor losses, Tensor dhidden, Tensor dweight, Tensor hidden, Tensor weight,
                   Tensor targets, Tensor dloss_scale, bool accumulate, MatmulMath math, Tensor scratch,
                   Stream stream) {
    check_cross_entropy(losses, dhidden, dweight, hidden, weight, targets, dloss_scale, scratch);
    const bool gradient = !dhidden.absent();
    const float scale = gradient ? *dloss_scale.as<float>() : 0;
    const int64_t num_rows = hidden.dims[0], vocab_size = weight.dims[0];
    const int64_t chunk_rows = ::cross_entropy_chunk_rows(num_rows, vocab_size, Device::cpu);
    if (num_rows == 0 && gradient && !accumulate)
        std::memset(dweight.data, 0, static_cast<size_t>(dweight.bytes()));

    for (int64_t first = 0; first < num_rows; first += chunk_rows) {
        const int64_t count = num_rows - first < chunk_rows ? num_rows - first : chunk_rows;
        const Tensor logits = tensor_of(static_cast<float*>(scratch.data), count, vocab_size);
        matmul_forward(logits, hidden.rows(first, count), weight, {}, math, stream);
        parallel_for(count, [&](int64_t row) {
            float* row_logits = logits.as<float>() + row * vocab_size;
            const int32_t target = targets.as<int32_t>()[first + row];
            float& loss = losses.as<float>()[first + row];
            loss = 0;
            if (target >= 0) {
                loss = row_loss(row_logits, vocab_size, target, scale, gradient);
            } else if (gradient) {
                std::memset(row_logits, 0, static_cast<size_t>(vocab_size) * sizeof(float));
            }
        });
        if (!gradient) continue;
        matmul_backward_input(dhidden.rows(first, count), logits, weight, false, {}, math, stream);
        matmul_backward_weight(dweight, {}, logits, hidden.rows(first, count), accumulate || first > 0, math,
                               stream);
    }
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(device, int64_t, cross_entropy_chunk_rows, (int64_t num_rows, int64_t vocab_size, Device device),
             (num_rows, vocab_size, device))
DEVICE_ENTRY(device, int64_t, cross_entropy_scratch_bytes,
             (int64_t num_rows, int64_t vocab_size, DType hidden_dtype, Device device),
             (num_rows, vocab_size, hidden_dtype, device))
DEVICE_ENTRY(hidden.device, void, cross_entropy,
             (Tensor losses, Tensor dhidden, Tensor dweight, Tensor hidden, Tensor weight, Tensor targets,
              Tensor dloss_scale, bool accumulate, MatmulMath math, Tensor scratch, Stream stream),
             (losses, dhidden, dweight, hidden, weight, targets, dloss_scale, accumulate, math, scratch,
              stream))
