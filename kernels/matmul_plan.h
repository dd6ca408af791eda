// How a matrix product is cut for a GPU: by its shape alone, so that equal shapes give equal bits on every
// GPU and in every run.
#pragma once
#include <cstdint>

enum class MatmulTile : uint8_t { small, large };  // a block computes 64 x 64 or 128 x 128 sums

struct MatmulPlan {
    MatmulTile tile = MatmulTile::large;
    // The inner dimension in this many parts, each summed by blocks of its own; the parts are added in order.
    int64_t splits = 1;
};

constexpr int64_t matmul_tile_size(MatmulTile tile) { return tile == MatmulTile::large ? 128 : 64; }
// What split sums need at most, whatever the shape.
constexpr int64_t kMatmulMostSplitSums = int64_t{264} * 128 * 128;

MatmulPlan plan_matmul(int64_t rows, int64_t columns, int64_t inner, bool may_split);
// For tests and benchmarks: this plan for all products (its splits where may_split) and no library, until
// null is given.
void force_matmul_plan(const MatmulPlan* plan);
bool matmul_plan_is_forced();
