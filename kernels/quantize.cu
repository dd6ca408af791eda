// Quantisation on the GPU. raise_absmax reads each element once. quantize reads it once, 2 bytes of bf16, and
// writes 1 byte for each of its two results; some 10 instructions an element: both bound by memory. Not
// measured yet on a GPU.
#include "kernels/quantize.h"

#include "kernels/gpu_absmax.h"
#include "kernels/gpu_fp8.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kThreads = 256;
constexpr int kAbsmaxBlocks = 1056;  // as many as fill the largest GPUs (132 multiprocessors of 2048 threads)
constexpr int kAbsmaxSteps = 4;      // packs that a thread has under way at a time

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) absmax_kernel(uint32_t* absmax, const T* inp, int64_t count) {
    wait_for_previous();
    let_next_start();
    const int64_t threads = int64_t{gridDim.x} * kThreads, packs = count / kCount;
    const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    LargestMagnitude largest(absmax);
    for (int64_t first = thread; first < packs; first += kAbsmaxSteps * threads) {
        Elements<T, kCount> x[kAbsmaxSteps] = {};
        UNROLL for (int step = 0; step < kAbsmaxSteps; ++step) {
            const int64_t pack = first + step * threads;
            if (pack < packs) x[step] = load_elements<kCount>(inp + pack * kCount);
        }
        UNROLL for (int step = 0; step < kAbsmaxSteps; ++step) largest.add(x[step]);
    }
    if (const int64_t i = packs * kCount + thread; i < count)
        largest.add(inp[i]);  // a pack's rest at the end
    largest.raise_by_warp();
}

template <class T>
void raise(Tensor absmax, Tensor inp, Stream stream) {
    const int64_t count = inp.size();
    const bool packed = is_aligned128(inp.data);
    const int64_t blocks = ceil_div(ceil_div(count, packed ? kFullPack<T> : 1), kThreads);
    launch(packed ? absmax_kernel<T, kFullPack<T>> : absmax_kernel<T, 1>,
           blocks < kAbsmaxBlocks ? blocks : int64_t{kAbsmaxBlocks}, kThreads, 0, stream, absmax_bits(absmax),
           inp.as<T>(), count);
}

// ---- a block quantises kTile x kTile elements
// -------------------------------------------------------------------------

constexpr int kTile = 64, kLoad = 8;          // elements that a thread reads together: 16 bytes of bf16
constexpr int kChunks = kTile / kLoad;        // of a row
constexpr int kRowStep = kThreads / kChunks;  // rows that the block reads together
constexpr int kRowsPerThread = kTile / kRowStep;
constexpr int kStore = 16;              // rows that a thread of the transposed result writes: 16 bytes
constexpr int kStride = kTile / 4 + 1;  // words of a row in shared memory; odd, to spread over the banks
static_assert(kTile * (kTile / kStore) == kThreads);

// kCount neighbours as f32; zeros from `count` on.
template <class T>
__device__ Floats<kLoad> load_some(const T* from, int count, bool packed) {
    Floats<kLoad> x = {};
    if (packed && count >= kLoad) {
        constexpr int kPart = kFullPack<T> < kLoad ? kFullPack<T> : kLoad;
        UNROLL for (int first = 0; first < kLoad; first += kPart) {
            const Elements<T, kPart> part = load_elements<kPart>(from + first);
            UNROLL for (int k = 0; k < kPart; ++k) x[first + k] = to_float(part[k]);
        }
    } else {
        UNROLL for (int k = 0; k < kLoad; ++k) {
            if (k < count) x[k] = to_float(from[k]);
        }
    }
    return x;
}

