// build/logits: the bridge to other implementations. Reads or makes a model, writes the logits of given
// tokens as safetensors, or the model as a Hugging Face directory. Token ids only; text is build/generate's
// business.
#include <charconv>
#include <cstdio>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/flags.h"
#include "core/io.h"
#include "core/tensor.h"
#include "kernels/cast.h"
#include "model/hf.h"
#include "model/safetensors.h"
#include "model/transformer.h"

namespace {

struct Options {
    std::string model, init, tokens, out, save, tokenizer;
    std::string dtype = "f32", math = "f32";
    int64_t seed = 0;
};

std::vector<int32_t> parse_tokens(const std::string& list, const ModelConfig& config) {
    std::vector<int32_t> tokens;
    const char* at = list.data();
    const char* const end = at + list.size();
    while (at < end) {
        int32_t token = 0;
        const auto [next, error] = std::from_chars(at, end, token);
        if (error != std::errc() || (next < end && *next != ',') || token < 0 || token >= config.vocab_size)
            fail_input({"not a token id", cat({"--tokens, character ", at - list.data()}),
                        cat({"0 to ", config.vocab_size - 1, ", separated by commas"}),
                        std::string(at, end).substr(0, 20)});
        tokens.push_back(token);
        at = next + 1;
    }
    if (static_cast<int64_t>(tokens.size()) > config.max_position)
        fail_input(
            {"too many tokens", "--tokens", cat({"at most ", config.max_position}), cat({tokens.size()})});
    return tokens;
}

// A preset, or the config.json of any directory.
ModelConfig config_of(const Options& options) {
    if (!options.model.empty()) return load_hf_config(options.model);
    return find_model(options.init).config;
}

Batch batch_of(const std::vector<int32_t>& tokens) {
    Batch batch;
    batch.num_rows = 1;
    batch.seq_len = static_cast<int64_t>(tokens.size());
    batch.tokens = tokens;
    batch.targets.assign(tokens.size(), -1);
    set_document_bounds(batch, -1);
    return batch;
}

void write_logits(const Options& options, const ModelConfig& config, const Buffer& weights) {
    const Batch batch = batch_of(parse_tokens(options.tokens, config));
    const DType dtype = options.dtype == "bf16" ? DType::bf16 : DType::f32;
    const RunShape shape = {.seq_len = batch.seq_len,
                            .dtype = dtype,
                            .math = options.math == "bf16" ? MatmulMath::bf16 : MatmulMath::f32,
                            .backward = false};
    Transformer transformer(config, shape);
    cast(transformer.params(), weights.tensor(DType::f32));
    Buffer logits(batch.seq_len * config.vocab_size * dtype_bytes(DType::f32));
    transformer.forward_logits(batch,
                               make_tensor(logits.data(), DType::f32, batch.seq_len, config.vocab_size));
    write_safetensors(options.out,
                      {{"logits",
                        "F32",
                        {batch.seq_len, config.vocab_size},
                        [&](AtomicFile& file) { file.write(logits.data(), logits.bytes()); }},
                       {"tokens",
                        "I32",
                        {batch.seq_len},
                        [&](AtomicFile& file) {
                            file.write(batch.tokens.data(), batch.seq_len * dtype_bytes(DType::i32));
                        }}},
                      {});
    std::printf("logits: %s: [%lld, %lld]\n", options.out.c_str(), static_cast<long long>(batch.seq_len),
                static_cast<long long>(config.vocab_size));
}

void save_model(const Options& options, const ModelConfig& config, const ParamTable& table,
                const Buffer& weights) {
    const DType dtype = options.dtype == "bf16" ? DType::bf16 : DType::f32;
    Buffer rounded(table.arena_size() * dtype_bytes(dtype));
    cast(rounded.tensor(dtype), weights.tensor(DType::f32));
    AtomicDirectory directory(options.save);
    save_hf_model(directory.temporary(), table, config, rounded.tensor(dtype), options.tokenizer);
    directory.commit();
    std::printf("logits: %s: %lld parameters, %s\n", options.save.c_str(),
                static_cast<long long>(table.num_params()), options.dtype.c_str());
}

int logits(int argc, char** argv) {
    Options options;
    Flags flags(
        "logits",
        "Writes a model's logits for given token ids, or the model itself as a Hugging Face directory.",
        "  build/logits --model DIR --tokens 1,2,3 --out logits.safetensors\n"
        "  build/logits --init tiny-llama --seed 7 --save DIR\n"
        "  build/logits --model DIR --dtype bf16 --save DIR2\n");
    flags.add("model", options.model, "Hugging Face directory to load");
    flags.add("init", options.init,
              "instead of --model: preset, or directory with a config.json, with random weights");
    flags.add("seed", options.seed, "of the random weights");
    flags.add("tokens", options.tokens, "token ids, separated by commas: one document");
    flags.add("out", options.out, "safetensors file to write: logits [T,V] f32, tokens [T] i32");
    flags.add("save", options.save, "directory to write the model to; must not exist");
    flags.add("tokenizer", options.tokenizer, "directory with tokenizer files to copy into --save");
    flags.add_choice("dtype", options.dtype, {"f32", "bf16"},
                     "of weights and activations, and of the saved model");
    flags.add_choice("math", options.math, {"f32", "bf16"}, "of the products of f32 matrices");
    flags.parse(argc, argv);
    if (options.model.empty() == options.init.empty())
        fail_input({.what = "no model", .expected = "one of --model and --init", .hint = "--help"});
    if (options.tokens.empty() != options.out.empty() || (options.out.empty() && options.save.empty()))
        fail_input({.what = "nothing to do",
                    .expected = "--tokens with --out, or --save, or all",
                    .hint = "--help"});

    const ModelConfig config = config_of(options);
    const ParamTable table(config);
    Buffer weights(table.arena_size() * dtype_bytes(DType::f32));
    const Tensor values = weights.tensor(DType::f32);
    if (!options.model.empty())
        load_hf_weights(options.model, table, config, values);
    else
        init_params(table, values, static_cast<uint64_t>(options.seed));
    if (!options.out.empty()) write_logits(options, config, weights);
    if (!options.save.empty()) save_model(options, config, table, weights);
    return 0;
}

}  // namespace

int main(int argc, char** argv) { return run_main(argc, argv, logits); }
