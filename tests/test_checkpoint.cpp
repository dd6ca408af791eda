// Hugging Face directories and checkpoints: what is saved comes back to the bit in every dtype, foreign forms
// load, wrong ones are named, and neither a killed writer, a damaged file nor a full disk makes a run resume
// from rubbish.
#include "model/checkpoint.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "core/error.h"
#include "core/io.h"
#include "kernels/cast.h"
#include "model/safetensors.h"

namespace {

namespace fs = std::filesystem;
const std::string kFamilies[] = {"tiny-gpt2", "tiny-llama", "tiny-qwen2", "tiny-qwen3"};

// A model in memory: table, f32 values and the arena of `dtype` that a transformer would read.
struct Model {
    ModelConfig config;
    ParamTable table;
    DType dtype;
    Buffer params;

    Model(const ModelConfig& c, DType d, uint64_t seed) : config(c), table(c), dtype(d) {
        Buffer values(table.arena_size() * 4);
        init_params(table, static_cast<float*>(values.data()), seed);
        params = Buffer(table.arena_size() * dtype_bytes(dtype));
        cast(make_tensor(params.data(), dtype, table.arena_size()),
             make_tensor(values.data(), DType::f32, table.arena_size()));
    }
    explicit Model(const std::string& preset, DType d = DType::f32, uint64_t seed = 1)
        : Model(config_preset(preset), d, seed) {}
    Optimizer optimizer() { return Optimizer(table, {}, params.data(), dtype, MatmulMath::f32); }
    float* values() { return static_cast<float*>(params.data()); }
};

class Checkpoint : public testing::Test {
protected:
    void SetUp() override {
        char pattern[] = "/tmp/test_checkpoint.XXXXXX";
        out_ = mkdtemp(pattern);
    }
    void TearDown() override { fs::remove_all(out_); }

    template <class F>
    static std::string complaint(F&& body) {
        try {
            body();
        } catch (const InputError& error) {
            return error.what();
        }
        return "(accepted)";
    }
    static void expect_phrases(const std::string& text, const std::vector<std::string>& phrases) {
        for (const std::string& phrase : phrases)
            EXPECT_NE(text.find(phrase), std::string::npos) << "no \"" << phrase << "\" in: " << text;
    }
    std::string save(Model& model, const Optimizer& optimizer, int64_t step) {
        TrainerState state;
        state.step = step;
        state.num_updates = optimizer.num_updates();
        state.num_skipped = optimizer.num_skipped();
        save_checkpoint(out_, model.table, model.config, model.params.data(), model.dtype, optimizer, state,
                        "");
        return out_ + "/" + checkpoint_name(step);
    }
    static TrainerState load(const std::string& directory, Model& model, Optimizer& optimizer) {
        return load_checkpoint(directory, model.table, model.config, model.params.data(), model.dtype,
                               optimizer);
    }

