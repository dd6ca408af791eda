// The forward pass of one document's queries over blocks of its keys, with a running maximum and sum (online
// softmax). Shared by training (attention.cpp) and by prefill against a cache (attention_cached.cpp).
#pragma once
#include "core/threads.h"
#include "kernels/attention_tiles.h"

namespace ISA_NAMESPACE {
namespace {

// One document: its rows, and where its heads lie in them. Query i stands at position num_keys - num_queries
// + i.
template <class T>
struct Document {
    const T *q, *k, *v;           // of query head 0, kv head 0
    int64_t q_stride, kv_stride;  // between tokens
    T* out;                       // [num_queries, out_stride]
    int64_t out_stride;
    float* lse;  // [H, lse_stride], may be null
    int64_t lse_stride;
    int64_t num_queries, num_keys;
};

struct HeadLayout {
    int64_t dim, group;  // D; query heads per kv head
    Visibility visibility;
    float scale;
};

// Up to kQueryBlock queries of one head, and what has been summed for them so far.
struct QueryTile {
    int64_t head, first, rows;
    float* q;      // [inner][kQueryBlock] words
    float* sum;    // [kQueryBlock][column]
    float* peak;   // [kQueryBlock] largest score
    float* total;  // [kQueryBlock] sum of 2^(score - peak)
};

struct KeyTile {
    int64_t first, padded_rows;
    const float *k, *v;  // [padded_rows][row], [padded_rows / kPair][column]
};

// Turns a column of scores into probabilities in place (Bf16Pairs: word [key / 2]); updates the running peak
// and total, and sets what earlier sums have to be multiplied by.
template <class Math, bool kMasked>
void softmax_column(float* scores, int64_t rows, int64_t first_query, int64_t first_key,
                    const HeadLayout& heads, float* peak, float* total, float* decay) {
    const Vec infinity = splat(__builtin_inff()), scale = splat(heads.scale * kLog2E);
    const Vec old_peak = load(peak);
    Vec even_peak = old_peak, odd_peak = old_peak;
    for (int64_t r = 0; r < rows; r += 2) {
        float* row = scores + r * kQueryBlock;
        Vec even = load(row), odd = load(row + kQueryBlock);
        if constexpr (kMasked) {
            even = select(heads.visibility.mask(first_query, first_key + r), even, -infinity);
            odd = select(heads.visibility.mask(first_query, first_key + r + 1), odd, -infinity);
            store(row, even);
            store(row + kQueryBlock, odd);
        }
        even_peak = max(even, even_peak);
        odd_peak = max(odd, odd_peak);
    }
    const Vec new_peak = max(even_peak, odd_peak);
    store(peak, new_peak);
    // Nothing seen yet: any finite offset keeps exp2(-inf) at zero.
    const Vec offset = select(new_peak == -infinity, Vec{}, new_peak) * scale;
    Vec even_sum{}, odd_sum{};
    for (int64_t r = 0; r < rows; r += 2) {
        float* row = scores + r * kQueryBlock;
        const Vec even = exp2(load(row) * scale - offset);
        const Vec odd = exp2(load(row + kQueryBlock) * scale - offset);
        even_sum += even;
        odd_sum += odd;
        if constexpr (Math::kPair == 2) {
            store(scores + r / 2 * kQueryBlock, Math::pair_up(even, odd));
        } else {
            store(row, Math::rounded(even));
            store(row + kQueryBlock, Math::rounded(odd));
        }
    }
    const Vec factor = exp2(old_peak * scale - offset);
    store(decay, factor);
    store(total, load(total) * factor + (even_sum + odd_sum));
}

// scores [kKeyBlock][kQueryBlock] and decay [kQueryBlock] are scratch.
template <class Math>
void attend(const QueryTile& tile, const KeyTile& keys, int64_t past, const HeadLayout& heads, float* scores,
            float* decay) {
    const Widths<Math> widths{heads.dim};
    const int64_t first_query = past + tile.first, last_query = first_query + tile.rows - 1;
    const ColumnGroups groups{round_up(tile.rows, kWidth) / kWidth};
    for (int64_t g = 0; g < groups.count(); ++g) {
        const int64_t begin = groups.begin(g) * kWidth, end = begin + groups.size(g) * kWidth;
        const int64_t rows =
            score_rows(keys.padded_rows, keys.first, smaller(last_query, first_query + end - 1));
        for (int64_t r = 0; r < rows; r += kTileRows) {
            group_product<Math>(groups.size(g), scores + r * kQueryBlock + begin, kQueryBlock, Fresh{},
                                {keys.k + r * widths.row(), widths.row(), 1}, tile.q + begin, kQueryBlock,
                                widths.inner());
        }
        if (rows <= 0) continue;
        for (int64_t c = begin; c < end; c += kWidth) {
            const int64_t query = first_query + c;
            const bool masked =
                heads.visibility.partial(query, query + kWidth - 1, keys.first, keys.first + rows - 1);
            (masked ? softmax_column<Math, true>
                    : softmax_column<Math, false>)(scores + c, rows, query, keys.first, heads, tile.peak + c,
                                                   tile.total + c, decay + c);
        }
    }
    for (int64_t r = 0; r < tile.rows; r += kTileRows) {
        const int64_t seen = smaller(keys.padded_rows, round_up(first_query + r + kTileRows - keys.first, 2));
        if (seen <= 0) continue;
        row_product<Math>(widths.column() / kWidth, tile.sum + r * widths.column(), widths.column(),
                          Rescaled{decay + r}, {scores + r, 1, kQueryBlock}, keys.v, widths.column(),
                          seen / Math::kPair);
    }
}

template <class T>
void finish(const QueryTile& tile, const Document<T>& document, const HeadLayout& heads, int64_t column) {
    for (int64_t r = 0; r < tile.rows; ++r) {
        const float* sum = tile.sum + r * column;
        T* out = document.out + (tile.first + r) * document.out_stride + tile.head * heads.dim;
        const Vec inverse = splat(1.0f / tile.total[r]);
        for (int64_t c = 0; c < heads.dim; c += kWidth) {
            store_first(out + c, load(sum + c) * inverse, heads.dim - c);
        }
        if (document.lse != nullptr) {
            document.lse[tile.head * document.lse_stride + tile.first + r] =
                tile.peak[r] * heads.scale + std::log(tile.total[r]);
        }
    }
}

// Tiles that share each packed block of keys; their state has to stay in the L2 cache.
constexpr int64_t tiles_at_once(int64_t dim) { return dim <= 128 ? 4 : 2; }

template <class Math>
int64_t forward_scratch_floats(int64_t dim) {
    const Widths<Math> w{dim};
    const int64_t per_tile = kQueryBlock * (w.row() + w.column() + 2) + 64;
    return tiles_at_once(dim) * per_tile + kQueryBlock * (kKeyBlock + w.row() + 2) +
           kKeyBlock * (w.row() + w.column()) + 128;
}

// A thread's own memory, kept from call to call.
inline float* worker_scratch(int64_t floats) {
    thread_local Buffer scratch;
    const int64_t bytes = floats * static_cast<int64_t>(sizeof(float));
    if (scratch.bytes() < bytes) scratch = Buffer(bytes);
    return static_cast<float*>(scratch.data());
}

// Query tiles [begin_tile, end_tile) of the document (tile t starts at query t * kQueryBlock), all heads of
// the group of one kv head.
template <class Math, class T>
void forward_tiles(const Document<T>& document, const HeadLayout& heads, int64_t kv_head, int64_t begin_tile,
                   int64_t end_tile, float* scratch) {
    const Widths<Math> widths{heads.dim};
    const int64_t past = document.num_keys - document.num_queries;
    Workspace workspace{scratch};
    float* scores = workspace.take(kKeyBlock * kQueryBlock);
    float* decay = workspace.take(2 * kQueryBlock);
    float* staging = workspace.take(kQueryBlock * widths.row());
    float* k = workspace.take(kKeyBlock * widths.row());
    float* v = workspace.take(kKeyBlock * widths.column());
    QueryTile tiles[4];
    for (QueryTile& tile : tiles) {
        if (&tile - tiles == tiles_at_once(heads.dim)) break;
        tile.q = workspace.take(widths.row() * kQueryBlock);
        tile.sum = workspace.take(kQueryBlock * widths.column());
        tile.peak = workspace.take(kQueryBlock);
        tile.total = workspace.take(kQueryBlock);
    }
    const int64_t end_pair = end_tile * heads.group;
    for (int64_t pair = begin_tile * heads.group; pair < end_pair; pair += tiles_at_once(heads.dim)) {
        const int64_t count = smaller(tiles_at_once(heads.dim), end_pair - pair);
        for (int64_t i = 0; i < count; ++i) {
            QueryTile& tile = tiles[i];
            tile.head = kv_head * heads.group + (pair + i) % heads.group;
            tile.first = (pair + i) / heads.group * kQueryBlock;
            tile.rows = smaller(kQueryBlock, document.num_queries - tile.first);
            const int64_t padded = round_up(tile.rows, kWidth);
            pack_rows<Math>(staging, widths.row(),
                            document.q + tile.first * document.q_stride + tile.head * heads.dim,
                            document.q_stride, tile.rows, padded, heads.dim);
            transpose(tile.q, kQueryBlock, staging, widths.row(), padded, widths.row());
            for (int64_t j = 0; j < kQueryBlock * widths.column(); ++j) tile.sum[j] = 0;
            for (int64_t j = 0; j < kQueryBlock; ++j) tile.peak[j] = -__builtin_inff(), tile.total[j] = 0;
        }
        const QueryTile& last = tiles[count - 1];
        const int64_t end_key = past + last.first + last.rows;
        const int64_t begin_key = heads.visibility.first_key(past + tiles[0].first) / kKeyBlock * kKeyBlock;
        for (int64_t key = begin_key; key < end_key; key += kKeyBlock) {
            const int64_t rows = smaller(kKeyBlock, document.num_keys - key),
                          padded = round_up(rows, kTileRows);
            const int64_t from = key * document.kv_stride + kv_head * heads.dim;
            pack_rows<Math>(k, widths.row(), document.k + from, document.kv_stride, rows, padded, heads.dim);
            pack_paired<Math>(v, widths.column(), document.v + from, document.kv_stride, rows, padded,
                              heads.dim);
            const KeyTile keys{key, padded, k, v};
            // The next block's rows lie a page apart: no hardware prefetcher finds them.
            for (int64_t r = key + kKeyBlock; r < smaller(key + 2 * kKeyBlock, end_key); ++r) {
                const int64_t row = r * document.kv_stride + kv_head * heads.dim;
                for (int64_t c = 0; c < heads.dim; c += 64 / static_cast<int64_t>(sizeof(T))) {
                    __builtin_prefetch(document.k + row + c, 0, 2);
                    __builtin_prefetch(document.v + row + c, 0, 2);
                }
            }
            for (int64_t i = 0; i < count; ++i) {
                const int64_t first_query = past + tiles[i].first;
                if (key >= first_query + tiles[i].rows) continue;
                if (key + rows <= heads.visibility.first_key(first_query)) continue;
                attend<Math>(tiles[i], keys, past, heads, scores, decay);
            }
        }
        for (int64_t i = 0; i < count; ++i) finish(tiles[i], document, heads, widths.column());
    }
}

}  // namespace
}  // namespace ISA_NAMESPACE
