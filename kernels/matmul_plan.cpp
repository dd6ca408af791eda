// The choice of tile and splits. Large tiles read each operand half as often as small ones, so they are taken
// wherever they give every multiprocessor work.
#include "kernels/matmul_plan.h"

#include <algorithm>
#include <optional>

#include "kernels/isa.h"

#ifdef ISA_PLAIN
namespace {

// Two large tiles on each of 132 multiprocessors (H100, H200): one wave.
constexpr int64_t kWave = kMatmulMostSplitSums / (128 * 128);
// The shortest part of a split: below, writing and adding the parts costs more than the idle SMs.
constexpr int64_t kLeastInner = 512;

std::optional<MatmulPlan> g_forced;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

MatmulPlan plan_matmul(int64_t rows, int64_t columns, int64_t inner, bool may_split) {
    if (g_forced) return {g_forced->tile, may_split ? g_forced->splits : 1};
    const auto plan = [&](MatmulTile tile) -> MatmulPlan {
        const int64_t size = matmul_tile_size(tile);
        const int64_t tiles = std::max<int64_t>(1, ceil_div(rows, size) * ceil_div(columns, size));
        const int64_t splits =
            may_split ? std::clamp<int64_t>(kWave / tiles, 1, std::max<int64_t>(1, inner / kLeastInner)) : 1;
        return {tile, splits};
    };
    const MatmulPlan large = plan(MatmulTile::large);
    const int64_t blocks = ceil_div(rows, 128) * ceil_div(columns, 128) * large.splits;
    return blocks >= kWave / 2 ? large : plan(MatmulTile::small);
}

void force_matmul_plan(const MatmulPlan* plan) {
    g_forced = plan != nullptr ? std::optional(*plan) : std::nullopt;
}

bool matmul_plan_is_forced() { return g_forced.has_value(); }
#endif