    std::string out_;
};

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

// ---- Hugging Face directories
// --------------------------------------------------------------------------------------

TEST_F(Checkpoint, HfDirectoryRoundTripIsExact) {
    for (const std::string& family : kFamilies) {
        Model model(family);
        save_hf_model(out_, model.table, model.config, model.params.data(), DType::f32, "");
        EXPECT_EQ(load_hf_config(out_), model.config) << family;
        Buffer loaded(model.params.bytes());
        load_hf_weights(out_, model.table, model.config, static_cast<float*>(loaded.data()));
        EXPECT_EQ(std::memcmp(loaded.data(), model.params.data(), static_cast<size_t>(loaded.bytes())), 0)
            << family;
    }
}

TEST_F(Checkpoint, Conv1dMatricesAreStoredTransposed) {
    Model model("tiny-gpt2");
    save_hf_model(out_, model.table, model.config, model.params.data(), DType::f32, "");
    const Weights weights = Weights::read(out_ + "/model.safetensors");
    const Weights::Entry& fc = weights.entries.at("transformer.h.1.mlp.c_fc.weight");
    ASSERT_EQ(fc.shape, (std::vector<int64_t>{model.config.channels, model.config.mlp_dim}));  // [in, out]
    const Tensor ours = model.table.slot(model.params.data(), DType::f32, Slot::fc_w, 1);      // [out, in]
    for (int64_t o = 0; o < ours.dims[0]; ++o)
        for (int64_t i = 0; i < ours.dims[1]; ++i)
            ASSERT_EQ(fc.values[static_cast<size_t>(i * ours.dims[0] + o)],
                      ours.as<float>()[o * ours.dims[1] + i]);
}

TEST_F(Checkpoint, Bf16AndF16Load) {
    Model model("tiny-gpt2", DType::bf16);
    save_hf_model(out_, model.table, model.config, model.params.data(), DType::bf16, "");
    Buffer loaded(model.table.arena_size() * 4);
    float* values = static_cast<float*>(loaded.data());
    load_hf_weights(out_, model.table, model.config, values);
    const bf16* saved = static_cast<const bf16*>(model.params.data());
    for (int64_t i = 0; i < model.table.arena_size(); ++i) ASSERT_EQ(values[i], to_float(saved[i])) << i;

    // Every F16 bit pattern through one tensor: wte of [512, 64] has room for half of them at a time.
    const ParamInfo& row = model.table.rows()[0];
    ASSERT_EQ(row.size(), 1 << 15);
    Model full("tiny-gpt2");
    save_hf_model(out_, full.table, full.config, full.params.data(), DType::f32, "");
    const Weights weights = Weights::read(out_ + "/model.safetensors");
    for (const uint32_t sign : {0u, 0x8000u}) {
        std::vector<SafetensorsOutput> tensors;
        for (const auto& [name, entry] : weights.entries) {
            const bool half = name == row.hf_name;
            tensors.push_back({name, half ? "F16" : "F32", entry.shape, [&, half](AtomicFile& file) {
                                   for (uint32_t bits = 0; half && bits < 1u << 15; ++bits) {
                                       const uint16_t signed_bits = static_cast<uint16_t>(bits | sign);
                                       file.write(&signed_bits, 2);
                                   }
                                   if (!half)
                                       file.write(entry.values.data(),
                                                  static_cast<int64_t>(entry.values.size() * 4));
                               }});
        }
        write_safetensors(out_ + "/model.safetensors", tensors, {});
        load_hf_weights(out_, model.table, model.config, values);
        for (uint32_t bits = 0; bits < 1u << 15; ++bits) {
            const float value = values[row.offset + bits];
            const uint32_t exponent = bits >> 10, fraction = bits & 0x3ff;
            EXPECT_EQ(std::signbit(value), sign != 0);
            if (exponent == 31 && fraction) {
                EXPECT_TRUE(std::isnan(value));
            } else if (exponent == 31) {
                EXPECT_TRUE(std::isinf(value));
            } else {
                const double magnitude = exponent
                                             ? std::ldexp(1024.0 + fraction, static_cast<int>(exponent) - 25)
                                             : std::ldexp(static_cast<double>(fraction), -24);
                ASSERT_EQ(std::fabs(value), magnitude) << bits;
            }
        }
    }
}

TEST_F(Checkpoint, NamesWithoutPrefixKnownBuffersAndTiedHeadsLoad) {
    for (const std::string family : {"tiny-gpt2", "tiny-qwen2"}) {
        Model model(family);
        save_hf_model(out_, model.table, model.config, model.params.data(), DType::f32, "");
        Weights weights = Weights::read(out_ + "/model.safetensors");
        weights.rename_all([](const std::string& name) { return name.substr(name.find('.') + 1); });
        weights.entries["h.0.attn.bias"] = {{1, 1, 2, 2}, {1, 0, 1, 1}};
        weights.entries["h.11.attn.masked_bias"] = {{}, {-1e4f}};
        weights.entries["layers.1.self_attn.rotary_emb.inv_freq"] = {{2}, {1, 0.1f}};
        ASSERT_TRUE(model.config.tied_head);
        weights.entries["lm_head.weight"] =
            weights.entries[family == "tiny-gpt2" ? "wte.weight" : "embed_tokens.weight"];
        weights.write(out_ + "/model.safetensors");
        Buffer loaded(model.params.bytes());
        load_hf_weights(out_, model.table, model.config, static_cast<float*>(loaded.data()));
        EXPECT_EQ(std::memcmp(loaded.data(), model.params.data(), static_cast<size_t>(loaded.bytes())), 0)
            << family;

        weights.entries["lm_head.weight"].values[5] += 1;
        weights.write(out_ + "/model.safetensors");
        expect_phrases(complaint([&] {
                           load_hf_weights(out_, model.table, model.config,
                                           static_cast<float*>(loaded.data()));
                       }),
                       {"head differs from the embedding", "lm_head.weight", "tie_word_embeddings"});
    }
}

TEST_F(Checkpoint, WrongTensorsAreNamed) {
    Model model("tiny-llama");
    save_hf_model(out_, model.table, model.config, model.params.data(), DType::f32, "");
    const std::string path = out_ + "/model.safetensors";
    const Weights good = Weights::read(path);
    const auto load_text = [&](const Weights& weights) {
        weights.write(path);
        return complaint([&] { load_hf_weights(out_, model.table, model.config, model.values()); });
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
    expect_phrases(complaint([&] { load_hf_weights(out_, model.table, model.config, model.values()); }),
                   {"no weights", "pytorch_model.bin only", "save_pretrained"});
    expect_phrases(complaint([&] { load_hf_config(out_ + "/nowhere"); }),
                   {"not a model directory", "no such directory"});
}

TEST_F(Checkpoint, ShardsLoadAndLyingIndexesAreRefused) {
    Model model("tiny-qwen3");
    save_hf_model(out_, model.table, model.config, model.params.data(), DType::f32, "");
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
    Buffer loaded(model.params.bytes());
    const auto load = [&] {
        load_hf_weights(out_, model.table, model.config, static_cast<float*>(loaded.data()));
    };
    write_index("", "");
    load();
    EXPECT_EQ(std::memcmp(loaded.data(), model.params.data(), static_cast<size_t>(loaded.bytes())), 0);

    write_index("model.norm.weight", first);
    expect_phrases(complaint(load), {"missing tensor", "model.norm.weight", first});
    write_index("model.norm.weight", "../../etc/passwd");
    expect_phrases(complaint(load), {"names no file beside it", "model.norm.weight"});
    write_index("model.norm.weight", "model-00003-of-00003.safetensors");
    expect_phrases(complaint(load), {"model-00003-of-00003.safetensors"});
    write_index("", "");
    weights.write(out_ + "/" + second);  // now all tensors: those of the first shard stand twice
    expect_phrases(complaint(load), {"tensor stands in two shards", first, second});
    write_file_atomic(out_ + "/model.safetensors.index.json", "[]");
    expect_phrases(complaint(load), {"malformed shard index"});
}

TEST_F(Checkpoint, TokenizerFilesAreCopied) {
    Model model("tiny-llama");
    const std::string from = out_ + "/from", to = out_ + "/to";
    fs::create_directories(from);
    fs::create_directories(to);
    expect_phrases(complaint([&] {
                       save_hf_model(to, model.table, model.config, model.params.data(), DType::f32, from);
                   }),
                   {"no tokenizer", "tokenizer.json"});
    write_file_atomic(from + "/tokenizer.json", "{}");
    write_file_atomic(from + "/tokenizer_config.json", "{\"a\":1}");
    save_hf_model(to, model.table, model.config, model.params.data(), DType::f32, from);
    EXPECT_EQ(read_file(to + "/tokenizer.json"), "{}");
    EXPECT_EQ(read_file(to + "/tokenizer_config.json"), "{\"a\":1}");
}

// ---- checkpoints
// ---------------------------------------------------------------------------------------------------

// Fills m and v as two steps of training would.
void take_steps(Model& model, Optimizer& optimizer, int steps) {
    Buffer grads(model.table.arena_size() * 4);
    for (int step = 0; step < steps; ++step) {
        for (const ParamInfo& row : model.table.rows())
            for (int64_t i = 0; i < row.size(); ++i)
                static_cast<float*>(grads.data())[row.offset + i] =
                    random_normal({uint64_t(optimizer.num_updates()), 7}, uint64_t(row.offset + i));
        optimizer.step(static_cast<float*>(grads.data()), 1e-3, 3.0);
    }
}

std::string bytes_of(const void* data, int64_t bytes) {
    return std::string(static_cast<const char*>(data), static_cast<size_t>(bytes));
}

// To the bit: steps, save, load into fresh memory, steps == the same without the break.
TEST_F(Checkpoint, ResumedOptimizationIsTheSameToTheBit) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
        for (const std::string& family : kFamilies) {
            Model straight(family, dtype);
            Optimizer straight_optimizer = straight.optimizer();
            take_steps(straight, straight_optimizer, 2);
            const std::string path = save(straight, straight_optimizer, dtype == DType::f32 ? 1 : 2);
            take_steps(straight, straight_optimizer, 2);

            Model resumed(family, dtype, 99);  // other weights: everything must come from the file
            Optimizer resumed_optimizer = resumed.optimizer();
            const TrainerState state = load(path, resumed, resumed_optimizer);
            EXPECT_EQ(state.num_updates, 2);
            take_steps(resumed, resumed_optimizer, 2);

            const int64_t bytes = straight.table.arena_size() * 4;
            EXPECT_EQ(bytes_of(straight.params.data(), straight.params.bytes()),
                      bytes_of(resumed.params.data(), resumed.params.bytes()));
            EXPECT_EQ(bytes_of(straight_optimizer.master(), bytes),
                      bytes_of(resumed_optimizer.master(), bytes));
            EXPECT_EQ(bytes_of(straight_optimizer.moment1(), bytes),
                      bytes_of(resumed_optimizer.moment1(), bytes));
            EXPECT_EQ(bytes_of(straight_optimizer.moment2(), bytes),
                      bytes_of(resumed_optimizer.moment2(), bytes));
            EXPECT_EQ(weights_hash(straight.table, straight_optimizer.master()),
                      weights_hash(resumed.table, resumed_optimizer.master()));
            fs::remove_all(path);
        }
    }
}

