// Bad input to build/train, build/evaluate and build/generate: one line on stderr that says what, where and
// what to try, exit code 2, and nothing lost or half written.
#include <signal.h>

#include <cmath>
#include <cstring>

#include "core/device.h"
#include "core/error.h"
#include "core/memory.h"
#include "tests/toy_run.h"

namespace {

using Strings = std::vector<std::string>;

// One bad command line: arguments on top of those of a good run, and what the complaint must say.
struct Bad {
    const char* name;
    Strings arguments;
    Strings fragments;
};

// Whoever mistypes a flag is told what to type.
std::vector<Bad> with_hint(std::vector<Bad> rows) {
    for (Bad& row : rows) row.fragments.push_back("  hint: ");
    return rows;
}

// A shard of llm.c's format without a manifest.
std::string shard_bytes(int32_t magic, int32_t version, int32_t num_tokens,
                        const std::vector<uint16_t>& tokens) {
    std::vector<int32_t> header(256);
    header[0] = magic, header[1] = version, header[2] = num_tokens;
    return std::string(reinterpret_cast<const char*>(header.data()), 1024) +
           std::string(reinterpret_cast<const char*>(tokens.data()), tokens.size() * 2);
}

class BadInput : public ToyRun {
protected:
    // A good model directory to damage, and one finished run.
    static void SetUpTestSuite() {
        ToyRun::SetUpTestSuite();
        good_run_ = path("good");
        const Outcome run = train(good_run_, {"--steps", "3"});
        ASSERT_EQ(run.exit_code, 0) << run.err;
        good_model_ = good_run_ + "/step_00000003";
        ToyCorpus::write(path("other-shards"), 2);
        make_directories(path("raw"));
    }
    static std::string raw(const std::string& name, const std::string& content) {
        write_file_atomic(path("raw/" + name), content);
        return path("raw/" + name);
    }
    // A copy of the good model with one file rewritten.
    static std::string damaged_model(const std::string& file, const std::function<void(std::string&)>& edit) {
        const std::string directory = fresh("model");
        std::filesystem::copy(good_model_, directory, std::filesystem::copy_options::recursive);
        std::filesystem::remove_all(directory + "/trainer");  // a model from elsewhere: no hashes to save it
        std::string content = read_file(directory + "/" + file);
        edit(content);
        write_file_atomic(directory + "/" + file, content);
        return directory;
    }
    static std::string config_with(const std::string& from, const std::string& to) {
        return damaged_model("config.json", [&](std::string& text) {
            const size_t at = text.find(from);
            ASSERT_NE(at, std::string::npos) << from << " in " << text;
            text.replace(at, from.size(), to);
        });
    }
    // Every row is a training run that must refuse and leave no directory.
    static void check_train(const std::vector<Bad>& rows) {
        for (const Bad& row : rows) {
            const std::string out = fresh();
            expect_refusal(train(out, row.arguments), row.fragments, row.name);
            EXPECT_FALSE(path_exists(out)) << row.name << ": left " << contents_of(out);
        }
    }
    static void check_program(const std::string& program, const std::vector<Bad>& rows) {
        for (const Bad& row : rows)
            expect_refusal(run_program(program, row.arguments), row.fragments, row.name);
    }

    inline static std::string good_run_, good_model_;
};

}  // namespace

