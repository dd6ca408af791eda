// Cuts, and what is added up or hashed chunk by chunk.
#include "model/sharding.h"

#include <algorithm>

#include "core/device.h"
#include "core/error.h"
#include "core/io.h"
#include "core/threads.h"
#include "kernels/global_norm.h"

std::vector<Chunk> chunks_of(const ParamTable& table, bool muon) {
    std::vector<Chunk> chunks;
    for (const ParamInfo& row : table.rows()) {
        const int64_t block = row.size() / row.muon_blocks;
        for (int64_t i = 0; i < row.muon_blocks; ++i) {
            for (int64_t at = 0; at < block; at += kChunkElements) {
                chunks.push_back({.begin = row.offset + i * block + at,
                                  .size = std::min(kChunkElements, block - at),
                                  .cut_before = at == 0 || !(muon && row.muon)});
            }
        }
    }
    return chunks;
}

Sharding::Sharding(const ParamTable& table, bool muon, int stage, int num_ranks)
    : stage_(stage), num_ranks_(num_ranks), arena_size_(table.arena_size()) {
    CHECK(stage >= 0 && stage <= 3 && num_ranks > 0, cat({"stage ", stage, ", ", num_ranks, " ranks"}));
    const std::vector<Chunk> chunks = chunks_of(table, muon);
    // How many elements of all units so far lie before each rank's range.
    std::vector<int64_t> before(static_cast<size_t>(num_ranks));
    size_t next = 0;
    for (int64_t unit = 0; unit < table.num_units(); ++unit) {
        const int64_t unit_begin = table.unit_begin(unit), size = table.unit_size(unit);
        std::vector<int64_t> cuts = {0};
        for (; next < chunks.size() && chunks[next].begin < unit_begin + size; ++next)
            if (chunks[next].cut_before) cuts.push_back(chunks[next].begin - unit_begin);
        cuts.push_back(size);
        Split split{.size = size, .num_ranks = num_ranks, .begins = {0}};
        for (int rank = 1; rank < num_ranks; ++rank) {
            int64_t& so_far = before[static_cast<size_t>(rank)];
            const int64_t wanted = table.unit_begin(unit + 1) * rank / num_ranks - so_far;
            const auto above = std::lower_bound(cuts.begin(), cuts.end(), wanted);
            int64_t nearest = above == cuts.end() ? size : *above;
            if (above != cuts.begin() && wanted - above[-1] < nearest - wanted) nearest = above[-1];
            split.begins.push_back(std::max(nearest, split.begins.back()));
            so_far += split.begins.back();
        }
        split.begins.push_back(size);
        splits_.push_back(std::move(split));
    }
    for (int rank = 0; rank < num_ranks; ++rank) {
        std::vector<ArenaSegment> own;
        int64_t end = 0;
        for (int64_t unit = 0; unit < table.num_units(); ++unit) {
            const int64_t begin = table.unit_begin(unit) + splits_[static_cast<size_t>(unit)].begin(rank);
            // As far from a multiple of kSlotAlign as in the arena: kernels treat both alike.
            const int64_t local = end + ((begin - end) % kSlotAlign + kSlotAlign) % kSlotAlign;
            own.push_back({begin, splits_[static_cast<size_t>(unit)].count(rank), local});
            end = local + own.back().size;
        }
        own_.push_back(std::move(own));
    }
}

int64_t Sharding::own_size(int rank) const { return own(rank).back().local + own(rank).back().size; }

std::vector<ArenaSegment> Sharding::updated(int rank) const {
    if (stage_ > 0) return own(rank);
    return {{0, arena_size_, 0}};
}

int64_t Sharding::held_size(int rank, int from) const {
    return stage_ >= from ? own_size(rank) : arena_size_;
}

ArenaPart Sharding::held(Tensor memory, int rank, int from) const {
    return {memory, updated(rank), stage_ < from};
}

UnitPlaces::UnitPlaces(const ParamTable& table, bool tied_head)
    : last_unit(table.num_units() - 1), tied(tied_head) {
    for (int64_t unit = 0; unit <= last_unit; ++unit) {
        int64_t& size = sizes[of(unit)];
        size = std::max(size, table.unit_size(unit));
    }
}

namespace {

// use(chunk number, its tensor) for every chunk that lies in the part, on all threads.
template <class Use>
void for_each_chunk(const std::vector<Chunk>& chunks, const ArenaPart& part, const Use& use) {
    parallel_for(static_cast<int64_t>(chunks.size()), [&](int64_t i) {
        const Chunk& chunk = chunks[static_cast<size_t>(i)];
        part.for_each_piece(chunk.begin, chunk.begin + chunk.size, [&](Tensor piece, int64_t) {
            CHECK(piece.size() == chunk.size, cat({"chunk ", i, " is cut"}));
            use(static_cast<size_t>(i), piece);
        });
    });
}

}  // namespace

GradientNorm::GradientNorm(const ParamTable& table, bool muon, Comm* comm)
    : chunks_(chunks_of(table, muon)), sums_(chunks_.size()), comm_(comm) {}

void GradientNorm::into(Tensor squares, const ArenaPart& grads) {
    if (!grads.data.on_host()) {
        CHECK(grads.whole && comm_ == nullptr, "a device's gradients are whole");
        return sum_of_squares_into(squares, grads.data);
    }
    std::fill(sums_.begin(), sums_.end(), 0.0);
    for_each_chunk(chunks_, grads, [&](size_t i, Tensor chunk) { sums_[i] = sum_of_squares(chunk); });
    // Of numbers and zeros: exact.
    if (comm_ != nullptr) comm_->all_reduce_sum(tensor_of(sums_.data(), static_cast<int64_t>(sums_.size())));
    double total = 0;
    for (const double sum : sums_) total += sum;
    *squares.as<double>() = total;
}

std::string weights_hash(const ParamTable& table, const ArenaPart& master, Comm* comm) {
    const std::vector<Chunk> chunks = chunks_of(table, false);
    const HostCopy copy(master.data);
    const ArenaPart on_host(copy.tensor(), master.segments, master.whole);
    // Between ranks as sums of numbers and zeros, in halves of 64 bits, which f64 holds exactly.
    constexpr size_t kHalves = 4;
    std::vector<double> halves(chunks.size() * kHalves);
    for_each_chunk(chunks, on_host, [&](size_t i, Tensor chunk) {
        const Hash128 hash = hash128(chunk.data, chunk.bytes());
        size_t at = i * kHalves;
        for (const uint64_t half :
             {hash.low & UINT32_MAX, hash.low >> 32, hash.high & UINT32_MAX, hash.high >> 32})
            halves[at++] = static_cast<double>(half);
    });
    if (comm != nullptr) comm->all_reduce_sum(tensor_of(halves.data(), static_cast<int64_t>(halves.size())));
    std::vector<uint32_t> hashes(halves.begin(), halves.end());
    return hex(hash128(hashes.data(), static_cast<int64_t>(hashes.size() * sizeof(uint32_t))));
}
