// Which rank holds what of the flat arenas (ZeRO: Rajbhandari et al. 2020). Every unit of the parameter table
// is cut into one range a rank, so that a unit can be gathered, and its gradients be reduced, on its own.
// Nothing has to divide: ranges begin where a chunk does, but never within a matrix that Muon updates, and
// what one unit gives a rank too much the next one takes back.
//   stage   a rank holds only its own part of
//     0     nothing
//     1     the optimizer's state
//     2     that, and the gradients
//     3     that, and the parameters
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/comm.h"
#include "model/params.h"

class Sharding {
public:
    // muon: matrices of the table that are Muon's stay whole.
    Sharding(const ParamTable& table, bool muon, int stage, int num_ranks);

    int stage() const { return stage_; }
    int num_ranks() const { return num_ranks_; }
    // Of the elements of a unit, from its begin.
    const Split& split(int64_t unit) const { return splits_[static_cast<size_t>(unit)]; }
    // A rank's ranges, one a unit, with places in compact memory of own_size() elements.
    const std::vector<ArenaSegment>& own(int rank) const { return own_[static_cast<size_t>(rank)]; }
    int64_t own_size(int rank) const;
    // What a rank updates: its own, or with stage 0 everything.
    std::vector<ArenaSegment> updated(int rank) const;
    // An arena of which a rank holds its own part only from stage `from` on: elements of its memory, and that
    // memory as an arena.
    int64_t held_size(int rank, int from) const;
    ArenaPart held(Tensor memory, int rank, int from) const;

private:
    int stage_, num_ranks_;
    int64_t arena_size_;
    std::vector<Split> splits_;
    std::vector<std::vector<ArenaSegment>> own_;
};

// Memory in which one unit after another has its turn: neighbouring layers have different places, so that one
// can be on its way while the other is used. Units 0 and L + 1 share one, unless the head is tied to the
// embedding: then both are needed at once.
struct UnitPlaces {
    static constexpr int kCount = 4;
    int64_t sizes[kCount] = {};  // elements
    int64_t last_unit = 0;
    bool tied = false;

    UnitPlaces(const ParamTable& table, bool tied_head);
    int of(int64_t unit) const {
        if (unit == 0) return 2;
        if (unit == last_unit) return tied ? 3 : 2;
        return static_cast<int>(unit % 2);
    }
    int64_t size() const { return sizes[0] + sizes[1] + sizes[2] + sizes[3]; }
};

// Pieces of rows, cut without regard to ranks: what norms and hashes are made from, so that they have the
// same bits however an arena is sharded. Padding is in none of them.
struct Chunk {
    int64_t begin = 0, size = 0;  // elements of the arena
    bool cut_before = false;      // whether a rank's range may begin here
};
constexpr int64_t kChunkElements = 1 << 16;
std::vector<Chunk> chunks_of(const ParamTable& table, bool muon);

// The sum of squares of all gradients, f64 [1], in the order of chunks; on all ranks. Where the arena is a
// device's it is whole, and the device's kernel adds it up in an order of its own.
class GradientNorm {
public:
    GradientNorm(const ParamTable& table, bool muon, Comm* comm);  // null: alone
    void into(Tensor squares, const ArenaPart& grads);

private:
    std::vector<Chunk> chunks_;
    std::vector<double> sums_;
    Comm* comm_;
};

// Hash of every parameter's f32 master bytes, of all ranks (XXH3-128 of the chunks' XXH3-128): equal runs
// print equal hashes.
std::string weights_hash(const ParamTable& table, const ArenaPart& master, Comm* comm = nullptr);
