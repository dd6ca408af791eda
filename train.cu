// The trainer. Reads top to bottom: options -> model and data -> memory -> resume -> loop -> checkpoint ->
// report. Host code only: it knows no backend. Run it twice with the same arguments and it continues where it
// stopped.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>

#include "core/config_diff.h"
#include "core/device.h"
#include "core/error.h"
#include "core/flags.h"
#include "core/io.h"
#include "core/lock.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/stop.h"
#include "core/threads.h"
#include "data/loader.h"
#include "eval/documents.h"
#include "eval/perplexity.h"
#include "eval/report.h"
#include "eval/text.h"
#include "kernels/isa.h"
#include "kernels/peak.h"
#include "model/checkpoint_writer.h"
#include "model/optimizer.h"
#include "model/run_memory.h"
#include "model/step_log.h"
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
    int64_t threads = 0, eval_every = 0, eval_batches = 0, checkpoint_every = 0, keep = 2;
    int64_t sample_every = 0, sample_tokens = 100;
    std::string sample_prompt;
    int64_t seed = 42, eot = -1;
    bool mask_documents = true, quiet = false;
};

// One line an option: the parser, --help, the printed and the stored configuration all come from here.
void declare(Flags& f, Options& o) {
    f.add("init", o.init, "preset to initialise, or a Hugging Face model directory to train on");
    f.add("train-data", o.train_data, "token shards to train on: globs, comma-separated", true);
    f.add("val-data", o.val_data, "token shards to evaluate on");
    f.add("out", o.out, "run directory; a run that is there is resumed", true);
    f.add("steps", o.steps, "optimizer steps of the whole run", 1, int64_t{1} << 31);
    f.add("stop-at", o.stop_at, "checkpoint and stop after this step; 0: at the end");
    f.add("batch-tokens", o.batch_tokens, "tokens per optimizer step; 0: one micro-batch", 0,
          int64_t{1} << 31);
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
    f.add_choice("dtype", o.dtype, {"fp32", "mixed", "bf16", "fp8"},
                 "mixed: fp32 tensors, bf16 products; fp8: bf16, but FP8 products within blocks (GPUs from "
                 "8.9 on; slow on CPUs)");
    f.add_choice("recompute", o.recompute, {"none", "mlp", "block"}, "what the backward pass computes again");
    f.add_choice("device", o.device, {"auto", "cpu", "cuda", "simt"},
                 "where to run; simt: CUDA kernels, emulated");
    f.add("isa", o.isa, "auto, plain, avx2, avx512 or avx512_bf16");
    f.add("threads", o.threads, "threads; 0: all cores", 0, 256);
    f.add("eval-every", o.eval_every, "steps between evaluations; 0: at the end only");
    f.add("eval-batches", o.eval_batches, "micro-batches per evaluation during the run; 0: all");
    f.add("checkpoint-every", o.checkpoint_every, "steps between checkpoints; 0: at the end only");
    f.add("keep", o.keep, "checkpoints to keep; 0: all");
    f.add("sample-every", o.sample_every, "steps between sampled texts; 0: at the end only");
    f.add("sample-tokens", o.sample_tokens, "how long they are at most; 0: none at all", 0, 1 << 30);
    f.add("sample-prompt", o.sample_prompt, "what samples begin with");
    f.add("seed", o.seed, "of weights, data order and rounding");
    f.add("eot", o.eot, "end-of-text id of shards without a manifest; -1: the model's own", -1, 1 << 30);
    f.add("mask-documents", o.mask_documents, "keep documents of one row from seeing each other");
    f.add("quiet", o.quiet, "no progress bar");
}

// Options that a resumed run may change. Only micro-batch and isa can move a weight at all, by rounding.
const std::vector<std::string> kFreeOptions = {"stop-at",       "micro-batch",  "recompute",
                                               "device",        "isa",          "threads",
                                               "eval-every",    "eval-batches", "checkpoint-every",
                                               "keep",          "sample-every", "sample-prompt",
                                               "sample-tokens", "quiet",        "out",
                                               "val-data",      "config"};

// So many refused steps in a row and the run is dead: the weights stand still and nothing will change that.
constexpr int64_t kMaxSkipsInARow = 100;

int fail_dead_run(int64_t step, int64_t skips, const char* reason) {
    std::fprintf(
        stderr,
        "error: the run is dead: the last %lld steps were all skipped: step %lld: %s; nothing new was "
        "saved  hint: begin anew from an earlier checkpoint (--init RUN/step_N --out NEW) with a smaller "
        "--lr or --grad-clip\n",
        static_cast<long long>(skips), static_cast<long long>(step), reason);
    return 1;
}