TEST_F(BadInput, Shards) {
    const std::vector<uint16_t> tokens(500, 7), beyond = {1, 2, 600, 3};
    std::vector<uint16_t> late(500, 7);
    late[321] = 512;
    const std::string good = shard_bytes(20240520, 1, 500, tokens);
    check_train({
        {"missing",
         {"--train-data", path("raw/absent_*.bin")},
         {"no file matches", "absent_*.bin", "hint: give --train-data"}},
        {"missing held-out", {"--val-data", path("raw/absent.bin")}, {"absent.bin", "hint: give --val-data"}},
        {"empty", {"--train-data", raw("empty.bin", "")}, {"empty shard", "empty.bin", "0 bytes", "hint:"}},
        {"truncated header",
         {"--train-data", raw("header.bin", good.substr(0, 700))},
         {"truncated shard", "700 bytes", "hint:"}},
        {"truncated tokens",
         {"--train-data", raw("short.bin", good.substr(0, 1500))},
         {"truncated shard", "expected 2024 bytes", "got 1500 bytes", "hint:"}},
        {"lying count",
         {"--train-data", raw("lying.bin", shard_bytes(20240520, 1, 400, tokens))},
         {"disagree", "400 tokens", "hint:"}},
        {"negative count",
         {"--train-data", raw("negative.bin", shard_bytes(20240520, 1, -4, tokens))},
         {"negative.bin", "hint:"}},
        {"foreign",
         {"--train-data", raw("foreign.bin", std::string(3000, 'x'))},
         {"not a token shard", "20240520", "hint:"}},
        {"other version",
         {"--train-data", raw("version.bin", shard_bytes(20240520, 9, 500, tokens))},
         {"another version", "got 9", "hint:"}},
        {"directory", {"--train-data", path("raw")}, {"raw"}},
        {"id beyond the vocabulary",
         {"--train-data", raw("late.bin", shard_bytes(20240520, 1, 500, late))},
         {"outside the vocabulary", "token 321 (byte 1666)", "below 512", "got 512", "hint:"}},
        {"held-out id beyond",
         {"--val-data", raw("beyond.bin", shard_bytes(20240520, 1, 4, beyond))},
         {"beyond.bin", "token 2", "got 600", "hint:"}},
        {"shorter than a row",
         {"--train-data", raw("tiny.bin", shard_bytes(20240520, 1, 4, {1, 2, 3, 4}))},
         {"too little data", "at least 33 tokens", "got 4", "hint: lower --seq-len"}},
        {"end of text beyond",
         {"--train-data", raw("good.bin", good), "--eot", "512"},
         {"end-of-text", "below 512"}},
        {"held-out shards of another tokenizer",
         {"--val-data", path("other-shards/val_*.bin")},
         {"different tokenizers", "--val-data", "hint:"}},
        {"training shards of two tokenizers",
         {"--train-data", path("shards/train_*.bin") + "," + path("other-shards/train_*.bin")},
         {"two tokenizers", "hint:"}},
    });
}

TEST_F(BadInput, VocabularyBeyondTheModel) {
    // Every id of these shards is small; the manifest alone says that larger ones belong to the vocabulary.
    const std::string shards = path("wide");
    ShardWriter writer(shards, "train", 50257, 0);
    writer.add_document(std::vector<int32_t>(500, 7), 500);
    writer.finish({.tokenizer_hash = "wide", .tokenizer_path = "", .source_manifest_hash = ""});
    check_train({{"wide vocabulary",
                  {"--train-data", shards + "/train_*.bin"},
                  {"vocabulary does not match the model", "at most 512", "got 50257", "hint:"}}});
}

