// The FP8 product on the CPU: the reference of the GPU's. FP8 numbers are bf16 numbers too, so that they are
// widened and multiplied as such; the epilogue is done in plain steps.
#include "kernels/matmul_fp8.h"

#include <vector>

#include "kernels/cast.h"
#include "kernels/check.h"
#include "kernels/elementwise.h"
#include "kernels/gelu.h"
#include "kernels/quantize.h"

#ifdef ISA_PLAIN
void check_matmul_fp8(Tensor out, const Fp8Matrix& a, const Fp8Matrix& b, const MatmulEpilogue& epilogue,
                      Tensor gelu_pre, Tensor absmax) {
    const ArgumentCheck check{"matmul_fp8", out.device};
    check.floats("out", out, {-1, -1});
    const int64_t rows = out.dims[0], columns = out.dims[1], inner = a.codes.dims[1];
    check.that(is_fp8(a.codes.dtype), "a", "e4m3 or e5m2", static_cast<double>(a.codes.dtype));
    check.tensor("a", a.codes, a.codes.dtype, {rows, inner});
    check.tensor("b", b.codes, DType::e4m3, {columns, inner});
    check.that(inner % kFp8Line == 0, "a", "lines of a multiple of kFp8Line", static_cast<double>(inner));
    check.tensor("a.inverse", a.inverse, DType::f32, {1});
    check.tensor("b.inverse", b.inverse, DType::f32, {1});
    if (!epilogue.bias.absent()) check.floats("bias", epilogue.bias, {columns});
    if (!epilogue.residual.absent()) check.floats("residual", epilogue.residual, {rows, columns});
    if (epilogue.gelu) check.floats("pre_activation", epilogue.pre_activation, {rows, columns});
    if (!gelu_pre.absent()) check.floats("gelu_pre", gelu_pre, {rows, columns});
    check.absmax(absmax);
}
#endif

namespace ISA_NAMESPACE {
namespace {

// A matrix of numbers that live as long as it does.
template <class T>
class Scratch {
public:
    Scratch(int64_t rows, int64_t columns)
        : memory_(static_cast<size_t>(rows * columns)), rows_(rows), columns_(columns) {}
    T* data() { return memory_.data(); }
    Tensor tensor() { return make_tensor(memory_.data(), dtype_of<T>(), rows_, columns_); }

private:
    std::vector<T> memory_;
    int64_t rows_, columns_;
};

template <class T>
void widen(bf16* out, const T* codes, int64_t count) {
    bf16 numbers[256];
    for (int bits = 0; bits < 256; ++bits) {
        numbers[bits] = to_bf16(to_float(T{static_cast<uint8_t>(bits)}));
    }
    parallel_ranges(count, kElementGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) out[i] = numbers[codes[i].bits];
    });
}
Scratch<bf16> widened(Tensor codes) {
    Scratch<bf16> result(codes.dims[0], codes.dims[1]);
    if (codes.dtype == DType::e4m3) {
        widen(result.data(), codes.as<e4m3>(), codes.size());
    } else {
        widen(result.data(), codes.as<e5m2>(), codes.size());
    }
    return result;
}

float element(Tensor t, int64_t i) {
    return t.dtype == DType::f32 ? t.as<float>()[i] : to_float(t.as<bf16>()[i]);
}
Scratch<float> as_f32(Tensor t) {
    Scratch<float> result(t.dims[0], t.dims[1]);
    cast(result.tensor(), t);
    return result;
}

}  // namespace

void matmul_fp8(Tensor out, const Fp8Matrix& a, const Fp8Matrix& b, const MatmulEpilogue& epilogue,
                Tensor gelu_pre, Tensor absmax, Stream) {
    check_matmul_fp8(out, a, b, epilogue, gelu_pre, absmax);
    const int64_t rows = out.dims[0], columns = out.dims[1];
    Scratch<bf16> wide_a = widened(a.codes), wide_b = widened(b.codes);
    Scratch<float> x(rows, columns);
    const float scale = *a.inverse.as<float>() * *b.inverse.as<float>();
    matmul_general(x.tensor(), wide_a.tensor(), wide_b.tensor(), true, scale, 0, {});
    const auto add = [&](Tensor addend, bool of_each_row) {
        if (addend.absent()) return;
        for_each_row(rows, columns, [&](int64_t row) {
            float* const line = x.data() + row * columns;
            for (int64_t c = 0; c < columns; ++c) {
                line[c] += element(addend, of_each_row ? c : row * columns + c);
            }
        });
    };
    add(epilogue.bias, true);
    if (epilogue.gelu) {
        cast(epilogue.pre_activation, x.tensor());
        gelu_forward(x.tensor(), x.tensor());
    }
    if (!gelu_pre.absent()) gelu_backward(x.tensor(), as_f32(gelu_pre).tensor(), x.tensor());
    add(epilogue.residual, false);
    cast(out, x.tensor());
    if (!absmax.absent()) raise_absmax(absmax, out);
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(out.device, void, matmul_fp8,
             (Tensor out, const Fp8Matrix& a, const Fp8Matrix& b, const MatmulEpilogue& epilogue,
              Tensor gelu_pre, Tensor absmax, Stream stream),
             (out, a, b, epilogue, gelu_pre, absmax, stream))
