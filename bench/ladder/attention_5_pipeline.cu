// Rung 5 of 6: the next tile comes meanwhile.
//
// Idea: two tiles of keys and values; while one is multiplied, cp.async brings the other.
// Why it helps: rung 4 waits for each tile with idle tensor cores, 500 to 1000 cycles for products of about
// as many. One barrier a tile instead of two. Cost: as rung 4; 36 KiB of shared memory. Expected: 1.5 to 2
// times rung 4. What is left: exponentials and mma of one warp in turn (more warps a multiprocessor, or two
// tiles in flight), 128 queries a block, blocks with many keys first. Not measured yet on a GPU.
#include "bench/ladder/ladder.h"
#include "kernels/mma.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kDim = static_cast<int>(kHeadDim), kQueries = 64, kKeys = 64, kThreads = 128;
constexpr int kPacks = kDim / 8, kPitch = kPacks + 1;
constexpr float kLog2e = 1.4426950408889634f;  // exponentials are powers of 2 to the hardware
using Tile = Pack<bf16>[kKeys][kPitch];

__device__ void fetch_tile(Tile& tile, const bf16* from, int64_t row_elements) {
    for (int i = threadIdx.x; i < kKeys * kPacks; i += kThreads) {
        const int row = i / kPacks, pack = i % kPacks;
        cp_async16(&tile[row][pack], from + row * row_elements + 8 * pack);
    }
}
// Over the four lanes that hold a row of a fragment.
__device__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
    return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}
__device__ float quad_sum(float x) {
    x += __shfl_xor_sync(kAllLanes, x, 1);
    return x + __shfl_xor_sync(kAllLanes, x, 2);
}