// Either result may be null. packed: inp can be read by 16 bytes.
template <class Out, class In>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(uint8_t* out, uint8_t* transposed, float* inverse, const In* inp, const float* absmax,
                    int rows, int columns, float largest, bool packed) {
    wait_for_previous();
    let_next_start();
    SHARED(uint32_t, tile, [kTile * kStride]);
    const int thread = static_cast<int>(threadIdx.x);
    const int first_row = static_cast<int>(blockIdx.y) * kTile,
              first_column = static_cast<int>(blockIdx.x) * kTile;
    const float scale = fp8_scale(*absmax, largest);
    if (thread == 0 && blockIdx.x == 0 && blockIdx.y == 0) *inverse = 1 / scale;

    const int chunk = thread % kChunks, column = first_column + chunk * kLoad;
    Floats<kLoad> x[kRowsPerThread];
    UNROLL for (int i = 0; i < kRowsPerThread; ++i) {
        const int row = first_row + thread / kChunks + i * kRowStep;
        x[i] = load_some(inp + int64_t{row} * columns + column, row < rows ? columns - column : 0, packed);
    }
    const int64_t line = fp8_line(columns);
    UNROLL for (int i = 0; i < kRowsPerThread; ++i) {
        const int row_in_tile = thread / kChunks + i * kRowStep, row = first_row + row_in_tile;
        Elements<uint32_t, 2> words;
        UNROLL for (int k = 0; k < 2; ++k) {
            // What does not exist is zero whatever the scale.
            const auto pair = [&](int at) {
                const int left = row < rows ? columns - column - at : 0;
                const uint32_t both = pack_fp8<Out>(x[i][at] * scale, x[i][at + 1] * scale);
                return left > 1 ? both : left == 1 ? both & 0xffu : 0u;
            };
            words[k] = pair(4 * k) | pair(4 * k + 2) << 16;
            tile[row_in_tile * kStride + 2 * chunk + k] = words[k];
        }
        if (out != nullptr && row < rows && column < line) {
            store_elements(reinterpret_cast<uint32_t*>(out + row * line + column), words);
        }
    }
    if (transposed == nullptr) return;
    __syncthreads();
    const int mine = thread / (kTile / kStore), part = thread % (kTile / kStore);
    const int64_t transposed_line = fp8_line(rows);
    const int row = first_row + part * kStore;
    if (first_column + mine >= columns || row >= transposed_line) return;
    const auto* const bytes = reinterpret_cast<const uint8_t*>(tile);
    Pack<uint32_t> words;
    UNROLL for (int k = 0; k < kStore / 4; ++k) {
        words[k] = 0;
        UNROLL for (int n = 0; n < 4; ++n) {
            words[k] |= uint32_t{bytes[(part * kStore + 4 * k + n) * kStride * 4 + mine]} << 8 * n;
        }
    }
    store128(reinterpret_cast<uint32_t*>(transposed + (first_column + mine) * transposed_line + row), words);
}

template <class Out, class In>
void convert(Tensor out, Tensor transposed, Tensor inverse, Tensor inp, Tensor absmax, Stream stream) {
    const int64_t rows = inp.dims[0], columns = inp.dims[1];
    CHECK(rows <= INT32_MAX / 2 && columns <= INT32_MAX / 2, shape_text(inp));
    CHECK(is_aligned128(out.data, transposed.data), "results of quantize begin at multiples of 16 bytes");
    const bool packed = is_aligned128(inp.data) && columns % kLoad == 0;
    // Without elements there is still an inverse to be set.
    const auto tiles = [](int64_t size) {
        return static_cast<unsigned>(size > 0 ? ceil_div(size, kTile) : 1);
    };
    launch(quantize_kernel<Out, In>, dim3(tiles(columns), tiles(rows)), kThreads, 0, stream,
           static_cast<uint8_t*>(out.data), static_cast<uint8_t*>(transposed.data), inverse.as<float>(),
           inp.as<In>(), absmax.as<float>(), static_cast<int>(rows), static_cast<int>(columns),
           fp8_largest(std::is_same_v<Out, e5m2> ? DType::e5m2 : DType::e4m3), packed);
}

}  // namespace

void raise_absmax(Tensor absmax, Tensor inp, Stream stream) {
    check_raise_absmax(absmax, inp);
    (inp.dtype == DType::f32 ? raise<float> : raise<bf16>)(absmax, inp, stream);
}

void quantize(Tensor out, Tensor transposed, Tensor inverse, Tensor inp, Tensor absmax, Stream stream) {
    check_quantize(out, transposed, inverse, inp, absmax);
    const DType dtype = out.absent() ? transposed.dtype : out.dtype;
    const bool from_f32 = inp.dtype == DType::f32;
    const auto chosen = dtype == DType::e4m3 ? (from_f32 ? convert<e4m3, float> : convert<e4m3, bf16>)
                                             : (from_f32 ? convert<e5m2, float> : convert<e5m2, bf16>);
    chosen(out, transposed, inverse, inp, absmax, stream);
}

}  // namespace GPU_NAMESPACE
