// Decoding: new queries against cached keys and values. A few queries read the cache once, as plain dot
// products (bound by memory); a longer prefill runs the tiles of the training pass.
#include "kernels/attention_forward.h"

namespace ISA_NAMESPACE {
namespace {

constexpr int64_t kFewQueries = 8;   // below, padding queries to a vector would cost more than it saves
constexpr int64_t kKeysAtOnce = 64;  // scores kept at a time
constexpr int64_t kHeadsAtOnce = 8;  // query heads that share one reading of a block of keys
constexpr int64_t kMaxDim = 256;

// scores[j] = q . k_j for kWidth keys; `rows` of them exist.
template <class T>
SIMD_INLINE Vec dot_products(const float* q, const T* k, int64_t stride, int64_t rows, int64_t dim) {
    Vec sums[kWidth] = {};
    for (int64_t c = 0; c < dim; c += kWidth) {
        const Vec query = load(q + c);
        if (c + kWidth <= dim && rows >= kWidth) {
            for (int j = 0; j < kWidth; ++j) sums[j] = fma(query, load(k + j * stride + c), sums[j]);
        } else {
            for (int64_t j = 0; j < smaller(rows, kWidth); ++j) {
                sums[j] = fma(query, load_first(k + j * stride + c, dim - c), sums[j]);
            }
        }
    }
    // Each level adds halves of two vectors into one; lanes end up in the order of the keys.
    for (int half = kWidth / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) {
            sums[i] = interleave(sums[i], sums[i + half], false) + interleave(sums[i], sums[i + half], true);
        }
    }
    return sums[0];
}

// sum [dim] = sum * decay + p . V over the rows of a block.
template <class T>
SIMD_INLINE void add_values(float* sum, float decay, const float* p, const T* v, int64_t stride, int64_t rows,
                            int64_t dim) {
    int64_t c = 0;
    for (; c + 4 * kWidth <= dim; c += 4 * kWidth) {
        Vec part[4];
        for (int i = 0; i < 4; ++i) part[i] = load(sum + c + i * kWidth) * decay;
        for (int64_t j = 0; j < rows; ++j) {
            for (int i = 0; i < 4; ++i) {
                part[i] = fma(splat(p[j]), load(v + j * stride + c + i * kWidth), part[i]);
            }
        }
        for (int i = 0; i < 4; ++i) store(sum + c + i * kWidth, part[i]);
    }
    for (; c < dim; c += kWidth) {
        Vec part = load(sum + c) * decay;
        for (int64_t j = 0; j < rows; ++j) {
            part = fma(splat(p[j]), load_first(v + j * stride + c, dim - c), part);
        }
        store(sum + c, part);
    }
}

// `heads` query heads of one token, all of one kv head; k and v are those of position 0.
template <class T>
void attend_cached(T* out, const T* q, const T* k, const T* v, int64_t stride, int64_t position,
                   int64_t heads, const HeadLayout& layout) {
    alignas(64) float queries[kHeadsAtOnce][kMaxDim], sums[kHeadsAtOnce][kMaxDim], scores[kKeysAtOnce];
    float peak[kHeadsAtOnce], total[kHeadsAtOnce];
    const int64_t dim = layout.dim;
    for (int64_t h = 0; h < heads; ++h) {
        for (int64_t c = 0; c < round_up(dim, kWidth); c += kWidth) {
            store(queries[h] + c, load_first(q + h * dim + c, dim - c) * (layout.scale * kLog2E));
            store(sums[h] + c, Vec{});
        }
        peak[h] = -__builtin_inff();
        total[h] = 0;
    }
    for (int64_t key = layout.visibility.first_key(position); key <= position; key += kKeysAtOnce) {
        const int64_t rows = smaller(kKeysAtOnce, position + 1 - key);
        for (int64_t h = 0; h < heads; ++h) {
            Vec block_peak = splat(peak[h]);
            for (int64_t j = 0; j < rows; j += kWidth) {
                Vec s = dot_products(queries[h], k + (key + j) * stride, stride, rows - j, dim);
                for (int64_t lane = rows - j; lane < kWidth; ++lane) s[lane] = -__builtin_inff();
                store(scores + j, s);
                block_peak = max(s, block_peak);
            }
            const float new_peak = reduce_max(block_peak);
            const float offset = new_peak == -__builtin_inff() ? 0.0f : new_peak;
            Vec block_total{};
            for (int64_t j = 0; j < rows; j += kWidth) {
                const Vec p = exp2(load(scores + j) - offset);
                store(scores + j, p);
                block_total += p;
            }
            const float decay = exp2(splat(peak[h] - offset))[0];
            peak[h] = new_peak;
            total[h] = total[h] * decay + reduce_add(block_total);
            add_values(sums[h], decay, scores, v + key * stride, stride, rows, dim);
        }
    }
    for (int64_t h = 0; h < heads; ++h) {
        for (int64_t c = 0; c < dim; c += kWidth) {
            store_first(out + h * dim + c, load(sums[h] + c) * (1.0f / total[h]), dim - c);
        }
    }
}

template <class T>
void decode(const Document<T>& document, const HeadLayout& layout, int64_t num_kv_heads) {
    const int64_t past = document.num_keys - document.num_queries;
    parallel_for(document.num_queries * num_kv_heads, [&](int64_t task) {
        const int64_t query = task / num_kv_heads, kv_head = task % num_kv_heads;
        for (int64_t h = 0; h < layout.group; h += kHeadsAtOnce) {
            const int64_t at = (kv_head * layout.group + h) * layout.dim;
            attend_cached(document.out + query * document.out_stride + at,
                          document.q + query * document.q_stride + at, document.k + kv_head * layout.dim,
                          document.v + kv_head * layout.dim, document.kv_stride, past + query,
                          smaller(kHeadsAtOnce, layout.group - h), layout);
        }
    });
}

template <class Math, class T>
void prefill(const Document<T>& document, const HeadLayout& layout, int64_t num_kv_heads) {
    const int64_t tiles = (document.num_queries + kQueryBlock - 1) / kQueryBlock;
    parallel_for(tiles * num_kv_heads, [&](int64_t task) {
        const int64_t tile = tiles - 1 - task / num_kv_heads;  // those with the most keys first
        forward_tiles<Math>(document, layout, task % num_kv_heads, tile, tile + 1,
                            worker_scratch(forward_scratch_floats<Math>(layout.dim)));
    });
}

template <class Math, class T>
void cached(const Tensor& out, const Tensor& qkv, const Tensor& k_cache, const Tensor& v_cache, int64_t past,
            const AttentionShape& shape) {
    const int64_t n = qkv.dims[0], dim = out.dims[1] / shape.num_heads;
    const HeadLayout layout{
        dim, shape.num_heads / shape.num_kv_heads, {shape.window}, softmax_scale(shape, dim)};
    const Document<T> document{qkv.as<T>(), k_cache.as<T>(), v_cache.as<T>(), qkv.dims[1], k_cache.dims[1],
                               out.as<T>(), out.dims[1],     nullptr,         0,           n,
                               past + n};
    if (n < kFewQueries) return decode(document, layout, shape.num_kv_heads);
    prefill<Math>(document, layout, shape.num_kv_heads);
}

}  // namespace

void attention_cached(Tensor out, Tensor qkv, Tensor k_cache, Tensor v_cache, int64_t past,
                      const AttentionShape& shape, Stream) {
    check_attention_cached(out, qkv, k_cache, v_cache, past, shape);
    if (qkv.dtype == DType::bf16) return cached<Bfloat16, bf16>(out, qkv, k_cache, v_cache, past, shape);
    cached<Float32, float>(out, qkv, k_cache, v_cache, past, shape);
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(qkv.device, void, attention_cached,
             (Tensor out, Tensor qkv, Tensor k_cache, Tensor v_cache, int64_t past,
              const AttentionShape& shape, Stream stream),
             (out, qkv, k_cache, v_cache, past, shape, stream))
