// The trainer. Reads top to bottom: options -> model and data -> memory -> resume -> loop -> checkpoint ->
// report. Host code only: it knows no backend. Run it twice with the same arguments and it continues where it
// stopped. Under mpirun all ranks run this, each with its share of every step's micro-batches; rank 0 alone
// writes and speaks.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>

#include "core/comm.h"
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
#include "core/watchdog.h"
#include "data/loader.h"
#include "eval/documents.h"
#include "eval/perplexity.h"
#include "eval/report.h"
#include "eval/text.h"
#include "kernels/isa.h"
#include "kernels/peak.h"
#include "model/checkpoint_writer.h"
#include "model/faults.h"
#include "model/optimizer.h"
#include "model/ranks.h"
#include "model/run_memory.h"
#include "model/step_gradient.h"
#include "model/step_log.h"
#include "model/train_options.h"
#include "model/transformer.h"
#include "model/weights.h"
#include "tokenizer/tokenizer.h"

namespace {

// So many refused steps in a row and the run is dead: the weights stand still and nothing will change that.
constexpr int64_t kMaxSkipsInARow = 100;
// So often a run goes back to the same checkpoint: if that does not help, more of it will not either.
constexpr int64_t kMaxRewinds = 3;

int fail_dead_run(bool speaks, int64_t step, int64_t skips, const char* reason) {
    if (!speaks) return 1;
    std::fprintf(
        stderr,
        "error: the run is dead: the last %lld steps were all skipped: step %lld: %s; nothing new was "
        "saved  hint: begin anew from an earlier checkpoint (--init RUN/step_N --out NEW) with a smaller "
        "--lr or --grad-clip\n",
        static_cast<long long>(skips), static_cast<long long>(step), reason);
    return 1;
}

int body(Comm& comm, int argc, char** argv) {
    // ---- options ----
    ignore_dead_readers();
    TrainOptions o;
    const int rank = comm.rank(), ranks = comm.size();
    const bool leads = rank == 0;
    Flags flags(
        "train", "Trains a language model on token shards and resumes by itself.",
        "  build/train --init demo --train-data 'shards/train_*.bin' --val-data 'shards/val_*.bin' --out "
        "run\n"
        "  build/train --init hf-model --train-data 'fineweb/*.bin' --out run --dtype bf16 --lr 1e-5\n"
        "  mpirun -np 4 build/train --init gpt2-124m --train-data 'fineweb/*.bin' --out run --batch-tokens "
        "16384\n"
        "\nexit codes:\n"
        "  0 done; 2 wrong input; 1 the run or one of its ranks is dead; stopped by a signal, and saved:\n"
        "  75 by SIGTERM or SIGUSR1, which asks for the same command again, 128 + N by SIGINT or SIGHUP");
    declare(flags, o);
    flags.parse(argc, argv);
    set_num_threads(o.threads > 0 ? static_cast<int>(o.threads) : threads_of_each(comm.ranks_here()));
    set_isa(isa_from_name(o.isa.c_str()));
    const Device device = device_from_name(o.device.c_str());
    if ((ranks > 1 || o.zero > 0) && device != Device::cpu) {
        fail_input({.what = "several ranks and shards train on CPUs only so far",
                    .where = "--device",
                    .expected = "cpu",
                    .actual = device_name(device),
                    .hint = "--device cpu, or one rank without --zero"});
    }
    set_progress_enabled(leads && !o.quiet);
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
    const bool one_micro_batch = o.batch_tokens == 0;
    const int64_t num_micro_batches = o.num_micro_batches(),
                  samples_per_step = num_micro_batches * o.micro_batch;
    const StepParts parts = StepParts::of(num_micro_batches, o.tree(device), ranks, o.zero >= 2);
    const std::string resolved = flags.resolved_toml();
    if (ranks > 1) {
        require_same(comm, "the program", program_hash(), "install one build on all hosts");
        require_same(comm, "the configuration", resolved, "start all ranks with the same flags");
    }
    Watchdog watchdog(comm, o.watchdog);
    LoaderOptions loading{.seq_len = o.seq_len,
                          .micro_batch = o.micro_batch,
                          .order = LoaderOrder::shuffled,
                          .seed = seed,
                          .samples_per_step = samples_per_step,
                          .share_begin = parts.begin(rank) * o.micro_batch,
                          .share_end = parts.end(rank) * o.micro_batch,
                          .share_stride = parts.stride() * o.micro_batch,
                          .vocab_size = config.vocab_size,
                          .eot = document_end(o.eot, config),
                          .mask_documents = o.mask_documents};
    Loader train_data(o.train_data, "--train-data", loading);
    loading.order = LoaderOrder::sequential;
    loading.samples_per_step = loading.share_begin = loading.share_end = 0;
    std::optional<Loader> val_data;
    if (!o.val_data.empty()) val_data.emplace(o.val_data, "--val-data", loading);
    if (val_data) train_data.shards().require_disjoint(val_data->shards(), "--val-data");
    // A preset knows no tokenizer: generation ends where these documents do.
    if (source.directory.empty() && train_data.eot() >= 0) config.set_end_of_text(train_data.eot());
    if (leads) note_documents(train_data, "--train-data", o.eot, o.mask_documents);
    if (leads && val_data) note_documents(*val_data, "--val-data", o.eot, o.mask_documents);
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
        const int64_t room =
            room_for_text(*tokenizer, config, o.sample_prompt, o.sample_tokens, "--sample-prompt");
        if (o.sample_tokens > 0 && o.zero < 3) sample_room = room;  // with 3 nobody has the whole model
    }

