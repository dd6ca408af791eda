// Conversions, filling and scaling on the GPU: each element is read and written once: bound by memory.
// Stochastic rounding adds about 10 instructions an element (a tenth of Philox's ten rounds): still bound by
// memory. Not measured yet on a GPU.
#include "kernels/cast.h"

#include "core/device.h"
#include "kernels/gpu_elementwise.h"
#include "kernels/gpu_random.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kThreads = 256;

struct Same {
    __device__ float operator()(float x) const { return x; }
};
struct Scale {
    float factor;
    __device__ float operator()(float x) const { return x * factor; }
};

__global__ void __launch_bounds__(kThreads)
    cast_stochastic_kernel(bf16* out, const float* inp, int64_t count, RandomKey key, int64_t first_index) {
    wait_for_previous();
    let_next_start();
    const DrawSlot slot(first_index, int64_t{blockIdx.x} * kThreads + threadIdx.x);
    float x[kDraws] = {};
    for (int draw = 0; draw < kDraws; ++draw) {
        const int64_t i = slot.element(draw);
        if (i >= 0 && i < count) x[draw] = load_streaming<1>(inp + i)[0];
    }
    const Random4 random = random4(key, slot.counter);
    for (int draw = 0; draw < kDraws; ++draw) {
        const int64_t i = slot.element(draw);
        if (i >= 0 && i < count) out[i] = to_bf16_stochastic(x[draw], draw_of(random, draw));
    }
}

}  // namespace

void cast(Tensor out, Tensor inp, Stream stream) {
    check_cast("cast", out, inp);
    if (out.dtype == inp.dtype) return copy_tensor(out, inp, stream);
    if (out.dtype == DType::bf16) {
        return map_elements(Same{}, out.as<bf16>(), inp.as<float>(), out.size(), stream);
    }
    map_elements(Same{}, out.as<float>(), inp.as<bf16>(), out.size(), stream);
}

void cast_stochastic(Tensor out, Tensor inp, RandomKey key, int64_t first_index, Stream stream) {
    check_cast("cast_stochastic", out, inp);
    launch(cast_stochastic_kernel, ceil_div(num_counters(first_index, out.size()), kThreads), kThreads, 0,
           stream, out.as<bf16>(), inp.as<float>(), out.size(), key, first_index);
}

void fill_zero(Tensor out, Stream stream) { zero_tensor(out, stream); }

void scale_in_place(Tensor x, float factor, Stream stream) {
    map_elements(Scale{factor}, x.as<float>(), x.as<float>(), x.size(), stream);
}

}  // namespace GPU_NAMESPACE
