// The rows of the parameter table for each family, and their initial values.
#include "model/params.h"

#include <cmath>

#include "core/device.h"
#include "core/error.h"
#include "core/threads.h"

namespace {
// Appends rows; a slot's first piece starts aligned, its other pieces follow without a gap.
class TableBuilder {
public:
    TableBuilder(std::vector<ParamInfo>& rows, const ModelConfig& config)
        : rows_(rows),
          std_(config.init_std),
          residual_std_(config.init_std / std::sqrt(2 * double(config.num_layers))) {}

    void matrix(Slot slot, int64_t layer, const std::string& name, int64_t num_rows, int64_t num_cols) {
        ParamInfo row{
            .hf_name = name, .slot = slot, .layer = layer, .rows = num_rows, .cols = num_cols, .rank = 2};
        row.init = Init::normal;
        // The residual stream is the sum of 2L such outputs (GPT-2).
        row.init_std = slot == Slot::out_w || slot == Slot::proj_w ? residual_std_ : std_;
        row.decay = true;
        row.muon = layer >= 0;
        append(row);
    }
    void conv1d(Slot slot, int64_t layer, const std::string& name, int64_t num_rows, int64_t num_cols) {
        matrix(slot, layer, name, num_rows, num_cols);
        rows_.back().hf_transposed = true;
    }
    void vector(Slot slot, int64_t layer, const std::string& name, int64_t length, Init init) {
        append({.hf_name = name,
                .slot = slot,
                .layer = layer,
                .rows = length,
                .cols = 1,
                .rank = 1,
                .init = init});
    }
    int64_t end() const { return end_; }

private:
    void append(ParamInfo row) {
        const bool continues =
            !rows_.empty() && rows_.back().slot == row.slot && rows_.back().layer == row.layer;
        if (!continues) end_ = (end_ + kSlotAlign - 1) / kSlotAlign * kSlotAlign;
        row.offset = end_;
        end_ += row.size();
        rows_.push_back(std::move(row));
    }
    std::vector<ParamInfo>& rows_;
    double std_, residual_std_;
    int64_t end_ = 0;
};

void add_gpt2(TableBuilder& table, const ModelConfig& c) {
    table.matrix(Slot::wte, -1, "transformer.wte.weight", c.vocab_size, c.channels);
    table.matrix(Slot::wpe, -1, "transformer.wpe.weight", c.max_position, c.channels);
    for (int64_t l = 0; l < c.num_layers; ++l) {
        const std::string at = cat({"transformer.h.", l, "."});
        table.vector(Slot::norm1_w, l, at + "ln_1.weight", c.channels, Init::ones);
        table.vector(Slot::norm1_b, l, at + "ln_1.bias", c.channels, Init::zeros);
        table.conv1d(Slot::qkv_w, l, at + "attn.c_attn.weight", c.qkv_dim(), c.channels);
        table.vector(Slot::qkv_b, l, at + "attn.c_attn.bias", c.qkv_dim(), Init::zeros);
        table.conv1d(Slot::out_w, l, at + "attn.c_proj.weight", c.channels, c.attention_dim());
        table.vector(Slot::out_b, l, at + "attn.c_proj.bias", c.channels, Init::zeros);
        table.vector(Slot::norm2_w, l, at + "ln_2.weight", c.channels, Init::ones);
        table.vector(Slot::norm2_b, l, at + "ln_2.bias", c.channels, Init::zeros);
        table.conv1d(Slot::fc_w, l, at + "mlp.c_fc.weight", c.mlp_dim, c.channels);
        table.vector(Slot::fc_b, l, at + "mlp.c_fc.bias", c.mlp_dim, Init::zeros);
        table.conv1d(Slot::proj_w, l, at + "mlp.c_proj.weight", c.channels, c.mlp_dim);
        table.vector(Slot::proj_b, l, at + "mlp.c_proj.bias", c.channels, Init::zeros);
    }
    table.vector(Slot::final_norm_w, -1, "transformer.ln_f.weight", c.channels, Init::ones);
    table.vector(Slot::final_norm_b, -1, "transformer.ln_f.bias", c.channels, Init::zeros);
}

void add_llama_like(TableBuilder& table, const ModelConfig& c) {
    const int64_t q_dim = c.num_heads * c.head_dim, kv_dim = c.num_kv_heads * c.head_dim;
    table.matrix(Slot::wte, -1, "model.embed_tokens.weight", c.vocab_size, c.channels);
    for (int64_t l = 0; l < c.num_layers; ++l) {
        const std::string at = cat({"model.layers.", l, "."});
        table.vector(Slot::norm1_w, l, at + "input_layernorm.weight", c.channels, Init::ones);
        table.matrix(Slot::qkv_w, l, at + "self_attn.q_proj.weight", q_dim, c.channels);
        table.matrix(Slot::qkv_w, l, at + "self_attn.k_proj.weight", kv_dim, c.channels);
        table.matrix(Slot::qkv_w, l, at + "self_attn.v_proj.weight", kv_dim, c.channels);
        if (c.qkv_bias) {
            table.vector(Slot::qkv_b, l, at + "self_attn.q_proj.bias", q_dim, Init::zeros);
            table.vector(Slot::qkv_b, l, at + "self_attn.k_proj.bias", kv_dim, Init::zeros);
            table.vector(Slot::qkv_b, l, at + "self_attn.v_proj.bias", kv_dim, Init::zeros);
        }
        if (c.qk_norm) {
            table.vector(Slot::q_norm, l, at + "self_attn.q_norm.weight", c.head_dim, Init::ones);
            table.vector(Slot::k_norm, l, at + "self_attn.k_norm.weight", c.head_dim, Init::ones);
        }
        table.matrix(Slot::out_w, l, at + "self_attn.o_proj.weight", c.channels, q_dim);
        if (c.out_bias) table.vector(Slot::out_b, l, at + "self_attn.o_proj.bias", c.channels, Init::zeros);
        table.vector(Slot::norm2_w, l, at + "post_attention_layernorm.weight", c.channels, Init::ones);
        table.matrix(Slot::fc_w, l, at + "mlp.gate_proj.weight", c.mlp_dim, c.channels);
        table.matrix(Slot::fc_w, l, at + "mlp.up_proj.weight", c.mlp_dim, c.channels);
        if (c.mlp_bias) {
            table.vector(Slot::fc_b, l, at + "mlp.gate_proj.bias", c.mlp_dim, Init::zeros);
            table.vector(Slot::fc_b, l, at + "mlp.up_proj.bias", c.mlp_dim, Init::zeros);
        }
        table.matrix(Slot::proj_w, l, at + "mlp.down_proj.weight", c.channels, c.mlp_dim);
        if (c.mlp_bias) table.vector(Slot::proj_b, l, at + "mlp.down_proj.bias", c.channels, Init::zeros);
    }
    table.vector(Slot::final_norm_w, -1, "model.norm.weight", c.channels, Init::ones);
}
}  // namespace

