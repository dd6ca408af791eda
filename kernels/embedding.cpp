// Embedding on the CPU. Forward copies rows (and adds positions). Backward gives every table row to one task,
// which adds that row's tokens in order of n: no atomics, no scratch, the same bits for any number of
// threads.
#include "kernels/embedding.h"

#include "kernels/check.h"
#include "kernels/elementwise.h"

#ifdef ISA_PLAIN
// The tables are wte and wpe, or their gradients; wpe and positions are absent together.
void check_embedding(const char* op, Tensor activation, Tensor wte, Tensor wpe, DType table_dtype,
                     Tensor tokens, Tensor positions) {
    const ArgumentCheck check{op, activation.device};
    check.floats("activation", activation, {-1, -1});
    check.tensor("wte", wte, table_dtype, {-1, activation.dims[1]});
    check.ids("tokens", tokens, activation.dims[0], 0, wte.dims[0]);
    if (wpe.absent()) return;
    check.tensor("wpe", wpe, table_dtype, {-1, activation.dims[1]});
    check.ids("positions", positions, activation.dims[0], 0, wpe.dims[0]);
}
#endif

namespace ISA_NAMESPACE {
namespace {

// Rows of a table are dealt to kBuckets tasks by id modulo kBuckets; a modulus spreads the frequent tokens,
// whose ids are neighbours, evenly. Scanning all ids in each task costs little next to one row of channels.
constexpr int64_t kBuckets = 32;

template <class T>
void forward(Tensor out, Tensor wte, Tensor wpe, Tensor tokens, Tensor positions) {
    const int64_t channels = out.dims[1];
    for_each_row(out.dims[0], channels, [&](int64_t n) {
        T* result = out.as<T>() + n * channels;
        const T* token = wte.as<T>() + tokens.as<int32_t>()[n] * channels;
        if (wpe.absent()) {
            std::memcpy(result, token, static_cast<size_t>(channels) * sizeof(T));
            return;
        }
        const T* position = wpe.as<T>() + positions.as<int32_t>()[n] * channels;
        for_each_vec_of(0, channels, [&](int64_t c, int64_t count) ALWAYS_INLINE {
            store_first(result + c, load_first(token + c, count) + load_first(position + c, count), count);
        });
    });
}

template <class T>
void backward(Tensor dtable, Tensor dout, Tensor ids) {
    const int64_t num_tokens = dout.dims[0], channels = dout.dims[1];
    const int32_t* id = ids.as<int32_t>();
    parallel_for(kBuckets, [&](int64_t bucket) {
        for (int64_t n = 0; n < num_tokens; ++n) {
            if (id[n] % kBuckets != bucket) continue;
            float* row = dtable.as<float>() + id[n] * channels;
            const T* gradient = dout.as<T>() + n * channels;
            for_each_vec_of(0, channels, [&](int64_t c, int64_t count) ALWAYS_INLINE {
                store_first(row + c, load_first(row + c, count) + load_first(gradient + c, count), count);
            });
        }
    });
}

void backward_any(Tensor dtable, Tensor dout, Tensor ids) {
    if (dout.dtype == DType::f32) return backward<float>(dtable, dout, ids);
    backward<bf16>(dtable, dout, ids);
}

}  // namespace

void embedding_forward(Tensor out, Tensor wte, Tensor wpe, Tensor tokens, Tensor positions, Stream) {
    check_embedding("embedding_forward", out, wte, wpe, out.dtype, tokens, positions);
    if (out.dtype == DType::f32) return forward<float>(out, wte, wpe, tokens, positions);
    forward<bf16>(out, wte, wpe, tokens, positions);
}

void embedding_backward(Tensor dwte, Tensor dwpe, Tensor dout, Tensor tokens, Tensor positions, Stream) {
    check_embedding("embedding_backward", dout, dwte, dwpe, DType::f32, tokens, positions);
    backward_any(dwte, dout, tokens);
    if (!dwpe.absent()) backward_any(dwpe, dout, positions);
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(out.device, void, embedding_forward,
             (Tensor out, Tensor wte, Tensor wpe, Tensor tokens, Tensor positions, Stream stream),
             (out, wte, wpe, tokens, positions, stream))
DEVICE_ENTRY(dout.device, void, embedding_backward,
             (Tensor dwte, Tensor dwpe, Tensor dout, Tensor tokens, Tensor positions, Stream stream),
             (dwte, dwpe, dout, tokens, positions, stream))
