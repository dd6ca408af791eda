// The parameter table: counts of the published models, the order and alignment that slots rely on, and
// initial values.
#include "model/params.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "core/threads.h"

namespace {
int64_t count(const char* preset) { return ParamTable(config_preset(preset)).num_params(); }

const ParamInfo& row_named(const ParamTable& table, const std::string& name) {
    for (const ParamInfo& row : table.rows()) {
        if (row.hf_name == name) return row;
    }
    ADD_FAILURE() << "no row " << name;
    return table.rows().front();
}
}  // namespace

// As counted by the published checkpoints (a tied head once).
TEST(Params, PresetsHaveThePublishedSizes) {
    EXPECT_EQ(count("gpt2-124m"), 124439808);
    EXPECT_EQ(count("gpt2-355m"), 354823168);
    EXPECT_EQ(count("gpt2-774m"), 774030080);
    EXPECT_EQ(count("gpt2-1558m"), 1557611200);
    EXPECT_EQ(count("llama-160m"), 162417408);
    EXPECT_EQ(count("llama-1b"), 1235814400);
    EXPECT_EQ(count("llama-3b"), 3212749824);
    EXPECT_EQ(count("llama-8b"), 8030261248);
    EXPECT_EQ(count("qwen2.5-0.5b"), 494032768);
    EXPECT_EQ(count("qwen2.5-1.5b"), 1543714304);
    EXPECT_EQ(count("qwen2.5-3b"), 3085938688);
    EXPECT_EQ(count("qwen2.5-7b"), 7615616512);
    EXPECT_EQ(count("qwen3-0.6b"), 596049920);
}

TEST(Params, SlotsAreContiguousAlignedAndDisjoint) {
    for (const std::string& name : config_preset_names()) {
        SCOPED_TRACE(name);
        const ParamTable table(config_preset(name));
        int64_t end = 0, sum = 0;
        std::set<std::string> names;
        const ParamInfo* before = nullptr;
        for (const ParamInfo& row : table.rows()) {
            EXPECT_TRUE(names.insert(row.hf_name).second) << row.hf_name;
            const bool same_slot = before && before->slot == row.slot && before->layer == row.layer;
            if (same_slot) {
                EXPECT_EQ(row.offset, end) << row.hf_name;
            } else {
                EXPECT_EQ(row.offset % kSlotAlign, 0) << row.hf_name;
                EXPECT_GE(row.offset, end);
                EXPECT_LT(row.offset, end + kSlotAlign);
            }
            end = row.offset + row.size();
            sum += row.size();
            before = &row;
        }
        EXPECT_EQ(sum, table.num_params());
        EXPECT_GE(table.arena_size(), end);
        EXPECT_EQ(table.arena_size() % kSlotAlign, 0);
    }
}

TEST(Params, ASlotIsOneMatrixOfItsPieces) {
    const ModelConfig config = config_preset("tiny-llama");
    const ParamTable table(config);
    std::vector<float> arena(size_t(table.arena_size()));
    const Tensor whole = tensor_of(arena.data(), table.arena_size());
    const Tensor half = make_tensor(arena.data(), DType::bf16, table.arena_size());
    const Tensor qkv = table.slot(whole, Slot::qkv_w, 1);
    EXPECT_EQ(shape_text(qkv), "f32[128,64]");
    const ParamInfo& k = row_named(table, "model.layers.1.self_attn.k_proj.weight");
    EXPECT_EQ(shape_text(table.tensor(whole, k)), "f32[32,64]");
    EXPECT_EQ(table.tensor(whole, k).data, qkv.rows(64, 32).data);
    EXPECT_EQ(shape_text(table.slot(half, Slot::fc_w, 0)), "bf16[352,64]");
    EXPECT_EQ(shape_text(table.slot(whole, Slot::final_norm_w)), "f32[64]");
    EXPECT_TRUE(table.slot(whole, Slot::qkv_b, 0).absent());
    EXPECT_TRUE(table.slot(whole, Slot::wpe).absent());
}

