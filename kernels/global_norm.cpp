// Sum of squares on the CPU: f32 elements squared and added in f64, so neither order nor overflow matters to
// a norm. Memory-bound.
#include "kernels/global_norm.h"

#include <memory>

#include "kernels/check.h"
#include "kernels/elementwise.h"

#ifdef ISA_PLAIN
void check_sum_of_squares(Tensor x, Tensor out) {
    const ArgumentCheck check{"sum_of_squares", x.device};
    check.elements("x", x, DType::f32, x.size());
    if (!out.absent()) check.elements("out", out, DType::f64, 1);
}
#endif

namespace ISA_NAMESPACE {
namespace {

typedef double VecD __attribute__((vector_size(kWidth * 8)));  // all lanes of a Vec, two registers wide

double sum_of_squares_of(const float* x, int64_t begin, int64_t end) {
    VecD sum[2] = {};
    int64_t i = begin;
    for (; i + 2 * kWidth <= end; i += 2 * kWidth) {
        const VecD a = __builtin_convertvector(load(x + i), VecD);
        const VecD b = __builtin_convertvector(load(x + i + kWidth), VecD);
        sum[0] += a * a;
        sum[1] += b * b;
    }
    for_each_vec_of(i, end, [&](int64_t at, int64_t n) ALWAYS_INLINE {
        const VecD a = __builtin_convertvector(load_first(x + at, n), VecD);
        sum[0] += a * a;
    });
    sum[0] += sum[1];
    double total = 0;
    for (int lane = 0; lane < kWidth; ++lane) total += sum[0][lane];
    return total;
}

double sum_of_squares_of(Tensor x) {
    const int64_t count = x.size(), num_chunks = (count + kElementGrain - 1) / kElementGrain;
    const std::unique_ptr<double[]> partial(new double[static_cast<size_t>(num_chunks)]);
    parallel_ranges(count, kElementGrain, [&](int64_t begin, int64_t end) {
        partial[static_cast<size_t>(begin / kElementGrain)] = sum_of_squares_of(x.as<float>(), begin, end);
    });
    double total = 0;
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) total += partial[static_cast<size_t>(chunk)];
    return total;
}

}  // namespace

void sum_of_squares_into(Tensor out, Tensor x, Stream) {
    check_sum_of_squares(x, out);
    *out.as<double>() = sum_of_squares_of(x);
}

double sum_of_squares(Tensor x, Stream) {
    check_sum_of_squares(x, {});
    return sum_of_squares_of(x);
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(x.device, void, sum_of_squares_into, (Tensor out, Tensor x, Stream stream), (out, x, stream))
DEVICE_ENTRY(x.device, double, sum_of_squares, (Tensor x, Stream stream), (x, stream))
