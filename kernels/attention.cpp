// Training's attention, forward: cuts the batch into tasks of a few query tiles of one document and one kv
// head. Tiles start at their document's first token, so neither neighbours in the batch nor the cut matter.
#include "kernels/attention_forward.h"
#include "kernels/check.h"
#include "kernels/quantize.h"

#ifdef ISA_PLAIN
namespace {

// Returns D.
int64_t check_heads(const ArgumentCheck& check, const Tensor& qkv, const AttentionShape& shape) {
    const int64_t h = shape.num_heads, k = shape.num_kv_heads;
    check.that(k > 0 && h > 0 && h % k == 0, "shape.num_heads", "a multiple of num_kv_heads", h);
    check.that(shape.window >= 0, "shape.window", "0 or more", shape.window);
    const int64_t dim = qkv.dims[1] / (h + 2 * k);
    check.that(dim > 0 && dim % 8 == 0 && dim <= 256, "head_dim", "a multiple of 8 up to 256", dim);
    check.floats("qkv", qkv, {-1, (h + 2 * k) * dim});
    return dim;
}

void check_training(const ArgumentCheck& check, const Tensor& out, const Tensor& lse, const Tensor& qkv,
                    const Tensor& cu_seqlens, const AttentionShape& shape) {
    const int64_t h = shape.num_heads, dim = check_heads(check, qkv, shape);
    const int64_t n = qkv.dims[0];
    check.tensor("out", out, qkv.dtype, {n, h * dim});
    check.tensor("lse", lse, DType::f32, {h, n});
    check.tensor("cu_seqlens", cu_seqlens, DType::i32, {-1});
    const int64_t documents = cu_seqlens.dims[0] - 1;
    check.that(documents >= 0, "cu_seqlens", "at least one number", documents + 1);
    if (check.device != Device::cpu) return;  // the numbers are not the host's to read
    const int32_t* bounds = cu_seqlens.as<int32_t>();
    check.that(bounds[0] == 0, "cu_seqlens[0]", "0", bounds[0]);
    check.that(bounds[documents] == n, "cu_seqlens[S]", "the number of tokens", bounds[documents]);
    for (int64_t d = 0; d < documents; ++d) {
        check.that(bounds[d] <= bounds[d + 1], "cu_seqlens", "ascending numbers", bounds[d + 1]);
    }
}

}  // namespace

void check_attention_forward(Tensor out, Tensor lse, Tensor qkv, Tensor cu_seqlens,
                             const AttentionShape& shape, Tensor absmax) {
    const ArgumentCheck check{"attention_forward", qkv.device};
    check_training(check, out, lse, qkv, cu_seqlens, shape);
    check.absmax(absmax);
}

void check_attention_backward(Tensor dqkv, Tensor dout, Tensor out, Tensor lse, Tensor qkv, Tensor cu_seqlens,
                              const AttentionShape& shape, Tensor absmax) {
    const ArgumentCheck check{"attention_backward", qkv.device};
    check.absmax(absmax);
    check_training(check, out, lse, qkv, cu_seqlens, shape);
    check.like("dqkv", dqkv, qkv);
    check.like("dout", dout, out);
}

void check_attention_cached(Tensor out, Tensor qkv, Tensor k_cache, Tensor v_cache, int64_t past,
                            const AttentionShape& shape) {
    const ArgumentCheck check{"attention_cached", qkv.device};
    const int64_t dim = check_heads(check, qkv, shape), n = qkv.dims[0];
    check.tensor("out", out, qkv.dtype, {n, shape.num_heads * dim});
    check.tensor("k_cache", k_cache, qkv.dtype, {-1, shape.num_kv_heads * dim});
    check.like("v_cache", v_cache, k_cache);
    check.that(past >= 0 && past + n <= k_cache.dims[0], "past", "past + n rows in the cache", past);
}

namespace {
AttentionKernel g_kernel = AttentionKernel::fastest;
}
void force_attention_kernel(AttentionKernel kernel) { g_kernel = kernel; }
AttentionKernel forced_attention_kernel() { return g_kernel; }
#endif

namespace ISA_NAMESPACE {
namespace {

template <class Math, class T>
void forward(const Tensor& out, const Tensor& lse, const Tensor& qkv, const Tensor& cu_seqlens,
             const AttentionShape& shape) {
    const int64_t num_tokens = qkv.dims[0], num_heads = shape.num_heads, num_kv_heads = shape.num_kv_heads;
    const int64_t dim = out.dims[1] / num_heads, stride = qkv.dims[1];
    const HeadLayout heads{dim, num_heads / num_kv_heads, {shape.window}, softmax_scale(shape, dim)};
    const int32_t* bounds = cu_seqlens.as<int32_t>();
    const int64_t num_documents = cu_seqlens.dims[0] - 1;
    // A task owns the tiles that start in its range of tokens.
    const int64_t range = kQueryBlock * larger(1, 4 / heads.group);
    const int64_t num_ranges = (num_tokens + range - 1) / range;
    parallel_for(num_ranges * num_kv_heads, [&](int64_t task) {
        // The last tokens have the most keys: they go first.
        const int64_t begin = (num_ranges - 1 - task / num_kv_heads) * range, end = begin + range;
        const int64_t kv_head = task % num_kv_heads;
        int64_t low = 0, high = num_documents;  // the last document that starts at or before `begin`
        while (high - low > 1) {
            const int64_t middle = (low + high) / 2;
            (bounds[middle] <= begin ? low : high) = middle;
        }
        for (int64_t d = low; d < num_documents && bounds[d] < end; ++d) {
            const int64_t first = bounds[d], length = bounds[d + 1] - first;
            const int64_t begin_tile = (larger(begin - first, 0) + kQueryBlock - 1) / kQueryBlock;
            const int64_t end_tile = (smaller(end - first, length) + kQueryBlock - 1) / kQueryBlock;
            if (begin_tile >= end_tile) continue;
            const T* rows = qkv.as<T>() + first * stride;
            const Document<T> document{rows,
                                       rows + num_heads * dim,
                                       rows + (num_heads + num_kv_heads) * dim,
                                       stride,
                                       stride,
                                       out.as<T>() + first * num_heads * dim,
                                       num_heads * dim,
                                       lse.as<float>() + first,
                                       num_tokens,
                                       length,
                                       length};
            forward_tiles<Math>(document, heads, kv_head, begin_tile, end_tile,
                                worker_scratch(forward_scratch_floats<Math>(dim)));
        }
    });
}

}  // namespace

void attention_forward(Tensor out, Tensor lse, Tensor qkv, Tensor cu_seqlens, const AttentionShape& shape,
                       MatmulMath math, Tensor absmax, Stream) {
    check_attention_forward(out, lse, qkv, cu_seqlens, shape, absmax);
    if (qkv.dims[0] == 0) return;
    const auto chosen = qkv.dtype == DType::bf16   ? forward<Bfloat16, bf16>
                        : math == MatmulMath::bf16 ? forward<Bfloat16, float>
                                                   : forward<Float32, float>;
    chosen(out, lse, qkv, cu_seqlens, shape);
    if (!absmax.absent()) raise_absmax(absmax, out);
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(qkv.device, void, attention_forward,
             (Tensor out, Tensor lse, Tensor qkv, Tensor cu_seqlens, const AttentionShape& shape,
              MatmulMath math, Tensor absmax, Stream stream),
             (out, lse, qkv, cu_seqlens, shape, math, absmax, stream))