ParamTable::ParamTable(const ModelConfig& config) {
    check_config(config, "model configuration");
    TableBuilder table(rows_, config);
    if (config.family == "gpt2") {
        add_gpt2(table, config);
    } else {
        add_llama_like(table, config);
    }
    if (!config.tied_head)
        table.matrix(Slot::head_w, -1, "lm_head.weight", config.vocab_size, config.channels);
    for (ParamInfo& row : rows_) {
        if (row.slot == Slot::qkv_w && row.hf_transposed) row.muon_blocks = 3;  // q, k, v in one HF tensor
        num_params_ += row.size();
    }
    arena_size_ = (table.end() + kSlotAlign - 1) / kSlotAlign * kSlotAlign;
    // Rows of a layer follow each other, and those behind the last layer follow it.
    unit_begins_.assign(static_cast<size_t>(config.num_layers) + 3, arena_size_);
    unit_begins_[0] = 0;
    int64_t unit = 0;
    for (const ParamInfo& row : rows_) {
        const int64_t at = row.layer >= 0 ? row.layer + 1 : unit == 0 ? 0 : config.num_layers + 1;
        for (; unit < at; ++unit) unit_begins_[static_cast<size_t>(unit) + 1] = row.offset;
    }
}

Tensor ParamTable::slot(Tensor arena, Slot slot, int64_t layer, int64_t begin) const {
    const ParamInfo* first = nullptr;
    int64_t num_rows = 0;
    for (const ParamInfo& row : rows_) {
        if (row.slot != slot || row.layer != layer) continue;
        if (!first) first = &row;
        num_rows += row.rows;
    }
    if (!first) return {};
    const Tensor flat = arena.rows(first->offset - begin, num_rows * first->cols);
    return first->rank == 2 ? flat.view(num_rows, first->cols) : flat;
}

Tensor ParamTable::tensor(Tensor arena, const ParamInfo& row, int64_t begin) const {
    const Tensor flat = arena.rows(row.offset - begin, row.size());
    return row.rank == 2 ? flat.view(row.rows, row.cols) : flat;
}

void init_params(const ParamTable& table, ArenaPart arena, uint64_t seed) {
    constexpr int64_t kGrain = 1 << 14;
    for (size_t r = 0; r < table.rows().size(); ++r) {
        const ParamInfo& row = table.rows()[r];
        if (row.init == Init::zeros) continue;
        const RandomKey key{.seed = seed, .stream = r};
        const float std = float(row.init_std);
        arena.for_each_piece(row.offset, row.offset + row.size(), [&](Tensor out, int64_t at) {
            const int64_t first = at - row.offset;
            Buffer staging(out.on_host() ? 0 : out.bytes());
            float* values = out.on_host() ? out.as<float>() : static_cast<float*>(staging.data());
            parallel_ranges(out.size(), kGrain, [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i) {
                    values[i] = row.init == Init::ones ? 1.0f : std * random_normal(key, uint64_t(first + i));
                }
            });
            if (!out.on_host()) copy_tensor(out, staging.tensor(DType::f32));
        });
    }
}
