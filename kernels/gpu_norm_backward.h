// The backward of LayerNorm and RMSNorm on the GPU. With xhat = (x - mean) rstd and g = dy w:
//   dx = rstd (g - mean(g) - xhat mean(g xhat)),  dw += dy xhat,  db += dy
// and without the means of x and g, and without db, for RMSNorm. x and dy are read and dx is written once: 3
// elements moved, some 20 instructions, bound by memory.
//
// A block goes through a chunk of rows. A thread has the same columns in every row, so their sums for dw and
// db stay in its registers; at the end the block writes them as one row of a workspace, whose rows are then
// added in order (kernels/gpu_row_sums.h): how the rows are cut depends on the shape only. While one row is
// reduced the next is on its way.
#pragma once
#include "kernels/gpu_absmax.h"
#include "kernels/gpu_row_sums.h"
#include "kernels/gpu_rows.h"
#include "kernels/workspace.h"

namespace GPU_NAMESPACE {

// Each of x is replaced by its sum over the block, with the same bits in all threads. Calls alternate between
// the two halves of `sums`, so that one barrier is enough: whoever writes a half again has met all its
// readers at the barrier between.
template <int kSums>
__device__ void block_sums(float (&x)[kSums], float (&sums)[2][kSums][kNormThreads / kWarp], int half) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, num_warps = blockDim.x / kWarp;
    UNROLL for (int i = 0; i < kSums; ++i) {
        x[i] = warp_sum(x[i]);
        if (lane == 0) sums[half][i][warp] = x[i];
    }
    __syncthreads();
    UNROLL for (int i = 0; i < kSums; ++i) {
        x[i] = 0;
        for (int other = 0; other < num_warps; ++other) x[i] += sums[half][i][other];
    }
}

// kHeld packs of a row per thread; those of longer rows are read twice, and their sums live in the workspace.
template <class T, int kPack, int kHeld, bool kLayerNorm>
__global__ void __launch_bounds__(kNormThreads, 1)
    norm_backward_kernel(T* dx, float* chunk_sums, const T* dy, const T* x, const T* w, const float* mean,
                         const float* rstd, int64_t num_rows, int64_t rows_per_chunk, int channels,
                         bool accumulate_dx, uint32_t* absmax) {
    wait_for_previous();
    let_next_start();
    constexpr int kSums = kLayerNorm ? 2 : 1;
    SHARED(float, sums, [2][kSums][kNormThreads / kWarp]);
    using Part = Elements<T, kPack>;
    const int num_packs = channels / kPack, num_threads = blockDim.x, thread = threadIdx.x;
    const int64_t begin = blockIdx.x * rows_per_chunk;
    const int64_t end = num_rows - begin < rows_per_chunk ? num_rows : begin + rows_per_chunk;
    float* const dw_sums = chunk_sums + blockIdx.x * int64_t{kSums} * channels;
    float* const db_sums = dw_sums + channels;
    const float inverse_count = 1.0f / static_cast<float>(channels);

    Part weight[kHeld] = {}, next_x[kHeld] = {}, next_dy[kHeld] = {};
    Floats<kPack> dw[kHeld] = {}, db[kHeld] = {};
    float next_mean = 0, next_rstd = 0;
    LargestMagnitude largest(absmax);
    const auto fetch = [&](int64_t row) {
        UNROLL for (int i = 0; i < kHeld; ++i) {
            const int pack = i * num_threads + thread;
            if (pack >= num_packs) continue;
            next_x[i] = load_streaming<kPack>(x + row * channels + pack * kPack);
            next_dy[i] = load_streaming<kPack>(dy + row * channels + pack * kPack);
        }
        if constexpr (kLayerNorm) next_mean = mean[row];
        next_rstd = rstd[row];
    };
    if constexpr (kHeld == 1) {
        if (thread < num_packs) weight[0] = load_elements<kPack>(w + thread * kPack);
    }
    // Longer rows leave no registers for their weights, which then come from the first-level cache.
    const auto weight_of = [&](int i, int pack) {
        if constexpr (kHeld == 1) {
            return weight[i];
        } else {
            return load_elements<kPack>(w + pack * kPack);
        }
    };
    fetch(begin);

    for (int64_t row = begin; row < end; ++row) {
        Part x_held[kHeld], dy_held[kHeld], old[kHeld] = {};
        UNROLL for (int i = 0; i < kHeld; ++i) {
            x_held[i] = next_x[i];
            dy_held[i] = next_dy[i];
        }
        const float m = next_mean, r = next_rstd;
        if (row + 1 < end) fetch(row + 1);
        const int64_t at = row * channels;
        if (accumulate_dx) {
            UNROLL for (int i = 0; i < kHeld; ++i) {
                const int pack = i * num_threads + thread;
                if (pack < num_packs) old[i] = load_elements<kPack>(dx + at + pack * kPack);
            }
        }

        float total[kSums] = {};  // of g xhat, then of g
        const auto add_sums = [&](const Part& x_part, const Part& dy_part, const Part& w_part) {
            for (int k = 0; k < kPack; ++k) {
                const float g = to_float(dy_part[k]) * to_float(w_part[k]);
                total[0] += g * ((to_float(x_part[k]) - m) * r);
                if constexpr (kLayerNorm) total[1] += g;
            }
        };
        UNROLL for (int i = 0; i < kHeld; ++i) {
            const int pack = i * num_threads + thread;
            if (pack < num_packs) add_sums(x_held[i], dy_held[i], weight_of(i, pack));
        }
        for (int pack = kHeld * num_threads + thread; pack < num_packs; pack += num_threads) {
            const int c = pack * kPack;
            add_sums(load_elements<kPack>(x + at + c), load_elements<kPack>(dy + at + c),
                     load_elements<kPack>(w + c));
        }
        block_sums(total, sums, static_cast<int>(row - begin) % 2);
        const float mean_g_xhat = total[0] * inverse_count, mean_g = total[kSums - 1] * inverse_count;

        const auto finish = [&](int c, const Part& x_part, const Part& dy_part, const Part& w_part,
                                const Part& old_part, Floats<kPack>& dw_part, Floats<kPack>& db_part) {
            Floats<kPack> result;
            for (int k = 0; k < kPack; ++k) {
                const float gradient = to_float(dy_part[k]), xhat = (to_float(x_part[k]) - m) * r;
                dw_part[k] += gradient * xhat;
                if constexpr (kLayerNorm) db_part[k] += gradient;
                const float g = gradient * to_float(w_part[k]);
                result[k] = r * ((kLayerNorm ? g - mean_g : g) - xhat * mean_g_xhat);
                if (accumulate_dx) result[k] += to_float(old_part[k]);
            }
            const Part rounded = rounded_to<T>(result);
            store_elements(dx + at + c, rounded);
            largest.add(rounded);
        };
        UNROLL for (int i = 0; i < kHeld; ++i) {
            const int pack = i * num_threads + thread;
            if (pack >= num_packs) continue;
            finish(pack * kPack, x_held[i], dy_held[i], weight_of(i, pack), old[i], dw[i], db[i]);
        }
        for (int pack = kHeld * num_threads + thread; pack < num_packs; pack += num_threads) {
            const int c = pack * kPack;
            Floats<kPack> dw_part = {}, db_part = {};
            if (row > begin) {
                dw_part = load_floats<kPack>(dw_sums + c);
                if constexpr (kLayerNorm) db_part = load_floats<kPack>(db_sums + c);
            }
            const Part old_part = accumulate_dx ? load_elements<kPack>(dx + at + c) : Part{};
            finish(c, load_elements<kPack>(x + at + c), load_elements<kPack>(dy + at + c),
                   load_elements<kPack>(w + c), old_part, dw_part, db_part);
            store_floats(dw_sums + c, dw_part);
            if constexpr (kLayerNorm) store_floats(db_sums + c, db_part);
        }
    }

    UNROLL for (int i = 0; i < kHeld; ++i) {
        const int pack = i * num_threads + thread;
        if (pack >= num_packs) continue;
        store_floats(dw_sums + pack * kPack, dw[i]);
        if constexpr (kLayerNorm) store_floats(db_sums + pack * kPack, db[i]);
    }
    largest.raise_by_warp();
}

