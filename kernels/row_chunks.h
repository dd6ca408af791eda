// Sums over rows (gradients of a norm's weights): rows are cut into chunks that depend on the number of rows
// only, each chunk sums into a row of its own, and the chunks' rows are added in order. The same bits for any
// number of threads.
#pragma once
#include <memory>

#include "core/threads.h"
#include "kernels/simd.h"

namespace ISA_NAMESPACE {

class RowSums {
public:
    RowSums(int64_t num_rows, int64_t width)
        : num_rows_(num_rows),
          width_(width),
          rows_per_chunk_(num_rows <= kMinRows * kMaxChunks ? kMinRows
                                                            : (num_rows + kMaxChunks - 1) / kMaxChunks),
          num_chunks_((num_rows + rows_per_chunk_ - 1) / rows_per_chunk_),
          partial_(new float[static_cast<size_t>(num_chunks_ * width)]) {}

    // task(begin, end, sums) for every chunk; sums [width] starts at zero.
    template <class Task>
    void for_each_chunk(Task&& task) {
        parallel_for(num_chunks_, [&](int64_t chunk) {
            float* sums = partial_.get() + chunk * width_;
            for (int64_t i = 0; i < width_; ++i) sums[i] = 0;
            const int64_t begin = chunk * rows_per_chunk_, end = begin + rows_per_chunk_;
            task(begin, end < num_rows_ ? end : num_rows_, sums);
        });
    }
    // out[i] += sum over chunks of sums[first + i], i in [0, count)
    void add_to(float* out, int64_t first, int64_t count) const {
        parallel_ranges(count, 1024, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i += kWidth) {
                const int64_t n = end - i < kWidth ? end - i : kWidth;
                Vec sum{};
                for (int64_t chunk = 0; chunk < num_chunks_; ++chunk) {
                    sum += load_first(partial_.get() + chunk * width_ + first + i, n);
                }
                store_first(out + i, load_first(out + i, n) + sum, n);
            }
        });
    }

private:
    static constexpr int64_t kMinRows = 16,
                             kMaxChunks = 64;  // 64 partial rows at most: small next to the activations
    int64_t num_rows_, width_, rows_per_chunk_, num_chunks_;
    std::unique_ptr<float[]> partial_;
};

}  // namespace ISA_NAMESPACE