__global__ void pipeline_kernel(bf16* out, const bf16* qkv, int64_t seq_len, int num_heads, int num_kv_heads,
                                float scale) {
    wait_for_previous();
    SHARED(Pack<bf16>, key_tiles, [2][kKeys][kPitch]);
    SHARED(Pack<bf16>, value_tiles, [2][kKeys][kPitch]);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, h = blockIdx.y % num_heads;
    const int kv = h / (num_heads / num_kv_heads), group = lane / 4, pair = lane % 4;
    const int64_t row_elements = int64_t{num_heads + 2 * num_kv_heads} * kDim;
    const int64_t first_query = int64_t{blockIdx.x} * kQueries;
    const bf16* const head = qkv + blockIdx.y / num_heads * seq_len * row_elements;

    const auto fetch = [&](int64_t tile) {
        if (tile <= first_query) {
            const bf16* const from = head + tile * row_elements + (num_heads + kv) * kDim;
            fetch_tile(key_tiles[tile / kKeys % 2], from, row_elements);
            fetch_tile(value_tiles[tile / kKeys % 2], from + num_kv_heads * kDim, row_elements);
        }
        cp_async_commit();
    };
    uint32_t query[kDim / 16][4];  // by way of the second keys' tile, while the first one comes
    fetch_tile(key_tiles[1], head + first_query * row_elements + h * kDim, row_elements);
    cp_async_commit();
    fetch(0);
    cp_async_wait<1>();
    __syncthreads();
    UNROLL for (int k = 0; k < kDim / 16; ++k) {
        ldmatrix_x4(query[k], &key_tiles[1][16 * warp + lane % 16][2 * k + lane / 16]);
    }

    // Of rows group and group + 8 of the warp's 16 queries.
    float m[2] = {-INFINITY, -INFINITY}, l[2] = {0, 0}, o[kDim / 8][4] = {};
    for (int64_t tile = 0; tile <= first_query; tile += kKeys) {
        cp_async_wait<0>();
        __syncthreads();  // this tile is there for all, and nobody reads the other any more
        fetch(tile + kKeys);
        const Tile& keys = key_tiles[tile / kKeys % 2];
        const Tile& values = value_tiles[tile / kKeys % 2];
        float s[kKeys / 8][4] = {};
        UNROLL for (int k = 0; k < kDim / 16; ++k) {
            UNROLL for (int j = 0; j < kKeys / 16; ++j) {
                uint32_t r[4];
                ldmatrix_x4(r, &keys[16 * j + lane / 16 * 8 + lane % 8][2 * k + lane / 8 % 2]);
                const uint32_t b[2][2] = {{r[0], r[1]}, {r[2], r[3]}};
                mma_bf16(s[2 * j], query[k], b[0]);
                mma_bf16(s[2 * j + 1], query[k], b[1]);
            }
        }
        float larger[2] = {m[0], m[1]}, sum[2] = {0, 0}, shrink[2];
        UNROLL for (int j = 0; j < kKeys / 8; ++j) {
            UNROLL for (int e = 0; e < 4; ++e) {
                const int key = 8 * j + 2 * pair + e % 2, mine = 16 * warp + group + e / 2 * 8;
                s[j][e] = tile < first_query || key <= mine ? s[j][e] * scale * kLog2e : -INFINITY;
                larger[e / 2] = fmaxf(larger[e / 2], s[j][e]);
            }
        }
        UNROLL for (int row = 0; row < 2; ++row) {
            larger[row] = quad_max(larger[row]);
            shrink[row] = exp2_approx(m[row] - larger[row]);
            m[row] = larger[row];
        }
        UNROLL for (int j = 0; j < kKeys / 8; ++j) {
            UNROLL for (int e = 0; e < 4; ++e) {
                s[j][e] = exp2_approx(s[j][e] - m[e / 2]);
                sum[e / 2] += s[j][e];
            }
        }
        UNROLL for (int row = 0; row < 2; ++row) l[row] = l[row] * shrink[row] + quad_sum(sum[row]);
        UNROLL for (int j = 0; j < kDim / 8; ++j) {
            UNROLL for (int e = 0; e < 4; ++e) o[j][e] *= shrink[e / 2];
        }
        UNROLL for (int k = 0; k < kKeys / 16; ++k) {
            const uint32_t p[4] = {pack_bf16(s[2 * k][0], s[2 * k][1]), pack_bf16(s[2 * k][2], s[2 * k][3]),
                                   pack_bf16(s[2 * k + 1][0], s[2 * k + 1][1]),
                                   pack_bf16(s[2 * k + 1][2], s[2 * k + 1][3])};
            UNROLL for (int j = 0; j < kDim / 16; ++j) {
                uint32_t r[4];
                ldmatrix_x4_transposed(r, &values[16 * k + lane % 16][2 * j + lane / 16]);
                const uint32_t b[2][2] = {{r[0], r[1]}, {r[2], r[3]}};
                mma_bf16(o[2 * j], p, b[0]);
                mma_bf16(o[2 * j + 1], p, b[1]);
            }
        }
    }
    const int64_t token = blockIdx.y / num_heads * seq_len + first_query + 16 * warp + group;
    UNROLL for (int j = 0; j < kDim / 8; ++j) {
        bf16* const to = out + (token * num_heads + h) * kDim + 8 * j + 2 * pair;
        *reinterpret_cast<uint32_t*>(to) = pack_bf16(o[j][0] / l[0], o[j][1] / l[0]);
        *reinterpret_cast<uint32_t*>(to + 8 * num_heads * kDim) = pack_bf16(o[j][2] / l[1], o[j][3] / l[1]);
    }
}

}  // namespace

void attention_5_pipeline(const AttentionOperands& a) {
    const dim3 blocks(static_cast<unsigned>(a.seq_len / kQueries),
                      static_cast<unsigned>(a.num_rows * a.num_heads));
    launch(pipeline_kernel, blocks, kThreads, 0, {}, a.out.as<bf16>(), a.qkv.as<bf16>(), a.seq_len,
           static_cast<int>(a.num_heads), static_cast<int>(a.num_kv_heads), 1 / sqrtf(kDim));
}

}  // namespace GPU_NAMESPACE