template <class T, int kPack, int kHeld, bool kLayerNorm>
void launch_norm_backward(Tensor dx, Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor w, Tensor mean,
                          Tensor rstd, bool accumulate_dx, Tensor absmax, Stream stream) {
    const int64_t num_rows = x.dims[0], channels = x.dims[1], num_packs = channels / kPack;
    const auto [rows_per_chunk, num_chunks] = norm_backward_cut(num_rows, num_packs);
    if (num_chunks == 0) return;
    const int64_t num_sums = kLayerNorm ? 2 : 1, width = num_sums * channels;
    auto* const sums = static_cast<float*>(device_workspace(
        kThisDevice, Workspace::norm_sums, norm_sums_bytes(num_rows, channels, x.dtype, num_sums)));
    launch(norm_backward_kernel<T, kPack, kHeld, kLayerNorm>, num_chunks,
           static_cast<int>(norm_backward_threads(num_packs)), 0, stream, dx.as<T>(), sums, dy.as<T>(),
           x.as<T>(), w.as<T>(), kLayerNorm ? mean.as<float>() : nullptr, rstd.as<float>(), num_rows,
           rows_per_chunk, static_cast<int>(channels), accumulate_dx, absmax_bits(absmax));
    add_row_sums(dw.as<float>(), channels, kLayerNorm ? db.as<float>() : nullptr, width - channels, sums,
                 num_chunks, stream);
}

// db and mean are absent for RMSNorm.
template <class T>
void norm_backward(Tensor dx, Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor w, Tensor mean, Tensor rstd,
                   bool accumulate_dx, Tensor absmax, Stream stream) {
    constexpr int kPack = kFullPack<T>;
    const bool packed = rows_have_packs<T>(x.dims[1], dx.data, dy.data, x.data, w.data);
    const bool is_short = x.dims[1] <= kNormThreads * kPack;
    const auto start = [&](auto is_layernorm) {
        constexpr bool kLayerNorm = decltype(is_layernorm)::value;
        const auto chosen = !packed    ? launch_norm_backward<T, 1, 2, kLayerNorm>
                            : is_short ? launch_norm_backward<T, kPack, 1, kLayerNorm>
                                       : launch_norm_backward<T, kPack, 2, kLayerNorm>;
        chosen(dx, dw, db, dy, x, w, mean, rstd, accumulate_dx, absmax, stream);
    };
    if (mean.absent()) return start(std::false_type{});
    start(std::true_type{});
}

}  // namespace GPU_NAMESPACE