TEST_F(Checkpoint, DtypeMayChangeBetweenRuns) {
    Model full("tiny-llama");
    Optimizer full_optimizer = full.optimizer();
    take_steps(full, full_optimizer, 1);
    const std::string path = save(full, full_optimizer, 1);

    Model half("tiny-llama", DType::bf16, 99);
    Optimizer half_optimizer = half.optimizer();
    load(path, half, half_optimizer);
    EXPECT_EQ(weights_hash(half.table, half_optimizer.master()),
              weights_hash(full.table, full_optimizer.master()));
    const bf16* rounded = static_cast<const bf16*>(half.params.data());
    for (int64_t i = 0; i < full.table.arena_size(); ++i)
        ASSERT_EQ(rounded[i].bits, to_bf16(full.values()[i]).bits) << i;

    take_steps(half, half_optimizer, 1);
    const std::string back = save(half, half_optimizer, 2);
    EXPECT_TRUE(path_exists(back + "/trainer/master.safetensors"));
    EXPECT_FALSE(
        path_exists(path + "/trainer/master.safetensors"));  // model.safetensors holds the same numbers
    load(back, full, full_optimizer);
    EXPECT_EQ(weights_hash(full.table, full_optimizer.master()),
              weights_hash(half.table, half_optimizer.master()));
}

