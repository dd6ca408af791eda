// Conversions, filling and scaling on the CPU: one pass, memory-bound.
#include "kernels/cast.h"

#include "kernels/check.h"
#include "kernels/elementwise.h"
#include "kernels/philox_simd.h"

#ifdef ISA_PLAIN
void check_cast(const char* op, Tensor out, Tensor inp) {
    const ArgumentCheck check{op, out.device};
    check.float_dtype("inp", inp);
    check.float_dtype("out", out);
    check.that(out.size() == inp.size(), "out", "as many elements as inp", static_cast<double>(out.size()));
}
#endif

namespace ISA_NAMESPACE {
namespace {

template <class Out, class In>
void convert(Tensor out, Tensor inp) {
    Out* to = out.as<Out>();
    const In* from = inp.as<In>();
    for_each_vec(out.size(), [=](int64_t i, int64_t n)
                                 ALWAYS_INLINE { store_first(to + i, load_first(from + i, n), n); });
}

void copy(Tensor out, Tensor inp) {
    parallel_ranges(out.bytes(), 4 * kElementGrain, [&](int64_t begin, int64_t end) {
        std::memcpy(static_cast<char*>(out.data) + begin, static_cast<const char*>(inp.data) + begin,
                    static_cast<size_t>(end - begin));
    });
}

}  // namespace

void cast(Tensor out, Tensor inp, Stream) {
    check_cast("cast", out, inp);
    if (out.dtype == inp.dtype) return copy(out, inp);
    if (out.dtype == DType::bf16) return convert<bf16, float>(out, inp);
    convert<float, bf16>(out, inp);
}

void cast_stochastic(Tensor out, Tensor inp, RandomKey key, int64_t first_index, Stream) {
    check_cast("cast_stochastic", out, inp);
    bf16* to = out.as<bf16>();
    const float* from = inp.as<float>();
    parallel_ranges(out.size(), kElementGrain, [=](int64_t begin, int64_t end) {
        for_each_random_vec(begin, end, first_index, key,
                            [=](int64_t i, int64_t n, const uint16_t* draws) ALWAYS_INLINE {
                                store_first(to + i, round_stochastic(load_first(from + i, n), draws), n);
                            });
    });
}

void fill_zero(Tensor out, Stream) {
    parallel_ranges(out.bytes(), 4 * kElementGrain, [&](int64_t begin, int64_t end) {
        std::memset(static_cast<char*>(out.data) + begin, 0, static_cast<size_t>(end - begin));
    });
}

void scale_in_place(Tensor x, float factor, Stream) {
    float* data = x.as<float>();
    for_each_vec(x.size(), [=](int64_t i, int64_t n)
                               ALWAYS_INLINE { store_first(data + i, load_first(data + i, n) * factor, n); });
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(out.device, void, cast, (Tensor out, Tensor inp, Stream stream), (out, inp, stream))
DEVICE_ENTRY(out.device, void, cast_stochastic,
             (Tensor out, Tensor inp, RandomKey key, int64_t first_index, Stream stream),
             (out, inp, key, first_index, stream))
DEVICE_ENTRY(out.device, void, fill_zero, (Tensor out, Stream stream), (out, stream))
DEVICE_ENTRY(x.device, void, scale_in_place, (Tensor x, float factor, Stream stream), (x, factor, stream))