int body(int argc, char** argv) {
    // ---- options ----
    ignore_dead_readers();
    Options o;
    Flags flags(
        "train", "Trains a language model on token shards and resumes by itself.",
        "  build/train --init demo --train-data 'shards/train_*.bin' --val-data 'shards/val_*.bin' --out "
        "run\n"
        "  build/train --init hf-model --train-data 'fineweb/*.bin' --out run --dtype bf16 --lr 1e-5");
    declare(flags, o);
    flags.parse(argc, argv);
    if (o.threads > 0) set_num_threads(static_cast<int>(o.threads));
    set_isa(isa_from_name(o.isa.c_str()));
    const Device device = device_from_name(o.device.c_str());
    set_progress_enabled(!o.quiet);
    const uint64_t seed = static_cast<uint64_t>(o.seed);

    // ---- model and data ----
    if (o.warmup > o.steps) {
        fail_input({.what = "the warm-up is longer than the run",
                    .where = "--warmup",
                    .expected = cat({"at most --steps ", o.steps}),
                    .actual = cat({o.warmup}),
                    .hint = cat({"--warmup ", o.steps / 10})});
    }
    const ModelSource source = find_model(o.init);
    ModelConfig config = source.config;
    const int64_t micro_tokens = o.micro_batch * o.seq_len;
    const bool one_micro_batch = o.batch_tokens == 0;
    if (one_micro_batch) o.batch_tokens = micro_tokens;
    if (o.batch_tokens % micro_tokens != 0) {
        fail_input({.what = "a step is not a whole number of micro-batches",
                    .where = "--batch-tokens",
                    .expected = cat({"a multiple of micro-batch x seq-len = ", micro_tokens}),
                    .actual = cat({o.batch_tokens}),
                    .hint = cat({"--batch-tokens ", (o.batch_tokens / micro_tokens + 1) * micro_tokens})});
    }
    const int64_t samples_per_step = o.batch_tokens / o.seq_len;
    const std::string resolved = flags.resolved_toml();
    LoaderOptions loading{.seq_len = o.seq_len,
                          .micro_batch = o.micro_batch,
                          .order = LoaderOrder::shuffled,
                          .seed = seed,
                          .samples_per_step = samples_per_step,
                          .vocab_size = config.vocab_size,
                          .eot = document_end(o.eot, config),
                          .mask_documents = o.mask_documents};
    Loader train_data(o.train_data, "--train-data", loading);
    loading.order = LoaderOrder::sequential;
    loading.samples_per_step = 0;
    std::optional<Loader> val_data;
    if (!o.val_data.empty()) val_data.emplace(o.val_data, "--val-data", loading);
    if (val_data) train_data.shards().require_disjoint(val_data->shards(), "--val-data");
    // A preset knows no tokenizer: generation ends where these documents do.
    if (source.directory.empty() && train_data.eot() >= 0) config.set_end_of_text(train_data.eot());
    note_documents(train_data, "--train-data", o.eot, o.mask_documents);
    if (val_data) note_documents(*val_data, "--val-data", o.eot, o.mask_documents);
    const std::string tokenizer_directory = tokenizer_of(train_data.shards(), source.directory);
    if (val_data && val_data->shards().tokenizer_hash() != train_data.shards().tokenizer_hash()) {
        fail_input({.what = "training and held-out shards were made with different tokenizers",
                    .where = "--val-data",
                    .expected = train_data.shards().tokenizer_hash(),
                    .actual = val_data->shards().tokenizer_hash(),
                    .hint = "encode both with one tokenizer"});
    }
    std::optional<Tokenizer> tokenizer;
    std::vector<int32_t> token_bytes;
    int64_t sample_room = 0;  // tokens
    if (!tokenizer_directory.empty()) {
        tokenizer = Tokenizer::load(tokenizer_directory);
        train_data.shards().require_tokenizer(tokenizer->hash(), tokenizer_directory);
        token_bytes = bytes_per_token(*tokenizer);
        const int64_t prompt_tokens = static_cast<int64_t>(tokenizer->encode(o.sample_prompt).size());
        if (prompt_tokens + 2 > config.max_position) {  // end-of-text before it, one token behind it
            fail_input({.what = "the sample prompt does not fit the model",
                        .where = "--sample-prompt",
                        .expected = cat({"at most ", config.max_position - 2, " tokens"}),
                        .actual = cat({prompt_tokens}),
                        .hint = "give a shorter one"});
        }
        if (o.sample_tokens > 0)
            sample_room = std::min(prompt_tokens + 1 + o.sample_tokens, config.max_position);
    }

    // ---- memory: planned, printed, refused or allocated ----
    const RunShape shape{.num_rows = o.micro_batch,
                         .seq_len = o.seq_len,
                         .dtype = o.dtype == "bf16" || o.dtype == "fp8" ? DType::bf16 : DType::f32,
                         .math = o.dtype == "fp32" ? MatmulMath::f32 : MatmulMath::bf16,
                         .fp8 = o.dtype == "fp8",
                         .recompute = o.recompute == "block" ? Recompute::block
                                      : o.recompute == "mlp" ? Recompute::mlp
                                                             : Recompute::none,
                         .device = device};
    const OptimizerConfig optimizing{.muon = o.optimizer == "muon",
                                     .beta1 = o.beta1,
                                     .beta2 = o.beta2,
                                     .eps = o.eps,
                                     .weight_decay = o.weight_decay,
                                     .grad_clip = o.grad_clip,
                                     .muon_lr_ratio = o.muon_lr_ratio,
                                     .outlier_z = o.outlier_z,
                                     .seed = seed};
    const int64_t shard_bytes =
        train_data.shards().file_bytes() + (val_data ? val_data->shards().file_bytes() : 0);
    const RunNeeds needs{.shape = shape,
                         .optimizer = optimizing,
                         .rows_per_step = one_micro_batch ? 0 : samples_per_step,
                         .sample_tokens = sample_room,
                         .background_checkpoints = o.checkpoint_every > 0,
                         .process_bytes = std::max<int64_t>(0, peak_rss_bytes() - shard_bytes),
                         .shard_bytes = shard_bytes};
    const ParamTable table(config);
    check_run_directory(o.out, resolved, kFreeOptions);
    const MemoryPlan plan = plan_run(config, needs);
    std::fprintf(stderr, "%s", plan.text().c_str());
    check_run_memory(config, needs, available_memory_bytes(device));
    const DirectoryLock lock(o.out);  // from here on this process alone writes there
    check_run_directory(o.out, resolved, kFreeOptions);
    watch_stop_signals();
    std::fprintf(stderr, "%s", resolved.c_str());
    Transformer model(config, shape);
    Optimizer optimizer(table, optimizing, model.params(), shape.math);
    CheckpointWriter checkpoints({o.out, tokenizer_directory, o.keep}, table, config, model.params(),
                                 optimizer, needs.background_checkpoints);

    // ---- start or resume ----
    TrainerState state;
    const std::string data_hash = train_data.shards().data_hash();
    const std::string newest = newest_checkpoint(o.out);
    if (!newest.empty()) {
        state = load_newest_checkpoint(o.out, table, config, model.params(), optimizer);
        if (state.data_hash != data_hash) {
            fail_input({.what = "the training data is not what this run began with",
                        .where = o.train_data,
                        .expected = state.data_hash,
                        .actual = data_hash,
                        .hint = "bring the old shards back, or choose another --out"});
        }
        std::fprintf(stderr, "resuming from %s/%s\n", o.out.c_str(), checkpoint_name(state.step).c_str());
    } else {
        if (!source.directory.empty()) {
            load_hf_weights(source.directory, table, config, optimizer.master());
        } else {
            init_params(table, optimizer.master(), seed);
        }
        optimizer.publish_master();
    }
    if (!path_exists(o.out + "/config.toml")) write_file_atomic(o.out + "/config.toml", resolved);
    state.seed = seed;
    state.config_toml = resolved;
    state.commit = INGOT_COMMIT;
    state.data_hash = data_hash;
    train_data.seek(state.next_sample);

    std::fprintf(stderr, "model: %s, %s parameters, %s; %s tokens a step, %s an epoch; %d threads, %s\n",
                 config.family.c_str(), human_count(static_cast<double>(table.num_params())).c_str(),
                 o.dtype.c_str(), human_count(static_cast<double>(o.batch_tokens)).c_str(),
                 human_count(static_cast<double>(train_data.tokens_per_epoch())).c_str(), num_threads(),
                 device == Device::cpu ? isa_name(current_isa()) : device_info(device).name.c_str());
    const Schedule schedule{o.schedule, o.lr, o.lr_final_frac, o.warmup, o.steps};
    RunLog log(o.out);

    // ---- what happens now and then ----
    const auto evaluate = [&](int64_t max_batches) {
        if (!val_data) return;
        const Perplexity result =
            evaluate_perplexity(model, *val_data, token_bytes, max_batches, false, stop_asked);
        if (!result.whole) return;
        JsonLine line;
        line.add("kind", "eval").add("step", state.step).add("val_loss", result.loss());
        line.add("val_bpb", result.bits_per_byte()).add("val_tokens", result.num_tokens);
        log.write(line);
        log.scalar("val/loss", state.step, result.loss());
        log.scalar("val/bits_per_byte", state.step, result.bits_per_byte());
        std::fprintf(stderr, "eval: step=%lld val_loss=%.6f val_bpb=%.6f\n",
                     static_cast<long long>(state.step), result.loss(), result.bits_per_byte());
    };
    const auto sample = [&] {
        if (sample_room == 0 || !std::isfinite(state.last_loss))
            return;  // a diverged model has nothing to say
        TextParams params;
        params.generate.sampling = {.temperature = 0.8, .top_p = 0.95};
        params.generate.max_new_tokens = o.sample_tokens;
        params.generate.stop = stop_asked;
        params.generate.seed = static_cast<uint64_t>(state.step);
        Decoder decoder(config, table, model.params(), sample_room);
        const std::string text =
            o.sample_prompt + generate_text(decoder, *tokenizer, o.sample_prompt, params);
        if (stop_asked()) return;
        log.write(JsonLine().add("kind", "sample").add("step", state.step).add("text", text));
        std::fprintf(stderr, "sample: %s\n", text.c_str());
    };
    int64_t saved_step = newest.empty() ? -1 : state.step;
    bool checkpoint_due = false;
    const auto checkpoint = [&] {
        checkpoint_due = false;
        if (saved_step == state.step) return;
        checkpoints.save(state);
        saved_step = state.step;
    };

    // ---- the loop ----
    const auto due = [](int64_t step, int64_t every) { return every > 0 && step % every == 0; };
    const int64_t last_step = o.stop_at > 0 ? std::min(o.stop_at, o.steps) : o.steps;
    Progress progress("train", o.steps * o.batch_tokens, "tok");
    StepLog steps(log, progress, optimizer, state,
                  {.tokens = o.batch_tokens,
                   .flops = flops_per_token(config, o.seq_len) * static_cast<double>(o.batch_tokens),
                   .peak_flops = peak_flops(device, shape.math)});
    const auto dead = [&] { return optimizer.skips_in_a_row() >= kMaxSkipsInARow; };
    while (state.step < last_step && !stop_asked()) {
        const double start = seconds_now();
        // The whole step's batches first: one token count normalises every loss, whatever the micro-batch.
        std::vector<Batch> batches;
        int64_t targets = 0;
        for (int64_t rows = 0; rows < samples_per_step && !stop_asked(); rows += o.micro_batch) {
            batches.push_back(train_data.next());
            targets += batches.back().num_targets();
        }
        for (const Batch& batch : batches) {
            if (stop_asked()) break;
            model.forward_backward(batch, 1.0f / static_cast<float>(targets), &batch != &batches[0]);
        }
        if (stop_asked()) break;  // half a gradient is none: the state is that of the last whole step
        // A device is busy with this step by now: the numbers of the one before have come meanwhile.
        steps.finish();
        if (dead()) break;
        checkpoints.poll();
        // Of the step before, whose numbers the update to come will change. Steps that changed nothing must
        // not push out the checkpoints of those that did.
        if (checkpoint_due && steps.last().applied) checkpoint();
        const double lr = schedule.at(state.step);
        optimizer.queue(model.grads(), lr, model.summed_loss(), targets);
        ++state.step;
        state.next_sample += samples_per_step;
        state.tokens += targets;
        steps.queued(lr, start);
        steps.finish_if_arrived();

        const bool last = state.step == last_step;  // what is due then is done below, once
        const bool eval_due = due(state.step, o.eval_every), sample_due = due(state.step, o.sample_every);
        checkpoint_due = checkpoint_due || due(state.step, o.checkpoint_every);
        if (last || eval_due || sample_due) steps.finish();
        if (last || dead()) break;
        if (eval_due) evaluate(o.eval_batches);
        if (sample_due) sample();
    }
    steps.finish();
    checkpoints.finish();
    progress.finish();
    if (dead()) return fail_dead_run(state.step, optimizer.skips_in_a_row(), steps.last().reason);

    // ---- the end, or an interruption, which may come as late as in the last evaluation ----
    if (state.step > 0 && optimizer.num_updates() == 0 && !stop_asked())
        return fail_dead_run(state.step, optimizer.num_skipped(), "not one could be applied");
    checkpoint();
    checkpoints.finish();
    if (!stop_asked()) evaluate(0);
    if (!stop_asked()) sample();
    if (stop_asked()) {
        std::fprintf(stderr, "train: stopped by signal %d at step %lld; the same command continues\n",
                     stop_signal(), static_cast<long long>(state.step));
        return 128 + stop_signal();
    }
    JsonLine end;
    end.add("kind", "end").add("step", state.step).add("num_skipped", optimizer.num_skipped());
    end.add("peak_rss_bytes", peak_rss_bytes()).add("plan_bytes", plan.total_bytes());
    log.write(end);
    write_run_report(o.out);
    std::printf("train: done step=%lld loss=%.9g weights=%s\n", static_cast<long long>(state.step),
                state.last_loss, weights_hash(table, optimizer.master()).c_str());
    return 0;
}

}  // namespace

int main(int argc, char** argv) { return run_main(argc, argv, body); }
