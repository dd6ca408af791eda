// Decoding on the GPU: few new queries against cached keys and values. Every block reads the keys and values
// of one kv head once for each four query heads: 4 D bytes (bf16) for a key and 4 D FLOPs for each query head
// that shares it, so bound by memory, and with few sequences and kv heads by the number of blocks. More
// queries at a time (a prompt) run the tiles of the training pass. Not measured yet on a GPU.
#include "kernels/attention_documents.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kFewQueries = 16;  // below, tensor cores would multiply mostly padding
constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kKeysAtOnce = 4;  // of a thread: 8 loads of 16 bytes under way
constexpr int kMaxDim = 256;

// Eight elements of a row, as they lie in memory.
template <class T>
struct Chunk {
    Pack<T> packs[8 / Pack<T>::kSize];
    __device__ float operator[](int i) const {
        return to_float(packs[i / Pack<T>::kSize][i % Pack<T>::kSize]);
    }
};
template <class T>
__device__ Chunk<T> load_chunk(const T* from, bool inside, bool aligned) {
    Chunk<T> chunk = {};
    if (!inside) return chunk;
    UNROLL
    for (int i = 0; i < 8; i += Pack<T>::kSize) {
        Pack<T>& pack = chunk.packs[i / Pack<T>::kSize];
        if (aligned) {
            pack = load128(from + i);
        } else {
            UNROLL
            for (int j = 0; j < Pack<T>::kSize; ++j) pack[j] = from[i + j];
        }
    }
    return chunk;
}

// What has been summed of one query head over some of the keys. Peaks and scores are powers of 2.
struct Partial {
    float peak, total;
    float sums[8];  // of the thread's columns
    __device__ void decay_to(float new_peak) {
        // Nothing seen yet: any finite offset keeps 2^-infinity at zero.
        const float decay = exp2_approx(peak - (new_peak == -INFINITY ? 0.0f : new_peak));
        peak = new_peak;
        total *= decay;
        UNROLL
        for (int i = 0; i < 8; ++i) sums[i] *= decay;
    }
};

