// How a matrix product is cut for a GPU: by its shape, and by whether Hopper's instructions can do it, so
// that equal shapes give equal bits on every GPU of a kind and in every run.
#pragma once
#include <cstdint>
#include <vector>

// A block computes 64 x 64 or 128 x 128 sums, or, by Hopper's instructions (matmul_hopper.cu), 128 x 128 or
// 128 x 256.
enum class MatmulTile : uint8_t { small, large, hopper_square, hopper_wide };

struct MatmulPlan {
    MatmulTile tile = MatmulTile::large;
    // The inner dimension in this many parts, each summed by blocks of its own; the parts are added in order.
    int64_t splits = 1;
    bool operator==(const MatmulPlan&) const = default;
};

struct MatmulTileShape {
    int64_t rows, columns;
    int64_t inner;   // what a split's part is a multiple of
    int64_t blocks;  // that fill 132 multiprocessors (H100, H200): one wave
};
constexpr MatmulTileShape shape_of(MatmulTile tile) {
    switch (tile) {
        case MatmulTile::small: return {64, 64, 32, 264};
        case MatmulTile::large: return {128, 128, 32, 264};
        case MatmulTile::hopper_square: return {128, 128, 64, 132};
        case MatmulTile::hopper_wide: return {128, 256, 64, 132};
    }
    return {};
}
constexpr bool is_hopper(MatmulTile tile) {
    return tile == MatmulTile::hopper_square || tile == MatmulTile::hopper_wide;
}
// What split sums need at most, in f32, whatever the shape.
constexpr int64_t kMatmulSplitSumsBytes = int64_t{264} * 128 * 128 * 4;

// hopper: its tiles can do the product.
MatmulPlan plan_matmul(int64_t rows, int64_t columns, int64_t inner, bool may_split, bool hopper);
// One plan for each of Hopper's tiles: what is worth timing beside a library.
std::vector<MatmulPlan> hopper_plans(int64_t rows, int64_t columns, int64_t inner, bool may_split);
// What any of these plans may need for split sums of the shape: 0 where none splits.
int64_t split_sums_bytes(int64_t rows, int64_t columns, int64_t inner);
// For tests and benchmarks: this plan for all products (its splits where may_split; large tiles where it asks
// for Hopper's and they cannot) and no library, until null is given.
void force_matmul_plan(const MatmulPlan* plan);
bool matmul_plan_is_forced();
