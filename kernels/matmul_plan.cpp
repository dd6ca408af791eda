// The choice of tile and splits. Large tiles read each operand half as often as small ones, so they are taken
// wherever they give every multiprocessor work.
#include "kernels/matmul_plan.h"

#include <algorithm>
#include <optional>

#include "kernels/isa.h"

#ifdef ISA_PLAIN
namespace {

// The shortest part of a split: below, writing and adding the parts costs more than the idle SMs.
constexpr int64_t kLeastInner = 512;
// A wide tile takes 20/11 of a square one's time, an estimate: it reads three quarters of the bytes a sum.
constexpr int64_t kWideTime = 20, kSquareTime = 11;

std::optional<MatmulPlan> g_forced;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t num_tiles(MatmulTile tile, int64_t rows, int64_t columns) {
    const MatmulTileShape shape = shape_of(tile);
    return std::max<int64_t>(1, ceil_div(rows, shape.rows) * ceil_div(columns, shape.columns));
}

// As many splits as fit one wave.
MatmulPlan plan_of(MatmulTile tile, int64_t rows, int64_t columns, int64_t inner, bool may_split) {
    if (!may_split) return {tile, 1};
    const int64_t tiles = num_tiles(tile, rows, columns);
    return {tile,
            std::clamp<int64_t>(shape_of(tile).blocks / tiles, 1, std::max<int64_t>(1, inner / kLeastInner))};
}

}  // namespace

std::vector<MatmulPlan> hopper_plans(int64_t rows, int64_t columns, int64_t inner, bool may_split) {
    return {plan_of(MatmulTile::hopper_wide, rows, columns, inner, may_split),
            plan_of(MatmulTile::hopper_square, rows, columns, inner, may_split)};
}

MatmulPlan plan_matmul(int64_t rows, int64_t columns, int64_t inner, bool may_split, bool hopper) {
    if (g_forced) {
        const bool can = hopper || !is_hopper(g_forced->tile);
        return {can ? g_forced->tile : MatmulTile::large, may_split ? g_forced->splits : 1};
    }
    const auto blocks = [&](const MatmulPlan& plan) {
        return num_tiles(plan.tile, rows, columns) * plan.splits;
    };
    const auto fills_half = [&](const MatmulPlan& plan) {
        return blocks(plan) >= shape_of(plan.tile).blocks / 2;
    };
    if (hopper) {
        const std::vector<MatmulPlan> plans = hopper_plans(rows, columns, inner, may_split);
        const MatmulPlan wide = plans[0], square = plans[1];
        // Waves of blocks, each as long as its tile and its part of the inner dimension.
        const auto time = [&](const MatmulPlan& plan, int64_t tile_time) {
            return ceil_div(blocks(plan), shape_of(plan.tile).blocks) * tile_time *
                   ceil_div(inner, plan.splits);
        };
        if (fills_half(square)) return time(wide, kWideTime) <= time(square, kSquareTime) ? wide : square;
    }
    const MatmulPlan large = plan_of(MatmulTile::large, rows, columns, inner, may_split);
    return fills_half(large) ? large : plan_of(MatmulTile::small, rows, columns, inner, may_split);
}

int64_t split_sums_bytes(int64_t rows, int64_t columns, int64_t inner) {
    std::vector<MatmulPlan> plans = hopper_plans(rows, columns, inner, true);
    for (const bool hopper : {false, true}) plans.push_back(plan_matmul(rows, columns, inner, true, hopper));
    const bool splits =
        std::any_of(plans.begin(), plans.end(), [](const MatmulPlan& plan) { return plan.splits > 1; });
    return splits ? kMatmulSplitSumsBytes : 0;
}

void force_matmul_plan(const MatmulPlan* plan) {
    g_forced = plan != nullptr ? std::optional(*plan) : std::nullopt;
}

bool matmul_plan_is_forced() { return g_forced.has_value(); }
#endif
