// One line an option.
#include "model/train_options.h"

#include "core/error.h"

// The parser, --help, the printed and the stored configuration all come from here.
void declare(Flags& f, TrainOptions& o) {
    f.add("init", o.init, "preset to initialise, or a Hugging Face model directory to train on");
    f.add("train-data", o.train_data, "token shards to train on: globs, comma-separated", true);
    f.add("val-data", o.val_data, "token shards to evaluate on");
    f.add("out", o.out, "run directory; a run that is there is resumed", true);
    f.add("steps", o.steps, "optimizer steps of the whole run", 1, int64_t{1} << 31);
    f.add("stop-at", o.stop_at, "checkpoint and stop after this step; 0: at the end");
    f.add("batch-tokens", o.batch_tokens, "tokens per optimizer step, of all ranks; 0: one micro-batch", 0,
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
    f.add("threads", o.threads, "threads of each rank; 0: its part of the cores", 0, 256);
    f.add(
        "deterministic-reduce", o.deterministic_reduce,
        "parts of a step whose gradients are added in a tree, so that any number of ranks up to it gives the "
        "same bits; 0: one a rank; -1: 4 on CPUs, else 0",
        -1, 1 << 20);
    f.add("zero", o.zero,
          "what a rank has its own part of only: 0 nothing, 1 the optimizer's state, 2 gradients too, 3 all",
          0, 3);
    f.add("rewind-after", o.rewind_after,
          "skipped steps in a row after which the run goes back to its newest checkpoint and leaves their "
          "samples out; 0: never");
    f.add("replay-step", o.replay_step,
          "compute this step's gradient twice and fail unless both have the same bits; 0: none");
    f.add("eval-every", o.eval_every, "steps between evaluations; 0: at the end only");
    f.add("eval-batches", o.eval_batches, "micro-batches per evaluation during the run; 0: all");
    f.add("checkpoint-every", o.checkpoint_every, "steps between checkpoints; 0: at the end only");
    f.add("keep", o.keep, "newest checkpoints to keep; 0: all");
    f.add("keep-every", o.keep_every, "keep those of multiples of so many steps for good; 0: none");
    f.add("sample-every", o.sample_every, "steps between sampled texts; 0: at the end only");
    f.add("sample-tokens", o.sample_tokens, "how long they are at most; 0: none at all", 0, 1 << 30);
    f.add("sample-prompt", o.sample_prompt, "what samples begin with");
    f.add("seed", o.seed, "of weights, data order and rounding");
    f.add("eot", o.eot, "end-of-text id of shards without a manifest; -1: the model's own", -1, 1 << 30);
    f.add("mask-documents", o.mask_documents, "keep documents of one row from seeing each other");
    f.add("watchdog", o.watchdog, "seconds of silence after which a rank is taken for dead; 0: never", 0,
          1e6);
    f.add("quiet", o.quiet, "no progress bar");
}

const std::vector<std::string> kFreeOptions = {
    "stop-at",      "micro-batch",   "recompute",        "device",       "isa",         "threads",
    "eval-every",   "eval-batches",  "checkpoint-every", "keep",         "keep-every",  "zero",
    "sample-every", "sample-prompt", "sample-tokens",    "rewind-after", "replay-step", "watchdog",
    "quiet",        "out",           "val-data",         "config"};

RunShape TrainOptions::shape(Device on) const {
    return {.num_rows = micro_batch,
            .seq_len = seq_len,
            .dtype = dtype == "bf16" || dtype == "fp8" ? DType::bf16 : DType::f32,
            .math = dtype == "fp32" ? MatmulMath::f32 : MatmulMath::bf16,
            .fp8 = dtype == "fp8",
            .recompute = recompute == "block" ? Recompute::block
                         : recompute == "mlp" ? Recompute::mlp
                                              : Recompute::none,
            .device = on,
            .has_params = zero < 3,
            .has_grads = zero < 2};
}

OptimizerConfig TrainOptions::optimizing() const {
    return {.muon = optimizer == "muon",
            .beta1 = beta1,
            .beta2 = beta2,
            .eps = eps,
            .weight_decay = weight_decay,
            .grad_clip = grad_clip,
            .muon_lr_ratio = muon_lr_ratio,
            .outlier_z = outlier_z,
            .seed = static_cast<uint64_t>(seed)};
}

Schedule TrainOptions::schedule_of_lr() const { return {schedule, lr, lr_final_frac, warmup, steps}; }

int64_t TrainOptions::tree(Device on) const {
    return deterministic_reduce >= 0 ? deterministic_reduce : on == Device::cpu ? 4 : 0;
}

int64_t TrainOptions::num_micro_batches() {
    const int64_t micro_tokens = micro_batch * seq_len;
    if (batch_tokens == 0) batch_tokens = micro_tokens;
    if (batch_tokens % micro_tokens != 0) {
        fail_input({.what = "a step is not a whole number of micro-batches",
                    .where = "--batch-tokens",
                    .expected = cat({"a multiple of micro-batch x seq-len = ", micro_tokens}),
                    .actual = cat({batch_tokens}),
                    .hint = cat({"--batch-tokens ", (batch_tokens / micro_tokens + 1) * micro_tokens})});
    }
    return batch_tokens / micro_tokens;
}
