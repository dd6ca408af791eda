// What eval/ makes of a model: text that streams in whole characters and never shows a stop string, held-out
// loss and bits per byte against their definitions, plots and a report that stand on their own.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "core/error.h"
#include "core/io.h"
#include "eval/perplexity.h"
#include "eval/plot.h"
#include "eval/report.h"
#include "eval/text.h"
#include "model/checkpoint.h"
#include "tests/toy_run.h"

namespace {

// A tokenizer of the 256 bytes alone, so that what a model says can be dictated byte by byte.
Tokenizer byte_tokenizer() {
    PieceCounts counts(SplitPattern::gpt2);
    return Tokenizer(train_bpe(counts, {.vocab_size = 257}));
}

// A model that recites: after byte a comes the byte b that `script` has behind a. Each byte of the script
// must be distinct. One-hot embeddings pass the two layers untouched (their outputs are zero) and meet a head
// that maps each to its successor; the last byte is followed by end of text.
class Reciter {
public:
    Reciter(const Tokenizer& tokenizer, const std::string& script)
        : table_(config()), weights_(table_.arena_size() * 4) {
        std::vector<int32_t> ids = tokenizer.encode(script);
        ids.insert(ids.begin(), tokenizer.eot());
        ids.push_back(tokenizer.eot());
        auto* arena = static_cast<float*>(weights_.data());
        init_params(table_, weights_.tensor(DType::f32), 1);
        for (const ParamInfo& row : table_.rows()) {
            float* values = arena + row.offset;
            if (row.rank == 2) std::fill(values, values + row.size(), 0.0f);
            for (size_t i = 0; i + 1 < ids.size(); ++i) {
                if (row.slot == Slot::wte) values[ids[i] * row.cols + static_cast<int64_t>(i)] = 1;
                if (row.slot == Slot::head_w) values[ids[i + 1] * row.cols + static_cast<int64_t>(i)] = 100;
            }
        }
    }
    // What is shown, piece by piece; and all of it.
    std::vector<std::string> recite(const Tokenizer& tokenizer, const std::string& prompt,
                                    const TextParams& params, std::string& text) {
        Decoder decoder(config(), table_, weights_.tensor(DType::f32), 64);
        std::vector<std::string> pieces;
        text = generate_text(decoder, tokenizer, prompt, params, true,
                             [&](std::string_view piece) { pieces.emplace_back(piece); });
        return pieces;
    }

private:
    static ModelConfig config() { return config_preset("tiny-llama"); }
    ParamTable table_;
    Buffer weights_;
};

TextParams greedy(std::vector<std::string> stops = {}, int64_t max_new_tokens = 40) {
    TextParams params;
    params.generate.sampling.temperature = 0;
    params.generate.max_new_tokens = max_new_tokens;
    params.stop_strings = std::move(stops);
    return params;
}

std::string joined(const std::vector<std::string>& pieces) {
    std::string all;
    for (const std::string& piece : pieces) all += piece;
    return all;
}

size_t count(const std::string& text, const std::string& what) {
    size_t n = 0;
    for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
    return n;
}

class Eval : public ToyRun {};

}  // namespace

TEST(Text, StreamsWholeCharacters) {
    const Tokenizer tokenizer = byte_tokenizer();
    const std::string script =
        "a\xc3\xa9"
        "b\xe2\x82\xac"
        "c\xf0\x9f\x98\x80"
        "d";  // 2, 3 and 4 bytes
    std::string text;
    const auto pieces = Reciter(tokenizer, script).recite(tokenizer, "", greedy(), text);
    EXPECT_EQ(text, script);
    EXPECT_EQ(pieces,
              (std::vector<std::string>{"a", "\xc3\xa9", "b", "\xe2\x82\xac", "c", "\xf0\x9f\x98\x80", "d"}));
    // The model ends within a character: what there is of it is shown in the end, not lost.
    const auto cut = Reciter(tokenizer, script).recite(tokenizer, "", greedy({}, 5), text);
    EXPECT_EQ(joined(cut), text);
    EXPECT_EQ(text, script.substr(0, 5));
    // A prompt is continued, not repeated.
    EXPECT_EQ(joined(Reciter(tokenizer, script).recite(tokenizer, "a\xc3\xa9", greedy(), text)),
              script.substr(3));
}

