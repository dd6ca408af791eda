// Hopper's matrix product of bf16 numbers (matmul_hopper.h). wgmma reads shared memory at 80 of 128 bytes a
// cycle with the wide tile. Not measured yet on a GPU.
#include "kernels/matmul_hopper.h"

namespace GPU_NAMESPACE {

template <Major kMajorA_, Major kMajorB_>
struct HopperBf16 {
    using A = bf16;
    using B = bf16;
    static constexpr Major kMajorA = kMajorA_, kMajorB = kMajorB_;
    static constexpr int kInner = 64, kUnderWay = 1;

    template <class Tile>
    __device__ static void multiply(float (&sums)[Tile::kGroups][Tile::kColumns / 2], const bf16* tile_a,
                                    const bf16* tile_b, int first_row, bool first) {
        using TileA = WgmmaTile<kMajorA, Tile::kRows, kInner>;
        using TileB = WgmmaTile<kMajorB, Tile::kColumns, kInner>;
        wgmma_fence(sums);
        UNROLL
        for (int inner = 0; inner < kInner; inner += 16) {
            const uint64_t b = TileB::descriptor(tile_b, 0, inner);
            UNROLL
            for (int group = 0; group < Tile::kGroups; ++group) {
                const uint64_t a = TileA::descriptor(tile_a, first_row + group * kGroupRows, inner);
                wgmma_bf16<kMajorA, kMajorB>(sums[group], a, b, !first || inner > 0);
            }
        }
        wgmma_commit();
    }
};

bool can_multiply_hopper(const Product& product) {
    const auto can_copy = [&](const Operand& x) {
        return x.packed && (product.of_fp8() || x.lines.dtype == DType::bf16);
    };
    return (product.bf16_math || product.of_fp8()) && product.inner > 0 && can_copy(product.a) &&
           can_copy(product.b) && runs_sm90a();
}

void multiply_hopper(const Product& product, MatmulTile tile, int splits, int inner_per_split,
                     Stream stream) {
    const bool rows_a = product.a.by_row, rows_b = product.b.by_row;
    CHECK(rows_a || !rows_b, "no op multiplies columns by rows");
    const auto launch = rows_a ? (rows_b ? launch_hopper<HopperBf16<Major::k, Major::k>>
                                         : launch_hopper<HopperBf16<Major::k, Major::mn>>)
                               : launch_hopper<HopperBf16<Major::mn, Major::mn>>;
    launch(product, tile, splits, inner_per_split, stream);
}

}  // namespace GPU_NAMESPACE
