// Hugging Face directories: what is saved comes back to the bit, foreign forms load (shards, halves, bare
// names, tied heads), and what is missing, surplus or misshapen is named.
#include "model/hf.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "core/io.h"
#include "model/file_hashes.h"
#include "model/safetensors.h"
#include "tests/tiny_model.h"

namespace {

namespace fs = std::filesystem;
using HfDirectory = DirectoryTest;

// Weights as tests rewrite them: name -> shape and f32 values.
struct Weights {
    struct Entry {
        std::vector<int64_t> shape;
        std::vector<float> values;
    };
    std::map<std::string, Entry> entries;

    static Weights read(const std::string& path) {
        Weights weights;
        const SafetensorsFile file(path);
        for (const auto& [name, entry] : file.entries()) {
            std::vector<float> values(static_cast<size_t>(entry.bytes / 4));
            std::memcpy(values.data(), entry.data, static_cast<size_t>(entry.bytes));
            weights.entries[name] = {entry.shape, values};
        }
        return weights;
    }
    void write(const std::string& path,
               const std::function<bool(const std::string&)>& which = nullptr) const {
        std::vector<SafetensorsOutput> tensors;
        for (const auto& [name, entry] : entries)
            if (!which || which(name))
                tensors.push_back({name, "F32", entry.shape, [&](AtomicFile& file) {
                                       file.write(entry.values.data(),
                                                  static_cast<int64_t>(entry.values.size() * 4));
                                   }});
        write_safetensors(path, tensors, {});
    }
    void rename_all(const std::function<std::string(const std::string&)>& rename) {
        std::map<std::string, Entry> renamed;
        for (const auto& [name, entry] : entries) renamed[rename(name)] = entry;
        entries.swap(renamed);
    }
};

// --------------------------------------------------------------------------------------

TEST_F(HfDirectory, RoundTripIsExact) {
    for (const std::string& family : kTinyFamilies) {
        TinyModel model(family);
        save_hf_model(out_, model.table, model.config, model.params(), "");
        EXPECT_EQ(load_hf_config(out_), model.config) << family;
        Buffer loaded(model.params().bytes());
        load_hf_weights(out_, model.table, model.config, loaded.tensor(DType::f32));
        EXPECT_EQ(std::memcmp(loaded.data(), model.params().data, static_cast<size_t>(loaded.bytes())), 0)
            << family;
    }
}

TEST_F(HfDirectory, Conv1dMatricesAreStoredTransposed) {
    TinyModel model("tiny-gpt2");
    save_hf_model(out_, model.table, model.config, model.params(), "");
    const Weights weights = Weights::read(out_ + "/model.safetensors");
    const Weights::Entry& fc = weights.entries.at("transformer.h.1.mlp.c_fc.weight");
    ASSERT_EQ(fc.shape, (std::vector<int64_t>{model.config.channels, model.config.mlp_dim}));  // [in, out]
    const Tensor ours = model.table.slot(model.params(), Slot::fc_w, 1);                       // [out, in]
    for (int64_t o = 0; o < ours.dims[0]; ++o)
        for (int64_t i = 0; i < ours.dims[1]; ++i)
            ASSERT_EQ(fc.values[static_cast<size_t>(i * ours.dims[0] + o)],
                      ours.as<float>()[o * ours.dims[1] + i]);
}

TEST_F(HfDirectory, Bf16AndF16Load) {
    TinyModel model("tiny-gpt2", DType::bf16);
    save_hf_model(out_, model.table, model.config, model.params(), "");
    Buffer loaded(model.table.arena_size() * 4);
    float* values = static_cast<float*>(loaded.data());
    load_hf_weights(out_, model.table, model.config, loaded.tensor(DType::f32));
    const bf16* saved = model.params().as<bf16>();
    for (int64_t i = 0; i < model.table.arena_size(); ++i) ASSERT_EQ(values[i], to_float(saved[i])) << i;

    // Every F16 bit pattern through one tensor: wte of [512, 64] has room for half of them at a time.
    const ParamInfo& row = model.table.rows()[0];
    ASSERT_EQ(row.size(), 1 << 15);
    TinyModel full("tiny-gpt2");
    save_hf_model(out_, full.table, full.config, full.params(), "");
    const Weights weights = Weights::read(out_ + "/model.safetensors");
    for (const uint32_t sign : {0u, 0x8000u}) {
        std::vector<SafetensorsOutput> tensors;
        for (const auto& [name, entry] : weights.entries) {
            const bool half = name == row.hf_name;
            tensors.push_back(
                {name, half ? "F16" : "F32", entry.shape, [&, half](AtomicFile& file) {
                     for (uint32_t bits = 0; half && bits < 1u << 15; ++bits) {
                         const bool finite = bits >> 10 != 31;
                         const uint16_t signed_bits = static_cast<uint16_t>(finite ? bits | sign : 0);
                         file.write(&signed_bits, 2);
                     }
                     if (!half)
                         file.write(entry.values.data(), static_cast<int64_t>(entry.values.size() * 4));
                 }});
        }
        write_safetensors(out_ + "/model.safetensors", tensors, {});
        load_hf_weights(out_, model.table, model.config, loaded.tensor(DType::f32));
        for (uint32_t bits = 0; bits < 1u << 15; ++bits) {
            const float value = values[row.offset + bits];
            const uint32_t exponent = bits >> 10, fraction = bits & 0x3ff;
            if (exponent == 31) {
                EXPECT_EQ(value, 0);
            } else {
                EXPECT_EQ(std::signbit(value), sign != 0);
                const double magnitude = exponent
                                             ? std::ldexp(1024.0 + fraction, static_cast<int>(exponent) - 25)
                                             : std::ldexp(static_cast<double>(fraction), -24);
                ASSERT_EQ(std::fabs(value), magnitude) << bits;
            }
        }
    }
}

// Straight into a bf16 arena: the same values as by way of f32.
TEST_F(HfDirectory, LoadsIntoBf16) {
    for (const std::string& family : kTinyFamilies) {
        TinyModel model(family);
        save_hf_model(out_, model.table, model.config, model.params(), "");
        Buffer loaded(model.table.arena_size() * 2);
        load_hf_weights(out_, model.table, model.config, loaded.tensor(DType::bf16));
        for (int64_t i = 0; i < model.table.arena_size(); ++i)
            ASSERT_EQ(static_cast<bf16*>(loaded.data())[i].bits, to_bf16(model.values()[i]).bits)
                << family << i;
    }
}

TEST_F(HfDirectory, ValuesThatAreNotFiniteAreNamed) {
    TinyModel model("tiny-gpt2");
    save_hf_model(out_, model.table, model.config, model.params(), "");
    const Weights good = Weights::read(out_ + "/model.safetensors");
    Buffer loaded(model.table.arena_size() * 4);
    for (const char* name : {"transformer.ln_f.bias", "transformer.h.1.mlp.c_fc.weight"}) {
        for (const float bad : {NAN, INFINITY, -INFINITY}) {
            Weights weights = good;
            weights.entries.at(name).values.back() = bad;
            weights.write(out_ + "/model.safetensors");
            for (const DType dtype : {DType::f32, DType::bf16})
                expect_phrases(complaint([&] {
                                   load_hf_weights(out_, model.table, model.config, loaded.tensor(dtype));
                               }),
                               {"not finite", name, "hint:"});
        }
    }
    // F16 has infinities and NaN of its own.
    for (const uint16_t bits : {0x7c00, 0xfc00, 0x7e01}) {
        std::vector<SafetensorsOutput> tensors;
        for (const auto& [name, entry] : good.entries) {
            const bool half = name == "transformer.ln_f.bias";
            tensors.push_back({name, half ? "F16" : "F32", entry.shape, [&, half](AtomicFile& file) {
                                   for (size_t i = 0; half && i < entry.values.size(); ++i)
                                       file.write(&bits, 2);
                                   if (!half)
                                       file.write(entry.values.data(),
                                                  static_cast<int64_t>(entry.values.size() * 4));
                               }});
        }
        write_safetensors(out_ + "/model.safetensors", tensors, {});
        expect_phrases(
            complaint([&] { load_hf_weights(out_, model.table, model.config, loaded.tensor(DType::f32)); }),
            {"not finite", "transformer.ln_f.bias"});
    }
}

// A checkpoint's own list of hashes, where there is one, holds for the weights wherever they are loaded.
TEST_F(HfDirectory, ListedHashesAreVerified) {
    TinyModel model("tiny-llama");
    save_hf_model(out_, model.table, model.config, model.params(), "");
    const std::string path = out_ + "/model.safetensors";
    fs::create_directories(out_ + "/trainer");
    write_hashes(out_, {{"model.safetensors", file_bytes(path), sha256_file(path)}, {"elsewhere", 1, "x"}});
    const auto load = [&] { load_hf_weights(out_, model.table, model.config, model.params()); };
    EXPECT_EQ(complaint(load), "(accepted)");
    std::string content = read_file(path);
    content[content.size() / 2] = static_cast<char>(content[content.size() / 2] ^ 1);
    write_file_atomic(path, content);
    expect_phrases(complaint(load), {"damaged", path, "sha256", "hashes.json"});
}

TEST_F(HfDirectory, PresetsComeBeforeDirectories) {
    TinyModel model("tiny-qwen3");
    const fs::path here = fs::current_path();
    fs::create_directories(out_ + "/demo");
    fs::create_directories(out_ + "/mine");
    for (const char* name : {"/demo", "/mine"})
        save_hf_model(out_ + name, model.table, model.config, model.params(), "");
    fs::current_path(out_);
    EXPECT_EQ(find_model("demo").directory, "");
    EXPECT_EQ(find_model("demo").config, config_preset("demo"));
    EXPECT_EQ(find_model("./demo").directory, "./demo");
    EXPECT_EQ(find_model("./demo").config, model.config);
    EXPECT_EQ(find_model("mine").directory, "mine");
    expect_phrases(complaint([] { find_model("./nowhere"); }),
                   {"not a model directory", "hint:", "RUN/step_N"});
    expect_phrases(complaint([] { find_model("nowhere"); }), {"unknown model preset", "hint:", "RUN/step_N"});
    fs::current_path(here);
}

TEST_F(HfDirectory, EndOfTextListsAreWrittenBack) {
    TinyModel model("tiny-llama");
    model.config.eos_token = 3;
    model.config.eos_list = {3, 5};
    save_hf_model(out_, model.table, model.config, model.params(), "");
    EXPECT_EQ(load_hf_config(out_), model.config);
    for (const char* file : {"/config.json", "/generation_config.json"})
        EXPECT_EQ(nlohmann::json::parse(read_file(out_ + file))["eos_token_id"], nlohmann::json({3, 5}))
            << file;
}

TEST_F(HfDirectory, NamesWithoutPrefixKnownBuffersAndTiedHeadsLoad) {
    for (const std::string family : {"tiny-gpt2", "tiny-qwen2"}) {
        TinyModel model(family);
        save_hf_model(out_, model.table, model.config, model.params(), "");
        Weights weights = Weights::read(out_ + "/model.safetensors");
        weights.rename_all([](const std::string& name) { return name.substr(name.find('.') + 1); });
        weights.entries["h.0.attn.bias"] = {{1, 1, 2, 2}, {1, 0, 1, 1}};
        weights.entries["h.11.attn.masked_bias"] = {{}, {-1e4f}};
        weights.entries["layers.1.self_attn.rotary_emb.inv_freq"] = {{2}, {1, 0.1f}};
        ASSERT_TRUE(model.config.tied_head);
        weights.entries["lm_head.weight"] =
            weights.entries[family == "tiny-gpt2" ? "wte.weight" : "embed_tokens.weight"];
        weights.write(out_ + "/model.safetensors");
        Buffer loaded(model.params().bytes());
        load_hf_weights(out_, model.table, model.config, loaded.tensor(DType::f32));
        EXPECT_EQ(std::memcmp(loaded.data(), model.params().data, static_cast<size_t>(loaded.bytes())), 0)
            << family;

        weights.entries["lm_head.weight"].values[5] += 1;
        weights.write(out_ + "/model.safetensors");
        expect_phrases(
            complaint([&] { load_hf_weights(out_, model.table, model.config, loaded.tensor(DType::f32)); }),
            {"head differs from the embedding", "lm_head.weight", "tie_word_embeddings"});
    }
}

TEST_F(HfDirectory, WrongTensorsAreNamed) {
    TinyModel model("tiny-llama");
    save_hf_model(out_, model.table, model.config, model.params(), "");
    const std::string path = out_ + "/model.safetensors";
    const Weights good = Weights::read(path);
    const auto load_text = [&](const Weights& weights) {
        weights.write(path);
        return complaint([&] { load_hf_weights(out_, model.table, model.config, model.params()); });
    };
    Weights weights = good;
    weights.entries.erase("model.layers.1.mlp.up_proj.weight");
    expect_phrases(load_text(weights),
                   {"missing tensor", "model.layers.1.mlp.up_proj.weight [176,64]", "1 of "});

    weights = good;
    weights.entries["model.layers.2.mlp.up_proj.weight"] =
        good.entries.at("model.layers.1.mlp.up_proj.weight");
    expect_phrases(load_text(weights), {"surplus tensor", "model.layers.2.mlp.up_proj.weight"});

    weights = good;
    weights.entries["model.layers.0.self_attn.bias"] = {{1}, {0}};  // like a known buffer, and is not
    expect_phrases(load_text(weights), {"surplus tensor", "self_attn.bias"});

    weights = good;
    weights.entries["model.norm.weight"] = {{32, 2}, std::vector<float>(64)};
    expect_phrases(load_text(weights), {"wrong shape", "model.norm.weight", "F32[64]", "F32[32,2]"});

    fs::remove(path);
    expect_phrases(load_text(good), {"(accepted)"});
    fs::remove(path);
    std::ofstream(out_ + "/pytorch_model.bin") << "pickle";
    expect_phrases(complaint([&] { load_hf_weights(out_, model.table, model.config, model.params()); }),
                   {"no weights", "pytorch_model.bin only", "save_pretrained"});
    expect_phrases(complaint([&] { load_hf_config(out_ + "/nowhere"); }),
                   {"not a model directory", "no such directory"});
}

TEST_F(HfDirectory, ShardsLoadAndLyingIndexesAreRefused) {
    TinyModel model("tiny-qwen3");
    save_hf_model(out_, model.table, model.config, model.params(), "");
    const Weights weights = Weights::read(out_ + "/model.safetensors");
    fs::remove(out_ + "/model.safetensors");
    const auto in_first = [](const std::string& name) { return name.find("layers.0") != std::string::npos; };
    const std::string first = "model-00001-of-00002.safetensors", second = "model-00002-of-00002.safetensors";
    weights.write(out_ + "/" + first, in_first);
    weights.write(out_ + "/" + second, [&](const std::string& name) { return !in_first(name); });
    const auto write_index = [&](const std::string& odd_tensor, const std::string& odd_file) {
        std::string map;
        for (const auto& [name, entry] : weights.entries)
            map += (map.empty() ? "\"" : ",\"") + name + "\":\"" +
                   (name == odd_tensor ? odd_file
                    : in_first(name)   ? first
                                       : second) +
                   "\"";
        write_file_atomic(out_ + "/model.safetensors.index.json",
                          "{\"metadata\":{\"total_size\":1},\"weight_map\":{" + map + "}}");
    };
    Buffer loaded(model.params().bytes());
    const auto load = [&] { load_hf_weights(out_, model.table, model.config, loaded.tensor(DType::f32)); };
    write_index("", "");
    load();
    EXPECT_EQ(std::memcmp(loaded.data(), model.params().data, static_cast<size_t>(loaded.bytes())), 0);

    write_index("model.norm.weight", first);
    expect_phrases(complaint(load), {"missing tensor", "model.norm.weight", first});
    write_index("model.norm.weight", "../../etc/passwd");
    expect_phrases(complaint(load), {"names no file beside it", "model.norm.weight"});
    write_index("model.norm.weight", "model-00003-of-00003.safetensors");
    expect_phrases(complaint(load), {"model-00003-of-00003.safetensors"});
    write_index("", "");
    weights.write(out_ + "/" + second);  // now all tensors: those of the first shard stand twice
    expect_phrases(complaint(load), {"tensor stands in two shards", first, second});
    const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
    for (const std::string& text : {std::string("[]"), std::string("{\"weight_map\":1e999}"),
                                    std::string("{"), "{\"weight_map\":{\"a\":" + deep + "}}"}) {
        write_file_atomic(out_ + "/model.safetensors.index.json", text);
        expect_phrases(complaint(load), {"malformed shard index", "hint:"});
    }
    write_file_atomic(out_ + "/model.safetensors.index.json", "{\"weight_map\":{\"a\":[[7]]}}");
    expect_phrases(complaint(load), {"names no file beside it", "[[7]]"});
}

TEST_F(HfDirectory, TokenizerFilesAreCopied) {
    TinyModel model("tiny-llama");
    const std::string from = out_ + "/from", to = out_ + "/to";
    fs::create_directories(from);
    fs::create_directories(to);
    expect_phrases(complaint([&] { save_hf_model(to, model.table, model.config, model.params(), from); }),
                   {"no tokenizer", "tokenizer.json"});
    write_file_atomic(from + "/tokenizer.json", "{}");
    write_file_atomic(from + "/tokenizer_config.json", "{\"a\":1}");
    save_hf_model(to, model.table, model.config, model.params(), from);
    EXPECT_EQ(read_file(to + "/tokenizer.json"), "{}");
    EXPECT_EQ(read_file(to + "/tokenizer_config.json"), "{\"a\":1}");
}

// Ranks fill one file, each its own segments, cut anywhere: within rows, and within Conv1D's matrices, whose
// elements lie apart in the file. And each loads its own.
TEST_F(HfDirectory, PartsOfAnArenaMakeOneFile) {
    for (const std::string family : {"tiny-gpt2", "tiny-qwen3"}) {
        for (const DType dtype : {DType::f32, DType::bf16}) {
            TinyModel model(family, dtype);
            const int64_t size = model.table.arena_size();
            const std::string whole = out_ + "/whole.safetensors", parts = out_ + "/parts.safetensors";
            for (const std::string& path : {whole, parts}) create_arena_file(path, model.table, dtype);
            write_arena_part(whole, model.table, model.params());
            Buffer back(model.params().bytes());
            load_arena(whole, model.table, back.tensor(dtype));
            EXPECT_EQ(std::memcmp(back.data(), model.params().data, static_cast<size_t>(back.bytes())), 0);

            // Every rank has each third piece of odd lengths.
            constexpr int64_t kRanks = 3, kPiece = 641;
            for (int64_t rank = 0; rank < kRanks; ++rank) {
                std::vector<ArenaSegment> segments;
                int64_t local = 0;
                for (int64_t begin = rank * kPiece; begin < size; begin += kRanks * kPiece) {
                    segments.push_back({begin, std::min(kPiece, size - begin), local});
                    local += segments.back().size;
                }
                Buffer memory(local * dtype_bytes(dtype));
                const ArenaPart part(memory.tensor(dtype), segments, false);
                load_arena(whole, model.table, part);
                for (const ArenaSegment& s : segments) {
                    const Tensor expected = model.params().rows(s.begin, s.size);
                    ASSERT_EQ(
                        std::memcmp(part.of(s).data, expected.data, static_cast<size_t>(expected.bytes())), 0)
                        << "loaded from " << s.begin;
                }
                write_arena_part(parts, model.table, part);
            }
            EXPECT_EQ(read_file(parts), read_file(whole));
        }
    }
}

}  // namespace