    // ---- memory: planned, printed, refused or allocated ----
    const RunShape shape = o.shape(device);
    const OptimizerConfig optimizing = o.optimizing();
    const int64_t shard_bytes =
        train_data.shards().file_bytes() + (val_data ? val_data->shards().file_bytes() : 0);
    RunNeeds needs{.shape = shape,
                   .optimizer = optimizing,
                   .rows_per_step = one_micro_batch ? 0 : samples_per_step,
                   .tree = o.tree(device),
                   .zero = static_cast<int>(o.zero),
                   .rank = rank,
                   .num_ranks = ranks,
                   .sample_tokens = sample_room,
                   .background_checkpoints = o.checkpoint_every > 0,
                   .process_bytes = std::max<int64_t>(0, peak_rss_bytes() - shard_bytes),
                   .shard_bytes = shard_bytes};
    const ParamTable table(config);
    MemoryPlan plan = plan_run(config, needs);
    std::optional<DirectoryLock> lock;
    if (leads) {
        check_run_directory(o.out, resolved, kFreeOptions);
        std::fprintf(stderr, "%s", plan.text().c_str());
    }
    check_run_memory(config, needs, available_memory_bytes(device) / comm.ranks_here());
    plan = plan_run(config, needs);
    if (leads) {
        if (o.checkpoint_every > 0 && !needs.background_checkpoints)
            std::fprintf(stderr, "training will wait for its checkpoints: there is no room for a copy\n");
        lock.emplace(o.out);  // from here on this process alone writes there
        check_run_directory(o.out, resolved, kFreeOptions);
        std::fprintf(stderr, "%s", resolved.c_str());
    }
    watch_stop_signals();
    Transformer model(config, shape);
    const Sharding sharding(table, optimizing.muon, static_cast<int>(o.zero), ranks);
    Weights weights(comm, table, config, sharding, shape.dtype, model.params());
    if (device == Device::cpu) model.set_weights(&weights);
    Optimizer optimizer(table, optimizing, weights.own(), shape.math, sharding, comm);
    StepGradient gradient(comm, model, parts, sharding);
    CheckpointWriter checkpoints({o.out, tokenizer_directory, o.keep, o.keep_every}, table, config, optimizer,
                                 sharding, comm, needs.background_checkpoints);

    // ---- start or resume ----
    const std::string data_hash = train_data.shards().data_hash();
    if (ranks > 1) require_same(comm, "the training data", data_hash, "all ranks need the same shards");
    RunStart start = start_run(comm, o.out, source.directory, table, config, seed, optimizer);
    TrainerState& state = start.state;
    if (!start.checkpoint.empty()) {
        if (state.data_hash != data_hash) {
            fail_input({.what = "the training data is not what this run began with",
                        .where = o.train_data,
                        .expected = state.data_hash,
                        .actual = data_hash,
                        .hint = "bring the old shards back, or choose another --out"});
        }
        if (leads) std::fprintf(stderr, "resuming from %s\n", start.checkpoint.c_str());
    }
    weights.changed();
    if (leads && !path_exists(o.out + "/config.toml")) write_file_atomic(o.out + "/config.toml", resolved);
    state.seed = seed;
    state.config_toml = resolved;
    state.commit = INGOT_COMMIT;
    state.data_hash = data_hash;
    train_data.seek(state.next_sample);

