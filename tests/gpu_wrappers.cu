// The kernels of gpu_wrappers.h. Each is the shortest that shows every bit of what its wrapper does.
#include "tests/gpu_wrappers.h"

#include "kernels/mma.h"

namespace GPU_NAMESPACE {
namespace {

using Word = uint32_t;

template <class T, bool kStreaming>
__global__ void packs(Word* out, const Word* inp) {
    wait_for_previous();
    const int64_t i = 4 * (int64_t{blockIdx.x} * blockDim.x + threadIdx.x);
    const T* const from = reinterpret_cast<const T*>(inp + i);
    T* const to = reinterpret_cast<T*>(out + i);
    const Pack<T> pack = kStreaming ? load128_streaming(from) : load128(from);
    Pack<T> reversed;
    for (int k = 0; k < Pack<T>::kSize; ++k) reversed[k] = pack[Pack<T>::kSize - 1 - k];
    kStreaming ? store128_streaming(to, reversed) : store128(to, reversed);
}

__global__ void round_to_bf16(Word* out, const Word* inp) {
    wait_for_previous();
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    out[i] = from_float<bf16>(__uint_as_float(inp[i])).bits;
}
__global__ void round_to_f32(Word* out, const Word* inp) {
    wait_for_previous();
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    out[i] = __float_as_uint(from_float<float>(__uint_as_float(inp[i])));
}
__global__ void pack_two(Word* out, const Word* inp) {
    wait_for_previous();
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    out[i] = pack_bf16(__uint_as_float(inp[2 * i]), __uint_as_float(inp[2 * i + 1]));
}

__global__ void raise_two(Word* out, const Word* inp) {
    wait_for_previous();
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    out[i] = __float_as_uint(exp2_approx(__uint_as_float(inp[i])));
}

template <bool kMax>
__global__ void reduce_warp(Word* out, const Word* inp) {
    wait_for_previous();
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    const float x = __uint_as_float(inp[i]);
    out[i] = __float_as_uint(kMax ? warp_max(x) : warp_sum(x));
}
template <bool kMax, int kThreads>
__global__ void reduce_block(Word* out, const Word* inp) {
    wait_for_previous();
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    const float x = __uint_as_float(inp[i]);
    // The second at once behind the first.
    const float first = kMax ? block_max<kThreads>(x) : block_sum<kThreads>(x);
    const float second = kMax ? block_max<kThreads>(-x) : block_sum<kThreads>(first - x);
    out[2 * i] = __float_as_uint(first);
    out[2 * i + 1] = __float_as_uint(second);
}

__global__ void copy_to_shared(Word* out, const Word* inp, const Word* end) {
    wait_for_previous();
    SHARED(Pack<float>, copied, [64]);
    const int thread = threadIdx.x;
    const Word* const valid = inp + (int64_t{blockIdx.x} * 5 + 4) * 64;
    const Word* const from = inp + int64_t{blockIdx.x} * 5 * 64 + 4 * thread;
    const bool is_valid = valid[thread] != 0;
    cp_async16(&copied[thread], is_valid ? from : end, is_valid);  // what is not valid may not even be there
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    store128(reinterpret_cast<float*>(out + (int64_t{blockIdx.x} * 64 + thread) * 4),
             copied[(thread + 63) % 64]);
}
__global__ void copy_in_groups(Word* out, const Word* inp) {
    wait_for_previous();
    SHARED(Pack<float>, copied, [3][64]);
    const int thread = threadIdx.x;
    const int64_t i = 12 * (int64_t{blockIdx.x} * 64 + thread);
    float* const to = reinterpret_cast<float*>(out + i);
    for (int group = 0; group < 3; ++group) {
        cp_async16(&copied[group][thread], inp + i + 4 * group);
        cp_async_commit();
    }
    cp_async_wait<2>();
    store128(to, copied[0][thread]);
    cp_async_wait<1>();
    store128(to + 4, copied[1][thread]);
    cp_async_wait<0>();
    store128(to + 8, copied[2][thread]);
}

template <bool kTransposed>
__global__ void load_matrices(Word* out, const Word* inp) {
    wait_for_previous();
    SHARED(Pack<float>, rows, [64]);
    const int lane = threadIdx.x;
    inp += int64_t{blockIdx.x} * (32 + 64 * 4);
    for (int row = lane; row < 64; row += kWarp) {
        for (int k = 0; k < 4; ++k) rows[row][k] = __uint_as_float(inp[32 + 4 * row + k]);
    }
    __syncwarp();
    Word r[4];
    if constexpr (kTransposed) {
        ldmatrix_x4_transposed(r, &rows[inp[lane]]);
    } else {
        ldmatrix_x4(r, &rows[inp[lane]]);
    }
    for (int m = 0; m < 4; ++m) out[(int64_t{blockIdx.x} * kWarp + lane) * 4 + m] = r[m];
}

__global__ void multiply(Word* out, const Word* inp) {
    wait_for_previous();
    const int64_t i = int64_t{blockIdx.x} * kWarp + threadIdx.x;
    Word a[4], b[2];
    float c[4];
    for (int k = 0; k < 4; ++k) a[k] = inp[10 * i + k];
    for (int k = 0; k < 2; ++k) b[k] = inp[10 * i + 4 + k];
    for (int k = 0; k < 4; ++k) c[k] = __uint_as_float(inp[10 * i + 6 + k]);
    mma_bf16(c, a, b);
    for (int k = 0; k < 4; ++k) out[4 * i + k] = __float_as_uint(c[k]);
}

// Lets the next grid start long before it has written anything.
__global__ void write_late(Word* out, const Word* inp) {
    wait_for_previous();
    let_next_start();
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    Word x = inp[i];
    for (int round = 0; round < 1000; ++round) x = x * 1664525u + 1013904223u;
    out[i] = x;
}
// Reads what another block of that grid wrote.
__global__ void read_early(Word* out, int64_t count) {
    wait_for_previous();
    let_next_start();
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    out[i] = out[(i + count / 2) % count + count] + 1;
}

constexpr int kDynamicBytes = 96 << 10, kDynamicWords = kDynamicBytes / 4;
__global__ void through_dynamic_shared(Word* out, const Word* inp) {
    wait_for_previous();
    DYN_SHARED(Word, words);
    const int64_t i = int64_t{blockIdx.x} * 128 + threadIdx.x;
    const int place = static_cast<int>(threadIdx.x) * (kDynamicWords / 128);
    words[kDynamicWords - 1 - place] = inp[i];
    __syncthreads();
    const int other = (127 - static_cast<int>(threadIdx.x)) * (kDynamicWords / 128);
    out[2 * i] = words[kDynamicWords - 1 - other];
    out[2 * i + 1] = reinterpret_cast<uintptr_t>(words) % 1024 != 0;
}

}  // namespace

void run_wrapper(Wrapper wrapper, Tensor out, Tensor inp) {
    const WrapperShape shape = wrapper_shape(wrapper);
    const int64_t blocks = inp.size() / shape.inputs;
    Word* const to = reinterpret_cast<Word*>(out.as<int32_t>());
    const Word* const from = reinterpret_cast<const Word*>(inp.as<int32_t>());
    const auto start = [&](void (*kernel)(Word*, const Word*), int64_t smem_bytes = 0) {
        launch(kernel, blocks, shape.threads, smem_bytes, {}, to, from);
    };
    switch (wrapper) {
        case Wrapper::packs_f32: return start(packs<float, false>);
        case Wrapper::packs_bf16: return start(packs<bf16, false>);
        case Wrapper::packs_streaming: return start(packs<float, true>);
        case Wrapper::from_float: return start(round_to_bf16);
        case Wrapper::from_float_f32: return start(round_to_f32);
        case Wrapper::pack_bf16: return start(pack_two);
        case Wrapper::exp2_approx: return start(raise_two);
        case Wrapper::warp_sum: return start(reduce_warp<false>);
        case Wrapper::warp_max: return start(reduce_warp<true>);
        case Wrapper::block_sum_64: return start(reduce_block<false, 64>);
        case Wrapper::block_sum_1024: return start(reduce_block<false, 1024>);
        case Wrapper::block_max_96: return start(reduce_block<true, 96>);
        case Wrapper::copies:
            return launch(copy_to_shared, blocks, shape.threads, 0, {}, to, from, from + inp.size());
        case Wrapper::copies_in_groups: return start(copy_in_groups);
        case Wrapper::ldmatrix: return start(load_matrices<false>);
        case Wrapper::ldmatrix_transposed: return start(load_matrices<true>);
        case Wrapper::mma: return start(multiply);
        case Wrapper::overlapping_grids:  // the first half of `out` is the result, the second lies between
            launch(write_late, blocks, shape.threads, 0, {}, to + inp.size(), from);
            return launch(read_early, blocks, shape.threads, 0, {}, to, inp.size());
        case Wrapper::dynamic_shared: return start(through_dynamic_shared, kDynamicBytes);
    }
}

}  // namespace GPU_NAMESPACE
