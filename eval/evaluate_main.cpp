// build/evaluate: held-out loss, perplexity and bits per byte of a checkpoint; writes report.json and, for a
// run directory, its report.html.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>

#include "core/device.h"
#include "core/error.h"
#include "core/flags.h"
#include "core/io.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/threads.h"
#include "eval/documents.h"
#include "eval/perplexity.h"
#include "eval/report.h"
#include "kernels/isa.h"
#include "model/checkpoint.h"

namespace {

// "NAME=VALUE" pairs for the report.
std::vector<ReportFact> parse_facts(const std::vector<std::string>& texts) {
    std::vector<ReportFact> facts;
    for (const std::string& text : texts) {
        const size_t equals = text.find('=');
        if (equals == std::string::npos) {
            fail_input({.what = "not a fact",
                        .where = "--fact",
                        .expected = "NAME=VALUE",
                        .actual = text,
                        .hint = "--fact 'corpus=my notes'"});
        }
        const std::string name = text.substr(0, equals);
        facts.push_back({name, text.substr(equals + 1), name.find("bits per byte") != std::string::npos});
    }
    return facts;
}

// The verdict before all other facts: this program's own, which is not the log's of the run.
std::vector<ReportFact> with_result(const std::vector<ReportFact>& facts, const Perplexity& result,
                                    int64_t seq_len, const std::string& dtype) {
    const auto decimals = [](double value, int digits) {
        char text[64];
        std::snprintf(text, sizeof text, "%.*f", digits, value);
        return std::string(text);
    };
    const std::string how = cat({"build/evaluate, windows of ", seq_len, " tokens, ", dtype});
    std::vector<ReportFact> all;
    if (std::isfinite(result.bits_per_byte()))
        all.push_back({cat({"held-out bits per byte (", how, ")"}), decimals(result.bits_per_byte(), 4)});
    all.push_back({cat({"held-out loss in nats per token (", how, ")"}), decimals(result.loss(), 6)});
    all.insert(all.end(), facts.begin(), facts.end());
    return all;
}

int body(int argc, char** argv) {
    std::string directory, data, out, dtype = "fp32", isa = "auto", device_choice = "auto";
    std::vector<std::string> fact_texts;
    int64_t seq_len = 0, micro_batch = 8, max_batches = 0, threads = 0, eot = -1;
    bool report = false, mask_documents = true;
    Flags flags("evaluate", "Held-out loss, perplexity and bits per byte of a model.",
                "  build/evaluate --model run/step_00001000 --data 'shards/val_*.bin'\n"
                "  build/evaluate --model run/step_00001000 --data 'shards/val_*.bin' --out run --report");
    flags.add("model", directory, "Hugging Face model directory, such as a checkpoint", true);
    flags.add("data", data, "token shards to predict: globs, comma-separated", true);
    flags.add("seq-len", seq_len, "tokens per window; 0: the smaller of 1024 and what the model accepts");
    flags.add("micro-batch", micro_batch, "windows at a time", 1, 1 << 20);
    flags.add("max-batches", max_batches, "stop after this many micro-batches; 0: all of the data");
    flags.add_choice("dtype", dtype, {"fp32", "bf16"}, "arithmetic");
    flags.add("eot", eot, "end-of-text id of shards without a manifest; -1: the model's own", -1, 1 << 30);
    flags.add("mask-documents", mask_documents, "keep documents of one window from seeing each other");
    flags.add("out", out, "directory for report.json (and report.html with --report)");
    flags.add("report", report, "--out is a training run: write its report.html");
    flags.add_list("fact", fact_texts,
                   "NAME=VALUE for the report's table; \"... bits per byte=X\" is a line in its plot");
    flags.add("threads", threads, "threads; 0: all cores", 0, 256);
    flags.add_choice("device", device_choice, {"auto", "cpu", "cuda", "simt"},
                     "where to run; simt: CUDA kernels, emulated");
    flags.add("isa", isa, "auto, plain, avx2, avx512 or avx512_bf16");
    flags.parse(argc, argv);
    if (threads > 0) set_num_threads(static_cast<int>(threads));
    set_isa(isa_from_name(isa.c_str()));
    const Device device = device_from_name(device_choice.c_str());
    const std::vector<ReportFact> facts = parse_facts(fact_texts);
    if (report && !path_exists(out + "/log.jsonl")) {
        fail_input({.what = "--report needs a training run's directory",
                    .where = cat({"--out ", out}),
                    .expected = "log.jsonl in it",
                    .hint = "--out RUN, the --out of build/train"});
    }

    const ModelConfig config = load_hf_config(directory);
    if (seq_len == 0) seq_len = std::min<int64_t>(1024, config.max_position);
    const Loader loader(data, "--data",
                        {.seq_len = seq_len,
                         .micro_batch = micro_batch,
                         .order = LoaderOrder::sequential,
                         .vocab_size = config.vocab_size,
                         .eot = document_end(eot, config),
                         .mask_documents = mask_documents});
    note_documents(loader, "--data", eot, mask_documents);
    std::vector<int32_t> token_bytes;
    if (path_exists(directory + "/tokenizer.json")) {
        const Tokenizer tokenizer = Tokenizer::load(directory);
        loader.shards().require_tokenizer(tokenizer.hash(), directory);
        token_bytes = bytes_per_token(tokenizer);
    }

    const RunShape shape{.num_rows = micro_batch,
                         .seq_len = seq_len,
                         .dtype = dtype == "bf16" ? DType::bf16 : DType::f32,
                         .math = dtype == "bf16" ? MatmulMath::bf16 : MatmulMath::f32,
                         .backward = false,
                         .device = device};
    const auto needed_bytes = [&](const RunShape& s) {
        MemoryPlan plan;
        Transformer::plan(plan, config, s);
        return plan.needed_bytes();
    };
    if (const int64_t available = available_memory_bytes(device); needed_bytes(shape) > available) {
        RunShape smaller = shape;
        while (smaller.num_rows > 1 && needed_bytes(smaller) > available) smaller.num_rows /= 2;
        const bool fits = needed_bytes(smaller) <= available;
        fail_input({.what = "the evaluation does not fit in memory",
                    .expected = cat({"at most ", human_bytes(static_cast<double>(available))}),
                    .actual = human_bytes(static_cast<double>(needed_bytes(shape))),
                    .hint = fits ? cat({"--micro-batch ", smaller.num_rows})
                                 : "--dtype bf16, or a shorter --seq-len"});
    }
    Transformer model(config, shape);
    load_hf_weights(directory, model.table(), config, model.params());

    const double start = seconds_now();
    const Perplexity result = evaluate_perplexity(model, loader, token_bytes, max_batches, true);
    const double seconds = seconds_now() - start;
    std::printf(
        "evaluate: loss=%.6f perplexity=%.4f bits_per_byte=%.6f tokens=%lld bytes=%lld seconds=%.2f\n",
        result.loss(), result.perplexity(), result.bits_per_byte(), static_cast<long long>(result.num_tokens),
        static_cast<long long>(result.num_bytes), seconds);
    if (!out.empty()) {
        make_directories(out);
        JsonLine line;
        line.add("model", directory).add("data", data).add("seq_len", seq_len).add("dtype", dtype);
        line.add("loss", result.loss()).add("perplexity", result.perplexity());
        line.add("bits_per_byte", result.bits_per_byte());
        line.add("tokens", result.num_tokens).add("bytes", result.num_bytes);
        for (const ReportFact& fact : facts) line.add(fact.name, fact.value);
        write_file_atomic(out + "/report.json", line.text() + "\n");
    }
    if (report) write_run_report(out, with_result(facts, result, seq_len, dtype));
    return 0;
}

}  // namespace

int main(int argc, char** argv) { return run_main(argc, argv, body); }
