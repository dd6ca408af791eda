// Quantisation on the CPU: the reference of the GPU's, to the bit, and no faster than it must be for tests.
#include "kernels/quantize.h"

#include <bit>
#include <cstring>

#include "core/threads.h"
#include "kernels/check.h"
#include "kernels/elementwise.h"

#ifdef ISA_PLAIN
void check_raise_absmax(Tensor absmax, Tensor inp) {
    const ArgumentCheck check{"raise_absmax", inp.device};
    check.float_dtype("inp", inp);
    check.tensor("absmax", absmax, DType::f32, {1});
}

void check_quantize(Tensor out, Tensor transposed, Tensor inverse, Tensor inp, Tensor absmax) {
    const ArgumentCheck check{"quantize", inp.device};
    check.floats("inp", inp, {-1, -1});
    check.tensor("absmax", absmax, DType::f32, {1});
    check.tensor("inverse", inverse, DType::f32, {1});
    const DType dtype = !out.absent() ? out.dtype : transposed.dtype;
    check.that(is_fp8(dtype), "out", "e4m3 or e5m2", static_cast<double>(dtype));
    if (!out.absent()) check.tensor("out", out, dtype, {inp.dims[0], fp8_line(inp.dims[1])});
    if (!transposed.absent()) {
        check.tensor("transposed", transposed, dtype, {inp.dims[1], fp8_line(inp.dims[0])});
    }
}
#endif

namespace ISA_NAMESPACE {
namespace {

// Of numbers without sign the bits have the order of the values, and NaN is above infinity.
template <class T>
uint32_t largest_magnitude(const T* x, int64_t begin, int64_t end) {
    uint32_t largest = 0;
    for (int64_t i = begin; i < end; ++i) {
        const uint32_t bits = std::bit_cast<uint32_t>(to_float(x[i])) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

template <class T>
void raise(Tensor absmax, Tensor inp) {
    auto* const to = reinterpret_cast<uint32_t*>(absmax.as<float>());
    const T* const x = inp.as<T>();
    parallel_ranges(inp.size(), kElementGrain, [=](int64_t begin, int64_t end) {
        const uint32_t largest = largest_magnitude(x, begin, end);
        uint32_t old = __atomic_load_n(to, __ATOMIC_RELAXED);
        while (largest > old &&
               !__atomic_compare_exchange_n(to, &old, largest, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        }
    });
}

template <class Out, class In>
Out quantized(In x, float scale) {
    if constexpr (std::is_same_v<Out, e4m3>) return to_e4m3(to_float(x) * scale);
    if constexpr (std::is_same_v<Out, e5m2>) return to_e5m2(to_float(x) * scale);
}

template <class Out, class In>
void convert(Tensor out, Tensor transposed, Tensor inp, float scale) {
    const int64_t rows = inp.dims[0], columns = inp.dims[1];
    const In* const x = inp.as<In>();
    if (!out.absent()) {
        for_each_row(rows, columns, [&](int64_t row) {
            Out* const line = out.as<Out>() + row * out.dims[1];
            for (int64_t c = 0; c < columns; ++c) line[c] = quantized<Out>(x[row * columns + c], scale);
            std::memset(line + columns, 0, static_cast<size_t>(out.dims[1] - columns));
        });
    }
    if (transposed.absent()) return;
    for_each_row(columns, rows, [&](int64_t column) {
        Out* const line = transposed.as<Out>() + column * transposed.dims[1];
        for (int64_t n = 0; n < rows; ++n) line[n] = quantized<Out>(x[n * columns + column], scale);
        std::memset(line + rows, 0, static_cast<size_t>(transposed.dims[1] - rows));
    });
}

}  // namespace

void raise_absmax(Tensor absmax, Tensor inp, Stream) {
    check_raise_absmax(absmax, inp);
    (inp.dtype == DType::f32 ? raise<float> : raise<bf16>)(absmax, inp);
}

void quantize(Tensor out, Tensor transposed, Tensor inverse, Tensor inp, Tensor absmax, Stream) {
    check_quantize(out, transposed, inverse, inp, absmax);
    // Another op has raised it, and nothing but a worse model would tell that it was not this tensor's. Here,
    // where a pass costs little beside the product, it is looked at.
    float largest = 0;
    raise_absmax(tensor_of(&largest, 1), inp);
    const float given = *absmax.as<float>();
    ArgumentCheck{"quantize", inp.device}.that(
        std::bit_cast<uint32_t>(given) == std::bit_cast<uint32_t>(largest), "absmax",
        "inp's largest magnitude", given);
    const DType dtype = out.absent() ? transposed.dtype : out.dtype;
    const float scale = fp8_scale(*absmax.as<float>(), fp8_largest(dtype));
    *inverse.as<float>() = 1 / scale;
    const bool from_f32 = inp.dtype == DType::f32;
    const auto chosen = dtype == DType::e4m3 ? (from_f32 ? convert<e4m3, float> : convert<e4m3, bf16>)
                                             : (from_f32 ? convert<e5m2, float> : convert<e5m2, bf16>);
    chosen(out, transposed, inp, scale);
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(inp.device, void, raise_absmax, (Tensor absmax, Tensor inp, Stream stream),
             (absmax, inp, stream))
DEVICE_ENTRY(inp.device, void, quantize,
             (Tensor out, Tensor transposed, Tensor inverse, Tensor inp, Tensor absmax, Stream stream),
             (out, transposed, inverse, inp, absmax, stream))