    if (leads) {
        const std::string jobs = ranks == 1 ? "" : cat({ranks, " ranks of "});
        std::fprintf(stderr,
                     "model: %s, %s parameters, %s; %s tokens a step, %s an epoch; %s%d threads, %s\n",
                     config.family.c_str(), human_count(static_cast<double>(table.num_params())).c_str(),
                     o.dtype.c_str(), human_count(static_cast<double>(o.batch_tokens)).c_str(),
                     human_count(static_cast<double>(train_data.tokens_per_epoch())).c_str(), jobs.c_str(),
                     num_threads(),
                     device == Device::cpu ? isa_name(current_isa()) : device_info(device).name.c_str());
    }
    const Schedule schedule = o.schedule_of_lr();
    RunLog log(leads ? o.out : "");
    // Alone, a run stops between two micro-batches; several ranks where all of them know of it.
    StepAgreement agreed;
    const auto stopping = [&] { return ranks > 1 ? agreed.stop_signal : stop_signal(); };
    const auto agree_to_stop = [&] {
        if (ranks > 1) agreed = agree(comm, 0, stop_signal(), false);
        return stopping() != 0;
    };

    // ---- what happens now and then ----
    const auto evaluate = [&](int64_t max_batches) {
        if (!val_data) return;
        watchdog.enter(Phase::evaluate, state.step);
        const Perplexity result =
            evaluate_perplexity(model, *val_data, token_bytes, max_batches, false, stop_asked, &comm);
        if (!result.whole || !leads) return;
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
        // A diverged model has nothing to say.
        if (!leads || sample_room == 0 || !std::isfinite(state.last_loss)) return;
        TextParams params;
        params.generate.sampling = {.temperature = 0.8, .top_p = 0.95};
        params.generate.max_new_tokens = o.sample_tokens;
        params.generate.stop = stop_asked;
        params.generate.seed = static_cast<uint64_t>(state.step);
        weights.settle();
        Decoder decoder(config, table, model.params(), sample_room);
        const std::string text =
            o.sample_prompt + generate_text(decoder, *tokenizer, o.sample_prompt, params);
        if (stop_asked()) return;
        log.write(JsonLine().add("kind", "sample").add("step", state.step).add("text", text));
        std::fprintf(stderr, "sample: %s\n", text.c_str());
    };
    int64_t saved_step = start.checkpoint.empty() ? -1 : state.step;
    bool checkpoint_due = false;
    int64_t num_rewinds = 0;
    const auto checkpoint = [&] {
        checkpoint_due = false;
        if (saved_step == state.step) return;
        watchdog.enter(Phase::checkpoint, state.step);
        weights.settle();
        if (o.zero < 3)
            check_equal_weights(comm, table, o.zero == 0 ? optimizer.master() : model.params(), state.step);
        checkpoints.save(state);
        num_rewinds = 0;
        saved_step = state.step;
    };