TEST_F(BadInput, Models) {
    const auto resized = [&](size_t bytes) {
        return damaged_model("model.safetensors", [&](std::string& text) { text.resize(bytes); });
    };
    const auto header = [&](const std::string& from, const std::string& to) {
        return damaged_model("model.safetensors", [&](std::string& text) {
            const size_t at = text.find(from);
            ASSERT_NE(at, std::string::npos);
            text.replace(at, from.size(), to);
        });
    };
    const std::string vast = damaged_model("model.safetensors", [](std::string& text) { text[6] = '\x7f'; });
    const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
    const std::string nested = damaged_model("model.safetensors", [&](std::string& text) {
        uint64_t length = deep.size();
        text = std::string(reinterpret_cast<const char*>(&length), 8) + deep;
    });
    const std::string diverged = damaged_model("model.safetensors", [&](std::string& text) {
        // The final norm's weights are ones: the first of them becomes NaN.
        const size_t entry = text.find("\"model.norm.weight\""),
                     offsets = text.find("data_offsets\":[", entry) + 15;
        uint64_t header = 0;
        std::memcpy(&header, text.data(), 8);
        const float nan = NAN;
        std::memcpy(text.data() + 8 + header + std::stoll(text.substr(offsets, 20)), &nan, 4);
    });
    const std::string flipped = fresh("model");
    std::filesystem::copy(good_model_, flipped, std::filesystem::copy_options::recursive);
    std::string bits = read_file(flipped + "/model.safetensors");
    bits[bits.size() / 2] ^= 1;
    write_file_atomic(flipped + "/model.safetensors", bits);
    const std::string no_weights = fresh("model"), bad_json = config_with("{", "{,");
    make_directories(no_weights);
    write_file_atomic(no_weights + "/config.json", read_file(good_model_ + "/config.json"));
    check_train({
        {"unknown preset",
         {"--init", "tiny-lama"},
         {"unknown model preset", "tiny-gpt2", "got tiny-lama", "did you mean tiny-llama?"}},
        {"no such directory", {"--init", path("nowhere")}, {"nowhere", "hint:", "RUN/step_N"}},
        {"not a model", {"--init", path("raw")}, {"config.json", "hint:", "RUN/step_N"}},
        {"a run instead of a checkpoint", {"--init", good_run_}, {"config.json", "hint:", "RUN/step_N"}},
        {"no weights", {"--init", no_weights}, {"no weights", "model.safetensors", "hint:"}},
        {"truncated weights", {"--init", resized(100000)}, {"model.safetensors", "hint:"}},
        {"truncated header", {"--init", resized(100)}, {"model.safetensors", "hint:"}},
        {"empty weights", {"--init", resized(0)}, {"model.safetensors", "hint:"}},
        {"header of exabytes", {"--init", vast}, {"model.safetensors", "hint:"}},
        {"header not JSON", {"--init", header("{", "[")}, {"model.safetensors", "JSON", "hint:"}},
        {"lying shape", {"--init", header("[512,64]", "[513,64]")}, {"model.safetensors", "hint:"}},
        {"lying type", {"--init", header("\"F32\"", "\"F64\"")}, {"model.safetensors", "hint:"}},
        {"config not JSON", {"--init", bad_json}, {"config.json", "hint:"}},
        {"nested config",
         {"--init", config_with("{", "{\"a\":" + deep + ",")},
         {"config.json", "levels", "hint:"}},
        {"nested header", {"--init", nested}, {"model.safetensors", "levels", "hint:"}},
        {"weights that have diverged", {"--init", diverged}, {"not finite", "model.norm.weight", "hint:"}},
        {"a checkpoint with a flipped bit",
         {"--init", flipped},
         {"damaged", "model.safetensors", "sha256", "hint:"}},
        {"unknown architecture",
         {"--init", config_with("LlamaForCausalLM", "MambaForCausalLM")},
         {"config.json", "MambaForCausalLM", "hint:"}},
        {"config of another size",
         {"--init", config_with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3")},
         {"missing tensor", "layers.2", "hint:"}},
        {"fewer layers than weights",
         {"--init", config_with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1")},
         {"surplus tensor", "hint:"}},
        {"a field that changes the maths",
         {"--init", config_with("\"silu\"", "\"relu\"")},
         {"config.json", "hidden_act", "relu"}},
        {"an unknown scaling",
         {"--init", config_with("\"rope_scaling\": null",
                                "\"rope_scaling\": {\"rope_type\": \"longrope\", \"factor\": 4.0}")},
         {"config.json", "longrope"}},
        {"another tokenizer's shards",
         {"--init", good_model_, "--train-data", path("other-shards/train_*.bin")},
         {"another tokenizer", "hint: build/tokenize encode --tokenizer"}},
    });
}

TEST_F(BadInput, Flags) {
    check_train(with_hint({
        {"unknown flag", {"--learning-rat", "1"}, {"--learning-rat", "hint:"}},
        {"near miss", {"--warmpu", "1"}, {"--warmpu", "did you mean --warmup"}},
        {"not a number", {"--steps", "many"}, {"--steps", "many"}},
        {"out of range", {"--beta1", "1.5"}, {"--beta1", "1.5"}},
        {"below the range", {"--steps", "0"}, {"--steps", "expected 1 to", "got 0"}},
        {"beyond an integer", {"--steps", "99999999999999999999"}, {"--steps"}},
        {"not a choice", {"--optimizer", "sgd"}, {"--optimizer", "adamw", "muon", "sgd"}},
        {"no such instructions", {"--isa", "avx9"}, {"avx9"}},
        {"a step that is no whole number of micro-batches",
         {"--batch-tokens", "1000"},
         {"--batch-tokens", "multiple", "128", "got 1000", "hint: --batch-tokens 1024"}},
        {"rows beyond the positions",
         {"--seq-len", "257"},
         {"longer than the model's positions", "at most 256", "got 257", "hint: --seq-len 256"}},
        {"rows far beyond", {"--seq-len", "16777216"}, {"hint:"}},
        {"more tokens than 32 bits count",
         {"--init", "llama-1b", "--seq-len", "131072", "--micro-batch", "1048576"},
         {"hint:"}},
        {"a warm-up beyond the run",
         {"--warmup", "21"},
         {"warm-up is longer", "--warmup", "at most --steps 20", "got 21", "hint: --warmup 2"}},
        {"a prompt beyond the positions",
         {"--sample-prompt", toy_document(9, 200)},
         {"sample prompt", "at most 254 tokens", "hint:"}},
    }));
    const Strings good = flags(fresh());
    Strings repeated = good, without_out, dangling = good;
    repeated.insert(repeated.end(), {"--lr", "1"});
    dangling.insert(dangling.end(), {"--warmup"});
    for (size_t i = 0; i < good.size(); ++i)
        if (good[i] == "--out")
            ++i;
        else
            without_out.push_back(good[i]);
    check_program("train",
                  with_hint({{"repeated flag", repeated, {"repeated flag", "--lr", "got 2: 3e-3, 1"}},
                             {"missing flag", without_out, {"missing flag", "--out", "hint:"}},
                             {"missing value", dangling, {"missing value", "--warmup"}},
                             {"no flags", {}, {"missing flag", "--train-data", "hint:"}}}));
    const std::string config = raw("bad.toml", "steps = 3\nlearning_rate = 1\n");
    check_train(with_hint(
        {{"unknown name in the file", {"--config", config}, {"bad.toml:2", "learning_rate", "hint:"}}}));
}

TEST_F(BadInput, MemoryIsRefusedBeforeAnythingIsAllocated) {
    const auto start = std::chrono::steady_clock::now();
    check_train({
        {"a million rows",
         {"--micro-batch", "1000000"},
         {"does not fit in memory", "--micro-batch 1000000", "at most", "hint: --micro-batch "}},
        {"the largest of everything",
         {"--init", "llama-1b", "--micro-batch", "1048576", "--seq-len", "32"},
         {"does not fit in memory", "--micro-batch 1048576", "hint:"}},
        {"a step of 2 billion tokens",
         {"--batch-tokens", "2147483648", "--micro-batch", "524288"},
         {"does not fit in memory", "hint:"}},
    });
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5))
        << "said at once, not after thrashing";
    // The hint is one that works.
    const Outcome refused = train(fresh(), {"--micro-batch", "1000000"});
    const std::string line = refused.error_line(), flag = "hint: --micro-batch ";
    const size_t at = line.find(flag);
    ASSERT_NE(at, std::string::npos) << line;
    EXPECT_LT(std::stoll(line.substr(at + flag.size())), 1000000) << line;
}