TEST_F(Checkpoint, StateComesBackExactly) {
    Model model("tiny-gpt2");
    Optimizer optimizer = model.optimizer();
    optimizer.set_num_updates(41);
    optimizer.set_num_skipped(1);
    TrainerState state;
    state.step = 42;
    state.next_sample = (int64_t{1} << 60) + 1;
    state.tokens = 123456789012345;
    state.num_updates = 41;
    state.num_skipped = 1;
    for (int i = 0; i < 100; ++i) {
        state.loss_window.push_back(std::exp(std::sin(i)) / 3);  // no short decimal form
        state.norm_window.push_back(std::ldexp(1.0 / (i + 3), i % 2 ? -900 : 900));
    }
    state.best_val_loss = std::numeric_limits<double>::infinity();
    state.seed = ~uint64_t{0};
    state.config_toml = "lr = 0.1\nname = \"\xc3\xa9 \\\"x\\\"\"\n";
    state.data_hash = "d";
    state.commit = "c";
    state.run_id = "r";
    save_checkpoint(out_, model.table, model.config, model.params.data(), DType::f32, optimizer, state, "");
    Optimizer other = model.optimizer();
    const TrainerState loaded = load(out_ + "/step_00000042", model, other);
    EXPECT_EQ(loaded.step, state.step);
    EXPECT_EQ(loaded.next_sample, state.next_sample);
    EXPECT_EQ(loaded.tokens, state.tokens);
    EXPECT_EQ(loaded.loss_window, state.loss_window);
    EXPECT_EQ(loaded.norm_window, state.norm_window);
    EXPECT_EQ(loaded.best_val_loss, state.best_val_loss);
    EXPECT_EQ(loaded.seed, state.seed);
    EXPECT_EQ(loaded.config_toml, state.config_toml);
    EXPECT_EQ(loaded.data_hash + loaded.commit + loaded.run_id, "dcr");
    EXPECT_EQ(other.num_updates(), 41);
    EXPECT_EQ(other.num_skipped(), 1);
    EXPECT_EQ(other.loss_window().values(), state.loss_window);
    EXPECT_EQ(other.norm_window().values(), state.norm_window);
}

