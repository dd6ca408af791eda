// Fused head and cross-entropy on the GPU. Three products per chunk (6 C FLOPs a logit) and between them one
// pass over the logits, which reads each twice, the second time from L2, and writes it once: 4 bytes of
// memory a logit in bf16, bound by memory. Not measured yet on a GPU.
#include "kernels/cross_entropy.h"

#include "core/device.h"
#include "kernels/gpu.h"
#include "kernels/matmul_gpu.h"

namespace GPU_NAMESPACE {
namespace {

// The larger a chunk, the rarer dweight ([V,C] f32) is read and written again: 512 MiB of bf16 logits. Rows
// in whole tiles of the products. (In the emulator so few that small tests have several chunks.)
constexpr int64_t kMostLogits = kThisDevice == Device::simt ? int64_t{1} << 13 : int64_t{1} << 28;
constexpr int64_t kRowMultiple = 128;

// Rows of logits begin at multiples of kChunk elements, whatever the vocabulary, for 128-bit access.
int64_t logits_stride(int64_t vocab_size) { return ceil_div(vocab_size, kChunk) * kChunk; }

// A block has one row. First pass: the largest logit and the sum of exponentials together, each thread
// keeping its sum relative to the largest that it has met. Second: logits become dlogits, zeros behind the
// vocabulary. NaNs are passed over in the maximum and surface in the sum.
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    softmax_kernel(float* losses, T* logits, const int32_t* targets, const float* dloss_scale, int vocab_size,
                   int stride) {
    wait_for_previous();
    constexpr int kSize = Pack<T>::kSize;
    constexpr float kLowest = -__builtin_inff();
    T* const row = logits + int64_t{blockIdx.x} * stride;
    const int target = targets[blockIdx.x], first = static_cast<int>(threadIdx.x) * kSize;
    if (target < 0) {
        if (threadIdx.x == 0) losses[blockIdx.x] = 0;
        if (dloss_scale == nullptr) return;
        for (int i = first; i < stride; i += kThreads * kSize) store128(row + i, Pack<T>{});
        return;
    }
    const float target_logit = to_float(row[target]);  // before it becomes a gradient

    float largest = kLowest, sum = 0;
    for (int i = first; i < vocab_size; i += kThreads * kSize) {
        const Pack<T> pack = load128(row + i);
        float x[kSize], top = largest;
        UNROLL
        for (int k = 0; k < kSize; ++k) {
            x[k] = i + k < vocab_size ? to_float(pack[k]) : kLowest;
            top = fmaxf(top, x[k]);
        }
        const float origin = top == kLowest ? 0 : top;  // infinities must not meet
        sum *= __expf(largest - origin);
        UNROLL
        for (int k = 0; k < kSize; ++k) sum += __expf(x[k] - origin);
        largest = top;
    }
    const float row_largest = block_max<kThreads>(largest), origin = row_largest == kLowest ? 0 : row_largest;
    const float row_sum = block_sum<kThreads>(sum * __expf(largest - origin));
    if (threadIdx.x == 0) {
        losses[blockIdx.x] =
            static_cast<float>(log(static_cast<double>(row_sum)) + static_cast<double>(origin) -
                               static_cast<double>(target_logit));
    }
    if (dloss_scale == nullptr) return;
    const float scale = *dloss_scale, factor = scale / row_sum;
    for (int i = first; i < stride; i += kThreads * kSize) {
        Pack<T> pack = load128(row + i);
        UNROLL
        for (int k = 0; k < kSize; ++k) {
            float dlogit = __expf(to_float(pack[k]) - origin) * factor;
            if (i + k == target) dlogit -= scale;
            pack[k] = from_float<T>(i + k < vocab_size ? dlogit : 0.0f);
        }
        store128(row + i, pack);
    }
}

template <class T>
void softmax(float* losses, T* logits, const int32_t* targets, const float* dloss_scale, int64_t num_rows,
             int64_t vocab_size, Stream stream) {
    constexpr int kMany = 512, kFew = 128;  // threads, of which every one should have several packs
    const int vocab = static_cast<int>(vocab_size), stride = static_cast<int>(logits_stride(vocab_size));
    if (vocab_size > 2 * kMany * Pack<T>::kSize) {
        launch(softmax_kernel<T, kMany>, num_rows, kMany, 0, stream, losses, logits, targets, dloss_scale,
               vocab, stride);
    } else {
        launch(softmax_kernel<T, kFew>, num_rows, kFew, 0, stream, losses, logits, targets, dloss_scale,
               vocab, stride);
    }
}

// The chunk of rows whose hidden states, gradients and losses these are.
template <class T>
void chunk(Tensor losses, Tensor dhidden, Tensor dweight, Tensor hidden, Tensor weight, Tensor targets,
           const float* dloss_scale, bool accumulate, MatmulMath math, T* logits, Stream stream) {
    const int rows = static_cast<int>(hidden.dims[0]), channels = static_cast<int>(hidden.dims[1]);
    const int vocab_size = static_cast<int>(weight.dims[0]);
    const Matrix lines{logits, logits_stride(vocab_size), dtype_of<T>()};
    const bool bf16_math = uses_bf16(dtype_of<T>(), weight.dtype, math);
    multiply({.a = by_row(hidden),
              .b = by_row(weight),
              .output = {.out = lines, .rows = rows, .columns = vocab_size},
              .inner = channels,
              .bf16_math = bf16_math},
             stream);
    softmax(losses.as<float>(), logits, targets.as<int32_t>(), dloss_scale, rows, vocab_size, stream);
    if (dloss_scale == nullptr) return;
    multiply({.a = {.lines = lines, .by_row = true, .padded = true},
              .b = by_column(weight),
              .output = {.out = matrix_of(dhidden), .rows = rows, .columns = channels},
              .inner = vocab_size,
              .bf16_math = bf16_math},
             stream);
    multiply({.a = {.lines = lines, .by_row = false, .padded = true},
              .b = by_column(hidden),
              .output = {.out = matrix_of(dweight),
                         .addend = accumulate ? matrix_of(dweight) : Matrix{},
                         .rows = vocab_size,
                         .columns = channels},
              .inner = rows,
              .bf16_math = bf16_math,
              .may_split = true},
             stream);
}

}  // namespace

int64_t cross_entropy_chunk_rows(int64_t num_rows, int64_t vocab_size, Device) {
    int64_t rows = kMostLogits / (vocab_size > 0 ? logits_stride(vocab_size) : 1);
    if (rows >= kRowMultiple) rows = rows / kRowMultiple * kRowMultiple;
    if (rows < 1) rows = 1;
    return num_rows < rows ? num_rows : rows;
}

int64_t cross_entropy_scratch_bytes(int64_t num_rows, int64_t vocab_size, DType hidden_dtype, Device device) {
    return ::cross_entropy_chunk_rows(num_rows, vocab_size, device) * logits_stride(vocab_size) *
           dtype_bytes(hidden_dtype);
}

void cross_entropy(Tensor losses, Tensor dhidden, Tensor dweight, Tensor hidden, Tensor weight,
                   Tensor targets, Tensor dloss_scale, bool accumulate, MatmulMath math, Tensor scratch,
                   Stream stream) {
    check_cross_entropy(losses, dhidden, dweight, hidden, weight, targets, dloss_scale, scratch);
    CHECK(is_aligned128(scratch.data), "scratch begins at a multiple of 16 bytes");
    const bool gradient = !dhidden.absent();
    const float* scale = gradient ? dloss_scale.as<float>() : nullptr;
    const int64_t num_rows = hidden.dims[0];
    const int64_t chunk_rows = ::cross_entropy_chunk_rows(num_rows, weight.dims[0], kThisDevice);
    if (num_rows == 0 && gradient && !accumulate) zero_tensor(dweight, stream);

    for (int64_t first = 0; first < num_rows; first += chunk_rows) {
        const int64_t count = num_rows - first < chunk_rows ? num_rows - first : chunk_rows;
        const auto rows = [=](const Tensor& t) { return t.absent() ? t : t.rows(first, count); };
        const auto run = [&](auto* logits) {
            chunk(rows(losses), rows(dhidden), dweight, rows(hidden), weight, rows(targets), scale,
                  accumulate || first > 0, math, logits, stream);
        };
        if (hidden.dtype == DType::bf16) {
            run(static_cast<bf16*>(scratch.data));
        } else {
            run(static_cast<float*>(scratch.data));
        }
    }
}

}  // namespace GPU_NAMESPACE