TEST_F(BadInput, OutputDirectoryOfSomethingElse) {
    const std::string before = contents_of(good_run_);
    const std::vector<Bad> rows = {
        {"other seed", {"--seed", "7"}, {"another run", "--seed differs", "expected 42", "got 7", "hint:"}},
        {"other data",
         {"--train-data", path("other-shards/train_*.bin")},
         {"another run", "--train-data differs", "hint:"}},
        {"other length", {"--steps", "4"}, {"another run", "--steps differs", "hint:"}},
        {"other model", {"--init", "tiny-qwen3"}, {"another run", "--init differs", "hint:"}},
        {"other arithmetic", {"--dtype", "bf16"}, {"another run", "--dtype differs", "hint:"}},
    };
    for (const Bad& row : rows) {
        Strings arguments = {"--steps", "3"};
        arguments.insert(arguments.end(), row.arguments.begin(), row.arguments.end());
        // A repeated change overrides the earlier one in flags().
        expect_refusal(train(good_run_, arguments), row.fragments, row.name);
    }
    EXPECT_EQ(contents_of(good_run_), before) << "another run's directory must not be touched";

    const std::string notes = fresh("notes");
    make_directories(notes);
    write_file_atomic(notes + "/thesis.txt", "years of work");
    expect_refusal(train(notes), {"not a training run", notes, "hint: choose another --out"}, "not a run");
    EXPECT_EQ(list_directory(notes), Strings{"thesis.txt"});
    expect_refusal(train(notes + "/thesis.txt"), {"thesis.txt", "hint:"}, "a file");
    EXPECT_EQ(read_file(notes + "/thesis.txt"), "years of work");
}

TEST_F(BadInput, DataThatChangedUnderARun) {
    const std::string shards = fresh("shards"), out = fresh();
    const Strings changes = {"--train-data", shards + "/train_*.bin"};
    ToyCorpus::write(shards, 1);
    Strings half = changes;
    half.insert(half.end(), {"--stop-at", "5"});
    ASSERT_EQ(train(out, half).exit_code, 0);
    std::filesystem::remove_all(shards);
    ToyCorpus::write(shards, 1, 70);  // more documents under the same names
    const std::string before = contents_of(out);
    expect_refusal(train(out, changes), {"not what this run began with", "hint:"}, "changed data");
    EXPECT_EQ(contents_of(out), before);
}

