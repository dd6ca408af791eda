// Short pieces: an array of ids with the rank of each neighbouring pair, scanned for its minimum. Long
// pieces: a linked list and a heap of (rank, position).
#include "tokenizer/bpe.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "core/error.h"

namespace {

constexpr size_t kLongPiece = 64;  // bytes; the two forms cost about the same here
constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();

uint32_t rank_of(const MergeTable& table, int32_t left, int32_t right) {
    const MergeRule* rule = table.rules.find(left, right);
    return rule ? static_cast<uint32_t>(rule->rank) : kNoRank;
}

void merge_short(const MergeTable& table, std::string_view piece, std::vector<int32_t>& ids) {
    int32_t parts[kLongPiece];
    uint32_t ranks[kLongPiece];  // of the pair (i, i + 1)
    size_t count = piece.size();
    for (size_t i = 0; i < count; ++i) parts[i] = table.byte_ids[static_cast<uint8_t>(piece[i])];
    for (size_t i = 0; i + 1 < count; ++i) ranks[i] = rank_of(table, parts[i], parts[i + 1]);
    while (count > 1) {
        const size_t best = static_cast<size_t>(std::min_element(ranks, ranks + count - 1) - ranks);
        if (ranks[best] == kNoRank) break;
        parts[best] = table.rules.find(parts[best], parts[best + 1])->merged;
        --count;
        std::copy(parts + best + 2, parts + count + 1, parts + best + 1);
        if (best + 1 < count) std::copy(ranks + best + 1, ranks + count, ranks + best);
        if (best > 0) ranks[best - 1] = rank_of(table, parts[best - 1], parts[best]);
        if (best + 1 < count) ranks[best] = rank_of(table, parts[best], parts[best + 1]);
    }
    ids.insert(ids.end(), parts, parts + count);
}

struct Link {
    int32_t id;
    uint32_t previous, next;
    uint32_t rank;  // of the pair (this, next); kNoRank also marks a link that was merged away
};

void merge_long(const MergeTable& table, std::string_view piece, std::vector<int32_t>& ids) {
    CHECK(piece.size() < kNoRank, cat({"a piece of ", piece.size(), " bytes"}));
    const uint32_t count = static_cast<uint32_t>(piece.size());
    std::vector<Link> links(count);
    for (uint32_t i = 0; i < count; ++i)
        links[i] = {table.byte_ids[static_cast<uint8_t>(piece[i])], i - 1, i + 1, kNoRank};

    // Entries go stale when a link's pair changes: an entry counts only while its rank is the link's. Rank in
    // the high half and position in the low: the smallest entry is the leftmost of the lowest rank.
    std::vector<uint64_t> heap;
    heap.reserve(count);
    const auto refresh = [&](uint32_t at, bool push) {
        Link& link = links[at];
        link.rank = link.next < count ? rank_of(table, link.id, links[link.next].id) : kNoRank;
        if (link.rank == kNoRank) return;
        heap.push_back(uint64_t{link.rank} << 32 | at);
        if (push) std::push_heap(heap.begin(), heap.end(), std::greater<>());
    };
    for (uint32_t i = 0; i < count; ++i) refresh(i, false);
    std::make_heap(heap.begin(), heap.end(), std::greater<>());

    while (!heap.empty()) {
        std::pop_heap(heap.begin(), heap.end(), std::greater<>());
        const uint64_t entry = heap.back();
        heap.pop_back();
        const uint32_t at = static_cast<uint32_t>(entry);
        Link& link = links[at];
        if (link.rank != static_cast<uint32_t>(entry >> 32)) continue;
        Link& gone = links[link.next];
        link.id = table.rules.find(link.id, gone.id)->merged;
        gone.rank = kNoRank;
        link.next = gone.next;
        if (link.next < count) links[link.next].previous = at;
        refresh(at, true);
        if (at > 0) refresh(link.previous, true);
    }
    for (uint32_t i = 0; i < count; i = links[i].next) ids.push_back(links[i].id);
}

}  // namespace

void merge_piece(const MergeTable& table, std::string_view piece, std::vector<int32_t>& ids) {
    if (piece.size() < kLongPiece) {
        merge_short(table, piece, ids);
    } else {
        merge_long(table, piece, ids);
    }
}
