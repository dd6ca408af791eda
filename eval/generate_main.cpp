// build/generate: continues a prompt with a checkpoint, streaming to stdout.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <iterator>

#include "core/device.h"
#include "core/error.h"
#include "core/flags.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/threads.h"
#include "eval/text.h"
#include "kernels/isa.h"
#include "model/checkpoint.h"

namespace {

int body(int argc, char** argv) {
    std::string directory, prompt, dtype = "bf16", isa = "auto", device_choice = "auto";
    std::vector<std::string> stops;
    TextParams params;
    int64_t threads = 0, seed = 0, max_tokens = 0;
    bool greedy = false;
    Flags flags("generate", "Continues a prompt; the text streams to stdout, the speed goes to stderr.",
                "  build/generate --model run/step_00001000 --prompt 'Once upon a time'\n"
                "  echo 'In the beginning' | build/generate --model run/step_00001000 --greedy");
    flags.add("model", directory, "Hugging Face model directory with a tokenizer, such as a checkpoint",
              true);
    flags.add("prompt", prompt, "text to continue; without it, standard input when that is not a terminal");
    flags.add("max-new-tokens", params.generate.max_new_tokens, "longest continuation", 1);
    flags.add("temperature", params.generate.sampling.temperature, "0: greedy", 0, 100);
    flags.add("top-k", params.generate.sampling.top_k, "sample among the k likeliest; 0: all");
    flags.add("top-p", params.generate.sampling.top_p,
              "sample among the likeliest that reach this probability", 0, 1);
    flags.add("greedy", greedy, "the likeliest token always; the same as --temperature 0");
    flags.add_list("stop", stops, "end before this string; may be repeated");
    flags.add("seed", seed, "of the sampling: equal seeds, equal texts");
    flags.add("max-context", max_tokens, "size of the KV cache in tokens; 0: prompt plus continuation");
    flags.add_choice("dtype", dtype, {"fp32", "bf16"}, "arithmetic and memory of the weights");
    flags.add("threads", threads, "threads; 0: all cores", 0, 256);
    flags.add_choice("device", device_choice, {"auto", "cpu", "cuda", "simt"},
                     "where to run; simt: CUDA kernels, emulated");
    flags.add("isa", isa, "auto, plain, avx2, avx512 or avx512_bf16");
    flags.parse(argc, argv);
    if (threads > 0) set_num_threads(static_cast<int>(threads));
    set_isa(isa_from_name(isa.c_str()));
    const Device device = device_from_name(device_choice.c_str());
    if (greedy) params.generate.sampling.temperature = 0;
    params.generate.seed = static_cast<uint64_t>(seed);
    params.stop_strings = stops;
    if (!flags.given("prompt") && !isatty(STDIN_FILENO)) {
        prompt.assign(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
    }

    const ModelConfig config = load_hf_config(directory);
    const Tokenizer tokenizer = Tokenizer::load(directory);
    for (const int64_t id : config.eos_list) params.generate.stop_tokens.push_back(static_cast<int32_t>(id));
    if (tokenizer.vocab_size() > config.vocab_size) {
        fail_input({.what = "the tokenizer has more tokens than the model",
                    .where = directory,
                    .expected = cat({"at most ", config.vocab_size}),
                    .actual = cat({tokenizer.vocab_size()})});
    }
    const int64_t prompt_tokens = static_cast<int64_t>(tokenizer.encode(prompt).size()) + 1;
    int64_t& new_tokens = params.generate.max_new_tokens;
    new_tokens = std::min(new_tokens, config.max_position);  // so that no sum overflows
    if (max_tokens == 0) max_tokens = prompt_tokens + new_tokens;
    max_tokens = std::min(max_tokens, config.max_position);
    if (prompt_tokens >= max_tokens) {
        fail_input({.what = "the prompt does not fit",
                    .where = "--prompt",
                    .expected = cat({"fewer than ", max_tokens, " tokens"}),
                    .actual = cat({prompt_tokens}),
                    .hint = "a shorter prompt, or a larger --max-context"});
    }
    new_tokens = std::min(new_tokens, max_tokens - prompt_tokens);

    const ParamTable table(config);
    const DType used = dtype == "bf16" ? DType::bf16 : DType::f32;
    const int64_t weight_bytes = table.arena_size() * dtype_bytes(used);
    const int64_t needed = weight_bytes + Decoder::memory_bytes(config, used, max_tokens);
    if (const int64_t available = available_memory_bytes(device); needed > available) {
        fail_input({.what = "the model and its context do not fit in memory",
                    .where = directory,
                    .expected = cat({"at most ", human_bytes(static_cast<double>(available))}),
                    .actual = human_bytes(static_cast<double>(needed)),
                    .hint = used == DType::f32 ? "--dtype bf16, or a smaller --max-context"
                                               : "a smaller --max-context or model"});
    }
    Buffer weights(weight_bytes, device);
    load_hf_weights(directory, table, config, weights.tensor(used));
    Decoder decoder(config, table, weights.tensor(used), max_tokens);
    const double start = seconds_now();
    std::fwrite(prompt.data(), 1, prompt.size(), stdout);
    generate_text(decoder, tokenizer, prompt, params, true, [](std::string_view piece) {
        std::fwrite(piece.data(), 1, piece.size(), stdout);
        flush_stdout();
    });
    std::fputc('\n', stdout);
    flush_stdout();
    const double seconds = seconds_now() - start;
    std::fprintf(stderr, "generate: %lld tokens in %.2f s, %.1f tokens/s with the prompt\n",
                 static_cast<long long>(decoder.length()), seconds,
                 static_cast<double>(decoder.length()) / seconds);
    return 0;
}

}  // namespace

int main(int argc, char** argv) { return run_main(argc, argv, body); }
