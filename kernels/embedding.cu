// Embedding on the GPU. Forward reads a row (two with positions) and writes one for each token; backward
// reads dout once, and reads and writes each table row that occurs, after a sort of the ids
// (kernels/gpu_sort.h). Bound by memory; backward by latency where one id is most of the batch, since its
// tokens are added one after another, kDepth of them under way. Not measured yet on a GPU.
#include "kernels/embedding.h"

#include "kernels/gpu_elements.h"
#include "kernels/gpu_sort.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kThreads = 256;

// blockIdx.x is the token.
template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    embedding_forward_kernel(T* out, const T* wte, const T* wpe, const int32_t* tokens,
                             const int32_t* positions, int64_t channels) {
    wait_for_previous();
    let_next_start();
    const T* const token = wte + tokens[blockIdx.x] * channels;
    const T* const position = wpe == nullptr ? nullptr : wpe + positions[blockIdx.x] * channels;
    for (int64_t c = threadIdx.x * kPack; c < channels; c += blockDim.x * kPack) {
        Elements<T, kPack> row = load_elements<kPack>(token + c);
        if (position != nullptr) {
            const Elements<T, kPack> other = load_elements<kPack>(position + c);
            Floats<kPack> sum;
            for (int k = 0; k < kPack; ++k) sum[k] = to_float(row[k]) + to_float(other[k]);
            row = rounded_to<T>(sum);
        }
        store_elements(out + blockIdx.x * channels + c, row);
    }
}

template <class T>
void forward(Tensor out, Tensor wte, Tensor wpe, Tensor tokens, Tensor positions, Stream stream) {
    const int64_t channels = out.dims[1];
    const bool packed = channels % kFullPack<T> == 0 && is_aligned128(out.data, wte.data, wpe.data);
    const int64_t packs = packed ? channels / kFullPack<T> : channels;
    if (packs == 0) return;
    const int64_t threads = packs < kThreads ? ceil_div(packs, kWarp) * kWarp : kThreads;
    launch(packed ? embedding_forward_kernel<T, kFullPack<T>> : embedding_forward_kernel<T, 1>, out.dims[0],
           static_cast<int>(threads), 0, stream, out.as<T>(), wte.as<T>(),
           wpe.absent() ? nullptr : wpe.as<T>(), tokens.as<int32_t>(),
           wpe.absent() ? nullptr : positions.as<int32_t>(), channels);
}

// A warp for each of the sorted tokens and each slice of the channels (blockIdx.y). The first token of an id
// adds all of that id's; the others' warps have nothing to do.
constexpr int kDepth = 8;  // tokens under way

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    embedding_backward_kernel(float* dtable, const T* dout, const int32_t* ids, const int32_t* indices,
                              int64_t num_tokens, int64_t channels) {
    wait_for_previous();
    let_next_start();
    const int lane = threadIdx.x % kWarp;
    const int64_t place = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
    if (place >= num_tokens) return;
    const int32_t id = ids[place];
    if (place > 0 && ids[place - 1] == id) return;
    const int64_t c = (int64_t{blockIdx.y} * kWarp + lane) * kPack;
    const bool has_channels = c < channels;
    float* const row = dtable + id * channels + c;
    Floats<kPack> sum = {};
    if (has_channels) sum = load_floats<kPack>(row);
    int num_alike = kWarp;
    for (int64_t first = place; num_alike == kWarp; first += kWarp) {
        const int64_t n = first + lane;
        const bool alike = n < num_tokens && ids[n] == id;
        const int32_t index = alike ? indices[n] : 0;
        const uint32_t others = ~__ballot_sync(kAllLanes, alike);
        num_alike = others == 0 ? kWarp : __ffs(static_cast<int>(others)) - 1;
        for (int done = 0; done < num_alike; done += kDepth) {
            Elements<T, kPack> part[kDepth] = {};
            UNROLL for (int i = 0; i < kDepth; ++i) {
                const int64_t token = __shfl_sync(kAllLanes, index, done + i);
                if (has_channels && done + i < num_alike)
                    part[i] = load_streaming<kPack>(dout + token * channels + c);
            }
            UNROLL for (int i = 0; i < kDepth; ++i) {
                if (done + i >= num_alike) break;
                for (int k = 0; k < kPack; ++k) sum[k] += to_float(part[i][k]);
            }
        }
    }
    if (has_channels) store_floats(row, sum);
}

template <class T>
void backward(Tensor dtable, Tensor dout, Tensor ids, Stream stream) {
    const int64_t num_tokens = dout.dims[0], channels = dout.dims[1];
    const SortedIds sorted = sort_ids(ids.as<int32_t>(), num_tokens, dtable.dims[0], stream);
    const bool packed = channels % kFullPack<T> == 0 && is_aligned128(dtable.data, dout.data);
    const int64_t slices = ceil_div(channels, kWarp * (packed ? kFullPack<T> : 1));
    const dim3 grid(static_cast<unsigned>(ceil_div(num_tokens, kThreads / kWarp)),
                    static_cast<unsigned>(slices));
    launch(packed ? embedding_backward_kernel<T, kFullPack<T>> : embedding_backward_kernel<T, 1>, grid,
           kThreads, 0, stream, dtable.as<float>(), dout.as<T>(), sorted.ids, sorted.indices, num_tokens,
           channels);
}

void backward_any(Tensor dtable, Tensor dout, Tensor ids, Stream stream) {
    if (dout.dtype == DType::f32) return backward<float>(dtable, dout, ids, stream);
    backward<bf16>(dtable, dout, ids, stream);
}

}  // namespace

void embedding_forward(Tensor out, Tensor wte, Tensor wpe, Tensor tokens, Tensor positions, Stream stream) {
    check_embedding("embedding_forward", out, wte, wpe, out.dtype, tokens, positions);
    if (out.dtype == DType::f32) return forward<float>(out, wte, wpe, tokens, positions, stream);
    forward<bf16>(out, wte, wpe, tokens, positions, stream);
}

void embedding_backward(Tensor dwte, Tensor dwpe, Tensor dout, Tensor tokens, Tensor positions,
                        Stream stream) {
    check_embedding("embedding_backward", dout, dwte, dwpe, DType::f32, tokens, positions);
    backward_any(dwte, dout, tokens, stream);
    if (!dwpe.absent()) backward_any(dwpe, dout, positions, stream);
}

}  // namespace GPU_NAMESPACE