// One query and kv head, its query heads kHeads at a time. `lanes` neighbouring threads, a power of 2, share
// a key, eight columns each; the block's threads are dealt to keys in turns.
template <class T, int kHeads>
__global__ void __launch_bounds__(kThreads)
    attention_cached_kernel(const AttentionProblem<T> problem, T* out, int lanes) {
    wait_for_previous();
    let_next_start();
    SHARED(float, sums, [kWarps][kHeads][kMaxDim]);
    SHARED(float, peaks, [kWarps][kHeads]);
    SHARED(float, totals, [kWarps][kHeads]);
    const int query = blockIdx.x, kv_head = blockIdx.y, position = problem.past + query;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int column = lane % lanes * 8, slot = threadIdx.x / lanes, slots = kThreads / lanes;
    const bool has_column = column < problem.dim;
    const T* const keys = problem.k + kv_head * problem.dim + column;
    const T* const values = problem.v + kv_head * problem.dim + column;

    for (int first_head = 0; first_head < problem.group; first_head += kHeads) {
        const int64_t head = int64_t{kv_head} * problem.group + first_head;
        const int num_heads = min(kHeads, problem.group - first_head);
        float q[kHeads][8];
        Partial partial[kHeads];
        UNROLL
        for (int h = 0; h < kHeads; ++h) {
            const Chunk<T> chunk =
                load_chunk(problem.q + query * problem.q_stride + (head + h) * problem.dim + column,
                           has_column && h < num_heads, problem.aligned);
            UNROLL
            for (int i = 0; i < 8; ++i) q[h][i] = chunk[i] * problem.scale_log2();
            partial[h] = {-INFINITY, 0, {}};
        }
        const int first_key = problem.visibility.first_key(position);
        for (int start = first_key; start <= position; start += slots * kKeysAtOnce) {
            Chunk<T> k[kKeysAtOnce], v[kKeysAtOnce];
            UNROLL
            for (int u = 0; u < kKeysAtOnce; ++u) {
                const int64_t key = start + u * slots + slot;
                const bool inside = has_column && key <= position;
                k[u] = load_chunk(keys + key * problem.kv_stride, inside, problem.aligned);
                v[u] = load_chunk(values + key * problem.kv_stride, inside, problem.aligned);
            }
            UNROLL
            for (int h = 0; h < kHeads; ++h) {
                float scores[kKeysAtOnce], peak = partial[h].peak;
                UNROLL
                for (int u = 0; u < kKeysAtOnce; ++u) {
                    float score = 0;
                    UNROLL
                    for (int i = 0; i < 8; ++i) score = fmaf(q[h][i], k[u][i], score);
                    for (int other = 1; other < lanes; other *= 2) {
                        score += __shfl_xor_sync(kAllLanes, score, other);
                    }
                    scores[u] = start + u * slots + slot <= position ? score : -INFINITY;
                    peak = fmaxf(peak, scores[u]);
                }
                partial[h].decay_to(peak);
                UNROLL
                for (int u = 0; u < kKeysAtOnce; ++u) {
                    const float weight = exp2_approx(scores[u] - (peak == -INFINITY ? 0.0f : peak));
                    partial[h].total += weight;
                    UNROLL
                    for (int i = 0; i < 8; ++i)
                        partial[h].sums[i] = fmaf(weight, v[u][i], partial[h].sums[i]);
                }
            }
        }
        // The warp's slots, then the block's warps.
        UNROLL
        for (int h = 0; h < kHeads; ++h) {
            Partial& mine = partial[h];
            for (int other = lanes; other < kWarp; other *= 2) {
                mine.decay_to(fmaxf(mine.peak, __shfl_xor_sync(kAllLanes, mine.peak, other)));
                mine.total += __shfl_xor_sync(kAllLanes, mine.total, other);
                UNROLL
                for (int i = 0; i < 8; ++i) mine.sums[i] += __shfl_xor_sync(kAllLanes, mine.sums[i], other);
            }
            if (lane == 0) {
                peaks[warp][h] = mine.peak;
                totals[warp][h] = mine.total;
            }
            if (lane < lanes) {
                UNROLL
                for (int i = 0; i < 8; ++i) sums[warp][h][column + i] = mine.sums[i];
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < num_heads * problem.dim; i += kThreads) {
            const int h = i / problem.dim, c = i % problem.dim;
            float peak = -INFINITY, total = 0, sum = 0;
            for (int w = 0; w < kWarps; ++w) peak = fmaxf(peak, peaks[w][h]);
            for (int w = 0; w < kWarps; ++w) {
                const float factor = exp2_approx(peaks[w][h] - peak);
                total += totals[w][h] * factor;
                sum += sums[w][h][c] * factor;
            }
            out[query * problem.out_stride() + head * problem.dim + i] = from_float<T>(sum / total);
        }
        __syncthreads();  // all is read before the next heads' sums
    }
}

template <class T>
void decode(const AttentionProblem<T>& problem, T* out, Stream stream) {
    int lanes = 1;
    while (lanes * 8 < problem.dim) lanes *= 2;
    const dim3 blocks(static_cast<unsigned>(problem.num_tokens),
                      static_cast<unsigned>(problem.num_heads / problem.group));
    if (problem.group == 1) {
        launch(attention_cached_kernel<T, 1>, blocks, kThreads, 0, stream, problem, out, lanes);
    } else {
        launch(attention_cached_kernel<T, 4>, blocks, kThreads, 0, stream, problem, out, lanes);
    }
}

template <class T>
void cached(const Tensor& out, const Tensor& qkv, const Tensor& k_cache, const Tensor& v_cache, int64_t past,
            const AttentionShape& shape, Stream stream) {
    const int64_t n = qkv.dims[0];
    AttentionProblem<T> problem = problem_of<T>(shape, out.dims[1] / shape.num_heads, n, past + n);
    problem.q = qkv.as<T>();
    problem.k = k_cache.as<T>();
    problem.v = v_cache.as<T>();
    problem.q_stride = qkv.dims[1];
    problem.kv_stride = k_cache.dims[1];
    problem.aligned = is_aligned128(out.data, qkv.data, k_cache.data, v_cache.data);
    if (n < kFewQueries) return decode(problem, out.as<T>(), stream);
    if constexpr (sizeof(T) == 2) {
        forward_on_tensor_cores(problem, out.as<T>(), nullptr, stream);
    } else {
        forward_in_f32(problem, out.as<T>(), nullptr, stream);
    }
}

}  // namespace

void attention_cached(Tensor out, Tensor qkv, Tensor k_cache, Tensor v_cache, int64_t past,
                      const AttentionShape& shape, Stream stream) {
    check_attention_cached(out, qkv, k_cache, v_cache, past, shape);
    if (qkv.dtype == DType::bf16) return cached<bf16>(out, qkv, k_cache, v_cache, past, shape, stream);
    cached<float>(out, qkv, k_cache, v_cache, past, shape, stream);
}

}  // namespace GPU_NAMESPACE
