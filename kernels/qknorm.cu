// QK-norm on the GPU, in place: queries and keys are read and written once (and once more into raw); backward
// reads the gradient and raw and writes the gradient. Some 10 to 20 instructions an element: bound by memory.
// Not measured yet on a GPU.
//
// A head belongs to a team of lanes of one warp, as few as hold it in packs; a warp has up to 32 heads at a
// time.
#include "kernels/qknorm.h"

#include "kernels/gpu_absmax.h"
#include "kernels/gpu_row_sums.h"
#include "kernels/workspace.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kMaxHeadDim = kMaxQkNormHeadDim;

// Over each team, all lanes of which get the same bits.
__device__ inline float team_sum(float x, int team_lanes) {
    for (int lanes = team_lanes / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
    return x;
}

// blockIdx.x is the token. kHeld packs of a head per lane.
template <class T, int kPack, int kHeld>
__global__ void __launch_bounds__(kThreads)
    qknorm_forward_kernel(T* qkv, float* rstd, T* raw, const T* wq, const T* wk, float eps, int64_t width,
                          int num_query_heads, int num_heads, int head_dim, int team_lanes) {
    wait_for_previous();
    let_next_start();
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, num_warps = blockDim.x / kWarp;
    const int teams = kWarp / team_lanes, member = lane % team_lanes;
    for (int first = warp * teams; first < num_heads; first += num_warps * teams) {
        const int head = first + lane / team_lanes;
        const bool is_head = head < num_heads;
        T* const x = qkv + blockIdx.x * width + int64_t{head} * head_dim;
        Elements<T, kPack> held[kHeld] = {};
        float square = 0;
        UNROLL for (int i = 0; i < kHeld; ++i) {
            const int c = (i * team_lanes + member) * kPack;
            if (!is_head || c >= head_dim) continue;
            held[i] = load_elements<kPack>(x + c);
            for (int k = 0; k < kPack; ++k) square += to_float(held[i][k]) * to_float(held[i][k]);
        }
        const float r = 1.0f / sqrtf(team_sum(square, team_lanes) / static_cast<float>(head_dim) + eps);
        if (!is_head) continue;
        const int64_t at = blockIdx.x * int64_t{num_heads} + head;
        if (member == 0) rstd[at] = r;
        const T* const w = head < num_query_heads ? wq : wk;
        UNROLL for (int i = 0; i < kHeld; ++i) {
            const int c = (i * team_lanes + member) * kPack;
            if (c >= head_dim) continue;
            if (raw != nullptr) store_elements(raw + at * head_dim + c, held[i]);
            const Elements<T, kPack> weight = load_elements<kPack>(w + c);
            Floats<kPack> out;
            for (int k = 0; k < kPack; ++k) out[k] = to_float(held[i][k]) * r * to_float(weight[k]);
            store_elements(x + c, rounded_to<T>(out));
        }
    }
}

// In place: dx = rstd (g - xhat mean(g xhat)) with g = dx w, xhat = raw rstd;  dw += dx xhat. A block goes
// through a chunk of tokens, first their queries, then their keys. A lane has the same channels in each of
// its heads, so that their sums stay in registers until the chunk's end.
template <class T, int kPack, int kHeld>
__global__ void __launch_bounds__(kThreads, 1)
    qknorm_backward_kernel(T* dqkv, float* chunk_sums, const T* raw, const float* rstd, const T* wq,
                           const T* wk, int64_t num_tokens, int64_t tokens_per_chunk, int64_t width,
                           int num_query_heads, int num_heads, int head_dim, int team_lanes,
                           uint32_t* absmax) {
    wait_for_previous();
    let_next_start();
    SHARED(float, sums, [kWarps][kMaxHeadDim]);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int teams = kWarp / team_lanes, member = lane % team_lanes;
    const int64_t begin = blockIdx.x * tokens_per_chunk;
    const int64_t end = num_tokens - begin < tokens_per_chunk ? num_tokens : begin + tokens_per_chunk;
    LargestMagnitude largest(absmax);
    if (absmax != nullptr) {
        for (int64_t token = begin + warp; token < end; token += kWarps) {
            UNROLL_BY(1)  // registers are worth more
            for (int64_t i = int64_t{num_heads} * head_dim + lane * kPack; i < width; i += kWarp * kPack) {
                largest.add(load_elements<kPack>(dqkv + token * width + i));  // the values
            }
        }
    }
    for (int kind = 0; kind < 2; ++kind) {
        const int first_head = kind == 0 ? 0 : num_query_heads;
        const unsigned heads = kind == 0 ? num_query_heads : num_heads - num_query_heads;
        const T* const w = kind == 0 ? wq : wk;
        Elements<T, kPack> weight[kHeld] = {};
        UNROLL for (int i = 0; i < kHeld; ++i) {
            const int c = (i * team_lanes + member) * kPack;
            if (c < head_dim) weight[i] = load_elements<kPack>(w + c);
        }
        Floats<kPack> dw[kHeld] = {};
        const unsigned num_items = static_cast<unsigned>(end - begin) * heads;
        for (unsigned first = warp * teams; first < num_items; first += kWarps * teams) {
            const unsigned item = first + lane / team_lanes, token_of_chunk = item / heads;
            const bool is_head = item < num_items;
            const int64_t token = begin + token_of_chunk;
            const int64_t head = first_head + (item - token_of_chunk * heads);
            T* const dx = dqkv + token * width + head * head_dim;
            const int64_t at = token * num_heads + head;
            const float r = is_head ? rstd[at] : 0;
            Elements<T, kPack> x[kHeld] = {}, gradient[kHeld] = {};
            float product = 0;
            UNROLL for (int i = 0; i < kHeld; ++i) {
                const int c = (i * team_lanes + member) * kPack;
                if (!is_head || c >= head_dim) continue;
                x[i] = load_streaming<kPack>(raw + at * head_dim + c);
                gradient[i] = load_elements<kPack>(dx + c);
                for (int k = 0; k < kPack; ++k) {
                    product += to_float(gradient[i][k]) * to_float(weight[i][k]) * to_float(x[i][k]);
                }
            }
            const float mean = team_sum(product, team_lanes) * r / static_cast<float>(head_dim);
            UNROLL for (int i = 0; i < kHeld; ++i) {
                const int c = (i * team_lanes + member) * kPack;
                if (!is_head || c >= head_dim) continue;
                Floats<kPack> out;
                for (int k = 0; k < kPack; ++k) {
                    const float dy = to_float(gradient[i][k]), xhat = to_float(x[i][k]) * r;
                    dw[i][k] += dy * xhat;
                    out[k] = r * (dy * to_float(weight[i][k]) - xhat * mean);
                }
                const Elements<T, kPack> rounded = rounded_to<T>(out);
                store_elements(dx + c, rounded);
                largest.add(rounded);
            }
        }
        // Over the teams of the warp, then over the warps, in order.
        UNROLL for (int i = 0; i < kHeld; ++i) {
            const int c = (i * team_lanes + member) * kPack;
            UNROLL for (int k = 0; k < kPack; ++k) {
                float sum = dw[i][k];
                for (int lanes = team_lanes; lanes < kWarp; lanes *= 2)
                    sum += __shfl_xor_sync(kAllLanes, sum, lanes);
                if (lane < team_lanes) sums[warp][c + k] = sum;
            }
        }
        __syncthreads();
        for (int c = threadIdx.x; c < head_dim; c += kThreads) {
            float sum = 0;
            for (int other = 0; other < kWarps; ++other) sum += sums[other][c];
            chunk_sums[(int64_t{2} * blockIdx.x + kind) * head_dim + c] = sum;
        }
        __syncthreads();  // the sums are read before the keys' overwrite them
    }
    largest.raise_by_warp();
}

// Calls start(pack, held) with the constants that suit heads of that size.
template <class T, class Start>
void for_head_shape(int64_t head_dim, bool aligned, Start&& start) {
    constexpr int kPack = kFullPack<T>;
    using Full = std::integral_constant<int, kPack>;
    using One = std::integral_constant<int, 1>;
    if (!aligned || head_dim % kPack != 0) {
        start(One{}, std::integral_constant<int, kMaxHeadDim / kWarp>{});
    } else if (head_dim <= kWarp * kPack) {
        start(Full{}, One{});
    } else {
        start(Full{}, std::integral_constant<int, kMaxHeadDim / (kWarp * kPack)>{});
    }
}
// The smallest power of two that has a lane for each pack, and no more than a warp.
int lanes_for(int64_t packs) {
    int lanes = 1;
    while (lanes < packs && lanes < kWarp) lanes *= 2;
    return lanes;
}

template <class T>
void forward(Tensor qkv, Tensor rstd, Tensor raw, Tensor wq, Tensor wk, float eps, int64_t num_heads,
             int64_t num_kv_heads, Stream stream) {
    const int64_t heads = num_heads + num_kv_heads, head_dim = wq.dims[0];
    for_head_shape<T>(head_dim, is_aligned128(qkv.data, raw.data, wq.data, wk.data),
                      [&](auto pack, auto held) {
                          const int lanes = lanes_for(head_dim / pack());
                          const int64_t warps = ceil_div(heads * lanes, kWarp);
                          launch(qknorm_forward_kernel<T, pack(), held()>, qkv.dims[0],
                                 static_cast<int>(warps < kWarps ? warps : kWarps) * kWarp, 0, stream,
                                 qkv.as<T>(), rstd.as<float>(), raw.absent() ? nullptr : raw.as<T>(),
                                 wq.as<T>(), wk.as<T>(), eps, qkv.dims[1], static_cast<int>(num_heads),
                                 static_cast<int>(heads), static_cast<int>(head_dim), lanes);
                      });
}

template <class T>
void backward(Tensor dqkv, Tensor dwq, Tensor dwk, Tensor raw, Tensor rstd, Tensor wq, Tensor wk,
              int64_t num_heads, int64_t num_kv_heads, Tensor absmax, Stream stream) {
    const int64_t heads = num_heads + num_kv_heads, head_dim = wq.dims[0], num_tokens = dqkv.dims[0];
    const RowCut cut = qknorm_backward_cut(num_tokens);
    if (cut.num_chunks == 0) return;
    auto* const sums = static_cast<float*>(
        device_workspace(kThisDevice, Workspace::qknorm_sums, qknorm_sums_bytes(num_tokens, head_dim)));
    for_head_shape<T>(
        head_dim, is_aligned128(dqkv.data, raw.data, wq.data, wk.data), [&](auto pack, auto held) {
            launch(qknorm_backward_kernel<T, pack(), held()>, cut.num_chunks, kThreads, 0, stream,
                   dqkv.as<T>(), sums, raw.as<T>(), rstd.as<float>(), wq.as<T>(), wk.as<T>(), num_tokens,
                   cut.rows_per_chunk, dqkv.dims[1], static_cast<int>(num_heads), static_cast<int>(heads),
                   static_cast<int>(head_dim), lanes_for(head_dim / pack()), absmax_bits(absmax));
        });
    add_row_sums(dwq.as<float>(), head_dim, dwk.as<float>(), head_dim, sums, cut.num_chunks, stream);
}

}  // namespace

void qknorm_forward(Tensor qkv, Tensor rstd, Tensor raw, Tensor wq, Tensor wk, float eps, int64_t num_heads,
                    int64_t num_kv_heads, Stream stream) {
    check_qknorm_forward(qkv, rstd, raw, wq, wk, num_heads, num_kv_heads);
    if (qkv.dtype == DType::f32) {
        return forward<float>(qkv, rstd, raw, wq, wk, eps, num_heads, num_kv_heads, stream);
    }
    forward<bf16>(qkv, rstd, raw, wq, wk, eps, num_heads, num_kv_heads, stream);
}

void qknorm_backward(Tensor dqkv, Tensor dwq, Tensor dwk, Tensor raw, Tensor rstd, Tensor wq, Tensor wk,
                     int64_t num_heads, int64_t num_kv_heads, Tensor absmax, Stream stream) {
    check_qknorm_backward(dqkv, dwq, dwk, raw, rstd, wq, wk, num_heads, num_kv_heads, absmax);
    (dqkv.dtype == DType::f32 ? backward<float> : backward<bf16>)(dqkv, dwq, dwk, raw, rstd, wq, wk,
                                                                  num_heads, num_kv_heads, absmax, stream);
}

}  // namespace GPU_NAMESPACE