TEST(Text, StopStringsAreNeverShown) {
    const Tokenizer tokenizer = byte_tokenizer();
    const std::string script = "abcdefghij";
    struct Case {
        std::vector<std::string> stops;
        std::string expected;
    };
    for (const Case& c : std::vector<Case>{{{"def"}, "abc"},
                                           {{"a"}, ""},
                                           {{"dex"}, script},  // begins like the text, and is let go
                                           {{"cdX", "fg", "gh"}, "abcde"},
                                           {{"ef", "def"}, "abc"},  // both end here: the longer hides more
                                           {{""}, script},
                                           {{"ij"}, "abcdefgh"},
                                           {{"ijk"}, script}}) {
        std::string text;
        const auto pieces = Reciter(tokenizer, script).recite(tokenizer, "", greedy(c.stops), text);
        EXPECT_EQ(text, c.expected) << c.stops[0];
        EXPECT_EQ(joined(pieces), c.expected) << "shown, with stop " << c.stops[0];
    }
}

TEST_F(Eval, LossAndBitsPerByteAreTheirDefinitions) {
    const std::string shards = path("shards/");
    const Tokenizer tokenizer = Tokenizer::load(shards + "tokenizer");
    const std::vector<int32_t> bytes = bytes_per_token(tokenizer);
    EXPECT_EQ(bytes[static_cast<size_t>(tokenizer.eot())], 0);
    const Loader loader(
        shards + "val_*.bin", "--val-data",
        {.seq_len = 48, .micro_batch = 3, .order = LoaderOrder::sequential, .vocab_size = 512});
    // A model whose weights are all zero gives every token the same probability.
    Transformer model(config_preset("tiny-llama"), {.num_rows = 3, .seq_len = 48, .backward = false});
    std::fill_n(model.params().as<float>(), model.table().arena_size(), 0.0f);
    const Perplexity result = evaluate_perplexity(model, loader, bytes);
    EXPECT_NEAR(result.loss(), std::log(512), 1e-6);
    EXPECT_NEAR(result.perplexity(), 512, 1e-3);
    EXPECT_EQ(result.num_tokens, loader.shards().num_tokens() - 1) << "all but the first token";
    int64_t text_bytes = 0;
    for (uint64_t i = 0; i < 60; i += 10)
        text_bytes += static_cast<int64_t>(toy_document(1000 + i, 20).size());
    EXPECT_EQ(result.num_bytes, text_bytes);
    EXPECT_NEAR(result.bits_per_byte(),
                9.0 * static_cast<double>(result.num_tokens) / static_cast<double>(text_bytes), 1e-6);
    // Without a tokenizer bytes are unknown; ids without a token have none.
    EXPECT_TRUE(std::isnan(evaluate_perplexity(model, loader, {}).bits_per_byte()));
    EXPECT_EQ(evaluate_perplexity(model, loader, {1}, 1).num_bytes, 0);
    EXPECT_EQ(evaluate_perplexity(model, loader, bytes, 2).num_tokens, 2 * 3 * 48) << "max_batches";
}

