// RoPE on the CPU, in place: one pass over the queries and keys, values are not read. Memory-bound; the
// table's row of a position stays in L1 for all heads. The angles are made in rope_table.cpp.
#include "kernels/rope.h"

#include "kernels/check.h"
#include "kernels/elementwise.h"
#include "kernels/quantize.h"

#ifdef ISA_PLAIN
void check_rope(const char* op, Tensor qkv, Tensor table, Tensor positions, int64_t num_heads,
                int64_t num_kv_heads, Tensor absmax) {
    const ArgumentCheck check{op, qkv.device};
    check.tensor("table", table, DType::f32, {-1, -1});
    check.that(table.dims[1] % 2 == 0, "table", "an even head dim", static_cast<double>(table.dims[1]));
    check.floats("qkv", qkv, {-1, (num_heads + 2 * num_kv_heads) * table.dims[1]});
    check.ids("positions", positions, qkv.dims[0], 0, table.dims[0]);
    check.absmax(absmax);
}
#endif

namespace ISA_NAMESPACE {
namespace {

// Turns `heads` heads of one token by its angle, or back by it (sine_sign -1: the transpose of the rotation).
template <class T>
void rotate_heads(T* x, const float* cosine, const float* sine, float sine_sign, int64_t heads,
                  int64_t half) {
    for (int64_t head = 0; head < heads; ++head) {
        T* low = x + head * 2 * half;
        T* high = low + half;
        for_each_vec_of(0, half, [&](int64_t i, int64_t n) ALWAYS_INLINE {
            const Vec c = load_first(cosine + i, n), s = load_first(sine + i, n) * sine_sign;
            const Vec a = load_first(low + i, n), b = load_first(high + i, n);
            store_first(low + i, a * c - b * s, n);
            store_first(high + i, b * c + a * s, n);
        });
    }
}

template <class T>
void rotate(Tensor qkv, Tensor table, Tensor positions, int64_t heads, float sine_sign) {
    const int64_t width = qkv.dims[1], head_dim = table.dims[1];
    const int32_t* position = positions.as<int32_t>();
    for_each_row(qkv.dims[0], heads * head_dim, [&](int64_t row) {
        const float* cosine = table.as<float>() + position[row] * head_dim;
        rotate_heads(qkv.as<T>() + row * width, cosine, cosine + head_dim / 2, sine_sign, heads,
                     head_dim / 2);
    });
}

void rotate_any(const char* op, Tensor qkv, Tensor table, Tensor positions, int64_t num_heads,
                int64_t num_kv_heads, float sine_sign, Tensor absmax) {
    check_rope(op, qkv, table, positions, num_heads, num_kv_heads, absmax);
    const int64_t heads = num_heads + num_kv_heads;
    (qkv.dtype == DType::f32 ? rotate<float> : rotate<bf16>)(qkv, table, positions, heads, sine_sign);
    if (!absmax.absent()) raise_absmax(absmax, qkv);
}

}  // namespace

void rope_forward(Tensor qkv, Tensor table, Tensor positions, int64_t num_heads, int64_t num_kv_heads,
                  Stream) {
    rotate_any("rope_forward", qkv, table, positions, num_heads, num_kv_heads, 1, {});
}

void rope_backward(Tensor dqkv, Tensor table, Tensor positions, int64_t num_heads, int64_t num_kv_heads,
                   Tensor absmax, Stream) {
    rotate_any("rope_backward", dqkv, table, positions, num_heads, num_kv_heads, -1, absmax);
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(qkv.device, void, rope_forward,
             (Tensor qkv, Tensor table, Tensor positions, int64_t num_heads, int64_t num_kv_heads,
              Stream stream),
             (qkv, table, positions, num_heads, num_kv_heads, stream))
DEVICE_ENTRY(dqkv.device, void, rope_backward,
             (Tensor dqkv, Tensor table, Tensor positions, int64_t num_heads, int64_t num_kv_heads,
              Tensor absmax, Stream stream),
             (dqkv, table, positions, num_heads, num_kv_heads, absmax, stream))
