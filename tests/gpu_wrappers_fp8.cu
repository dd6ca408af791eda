// The kernels of gpu_wrappers_fp8.h.
#include "tests/gpu_wrappers_fp8.h"

#include "kernels/gpu_absmax.h"
#include "kernels/gpu_fp8.h"
#include "kernels/mma.h"

namespace GPU_NAMESPACE {
namespace {

using Word = uint32_t;

template <class T>
__global__ void pack_two(Word* out, const Word* inp) {
    wait_for_previous();
    const int i = static_cast<int>(threadIdx.x);
    out[i] = pack_fp8<T>(__uint_as_float(inp[2 * i]), __uint_as_float(inp[2 * i + 1]));
}

__global__ void find_absmax(Word* out, const Word* inp) {
    wait_for_previous();
    raise_absmax_by_warp(out, magnitude_bits(__uint_as_float(inp[threadIdx.x])));
}

template <class A>
__global__ void multiply(Word* out, const Word* inp) {
    wait_for_previous();
    const int i = static_cast<int>(threadIdx.x);
    Word a[4], b[2];
    float c[4];
    for (int k = 0; k < 4; ++k) a[k] = inp[10 * i + k];
    for (int k = 0; k < 2; ++k) b[k] = inp[10 * i + 4 + k];
    for (int k = 0; k < 4; ++k) c[k] = __uint_as_float(inp[10 * i + 6 + k]);
    mma_fp8<A>(c, a, b);
    for (int k = 0; k < 4; ++k) out[4 * i + k] = __float_as_uint(c[k]);
}

}  // namespace

void run_fp8_wrapper(Fp8Wrapper wrapper, Tensor out, Tensor inp) {
    const auto start = [&](void (*kernel)(Word*, const Word*)) {
        launch(kernel, 1, fp8_wrapper_shape(wrapper).threads, 0, {},
               reinterpret_cast<Word*>(out.as<int32_t>()), reinterpret_cast<const Word*>(inp.as<int32_t>()));
    };
    switch (wrapper) {
        case Fp8Wrapper::pack_e4m3: return start(pack_two<e4m3>);
        case Fp8Wrapper::pack_e5m2: return start(pack_two<e5m2>);
        case Fp8Wrapper::absmax: return start(find_absmax);
        case Fp8Wrapper::mma_e4m3: return start(multiply<e4m3>);
        case Fp8Wrapper::mma_e5m2: return start(multiply<e5m2>);
    }
}

}  // namespace GPU_NAMESPACE