// Names and shapes as transformers keeps them: [rows, cols] here is [in, out] there when hf_transposed.
TEST(Params, NamesOfEveryFamily) {
    const ParamTable gpt2(config_preset("gpt2-124m"));
    EXPECT_EQ(gpt2.rows().size(), 148u);
    const ParamInfo& attention = row_named(gpt2, "transformer.h.11.attn.c_attn.weight");
    EXPECT_TRUE(attention.hf_transposed);
    EXPECT_EQ(attention.rows, 2304);
    EXPECT_EQ(attention.cols, 768);
    EXPECT_EQ(attention.muon_blocks, 3);
    EXPECT_FALSE(row_named(gpt2, "transformer.wpe.weight").hf_transposed);
    EXPECT_FALSE(row_named(gpt2, "transformer.wte.weight").muon);
    EXPECT_TRUE(row_named(gpt2, "transformer.h.0.mlp.c_proj.weight").muon);
    EXPECT_FALSE(row_named(gpt2, "transformer.h.0.mlp.c_proj.bias").decay);

    EXPECT_EQ(ParamTable(config_preset("llama-160m")).rows().size(), 111u);
    EXPECT_EQ(row_named(ParamTable(config_preset("llama-160m")), "lm_head.weight").rows, 32000);
    EXPECT_EQ(ParamTable(config_preset("llama-1b")).rows().size(), 146u);
    EXPECT_EQ(row_named(ParamTable(config_preset("tiny-qwen2")), "model.layers.0.self_attn.v_proj.bias").rows,
              32);
    const ParamTable qwen3(config_preset("qwen3-0.6b"));
    EXPECT_EQ(qwen3.rows().size(), 310u);
    EXPECT_EQ(row_named(qwen3, "model.layers.27.self_attn.k_norm.weight").rows, 128);
    for (const ParamInfo& row : qwen3.rows()) {
        EXPECT_EQ(row.decay, row.rank == 2) << row.hf_name;
        EXPECT_EQ(row.muon, row.rank == 2 && row.layer >= 0) << row.hf_name;
    }
}

TEST(Params, InitialValuesFollowTheTable) {
    const ModelConfig config = config_preset("tiny-gpt2");
    const ParamTable table(config);
    std::vector<float> arena(size_t(table.arena_size()));
    init_params(table, tensor_of(arena.data(), table.arena_size()), 7);
    for (const ParamInfo& row : table.rows()) {
        double sum = 0, square = 0;
        for (int64_t i = 0; i < row.size(); ++i) {
            const double x = arena[row.offset + i];
            sum += x, square += x * x;
        }
        const double n = double(row.size());
        if (row.init == Init::zeros) {
            EXPECT_EQ(square, 0) << row.hf_name;
        }
        if (row.init == Init::ones) {
            EXPECT_EQ(square, n) << row.hf_name;
        }
        if (row.init != Init::normal) continue;
        const bool residual = row.slot == Slot::out_w || row.slot == Slot::proj_w;
        const double std = residual ? 0.02 / std::sqrt(2.0 * config.num_layers) : 0.02;
        EXPECT_DOUBLE_EQ(row.init_std, std) << row.hf_name;
        // Five standard errors of the mean and of the deviation.
        EXPECT_NEAR(sum / n, 0, 5 * std / std::sqrt(n)) << row.hf_name;
        EXPECT_NEAR(std::sqrt(square / n), std, 5 * std / std::sqrt(2 * n)) << row.hf_name;
    }
}

TEST(Params, InitialValuesDependOnTheSeedAlone) {
    const ParamTable table(config_preset("tiny-qwen3"));
    const auto values = [&](uint64_t seed, int threads) {
        set_num_threads(threads);
        std::vector<float> arena(size_t(table.arena_size()));
        init_params(table, tensor_of(arena.data(), table.arena_size()), seed);
        return arena;
    };
    const std::vector<float> first = values(1, 1);
    EXPECT_TRUE(values(1, 3) == first);
    EXPECT_FALSE(values(2, 3) == first);
    // No two matrices are alike.
    const ParamInfo& gate = row_named(table, "model.layers.0.mlp.gate_proj.weight");
    const ParamInfo& up = row_named(table, "model.layers.0.mlp.up_proj.weight");
    EXPECT_NE(first[gate.offset], first[up.offset]);
}
