// Hopper's matrix product of FP8 numbers (matmul_hopper.h). Not measured yet on a GPU.
//
// Hopper's tensor cores are reported to keep 14 bits of the sums of FP8 products, which costs a sum over 4096
// inner indices up to 2 % (DeepSeek-V3, arXiv:2412.19437, section 3.3.2). So, as there, every stage of 128
// inner indices is summed by itself and then added to the sums in f32. A thread has 128 sums, and registers
// for 64 more: a stage is multiplied in parts of 64 x 128, one after the other, and shared memory is read at
// 96 of its 128 bytes a cycle with both tiles.
//
// A part takes the tensor cores 4 x 64 cycles, and its additions take their warps 64. With the wide tile the
// other warpgroup multiplies meanwhile, so that they cost nothing; with the square one, whose warpgroups
// multiply in turn, they are waited for. A kernel that leaves them out would gain a fifth there, and is not
// offered: equal products shall have equal errors.
#include "kernels/matmul_hopper.h"

namespace GPU_NAMESPACE {

template <class A_>
struct HopperFp8 {
    using A = A_;
    using B = e4m3;
    static constexpr Major kMajorA = Major::k, kMajorB = Major::k;
    static constexpr int kInner = 128, kUnderWay = 0;

    template <class Tile>
    __device__ static void multiply(float (&sums)[Tile::kGroups][Tile::kColumns / 2], const A* tile_a,
                                    const B* tile_b, int first_row, bool first) {
        using TileA = WgmmaTile<kMajorA, Tile::kRows, kInner, A>;
        using TileB = WgmmaTile<kMajorB, Tile::kColumns, kInner, B>;
        constexpr int kPartSums = 64;  // of 128 columns
        UNROLL
        for (int group = 0; group < Tile::kGroups; ++group) {
            UNROLL
            for (int done = 0; done < Tile::kColumns / 2; done += kPartSums) {
                float part[kPartSums];
                wgmma_fence(part);
                UNROLL
                for (int inner = 0; inner < kInner; inner += 32) {
                    wgmma_fp8<A>(part, TileA::descriptor(tile_a, first_row + group * kGroupRows, inner),
                                 TileB::descriptor(tile_b, 2 * done, inner), inner > 0);
                }
                wgmma_commit();
                wgmma_wait<0>(part);
                UNROLL
                for (int i = 0; i < kPartSums; ++i) {
                    float& sum = sums[group][done + i];
                    sum = first ? part[i] : sum + part[i];
                }
            }
        }
    }
};

void multiply_hopper_fp8(const Product& product, MatmulTile tile, int splits, int inner_per_split,
                         Stream stream) {
    const auto launch = product.a.lines.dtype == DType::e5m2 ? launch_hopper<HopperFp8<e5m2>>
                                                             : launch_hopper<HopperFp8<e4m3>>;
    launch(product, tile, splits, inner_per_split, stream);
}

}  // namespace GPU_NAMESPACE
