// Attention's forward pass on tensor cores (mma.sync and cp.async, sm_80 and up), and the op's dispatch.
// FLOPs: 4 D for each pair of a query and a key that it sees, beside the half tiles on the diagonal. Bytes:
// qkv once from memory and out once to it; K and V again from the L2 cache for each tile of queries. Bound by
// tensor cores and, as every warp reads the K and V tiles for itself, nearly as much by shared memory's 128
// bytes a cycle. Not measured yet on a GPU.
//
// A block owns a tile of queries of one head and walks over tiles of keys, two of which are in shared memory:
// one being worked on, one on its way. Scores, weights and sums stay in a warp's registers.
#include "kernels/attention.h"

#include "kernels/attention_hopper.h"
#include "kernels/quantize.h"

namespace GPU_NAMESPACE {
namespace {

struct ForwardShape {
    int row_tiles;  // of 16 queries, a warp
    int keys;       // of a tile
    int blocks;     // that a multiprocessor shall hold
    static constexpr int kWarps = 4;
    constexpr int threads() const { return kWarps * kWarp; }
    constexpr int queries() const { return kWarps * 16 * row_tiles; }
    // Queries; two stages of keys and values.
    constexpr int64_t smem_bytes(int dim) const { return int64_t{2} * dim * (queries() + 4 * keys); }
};
// Two row tiles let every fragment of K and V serve two products, which halves what shared memory has to
// deliver; the sums then take D registers a thread, so heads of 256 have one. Shared memory: 24, 48, 48, 64
// and 96 KiB; with 32 keys two blocks of heads of 128 fit into 163 KiB.
constexpr ForwardShape forward_shape(int dim) {
    switch (dim) {
        case 32: return {2, 64, 3};
        case 64: return {2, 64, 2};
        case 96: return {2, 32, 2};
        case 128: return {2, 32, 2};
        default: return {1, 32, 1};
    }
}

template <class T, int kDim>
__global__ void __launch_bounds__(forward_shape(kDim).threads(), forward_shape(kDim).blocks)
    attention_forward_kernel(const AttentionProblem<T> problem, T* out, float* lse) {
    wait_for_previous();
    let_next_start();
    constexpr ForwardShape kShape = forward_shape(kDim);
    constexpr int kRowTiles = kShape.row_tiles, kQueries = kShape.queries(), kKeys = kShape.keys;
    DYN_SHARED(bf16, q_tile);
    bf16* const stages = q_tile + kQueries * kDim;
    const int head = blockIdx.y, kv_head = head / problem.group;
    const int row = static_cast<int>(threadIdx.x) / kWarp * 16 * kRowTiles;  // the warp's first
    const float scale_log2 = problem.scale_log2();

    // Later tiles of a document have more keys: they go first.
    OwnedTiles<kQueries, T> tiles(problem, gridDim.x - 1 - blockIdx.x);
    for (DocumentTile tile; tiles.next(tile);) {
        const int rows = min(kQueries, tile.length - tile.first);
        const int first_query = problem.past + tile.first, end_key = first_query + rows;
        const int64_t kv_at = tile.begin * problem.kv_stride + kv_head * problem.dim;
        const auto stage_keys = [&](int key) {
            bf16* const k_tile = stages + key / kKeys % 2 * (2 * kKeys * kDim);
            const int64_t at = kv_at + key * problem.kv_stride;
            stage_rows<kKeys, kDim, kShape.threads()>(k_tile, problem.k + at, problem.kv_stride,
                                                      end_key - key, problem.dim, problem.aligned);
            stage_rows<kKeys, kDim, kShape.threads()>(k_tile + kKeys * kDim, problem.v + at,
                                                      problem.kv_stride, end_key - key, problem.dim,
                                                      problem.aligned);
            cp_async_commit();
        };

        __syncthreads();  // everyone is through with the tile before
        const int64_t first_token = tile.begin + tile.first;
        stage_rows<kQueries, kDim, kShape.threads()>(
            q_tile, problem.q + first_token * problem.q_stride + head * problem.dim, problem.q_stride, rows,
            problem.dim, problem.aligned);
        const int begin_key = problem.visibility.first_key(first_query) / kKeys * kKeys;
        stage_keys(begin_key);

        Sums<kRowTiles, kDim> sums;
        clear<kRowTiles, kDim>(sums);
        float peak[kRowTiles][2], total[kRowTiles][2];
        UNROLL
        for (int m = 0; m < kRowTiles; ++m) {
            peak[m][0] = peak[m][1] = -INFINITY;
            total[m][0] = total[m][1] = 0;
        }
        const int warp_first = first_query + row, warp_last = warp_first + 16 * kRowTiles - 1;
        for (int key = begin_key; key < end_key; key += kKeys) {
            cp_async_wait<0>();
            __syncthreads();  // this tile has come, and the one before is done with
            if (key + kKeys < end_key) stage_keys(key + kKeys);
            const int last_key = key + kKeys - 1;
            if (row >= rows || !problem.visibility.any(warp_first, warp_last, key, last_key)) continue;
            const bf16* const k_tile = stages + key / kKeys % 2 * (2 * kKeys * kDim);
            Sums<kRowTiles, kKeys> scores;
            clear<kRowTiles, kKeys>(scores);
            add_products<kRowTiles, kKeys, kDim>(scores, q_tile, row, k_tile);
            if (problem.visibility.partial(warp_first, warp_last, key, last_key)) {
                mask<true, kRowTiles, kKeys>(scores, warp_first, key, problem.visibility);
            }
            float decay[kRowTiles][2];
            softmax_step<kRowTiles, kKeys>(scores, peak, total, decay, scale_log2);
            bool decays = false;  // seldom, after the first tiles
            UNROLL
            for (int m = 0; m < kRowTiles; ++m) decays |= decay[m][0] != 1.0f || decay[m][1] != 1.0f;
            if (__any_sync(kAllLanes, decays)) multiply<kRowTiles, kDim>(sums, decay);
            add_weighted_rows<kRowTiles, kKeys, kDim>(sums, scores, k_tile + kKeys * kDim);
        }

        store_weighted_means<kRowTiles, kDim>(problem, out, lse, head, first_token, rows, row, sums, peak,
                                              total, q_tile);
    }
}

}  // namespace

template <class T>
void forward_on_tensor_cores(const AttentionProblem<T>& problem, T* out, float* lse, Stream stream) {
    with_head_size(problem.dim, [&](auto size) {
        constexpr int kDim = decltype(size)::value;
        constexpr ForwardShape kShape = forward_shape(kDim);
        const dim3 blocks(num_ranges(problem.num_tokens, kShape.queries()),
                          static_cast<unsigned>(problem.num_heads));
        launch(attention_forward_kernel<T, kDim>, blocks, kShape.threads(), kShape.smem_bytes(kDim), stream,
               problem, out, lse);
    });
}
template void forward_on_tensor_cores(const AttentionProblem<float>&, float*, float*, Stream);
template void forward_on_tensor_cores(const AttentionProblem<bf16>&, bf16*, float*, Stream);

void attention_forward(Tensor out, Tensor lse, Tensor qkv, Tensor cu_seqlens, const AttentionShape& shape,
                       MatmulMath math, Tensor absmax, Stream stream) {
    check_attention_forward(out, lse, qkv, cu_seqlens, shape, absmax);
    float* const lse_rows = lse.as<float>();
    if (qkv.dtype == DType::bf16) {
        const auto problem = training_problem<bf16>(qkv, cu_seqlens, shape, absmax, out);
        return (runs_on_hopper(problem)
                    ? forward_on_hopper
                    : forward_on_tensor_cores<bf16>)(problem, out.as<bf16>(), lse_rows, stream);
    }
    const auto problem = training_problem<float>(qkv, cu_seqlens, shape, absmax, out);
    (math == MatmulMath::bf16 ? forward_on_tensor_cores<float> : forward_in_f32)(problem, out.as<float>(),
                                                                                 lse_rows, stream);
    if (!absmax.absent())
        raise_absmax(absmax, out, stream);  // FP8 training has no f32: its kernels are spared
}

}  // namespace GPU_NAMESPACE