TEST_F(Checkpoint, NewestIsByNameAndWhole) {
    Model model("tiny-llama");
    Optimizer optimizer = model.optimizer();
    EXPECT_EQ(newest_checkpoint(out_), "");
    EXPECT_EQ(newest_checkpoint(out_ + "/nowhere"), "");
    const std::string second = save(model, optimizer, 20);
    const std::string first = save(model, optimizer, 3);  // written later, yet older
    const std::string huge = save(model, optimizer, 123456789012);
    EXPECT_EQ(huge, out_ + "/step_123456789012");
    fs::create_directories(out_ + "/step_99");        // not a name of ours
    fs::create_directories(out_ + "/step_00000099");  // not whole
    EXPECT_EQ(newest_checkpoint(out_), huge);
    fs::remove_all(huge);
    EXPECT_EQ(newest_checkpoint(out_), second);
    fs::resize_file(second + "/trainer/v.safetensors", 100);
    EXPECT_EQ(newest_checkpoint(out_), first);
    fs::remove(first + "/config.json");
    EXPECT_EQ(newest_checkpoint(out_), "");
    EXPECT_EQ(save(model, optimizer, 20), second);  // takes the place of the broken one
    EXPECT_EQ(newest_checkpoint(out_), second);
    expect_phrases(complaint([&] { save(model, optimizer, 20); }),
                   {"step_00000020", "existing"});  // but not of a whole one
}

