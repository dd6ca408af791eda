// The trainer. Reads top to bottom: options -> data -> model -> memory -> resume -> loop -> checkpoint ->
// report. Host code only: it knows no backend. Run it twice with the same arguments and it continues where it
// stopped.
#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <optional>

#include "core/comm.h"
#include "core/config_diff.h"
#include "core/error.h"
#include "core/flags.h"
#include "core/io.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/threads.h"
#include "data/loader.h"
#include "eval/perplexity.h"
#include "eval/report.h"
#include "eval/text.h"
#include "kernels/fma_peak.h"
#include "kernels/isa.h"
#include "model/checkpoint.h"
#include "model/optimizer.h"
#include "model/transformer.h"
#include "tokenizer/tokenizer.h"

namespace {

struct Options {
    std::string init = "demo", train_data, val_data, out;
    int64_t steps = 1000, stop_at = 0, batch_tokens = 0, micro_batch = 4, seq_len = 256;
    std::string optimizer = "adamw", schedule = "cosine";
    double lr = 6e-4, lr_final_frac = 0.1, weight_decay = 0.1, beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
    double grad_clip = 1.0, muon_lr_ratio = 1.0, outlier_z = 0;
    int64_t warmup = 0;
    std::string dtype = "fp32", recompute = "none", device = "auto", isa = "auto";
    int64_t threads = 0, eval_every = 0, eval_batches = 0, checkpoint_every = 0, keep = 2, sample_every = 0;
    std::string sample_prompt;
    int64_t seed = 42;
    int64_t eot = -1;
    bool mask_documents = true, quiet = false;
};

// One line an option: the parser, --help, the printed and the stored configuration all come from here.
void declare(Flags& f, Options& o) {
    f.add("init", o.init, "preset to initialise, or a Hugging Face model directory to train on");
    f.add("train-data", o.train_data, "token shards to train on: globs, comma-separated", true);
    f.add("val-data", o.val_data, "token shards to evaluate on");
    f.add("out", o.out, "run directory; a run that is there is resumed", true);
    f.add("steps", o.steps, "optimizer steps of the whole run", 1);
    f.add("stop-at", o.stop_at, "checkpoint and stop after this step; 0: at the end");
    f.add("batch-tokens", o.batch_tokens, "tokens per optimizer step; 0: one micro-batch");
    f.add("micro-batch", o.micro_batch, "rows per forward and backward pass", 1, 1 << 20);
    f.add("seq-len", o.seq_len, "tokens per row", 1, 1 << 24);
    f.add_choice("optimizer", o.optimizer, {"adamw", "muon"},
                 "muon: hidden matrices by Muon, the rest by AdamW");
    f.add("lr", o.lr, "peak learning rate", 0, 1e3);
    f.add_choice("schedule", o.schedule, {"cosine", "linear", "constant", "wsd"},
                 "shape of the learning rate");
    f.add("warmup", o.warmup, "steps of linear warm-up");
    f.add("lr-final-frac", o.lr_final_frac, "last learning rate as a fraction of the peak", 0, 1);
    f.add("muon-lr-ratio", o.muon_lr_ratio, "Muon's learning rate over AdamW's", 0, 1e4);
    f.add("weight-decay", o.weight_decay, "decoupled weight decay of the matrices", 0, 1e3);
    f.add("beta1", o.beta1, "AdamW's first moment", 0, 0.999999);
    f.add("beta2", o.beta2, "AdamW's second moment", 0, 0.999999);
    f.add("eps", o.eps, "AdamW's epsilon", 1e-30, 1);
    f.add("grad-clip", o.grad_clip, "largest global gradient norm; 0: off");
    f.add("outlier-z", o.outlier_z,
          "skip a step whose loss or gradient norm lies this many deviations above; 0: off");
    f.add_choice("dtype", o.dtype, {"fp32", "bf16", "mixed"}, "mixed: fp32 tensors, bf16 matrix arithmetic");
    f.add_choice("recompute", o.recompute, {"none", "mlp", "block"}, "what the backward pass computes again");
    f.add_choice("device", o.device, {"auto", "cpu"}, "where to run");
    f.add("isa", o.isa, "auto, plain, avx2, avx512 or avx512_bf16");
    f.add("threads", o.threads, "threads; 0: all cores", 0, 256);
    f.add("eval-every", o.eval_every, "steps between evaluations; 0: at the end only");
    f.add("eval-batches", o.eval_batches, "micro-batches per evaluation during the run; 0: all");
    f.add("checkpoint-every", o.checkpoint_every, "steps between checkpoints; 0: at the end only");
    f.add("keep", o.keep, "checkpoints to keep; 0: all");
    f.add("sample-every", o.sample_every, "steps between sampled texts; 0: at the end only");
    f.add("sample-prompt", o.sample_prompt, "what samples begin with");
    f.add("seed", o.seed, "of weights, data order and rounding");
    f.add("eot", o.eot, "end-of-text id for shards without a manifest; -1: none", -1, 1 << 30);
    f.add("mask-documents", o.mask_documents, "keep documents of one row from seeing each other");
    f.add("quiet", o.quiet, "no progress bar");
}

// Options that may differ between the two halves of a resumed run: they cannot change a weight.
const std::vector<std::string> kFreeOptions = {
    "stop-at",    "micro-batch",  "recompute",        "device", "isa",          "threads",
    "eval-every", "eval-batches", "checkpoint-every", "keep",   "sample-every", "sample-prompt",
    "quiet",      "out",          "val-data",         "config"};

volatile std::sig_atomic_t g_signal = 0;
void on_signal(int signal) { g_signal = signal; }

// Refuses a run directory that holds something else; the stored configuration of an earlier start must agree
// in every option that matters.
void claim_run_directory(const Options& o, const std::string& resolved) {
    const std::string stored_path = o.out + "/config.toml";
    if (!path_exists(stored_path)) {
        if (path_exists(o.out) && !list_directory(o.out).empty()) {
            fail_input({.what = "output directory holds something that is not a training run",
                        .where = o.out,
                        .expected = "an empty or new directory, or one with config.toml",
                        .hint = "choose another --out"});
        }
        make_directories(o.out);
        write_file_atomic(stored_path, resolved);
        return;
    }
    const std::optional<ConfigDifference> difference =
        first_difference(read_file(stored_path), resolved, kFreeOptions);
    if (difference) {
        fail_input(
            {.what = cat({"output directory belongs to another run: --", difference->name, " differs"}),
             .where = stored_path,
             .expected = difference->stored,
             .actual = difference->given,
             .hint = "repeat the first run's arguments to continue it, or choose another --out"});
    }
}

// Says what the run needs and refuses what will not fit, before anything is allocated.
void check_memory(const MemoryPlan& plan, const Options& o) {
    std::fprintf(stderr, "%s", plan.text().c_str());
    const double available = static_cast<double>(available_memory_bytes());
    if (static_cast<double>(plan.total_bytes()) <= available) return;
    std::string hint = o.micro_batch > 1 ? cat({"--micro-batch ", o.micro_batch / 2}) : "a shorter --seq-len";
    if (o.recompute != "block") hint += " or --recompute block";
    if (o.dtype != "bf16") hint += " or --dtype bf16";
    fail_input({.what = "the run does not fit in memory",
                .where = cat({"--micro-batch ", o.micro_batch}),
                .expected = cat({"at most ", human_bytes(available)}),
                .actual = human_bytes(static_cast<double>(plan.total_bytes())),
                .hint = hint});
}

int body(int argc, char** argv) {
    // ---- options
    // ---------------------------------------------------------------------------------------------------
    Options o;
    Flags flags("train", "Trains a language model on token shards and resumes by itself.",
                "  build/train --init demo --train-data 'shards/train_*.bin' --val-data 'shards/val_*.bin' "
                "--out run\n"
                "  build/train --init path/to/hf-model --train-data 'fineweb/*.bin' --out run --dtype bf16 "
                "--lr 1e-5");
    declare(flags, o);
    flags.parse(argc, argv);
    set_threads_and_isa(o.threads, o.isa);
    set_progress_enabled(!o.quiet);
    const std::unique_ptr<Comm> comm = make_self_comm();

    // ---- data
    // ------------------------------------------------------------------------------------------------------
    const LoaderOptions train_options{.seq_len = o.seq_len,
                                      .seed = static_cast<uint64_t>(o.seed),
                                      .shuffle = true,
                                      .mask_documents = o.mask_documents,
                                      .eot = static_cast<int32_t>(o.eot)};
    const Loader train_data(o.train_data, "--train-data", train_options);
    std::optional<Loader> val_data;
    if (!o.val_data.empty()) {
        LoaderOptions val_options = train_options;
        val_options.shuffle = false;
        val_data.emplace(o.val_data, "--val-data", val_options);
    }
    std::optional<Tokenizer> tokenizer;
    if (!train_data.tokenizer_directory().empty())
        tokenizer = Tokenizer::load(train_data.tokenizer_directory());
    const std::vector<int32_t> token_bytes = tokenizer ? bytes_per_token(*tokenizer) : std::vector<int32_t>{};

    const int64_t micro_tokens = o.micro_batch * o.seq_len;
    if (o.batch_tokens == 0) o.batch_tokens = micro_tokens;
    if (o.batch_tokens % micro_tokens != 0) {
        fail_input({.what = "a step is not a whole number of micro-batches",
                    .where = "--batch-tokens",
                    .expected = cat({"a multiple of micro-batch x seq-len = ", micro_tokens}),
                    .actual = cat({o.batch_tokens})});
    }
    const int64_t samples_per_step = o.batch_tokens / o.seq_len;

    // ---- model
    // -----------------------------------------------------------------------------------------------------
    const bool from_directory = is_directory(o.init);
    const ModelConfig config = from_directory ? load_hf_config(o.init) : config_preset(o.init);
    check_vocabulary(train_data, config, o.init);
    const RunShape shape{.num_rows = o.micro_batch,
                         .seq_len = o.seq_len,
                         .dtype = o.dtype == "bf16" ? DType::bf16 : DType::f32,
                         .math = o.dtype == "fp32" ? MatmulMath::f32 : MatmulMath::bf16,
                         .recompute = recompute_from_name(o.recompute)};
    const OptimizerConfig optimizer_config{.muon = o.optimizer == "muon",
                                           .beta1 = o.beta1,
                                           .beta2 = o.beta2,
                                           .eps = o.eps,
                                           .weight_decay = o.weight_decay,
                                           .grad_clip = o.grad_clip,
                                           .muon_lr_ratio = o.muon_lr_ratio,
                                           .outlier_z = o.outlier_z,
                                           .seed = static_cast<uint64_t>(o.seed)};
    const Schedule schedule{.name = o.schedule,
                            .lr = o.lr,
                            .final_frac = o.lr_final_frac,
                            .warmup = o.warmup,
                            .num_steps = o.steps};

    // ---- memory
    // ----------------------------------------------------------------------------------------------------
    const ParamTable table(config);
    MemoryPlan plan;
    Transformer::plan(plan, config, shape);
    Optimizer::plan(plan, table, optimizer_config, shape.dtype);
    check_memory(plan, o);
    claim_run_directory(o, flags.resolved_toml());
    Transformer model(config, shape);
    Optimizer optimizer(table, optimizer_config, model.params(), shape.dtype, shape.math);

    // ---- start or resume
    // -------------------------------------------------------------------------------------------
    TrainerState state;
    state.seed = static_cast<uint64_t>(o.seed);
    state.config_toml = flags.resolved_toml();
    state.data_hash = train_data.data_hash();
    if (const std::string checkpoint = newest_checkpoint(o.out); !checkpoint.empty()) {
        const std::string data_hash = state.data_hash;
        state = load_checkpoint(checkpoint, table, config, optimizer);
        if (state.data_hash != data_hash) {
            fail_input({.what = "the training data is not what this run began with",
                        .where = o.train_data,
                        .expected = state.data_hash,
                        .actual = data_hash,
                        .hint = "choose another --out"});
        }
        std::fprintf(stderr, "resuming from %s\n", checkpoint.c_str());
    } else if (from_directory) {
        load_hf_weights(o.init, table, config, optimizer.master());
    } else {
        init_params(table, optimizer.master(), static_cast<uint64_t>(o.seed));
    }
    optimizer.publish_master();

    std::fprintf(stderr, "%s", flags.resolved_toml().c_str());
    std::fprintf(stderr,
                 "model: %s, %s parameters, %s; %s tokens a step, %s tokens an epoch; %d threads, %s\n",
                 config.family.c_str(), human_count(static_cast<double>(table.num_params())).c_str(),
                 o.dtype.c_str(), human_count(static_cast<double>(o.batch_tokens)).c_str(),
                 human_count(static_cast<double>(train_data.num_windows() * o.seq_len)).c_str(),
                 num_threads(), isa_name(current_isa()));
    const double step_flops = flops_per_token(config, o.seq_len) * static_cast<double>(o.batch_tokens);
    const double peak_flops = fma_peak_flops(shape.math);
    RunLog log(o.out);
    std::signal(SIGTERM, on_signal);
    std::signal(SIGINT, on_signal);

    // ---- what happens now and then
    // ---------------------------------------------------------------------------------
    const auto evaluate = [&](int64_t max_batches) {
        if (!val_data) return;
        const Perplexity result = evaluate_perplexity(model, *val_data, token_bytes, max_batches);
        log.write(JsonLine()
                      .add("kind", "eval")
                      .add("step", state.step)
                      .add("val_loss", result.loss())
                      .add("val_bpb", result.bits_per_byte())
                      .add("val_tokens", result.num_tokens));
        log.scalar("val/loss", state.step, result.loss());
        log.scalar("val/bits_per_byte", state.step, result.bits_per_byte());
        if (state.best_val_loss == 0 || result.loss() < state.best_val_loss)
            state.best_val_loss = result.loss();
        std::fprintf(stderr, "eval: step=%lld val_loss=%.6f val_bpb=%.6f\n",
                     static_cast<long long>(state.step), result.loss(), result.bits_per_byte());
    };
    const auto sample = [&] {
        if (!tokenizer) return;
        const std::string text =
            sample_text(config, table, model.params(), shape.dtype, *tokenizer, o.sample_prompt,
                        {.sampling = {.temperature = 0.8, .top_p = 0.95},
                         .max_new_tokens = 100,
                         .seed = static_cast<uint64_t>(state.step)});
        log.write(JsonLine().add("kind", "sample").add("step", state.step).add("text", text));
        std::fprintf(stderr, "sample: %s\n", text.c_str());
    };
    int64_t saved_step = -1;
    const auto checkpoint = [&] {
        if (saved_step == state.step) return;
        state.num_updates = optimizer.num_updates();
        state.num_skipped = optimizer.num_skipped();
        state.loss_window = optimizer.loss_window().values();
        state.norm_window = optimizer.norm_window().values();
        save_checkpoint(o.out, table, config, model.params(), shape.dtype, optimizer, state,
                        train_data.tokenizer_directory());
        prune_checkpoints(o.out, o.keep);
        saved_step = state.step;
    };

    // ---- the loop
    // --------------------------------------------------------------------------------------------------
    const auto due = [](int64_t step, int64_t every) { return every > 0 && step % every == 0; };
    const int64_t last_step = o.stop_at > 0 ? std::min(o.stop_at, o.steps) : o.steps;
    Prefetcher batches(train_data, state.next_sample, o.micro_batch, samples_per_step / o.micro_batch);
    Progress progress("train", o.steps * o.batch_tokens, "tok");
    double mean_loss = 0;
    while (state.step < last_step && !g_signal) {
        const double start = seconds_now();
        const std::vector<Batch> step_batches = batches.next();
        int64_t targets = 0;
        for (const Batch& batch : step_batches) targets += batch.num_targets();
        double loss_sum = 0;
        bool accumulate = false;
        for (const Batch& batch : step_batches) {
            loss_sum += model.forward_backward(batch, 1.0f / static_cast<float>(targets), accumulate);
            accumulate = true;
        }
        mean_loss = loss_sum / static_cast<double>(targets);
        const double lr = schedule.at(state.step);
        const StepResult result = optimizer.step(model.grads(), lr, mean_loss);
        ++state.step;
        state.next_sample += samples_per_step;
        state.tokens += targets;

        const double ms = (seconds_now() - start) * 1e3;
        const double tokens_per_s = static_cast<double>(o.batch_tokens) / ms * 1e3;
        const double mfu = step_flops / (ms * 1e-3) / peak_flops;
        JsonLine line;
        line.add("kind", "step")
            .add("step", state.step)
            .add("loss", mean_loss)
            .add("lr", lr)
            .add("grad_norm", result.grad_norm)
            .add("tokens", state.tokens)
            .add("ms", ms)
            .add("tokens_per_s", tokens_per_s)
            .add("mfu", mfu);
        if (!result.applied) line.add("skipped", result.reason).add("num_skipped", optimizer.num_skipped());
        log.write(line);
        log.scalar("train/loss", state.step, mean_loss);
        log.scalar("train/grad_norm", state.step, result.grad_norm);
        log.scalar("train/lr", state.step, lr);
        log.scalar("train/tokens_per_s", state.step, tokens_per_s);
        progress.update(state.step * o.batch_tokens, cat({"step ", state.step, " loss ", fixed(mean_loss, 4),
                                                          " mfu ", fixed(mfu * 100, 0), "%"}));
        if (!result.applied) {
            std::fprintf(stderr, "step %lld skipped: %s (%lld so far)\n", static_cast<long long>(state.step),
                         result.reason, static_cast<long long>(optimizer.num_skipped()));
        }
        if (state.step == last_step) break;  // what is due now happens below, once
        if (due(state.step, o.eval_every)) evaluate(o.eval_batches);
        if (due(state.step, o.sample_every)) sample();
        if (due(state.step, o.checkpoint_every)) checkpoint();
    }
    progress.finish();

    // ---- the end, or an interruption
    // -------------------------------------------------------------------------------
    if (g_signal) {
        checkpoint();
        std::fprintf(stderr, "train: stopped by signal %d at step %lld; the same command continues\n",
                     static_cast<int>(g_signal), static_cast<long long>(state.step));
        return 128 + g_signal;
    }
    evaluate(0);
    sample();
    checkpoint();
    log.write(JsonLine()
                  .add("kind", "end")
                  .add("step", state.step)
                  .add("peak_rss_bytes", peak_rss_bytes())
                  .add("plan_bytes", plan.total_bytes())
                  .add("num_skipped", optimizer.num_skipped()));
    write_run_report(o.out);
    std::printf("train: done step=%lld loss=%.9g weights=%s\n", static_cast<long long>(state.step), mean_loss,
                weights_hash(table, optimizer.master()).c_str());
    return 0;
}

}  // namespace

int main(int argc, char** argv) { return run_main(argc, argv, body); }