TEST(Plot, StandsOnItsOwn) {
    const double nan = std::nan("");
    const std::string svg =
        svg_plot("Loss <&>", "step",
                 {{"training", {1, 2, 3, 4}, {4, nan, 2, 1}, false}, {"held-out", {2, 4}, {3, 1.5}, true}},
                 {{"xz -9", 2.5}});
    EXPECT_TRUE(svg.starts_with("<svg")) << svg.substr(0, 60);
    EXPECT_EQ(count(svg, "<svg"), count(svg, "</svg>"));
    EXPECT_EQ(count(svg, "<polyline"), 2u);
    EXPECT_EQ(count(svg, "<circle"), 2u) << "markers of the short series only";
    EXPECT_NE(svg.find("Loss &lt;&amp;&gt;"), std::string::npos);
    EXPECT_NE(svg.find("xz -9 2.5"), std::string::npos);
    EXPECT_EQ(svg.find("nan"), std::string::npos);
    EXPECT_EQ(svg.find("inf"), std::string::npos);
    // Nothing, one point, a constant, a hundred thousand points: still a plot, and a small one.
    std::vector<double> many(100'000);
    for (size_t i = 0; i < many.size(); ++i) many[i] = static_cast<double>(i);
    for (const PlotSeries& series : std::vector<PlotSeries>{{"none", {}, {}, false},
                                                            {"one", {5}, {2}, true},
                                                            {"constant", {1, 2, 3}, {7, 7, 7}, false},
                                                            {"all lost", {1, 2}, {nan, nan}, false},
                                                            {"long", many, many, false}}) {
        const std::string one = svg_plot(series.name, "x", {series});
        EXPECT_NE(one.find("</svg>"), std::string::npos) << series.name;
        EXPECT_EQ(one.find("nan"), std::string::npos) << series.name;
        EXPECT_EQ(one.find("inf"), std::string::npos) << series.name;
        EXPECT_LT(one.size(), 40'000u) << series.name;
    }
    // Values that are next to each other as doubles, or nearly: ticks must still come to an end.
    for (const double base : {1.0, 2.302585, 1e9, -3.5, 1e-20, 0.0}) {
        for (const double gap : {1e-16, 1e-15, 1e-12, 1e-9, 1e-7}) {
            const std::string close =
                svg_plot("close", "x", {{"s", {1, 2}, {base, base + base * gap}, false}});
            EXPECT_LE(count(close, "class=\"tick\""), 24u) << base << " " << gap;
            EXPECT_EQ(close.find("nan"), std::string::npos);
        }
        const std::string next =
            svg_plot("next", "x", {{"s", {1, 2}, {base, std::nextafter(base, 1e300)}, false}});
        EXPECT_NE(next.find("</svg>"), std::string::npos) << base;
    }
    EXPECT_EQ(short_number(0.002), "0.002");
    EXPECT_EQ(short_number(12500), "12.5k");
    EXPECT_EQ(short_number(3.2e6), "3.2M");
}

TEST_F(Eval, ReportStandsOnItsOwn) {
    const std::string run = fresh();
    make_directories(run);
    EXPECT_THROW(write_run_report(run), InputError) << "no log, no report";
    EXPECT_FALSE(path_exists(run + "/report.html"));
    write_file_atomic(run + "/config.toml", "init = \"demo\"\nlr = 0.001\n");
    // Steps 2 and 3 were repeated after a crash, one was skipped, a line is cut, and one is of a later
    // version.
    write_file_atomic(run + "/log.jsonl",
                      "{\"kind\":\"step\",\"step\":1,\"loss\":6.5,\"lr\":0.001,\"grad_norm\":1,\"tokens\":"
                      "128,\"tokens_per_s\":1000}\n"
                      "{\"kind\":\"step\",\"step\":2,\"loss\":null,\"skipped\":\"non-finite loss\"}\n"
                      "{\"kind\":\"step\",\"step\":3,\"lo\n"
                      "{\"kind\":\"step\",\"step\":2,\"loss\":null,\"skipped\":\"non-finite loss\"}\n"
                      "{\"kind\":\"step\",\"step\":3,\"loss\":5.25,\"lr\":0.001,\"grad_norm\":1,\"tokens\":"
                      "384,\"tokens_per_s\":1000}\n"
                      "{\"kind\":\"eval\",\"step\":3,\"val_loss\":5.125,\"val_bpb\":2.75}\n"
                      "{\"kind\":\"sample\",\"step\":3,\"text\":\"<script>alert(1)</script>\"}\n"
                      "{\"kind\":\"sample\",\"step\":3,\"text\":7}\n"
                      "{\"kind\":\"later\"}\n"
                      "{\"kind\":\"end\",\"step\":3,\"peak_rss_bytes\":1048576,\"plan_bytes\":2097152}\n");
    make_directories(run + "/step_00000003/trainer");
    write_file_atomic(run + "/step_00000003/model.safetensors", "weights");
    write_file_atomic(run + "/step_00000003/trainer/hashes.json",
                      R"({"model.safetensors": {"bytes": 7, "sha256": "as-it-was-written"}, "odd": 3})");
    std::filesystem::create_directory_symlink(run, run + "/circle");
    std::filesystem::create_symlink("nowhere", run + "/dangling");
    write_run_report(
        run, {{"our own bits per byte", "2.7"}, {"xz bits per byte", "3.1", true}, {"corpus", "a & b"}});
    const std::string html = read_file(run + "/report.html");
    for (const char* section :
         {"Training run", "Curves", "Loss (nats per token)", "Held-out bits per byte", "Tokens per second",
          "Learning rate", "Gradient norm", "Samples", "Configuration", "Files"})
        EXPECT_NE(html.find(section), std::string::npos) << section;
    for (const char* value : {"2.7500", "5.125000", "5.250000", "a &amp; b", "xz bits per byte 3.1",
                              "init = &quot;demo&quot;", "2.0 MiB / 1.0 MiB", "log.jsonl"})
        EXPECT_NE(html.find(value), std::string::npos) << value;
    EXPECT_NE(html.find("log.jsonl</code></td><td><code>" + sha256_file(run + "/log.jsonl")),
              std::string::npos);
    EXPECT_NE(html.find("step_00000003/model.safetensors</code></td><td><code>as-it-was-written"),
              std::string::npos);
    EXPECT_NE(html.find("circle</code></td><td><code></code></td><td class=\"num\">link to " + run),
              std::string::npos);
    EXPECT_EQ(html.find("circle/"), std::string::npos);
    EXPECT_NE(html.find("link to nowhere"), std::string::npos);
    EXPECT_NE(html.find("<td>steps skipped (non-finite or outlier)</td><td class=\"num\">1</td>"),
              std::string::npos)
        << "a repeated step is one step";
    EXPECT_NE(html.find("<td>log lines that could not be read</td><td class=\"num\">1</td>"),
              std::string::npos);
    EXPECT_NE(html.find("<td>held-out bits per byte during training</td><td class=\"num\">2.7500</td>"),
              std::string::npos);
    EXPECT_EQ(count(html, "our own bits per byte"), 1u) << "a fact, and no line across the plot";
    for (const char* outside : {"http", "<script", "<link", "@import", "src=", "url("})
        EXPECT_EQ(html.find(outside), std::string::npos) << outside << ": the file is not self-contained";
    EXPECT_EQ(count(html, "<svg"), 5u);
    EXPECT_TRUE(html.ends_with("</html>\n"));
}

TEST_F(Eval, ProgramsOnACheckpoint) {
    const std::string out = fresh();
    const Outcome trained =
        train(out, {"--steps", "60", "--micro-batch", "8", "--val-data", path("shards/val_*.bin")});
    ASSERT_EQ(trained.exit_code, 0) << trained.err;
    const std::string model = out + "/step_00000060";
    const std::vector<std::string> arguments = {"--model",          model, "--prompt", "the baker",
                                                "--max-new-tokens", "30",  "--dtype",  "fp32"};
    const auto generate = [&](std::vector<std::string> more, const RunOptions& options = {}) {
        more.insert(more.begin(), arguments.begin(), arguments.end());
        const Outcome outcome = run_program("generate", more, options);
        EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
        return outcome.out;
    };
    const std::string text = generate({"--seed", "5"});
    EXPECT_TRUE(text.starts_with("the baker")) << text;
    EXPECT_TRUE(text.ends_with("\n"));
    EXPECT_EQ(generate({"--seed", "5", "--threads", "1"}), text) << "equal seeds, equal texts";
    EXPECT_NE(generate({"--seed", "6"}), text);
    EXPECT_EQ(generate({"--greedy"}), generate({"--temperature", "0", "--seed", "9"}));
    EXPECT_EQ(generate({"--greedy", "--stop", " "}).find(' ', 10), std::string::npos)
        << "nothing behind the stop";
    // Standard input is the prompt when there is no --prompt.
    const Outcome piped =
        run_program("generate", {"--model", model, "--greedy", "--max-new-tokens", "30", "--dtype", "fp32"},
                    {.input = "the baker"});
    EXPECT_EQ(piped.out, generate({"--greedy"}));

    const Outcome evaluated = run_program(
        "evaluate", {"--model", model, "--data", path("shards/val_*.bin"), "--out", out, "--report", "--fact",
                     "corpus=toy sentences", "--fact", "xz bits per byte=1.5", "--dtype", "bf16"});
    ASSERT_EQ(evaluated.exit_code, 0) << evaluated.err;
    EXPECT_TRUE(evaluated.last_line().starts_with("evaluate: loss=")) << evaluated.out;
    const std::string html = read_file(out + "/report.html");
    const auto json = nlohmann::json::parse(read_file(out + "/report.json"));
    EXPECT_NE(html.find("toy sentences"), std::string::npos);
    EXPECT_EQ(json.at("corpus"), "toy sentences");
    // The report's verdict is the program's own; the yardstick is xz's, and no other line crosses the plot.
    char bpb[32];
    std::snprintf(bpb, sizeof bpb, "%.4f", json.at("bits_per_byte").get<double>());
    EXPECT_NE(
        html.find(cat({"<td>held-out bits per byte (build/evaluate, windows of 256 tokens, bf16)</td><td "
                       "class=\"num\">",
                       bpb, "</td>"})),
        std::string::npos)
        << html.substr(html.find("<table>"), 1000);
    EXPECT_LT(html.find("(build/evaluate"), html.find("during training"));
    EXPECT_EQ(count(html, "class=\"yardstick\""), 1u);
    EXPECT_NE(html.find("xz bits per byte 1.5"), std::string::npos);
}
