// Rung 2 of 6: softmax on the way.
//
// Idea: softmax needs the row's largest score before the first exponential, it seems, and so the whole row.
// But a sum of exponentials relative to an old largest becomes one relative to a new largest by one factor:
//   m' = max(m, s)    l' = l e^(m - m') + e^(s - m')    o' = o e^(m - m') + e^(s - m') v
// So one pass over the keys is enough, and no score is ever stored (Milakov & Gimelshein 2018).
// Why it helps: the T x T scores are gone, from memory and from the traffic, and keys behind the mask are not
// looked at: half of the FLOPs. Cost: 2 B H T^2 64 FLOPs. A warp a query, two of its 64 dimensions a lane:
// each key costs 5 shuffles, and each query reads all keys before it from L2: 128 B H T^2 bytes. Bound by
// these. Expected: 3 to 5 times rung 1 at T = 4096, and any T fits. Not measured yet on a GPU.
#include "bench/ladder/ladder.h"
#include "kernels/gpu.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kWarps = 4;
constexpr int kDim = static_cast<int>(kHeadDim);

__global__ void online_kernel(bf16* out, const bf16* qkv, int64_t seq_len, int num_heads, int num_kv_heads,
                              float scale) {
    wait_for_previous();
    const int lane = threadIdx.x % kWarp, h = blockIdx.y % num_heads;
    const int kv = h / (num_heads / num_kv_heads), slots = num_heads + 2 * num_kv_heads;
    const int64_t q = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp,
                  first = blockIdx.y / num_heads * seq_len;
    const auto two = [&](int64_t t, int slot) {  // of the lane
        const bf16* const from = qkv + ((first + t) * slots + slot) * kDim + 2 * lane;
        return make_float2(to_float(from[0]), to_float(from[1]));
    };
    const float2 query = two(q, h);
    float m = -INFINITY, l = 0;
    float2 o = make_float2(0, 0);
    for (int64_t k = 0; k <= q; ++k) {
        const float2 key = two(k, num_heads + kv), value = two(k, num_heads + num_kv_heads + kv);
        const float s = scale * warp_sum(query.x * key.x + query.y * key.y);
        const float larger = fmaxf(m, s), shrink = __expf(m - larger), p = __expf(s - larger);
        m = larger;
        l = l * shrink + p;
        o.x = o.x * shrink + p * value.x;
        o.y = o.y * shrink + p * value.y;
    }
    uint32_t* const to = reinterpret_cast<uint32_t*>(out + ((first + q) * num_heads + h) * kDim);
    to[lane] = pack_bf16(o.x / l, o.y / l);
}

}  // namespace

void attention_2_online(const AttentionOperands& a) {
    const dim3 blocks(static_cast<unsigned>(a.seq_len / kWarps),
                      static_cast<unsigned>(a.num_rows * a.num_heads));
    launch(online_kernel, blocks, kWarps * kWarp, 0, {}, a.out.as<bf16>(), a.qkv.as<bf16>(), a.seq_len,
           static_cast<int>(a.num_heads), static_cast<int>(a.num_kv_heads), 1 / sqrtf(kDim));
}

}  // namespace GPU_NAMESPACE