TEST_F(BadInput, DamagedCheckpointIsNamed) {
    const std::string out = fresh();
    ASSERT_EQ(train(out, {"--stop-at", "5"}).exit_code, 0);
    const std::string weights = out + "/step_00000005/model.safetensors";
    std::string content = read_file(weights);
    content[content.size() / 2] ^= 1;  // one bit, the same size
    write_file_atomic(weights, content);
    expect_refusal(train(out), {"damaged", weights, "sha256", "hint:"}, "flipped bit");
}

TEST_F(BadInput, Evaluate) {
    const std::string val = path("shards/val_*.bin");
    const std::string untouched = fresh("report");
    check_program(
        "evaluate",
        {
            {"no model", {"--model", path("nowhere"), "--data", val, "--out", untouched}, {"nowhere"}},
            {"a run instead of a checkpoint",
             {"--model", good_run_, "--data", val, "--out", untouched},
             {"config.json"}},
            {"no data",
             {"--model", good_model_, "--data", path("absent*"), "--out", untouched},
             {"no file matches", "hint: give --data"}},
            {"another tokenizer",
             {"--model", good_model_, "--data", path("other-shards/val_*.bin"), "--out", untouched},
             {"another tokenizer", "hint:"}},
            {"windows beyond the positions",
             {"--model", good_model_, "--data", val, "--seq-len", "300", "--out", untouched},
             {"at most 256", "hint:"}},
            {"does not fit",
             {"--model", good_model_, "--data", val, "--micro-batch", "1048576", "--out", untouched},
             {"does not fit in memory", "hint: --micro-batch"}},
            {"not a fact",
             {"--model", good_model_, "--data", val, "--fact", "xz", "--out", untouched},
             {"--fact", "NAME=VALUE", "got xz"}},
            {"report of no run",
             {"--model", good_model_, "--data", val, "--report", "--out", untouched},
             {"training run", "log.jsonl", "hint:"}},
            {"unknown flag",
             {"--model", good_model_, "--data", val, "--modle", "x"},
             {"--modle", "did you mean --model"}},
        });
    EXPECT_FALSE(path_exists(untouched));
}

TEST_F(BadInput, Generate) {
    const std::string no_tokenizer = fresh("model"), other_tokenizer = fresh("model");
    std::filesystem::copy(good_model_, no_tokenizer, std::filesystem::copy_options::recursive);
    std::filesystem::remove(no_tokenizer + "/tokenizer.json");
    // A tokenizer of more tokens than the model has rows.
    std::filesystem::copy(good_model_, other_tokenizer, std::filesystem::copy_options::recursive);
    PieceCounts counts(SplitPattern::gpt2);
    std::string words;
    for (char a = 'a'; a <= 'z'; ++a)
        for (char b = 'a'; b <= 'z'; ++b) words += std::string(" ") + a + b + " " + a + b;
    counts.add({words});
    const Tokenizer wide(train_bpe(counts, {.vocab_size = 600}));
    ASSERT_GT(wide.vocab_size(), 512);
    wide.write_into(other_tokenizer);
    check_program("generate",
                  {
                      {"no model", {"--model", path("nowhere"), "--prompt", "x"}, {"nowhere"}},
                      {"no tokenizer", {"--model", no_tokenizer, "--prompt", "x"}, {"tokenizer.json"}},
                      {"a tokenizer beyond the model",
                       {"--model", other_tokenizer, "--prompt", "x"},
                       {"more tokens than the model", "at most 512", "got 600"}},
                      {"prompt too long",
                       {"--model", good_model_, "--prompt", toy_document(3, 100)},
                       {"prompt does not fit", "fewer than 256", "hint:"}},
                      {"context too small",
                       {"--model", good_model_, "--prompt", toy_document(3, 5), "--max-context", "8"},
                       {"prompt does not fit", "fewer than 8", "hint:"}},
                      {"not a probability",
                       {"--model", good_model_, "--prompt", "x", "--top-p", "2"},
                       {"--top-p", "2"}},
                  });
}

// Without a GPU --device cuda says why; the emulator is there for everyone, and says when a run is too large.
TEST_F(BadInput, Devices) {
    check_train({{"unknown device", {"--device", "gpu"}, {"--device", "auto, cpu, cuda", "hint:"}}});
    bool has_gpu = false;
    try {
        open_device(Device::cuda);
        has_gpu = true;
    } catch (const InputError& error) {
        check_train({{"no GPU", {"--device", "cuda"}, {error.what(), "hint: "}}});
    }
    if (!has_gpu) {
        check_train({{"too large for the emulated GPU",
                      {"--device", "simt", "--micro-batch", "1000000"},
                      {"does not fit in memory", "--micro-batch", "hint:"}}});
    }
}
