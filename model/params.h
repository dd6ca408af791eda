// THE parameter table: one row per Hugging Face tensor. Sizes, pointers, init, checkpoints, sharding, weight
// decay and gradient tests all iterate it; no other list of tensors exists.
//
// Rows lie in one flat arena in table order. Rows of one slot (q, k, v; gate, up) are adjacent, so that the
// slot is one matrix for one matmul. A slot begins at a multiple of kSlotAlign elements.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/rng.h"
#include "core/tensor.h"
#include "model/config.h"

enum class Slot : uint8_t {
    wte,
    wpe,  // [V,C], [maxT,C]
    norm1_w,
    norm1_b,  // [C]
    qkv_w,
    qkv_b,  // [(H+2K)D, C], [(H+2K)D]
    q_norm,
    k_norm,  // [D]
    out_w,
    out_b,  // [C, HD], [C]
    norm2_w,
    norm2_b,  // [C]
    fc_w,
    fc_b,  // [F,C] or [2F,C] (gate, up), [F] or [2F]
    proj_w,
    proj_b,  // [C,F], [C]
    final_norm_w,
    final_norm_b,  // [C]
    head_w,        // [V,C]; absent when tied
};

enum class Init : uint8_t { normal, zeros, ones };

struct ParamInfo {
    std::string hf_name;  // "model.layers.3.self_attn.q_proj.weight"
    Slot slot;
    int64_t layer = -1;          // -1: not in a layer
    int64_t rows = 0, cols = 0;  // vectors: rows = length, cols = 1
    int rank = 1;                // as stored in HF: 1 or 2
    bool hf_transposed = false;  // GPT-2's Conv1D keeps [in,out]; ours is [out,in] always
    Init init = Init::zeros;
    double init_std = 0;
    bool decay = false;       // weight decay: matrices only
    bool muon = false;        // hidden matrices; embeddings, head and vectors are AdamW's
    int64_t muon_blocks = 1;  // row blocks orthogonalised alone (GPT-2's fused q,k,v: 3)
    int64_t offset = 0;       // elements from the arena's start
    int64_t size() const { return rows * cols; }
};

constexpr int64_t kSlotAlign = 32;  // elements: 64 bytes in bf16

class ParamTable {
public:
    explicit ParamTable(const ModelConfig& config);
    const std::vector<ParamInfo>& rows() const { return rows_; }
    int64_t arena_size() const { return arena_size_; }  // elements, padding included
    int64_t num_params() const { return num_params_; }  // padding excluded, a tied head counted once
    // An arena is a flat tensor of arena_size() elements, f32 or bf16, on any device.
    // The whole slot as one tensor of the arena: [rows of all its pieces, cols], vectors [rows].
    // Absent tensor when the model has no such slot. `arena` may be a piece of one, from element `first` on.
    Tensor slot(Tensor arena, Slot slot, int64_t layer = -1, int64_t first = 0) const;
    // One row's tensor: [rows, cols] or [rows].
    Tensor tensor(Tensor arena, const ParamInfo& row, int64_t first = 0) const;

    // Units: what is in memory as a whole while the model is at it (the word is FSDP's). 0: what lies before
    // the layers; 1 .. L: the layers; L + 1: what lies behind them. Unit u is [unit_begin(u),
    // unit_begin(u + 1)) of the arena, padding included.
    int64_t num_units() const { return static_cast<int64_t>(unit_begins_.size()) - 1; }
    int64_t unit_begin(int64_t unit) const { return unit_begins_[static_cast<size_t>(unit)]; }
    int64_t unit_size(int64_t unit) const { return unit_begin(unit + 1) - unit_begin(unit); }

private:
    std::vector<ParamInfo> rows_;
    std::vector<int64_t> unit_begins_;
    int64_t arena_size_ = 0, num_params_ = 0;
};

// A stretch of the arena: where it begins there, and where in the memory of whoever has only such stretches.
struct ArenaSegment {
    int64_t begin = 0, size = 0;  // elements
    int64_t local = 0;
};
// An arena of which a rank holds all, or some segments only, one behind another.
struct ArenaPart {
    Tensor data;
    std::vector<ArenaSegment> segments;
    bool whole = true;  // data is the whole arena, whatever the segments

    ArenaPart() = default;
    ArenaPart(Tensor arena)  // all of it
        : data(arena), segments{{0, arena.absent() ? 0 : arena.dims[0], 0}} {}
    ArenaPart(Tensor d, std::vector<ArenaSegment> s, bool w) : data(d), segments(std::move(s)), whole(w) {}
    Tensor of(const ArenaSegment& s) const { return data.rows(whole ? s.begin : s.local, s.size); }
    // For the pieces of [begin, end) that lie in the segments: use(tensor, their first element).
    template <class Use>
    void for_each_piece(int64_t begin, int64_t end, const Use& use) const {
        for (const ArenaSegment& s : segments) {
            const int64_t from = std::max(begin, s.begin), to = std::min(end, s.begin + s.size);
            if (from < to) use(of(s).rows(from - s.begin, to - from), from);
        }
    }
};

// Fills a zeroed f32 arena by the table's init column. Element i of a row draws from (seed, row index, i)
// alone. Residual projections (out_w, proj_w) are scaled by 1/sqrt(2L).
void init_params(const ParamTable& table, ArenaPart arena, uint64_t seed);