    // ---- the loop ----
    const auto due = [](int64_t step, int64_t every) { return every > 0 && step % every == 0; };
    const int64_t last_step = o.stop_at > 0 ? std::min(o.stop_at, o.steps) : o.steps;
    Progress progress("train", o.steps * o.batch_tokens, "tok");
    StepLog steps(log, progress, optimizer, state,
                  {.tokens = o.batch_tokens,
                   .flops = flops_per_token(config, o.seq_len) * static_cast<double>(o.batch_tokens),
                   .peak_flops = peak_flops(device, shape.math) * ranks});
    const auto dead = [&] { return optimizer.skips_in_a_row() >= kMaxSkipsInARow; };
    const auto rewind = [&] {
        if (state.refused_since < 0 || num_rewinds == kMaxRewinds) return;
        checkpoints.finish();
        weights.settle();
        const bool gone_back = go_back(comm, o.out, o.checkpoint_every, table, config, optimizer, state, log);
        num_rewinds = gone_back ? num_rewinds + 1 : kMaxRewinds;
        if (!gone_back) return;
        weights.changed();
        saved_step = state.step;
        checkpoint_due = false;
    };
    while (state.step < last_step && !stopping()) {
        if (o.rewind_after > 0 && optimizer.skips_in_a_row() >= o.rewind_after) {
            steps.finish();
            if (optimizer.skips_in_a_row() >= o.rewind_after) rewind();
        }
        if (state.step_over()) train_data.seek(state.next_sample);
        const double step_begin = seconds_now();
        const int64_t sent_before = comm.bytes_sent();
        watchdog.enter(Phase::data, state.step + 1);
        // The whole step's batches first: one token count normalises every loss, whatever the micro-batch.
        std::vector<Batch> batches;
        int64_t targets = 0;
        for (int64_t b = 0; b < parts.count(rank) && !stopping(); ++b) {
            batches.push_back(train_data.next());
            targets += batches.back().num_targets();
        }
        if (ranks > 1) {
            watchdog.enter(Phase::agreement, state.step + 1);
            agreed = agree(comm, targets, stop_signal(), checkpoints.busy());
            targets = agreed.targets;
            if (agreed.num_busy == 0) checkpoints.go_on();
        }
        watchdog.enter(Phase::compute, state.step + 1);
        for (const Batch& batch : batches) {
            if (stopping()) break;
            gradient.add(batch, 1.0f / static_cast<float>(targets));
        }
        if (stopping()) break;  // half a gradient is none: the state is that of the last whole step
        watchdog.enter(Phase::gradients, state.step + 1);
        const Tensor loss = gradient.finish();
        if (state.step + 1 == o.replay_step) {
            const GradientBits first = bits_of(gradient, loss, table, o.zero > 0 ? &comm : nullptr);
            for (const Batch& batch : batches) gradient.add(batch, 1.0f / static_cast<float>(targets));
            gradient.finish();
            check_replay(first, bits_of(gradient, loss, table, o.zero > 0 ? &comm : nullptr), state.step + 1,
                         log);
        }
        watchdog.enter(Phase::update, state.step + 1);
        // A device is busy with this step by now: the numbers of the one before have come meanwhile.
        steps.finish();
        if (dead()) break;
        checkpoints.poll();
        // Of the step before, whose numbers the update to come will change. Steps that changed nothing must
        // not push out the checkpoints of those that did.
        if (checkpoint_due && steps.last().applied) checkpoint();
        const double lr = schedule.at(state.step);
        optimizer.queue(gradient.gradient(), lr, loss, targets);
        weights.changed();
        ++state.step;
        const int64_t first_sample = state.next_sample;
        state.next_sample += samples_per_step;
        state.tokens += targets;
        steps.queued(lr, step_begin, first_sample, comm.bytes_sent() - sent_before);
        steps.finish_if_arrived();

        const bool last = state.step == last_step;  // what is due then is done below, once
        const bool eval_due = due(state.step, o.eval_every), sample_due = due(state.step, o.sample_every);
        checkpoint_due = checkpoint_due || due(state.step, o.checkpoint_every);
        if (last || eval_due || sample_due) steps.finish();
        if (last || dead()) break;
        if (eval_due) evaluate(o.eval_batches);
        if (sample_due) sample();
    }
    watchdog.enter(Phase::end, state.step);
    weights.settle();  // nothing may be on its way into memory that goes
    steps.finish();
    checkpoints.finish();
    progress.finish();
    if (dead()) return fail_dead_run(leads, state.step, optimizer.skips_in_a_row(), steps.last().reason);

    // ---- the end, or an interruption, which may come as late as in the last evaluation ----
    if (state.step > 0 && optimizer.num_updates() == 0 && !stopping())
        return fail_dead_run(leads, state.step, optimizer.num_skipped(), "not one could be applied");
    checkpoint();
    checkpoints.finish();
    if (!agree_to_stop()) evaluate(0);
    if (!agree_to_stop()) sample();
    if (agree_to_stop()) {
        if (leads)
            std::fprintf(stderr, "train: stopped by signal %d at step %lld; the same command continues\n",
                         stopping(), static_cast<long long>(state.step));
        return exit_code_after(stopping());
    }
    const std::string hash = weights_hash(table, optimizer.master_part(), o.zero > 0 ? &comm : nullptr);
    if (!leads) return 0;
    JsonLine end;
    end.add("kind", "end").add("step", state.step).add("num_skipped", optimizer.num_skipped());
    end.add("peak_rss_bytes", peak_rss_bytes()).add("plan_bytes", plan.total_bytes());
    log.write(end);
    write_run_report(o.out);
    std::printf("train: done step=%lld loss=%.9g weights=%s\n", static_cast<long long>(state.step),
                state.last_loss, hash.c_str());
    return 0;
}

}  // namespace

int main(int argc, char** argv) { return run_main_of_ranks(argc, argv, body); }
