// Threads and tails for ops that treat every element alone.
#pragma once
#include "core/threads.h"
#include "kernels/simd.h"

namespace ISA_NAMESPACE {

constexpr int64_t kElementGrain =
    1 << 15;  // elements per task: ~10 us of memory traffic, far above a hand-over

#define ALWAYS_INLINE __attribute__((always_inline))

// f(i, n): elements [i, i + n), n <= kWidth. Declare the lambda ALWAYS_INLINE, so that the tests for a tail
// disappear from the main loop.
template <class F>
SIMD_INLINE void for_each_vec_of(int64_t begin, int64_t end, F&& f) {
    int64_t i = begin;
    for (; i + kWidth <= end; i += kWidth) f(i, int64_t{kWidth});
    if (i < end) f(i, end - i);
}
// The sum of f(i, n) over [0, count); elements past n must come out as 0. Four chains hide the latency of the
// additions.
template <class F>
SIMD_INLINE float sum_over(int64_t count, F&& f) {
    Vec sum[4] = {};
    int64_t i = 0;
    for (; i + 4 * kWidth <= count; i += 4 * kWidth) {
        sum[0] += f(i, int64_t{kWidth});
        sum[1] += f(i + kWidth, int64_t{kWidth});
        sum[2] += f(i + 2 * kWidth, int64_t{kWidth});
        sum[3] += f(i + 3 * kWidth, int64_t{kWidth});
    }
    for_each_vec_of(i, count, [&](int64_t at, int64_t n) ALWAYS_INLINE { sum[0] += f(at, n); });
    return reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
}
template <class F>
void for_each_vec(int64_t count, F&& f) {
    parallel_ranges(count, kElementGrain,
                    [&](int64_t begin, int64_t end) { for_each_vec_of(begin, end, f); });
}
// task(row) for every row, several rows at a time where they are short.
template <class Task>
void for_each_row(int64_t num_rows, int64_t row_elements, Task&& task) {
    const int64_t grain =
        row_elements < kElementGrain ? kElementGrain / (row_elements > 0 ? row_elements : 1) : 1;
    parallel_ranges(num_rows, grain, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) task(row);
    });
}

}  // namespace ISA_NAMESPACE
