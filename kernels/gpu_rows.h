// Rows of a matrix [N,C] on the GPU: a row belongs to one warp, or to a block where it is long, and lies in
// the registers of their threads, so that memory is read once however often the row is gone through. Packs of
// kPack elements are dealt to the threads in turn, which makes neighbours of neighbouring threads' accesses.
#pragma once
#include <type_traits>

#include "kernels/gpu_elements.h"

namespace GPU_NAMESPACE {

constexpr int kRowBlock = 256;  // threads of a block

// kHeld packs per thread in registers; what is not held is read again.
template <class T, int kPack, int kRowThreads, int kHeld>
class HeldRow {
public:
    using Part = Elements<T, kPack>;

    __device__ HeldRow(const T* row, int channels)
        : row_(row), num_packs_(channels / kPack), thread_(threadIdx.x % kRowThreads) {
        UNROLL for (int i = 0; i < kHeld; ++i) {
            const int pack = i * kRowThreads + thread_;
            if (pack < num_packs_) held_[i] = load_elements<kPack>(row_ + pack * kPack);
        }
    }
    __device__ int thread() const { return thread_; }
    // f(c, elements [c, c + kPack)) for every pack of this thread.
    template <class F>
    __device__ void for_each(F&& f) const {
        UNROLL for (int i = 0; i < kHeld; ++i) {
            const int pack = i * kRowThreads + thread_;
            if (pack < num_packs_) f(pack * kPack, held_[i]);
        }
        for (int pack = kHeld * kRowThreads + thread_; pack < num_packs_; pack += kRowThreads) {
            f(pack * kPack, load_elements<kPack>(row_ + pack * kPack));
        }
    }

private:
    const T* row_;
    int num_packs_, thread_;
    Part held_[kHeld] = {};
};

// The row of this thread, where a block has kRowBlock threads.
template <int kRowThreads>
__device__ int64_t row_of_thread() {
    return int64_t{blockIdx.x} * (kRowBlock / kRowThreads) + threadIdx.x / kRowThreads;
}
// Over the row's threads, all of which get the same bits.
template <int kRowThreads>
__device__ float row_sum(float x) {
    if constexpr (kRowThreads == kWarp) {
        return warp_sum(x);
    } else {
        return block_sum<kRowThreads>(x);
    }
}

// Whether rows of that many channels can be cut into whole, aligned packs.
template <class T, class... Addresses>
bool rows_have_packs(int64_t channels, const Addresses*... addresses) {
    return channels % kFullPack<T> == 0 && is_aligned128(addresses...);
}

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

// Calls start(pack, row_threads, held, grid) with the constants that suit rows of that length.
template <class T, class Start>
void for_row_shape(bool packed, int64_t num_rows, int64_t channels, Start&& start) {
    const auto choose = [&](auto pack) {
        const int64_t num_packs = channels / pack(), warps = kRowBlock / kWarp;
        if (num_packs <= 4 * kWarp) {
            start(pack, Constant<kWarp>{}, Constant<4>{}, ceil_div(num_rows, warps));
        } else if (num_packs <= 8 * kWarp) {
            start(pack, Constant<kWarp>{}, Constant<8>{}, ceil_div(num_rows, warps));
        } else {
            start(pack, Constant<kRowBlock>{}, Constant<4>{}, num_rows);
        }
    };
    if (packed) return choose(Constant<kFullPack<T>>{});
    choose(Constant<1>{});
}

}  // namespace GPU_NAMESPACE