TEST_F(Checkpoint, DamageIsNamed) {
    Model model("tiny-llama");
    Optimizer optimizer = model.optimizer();
    const std::string path = save(model, optimizer, 1);
    for (const auto& entry : fs::recursive_directory_iterator(path)) {
        if (!entry.is_regular_file() || entry.path().filename() == "hashes.json") continue;
        const std::string file = entry.path();
        const std::string good = read_file(file);
        std::string bad = good;
        bad[bad.size() / 2] = static_cast<char>(bad[bad.size() / 2] ^ 1);  // one bit
        std::ofstream(file, std::ios::binary) << bad;
        expect_phrases(complaint([&] { load(path, model, optimizer); }), {"damaged", file, "sha256"});
        std::ofstream(file, std::ios::binary) << good.substr(0, good.size() - 1);
        expect_phrases(complaint([&] { load(path, model, optimizer); }), {"wrong size", file});
        std::ofstream(file, std::ios::binary) << good;
    }
    load(path, model, optimizer);
    Model other("tiny-qwen2");
    Optimizer other_optimizer = other.optimizer();
    expect_phrases(complaint([&] { load(path, other, other_optimizer); }), {"another model", "config.json"});
    fs::remove(path + "/trainer/hashes.json");
    expect_phrases(complaint([&] { load(path, model, optimizer); }), {"no hashes"});
}

TEST_F(Checkpoint, PruneKeepsTheNewestWholeOnes) {
    Model model("tiny-llama");
    Optimizer optimizer = model.optimizer();
    for (const int64_t step : {1, 2, 3, 4}) save(model, optimizer, step);
    fs::remove(out_ + "/step_00000004/config.json");
    prune_checkpoints(out_, 0);
    EXPECT_EQ(list_directory(out_).size(), 4u);
    prune_checkpoints(out_, 2);  // the broken one does not count, and is left to whoever wants to look at it
    EXPECT_EQ(list_directory(out_),
              (std::vector<std::string>{"step_00000002", "step_00000003", "step_00000004"}));
}

TEST_F(Checkpoint, LeftoversOfKilledWritersGo) {
    Model model("tiny-llama");
    Optimizer optimizer = model.optimizer();
    fs::create_directories(out_ + "/step_00000001.tmp-1-elsewhere/trainer");
    fs::create_directories(out_ + "/mine.tmp-1");
    save(model, optimizer, 2);
    EXPECT_EQ(list_directory(out_), (std::vector<std::string>{"mine.tmp-1", "step_00000002"}));
}

// A limit on file sizes stands for the full disk: write(2) fails in the same place.
TEST_F(Checkpoint, AFullDiskLeavesNothingHalfWritten) {
    Model model("tiny-llama");
    Optimizer optimizer = model.optimizer();
    const std::string first = save(model, optimizer, 1);
    struct rlimit before;
    getrlimit(RLIMIT_FSIZE, &before);
    const auto old_handler = signal(SIGXFSZ, SIG_IGN);
    for (const rlim_t limit : {rlim_t{100}, rlim_t{100'000}}) {  // in config.json; in model.safetensors
        const struct rlimit small = {limit, before.rlim_max};
        setrlimit(RLIMIT_FSIZE, &small);
        const std::string text = complaint([&] { save(model, optimizer, 2); });
        setrlimit(RLIMIT_FSIZE, &before);
        expect_phrases(text, {"cannot write file", "step_00000002"});
        EXPECT_EQ(list_directory(out_), (std::vector<std::string>{"step_00000001"}));
    }
    signal(SIGXFSZ, old_handler);
    EXPECT_EQ(newest_checkpoint(out_), first);
    load(first, model, optimizer);
}

TEST(WeightsHash, SeesEveryParameterAndNoPadding) {
    Model model("tiny-gpt2");
    const std::string before = weights_hash(model.table, model.values());
    EXPECT_EQ(before.size(), 32u);
    std::vector<bool> is_param(static_cast<size_t>(model.table.arena_size()));
    for (const ParamInfo& row : model.table.rows())
        std::fill_n(is_param.begin() + row.offset, row.size(), true);
    for (int64_t i = 0; i < model.table.arena_size(); i += 997) {
        model.values()[i] += 1;
        EXPECT_EQ(weights_hash(model.table, model.values()) != before, is_param[static_cast<size_t>(i)]) << i;
        model.values()[i] -= 1;
    }
    Model again("tiny-gpt2");
    EXPECT_EQ(weights_hash(again.table, again.values()), before);
}

}  // namespace
