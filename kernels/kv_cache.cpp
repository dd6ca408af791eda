// Appending to the key-value cache on the CPU: two copies a token.
#include "kernels/kv_cache.h"

#include <cstring>

#include "kernels/check.h"
#include "kernels/isa.h"

#ifdef ISA_PLAIN
void check_kv_cache_append(Tensor k_cache, Tensor v_cache, Tensor qkv, int64_t past) {
    const ArgumentCheck check{"kv_cache_append", qkv.device};
    check.floats("qkv", qkv, {-1, -1});
    check.tensor("k_cache", k_cache, qkv.dtype, {-1, -1});
    check.like("v_cache", v_cache, k_cache);
    check.that(2 * k_cache.dims[1] < qkv.dims[1], "k_cache", "fewer channels than q, k and v",
               static_cast<double>(k_cache.dims[1]));
    check.that(past >= 0 && past + qkv.dims[0] <= k_cache.dims[0], "past", "room for the new tokens",
               static_cast<double>(past));
}
#endif

namespace ISA_NAMESPACE {

void kv_cache_append(Tensor k_cache, Tensor v_cache, Tensor qkv, int64_t past, Stream) {
    check_kv_cache_append(k_cache, v_cache, qkv, past);
    const int64_t element = dtype_bytes(qkv.dtype), bytes = k_cache.dims[1] * element;
    const int64_t row_bytes = qkv.dims[1] * element;
    const char* row = static_cast<const char*>(qkv.data) + row_bytes - 2 * bytes;
    char* k = static_cast<char*>(k_cache.data) + past * bytes;
    char* v = static_cast<char*>(v_cache.data) + past * bytes;
    for (int64_t n = 0; n < qkv.dims[0]; ++n, row += row_bytes) {
        std::memcpy(k + n * bytes, row, static_cast<size_t>(bytes));
        std::memcpy(v + n * bytes, row + bytes, static_cast<size_t>(bytes));
    }
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(qkv.device, void, kv_cache_append,
             (Tensor k_cache, Tensor v_cache, Tensor qkv, int64_t past, Stream stream),
             (k_cache, v_cache, qkv, past, stream))
