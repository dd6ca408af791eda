// Matrix product of bf16 numbers on tensor cores, f32 sums. 2 M N K FLOPs; each operand is read once per row
// (column) of tiles, from L2 for the most part. Bound by the tensor cores' mma instruction: a warp's 64 x 64
// sums need 8 ldmatrix for 32 mma. Not measured yet on a GPU.
// Every sum takes the inner indices from first to last, 16 in each mma, whatever the tile: equal bits
// wherever a row lies. Of a symmetric result half of the tiles are computed; each is stored on both sides.
#include "kernels/matmul_mma.h"

namespace GPU_NAMESPACE {
namespace {

struct MmaBf16 {
    static constexpr bool kBatches = true;
    __device__ static void add_product(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        mma_bf16(c, a, b);
    }
};

template <class Tile, bool kCopied>
void launch_layout(const Product& product, int splits, int inner_per_split, Stream stream) {
    const bool rows_a = product.a.by_row, rows_b = product.b.by_row;
    const auto launch = rows_a ? (rows_b ? launch_product<MmaBf16, Tile, true, true, kCopied>
                                         : launch_product<MmaBf16, Tile, true, false, kCopied>)
                               : launch_product<MmaBf16, Tile, false, false, kCopied>;
    CHECK(rows_a || !rows_b, "no op multiplies columns by rows");
    launch(product, splits, inner_per_split, stream);
}

template <class Tile, bool kCopied>
void launch_symmetric(const Product& product, int splits, int inner_per_split, Stream stream) {
    const bool by_row = product.a.by_row;
    CHECK(product.b.by_row == by_row, "a matrix by itself");
    const auto launch = by_row ? launch_product<MmaBf16, Tile, true, true, kCopied, true>
                               : launch_product<MmaBf16, Tile, false, false, kCopied, true>;
    launch(product, splits, inner_per_split, stream);
}

// Whether 16 bytes at a time can be copied as they are.
bool can_copy(const Operand& operand, int line_elements) {
    return operand.lines.dtype == DType::bf16 && operand.packed &&
           (line_elements % kChunk == 0 || operand.padded);
}

}  // namespace

void multiply_bf16(const Product& product, MatmulTile tile, int splits, int inner_per_split, Stream stream) {
    const Output& output = product.output;
    const bool copied = can_copy(product.a, product.a.by_row ? product.inner : output.rows) &&
                        can_copy(product.b, product.b.by_row ? product.inner : output.columns);
    const bool large = tile == MatmulTile::large;
    if (output.symmetric) {  // staged, Muon's are small
        const auto launch =
            copied ? (large ? launch_symmetric<CopiedLarge, true> : launch_symmetric<CopiedSmall, true>)
                   : launch_symmetric<StagedSmall, false>;
        return launch(product, splits, inner_per_split, stream);
    }
    const auto launch = copied
                            ? (large ? launch_layout<CopiedLarge, true> : launch_layout<CopiedSmall, true>)
                            : (large ? launch_layout<StagedLarge, false> : launch_layout<StagedSmall, false>);
    launch(product, splits, inner_per_split, stream);
}

}  // namespace GPU_NAMESPACE
