// Sizes that only measuring can choose, each with its reason (bench/NOTEBOOK.md has the numbers). They change
// speed, never results.
#pragma once
#include <cstdint>

#include "kernels/simd.h"

namespace ISA_NAMESPACE {

// ---- matmul: the register tile is kTileRows x kTileCols sums ----
constexpr int kTileVectors = 3;
constexpr int kTileCols = kTileVectors * kWidth;
#if defined(__AVX512F__)
constexpr int kTileRows = 8;  // 24 of 32 registers hold sums: 24 FMAs for 11 loads
#elif defined(__AVX2__)
constexpr int kTileRows = 4;  // 12 of 16 registers hold sums: 12 FMAs for 7 loads
#else
constexpr int kTileRows = 2;
#endif
// Inner units (one f32, or two bf16) per block. A row panel then has 12 KiB and stays in the first-level
// cache while the columns of a strip, in the second level, pass by; a tile is 4,600 to 9,200 cycles of FMAs,
// beside which the hundred or so around it do not count.
#if defined(__AVX512F__)
constexpr int64_t kBlockUnits = 384;
#else
constexpr int64_t kBlockUnits = 768;
#endif
// Packing goes piece by piece, a cache line of each row (or column) at a time.
constexpr int64_t kPieceUnits = 16;
// A task's strip is at most this many tiles of kTileCols wide: 147 KiB packed. The second-level cache (1 MiB)
// also holds the block that is packed meanwhile and, for 256 tokens, the shared operand.
constexpr int64_t kStripTiles = 2;
// The operand that all threads share is packed at most this wide at a time, ...
constexpr int64_t kSharedWidth = 24 * 48;
// ... and this long: 8 MiB of the third-level cache.
constexpr int64_t kSharedUnits = (int64_t{8} << 20) / 4;
// Sums kept between blocks of a long inner dimension: 4 MiB.
constexpr int64_t kPartialSums = (int64_t{4} << 20) / 4;

// A weight gradient of at least this size is written past the caches: it is read again by the optimizer only.
constexpr int64_t kStreamBytes = int64_t{2} << 20;

}  // namespace ISA_NAMESPACE
