// Matrix product of FP8 numbers on tensor cores (sm_89 and up), f32 sums: the product of matmul_mma.h with
// pairs of FP8 numbers for its elements, 64 inner indices in shared memory at a time. 2 M N K FLOPs; bound by
// the mma instruction. Not measured yet on a GPU.
//
// In code for sm_90a the compiler spills 96 bytes a thread of large tiles (for sm_89 none): Hopper has FP8 in
// wgmma alone, and mma.sync needs registers for conversions. There matmul_hopper_fp8.cu or the library do
// what is large enough for their tiles.
#include "kernels/matmul_fp8.h"

#include <type_traits>

#include "kernels/matmul_mma.h"
#include "kernels/quantize.h"

namespace GPU_NAMESPACE {
namespace {

template <class A>
struct MmaFp8 {
    static constexpr bool kBatches = false;
    __device__ static void add_product(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        mma_fp8<A>(c, a, b);
    }
};

template <class A>
void launch_tile(const Product& product, MatmulTile tile, int splits, int pairs_per_split, Stream stream) {
    const auto launch = tile == MatmulTile::large ? launch_product<MmaFp8<A>, CopiedLarge, true, true, true>
                                                  : launch_product<MmaFp8<A>, CopiedSmall, true, true, true>;
    launch(product, splits, pairs_per_split, stream);
}

Operand as_pairs(Operand operand) {
    operand.lines.stride /= 2;
    operand.lines.dtype = DType::bf16;
    return operand;
}

}  // namespace

void multiply_fp8(const Product& product, MatmulTile tile, int splits, int inner_per_split, Stream stream) {
    Product pairs = product;
    pairs.a = as_pairs(product.a);
    pairs.b = as_pairs(product.b);
    pairs.inner = product.inner / 2;
    const bool e5m2_by_e4m3 = product.a.lines.dtype == DType::e5m2;
    (e5m2_by_e4m3 ? launch_tile<e5m2> : launch_tile<e4m3>)(pairs, tile, splits, inner_per_split / 2, stream);
}

void matmul_fp8(Tensor out, const Fp8Matrix& a, const Fp8Matrix& b, const MatmulEpilogue& epilogue,
                Tensor gelu_pre, Tensor absmax, Stream stream) {
    check_matmul_fp8(out, a, b, epilogue, gelu_pre, absmax);
    CHECK(is_aligned128(a.codes.data, b.codes.data), "operands of matmul_fp8 begin at multiples of 16 bytes");
    // f32 is what gradients of weights are: their inner dimension is the batch, and the result may be small.
    const bool may_split = out.dtype == DType::f32;
    multiply({.a = by_row(a.codes),
              .b = by_row(b.codes),
              .output = {.out = matrix_of(out),
                         .bias = matrix_of(epilogue.bias),
                         .pre_activation = epilogue.gelu ? matrix_of(epilogue.pre_activation) : Matrix{},
                         .gelu_pre = matrix_of(gelu_pre),
                         .addend = matrix_of(epilogue.residual),
                         .scale_a = a.inverse.as<float>(),
                         .scale_b = b.inverse.as<float>(),
                         .absmax = absmax_bits(absmax),
                         .rows = static_cast<int>(out.dims[0]),
                         .columns = static_cast<int>(out.dims[1])},
              .inner = static_cast<int>(a.codes.dims[1]),
              .may_split = may_split},
             stream);
}

}  // namespace GPU_NAMESPACE
