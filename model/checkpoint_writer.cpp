// A checkpoint's way: copying, then writing, then none. The thread touches host memory only, for a device is
// the thread's that opened it.
#include "model/checkpoint_writer.h"

#include <chrono>
#include <cstdio>
#include <utility>

#include "core/error.h"

namespace {

// The arenas that there are.
std::vector<Tensor*> all_of(CheckpointArenas& arenas) {
    std::vector<Tensor*> all = {&arenas.params, &arenas.moment1, &arenas.moment2};
    if (!arenas.master.absent()) all.push_back(&arenas.master);
    return all;
}

}  // namespace

CheckpointWriter::CheckpointWriter(Target target, const ParamTable& table, const ModelConfig& config,
                                   Tensor params, Optimizer& optimizer, bool in_background,
                                   int64_t available_bytes)
    : target_(std::move(target)),
      table_(table),
      config_(config),
      optimizer_(optimizer),
      arenas_(checkpoint_arenas(params, optimizer)) {
    if (!in_background || params.on_host()) return;
    try {
        const int64_t bytes = host_bytes(table, params.dtype);
        if (bytes > available_bytes)
            fail_input({.what = "no host memory for a copy of the training state",
                        .expected = cat({"room for ", bytes, " bytes"}),
                        .actual = cat({available_bytes})});
        CheckpointArenas arenas = arenas_;
        for (const Tensor* arena : all_of(arenas)) copies_.emplace_back(params.device, arena->bytes());
    } catch (const InputError& error) {
        copies_.clear();
        std::fprintf(stderr, "training will wait for its checkpoints: %s\n", error.what());
    }
}

CheckpointWriter::~CheckpointWriter() = default;

int64_t CheckpointWriter::host_bytes(const ParamTable& table, DType dtype) {
    const int64_t f32_arenas = dtype == DType::f32 ? 2 : 3;
    return table.arena_size() * (dtype_bytes(dtype) + f32_arenas * dtype_bytes(DType::f32));
}

void CheckpointWriter::save(TrainerState state) {
    CHECK(!optimizer_.queued(), "an update is under way");
    state.num_updates = optimizer_.num_updates();
    state.num_skipped = optimizer_.num_skipped();
    state.skips_in_a_row = optimizer_.skips_in_a_row();
    state.loss_window = optimizer_.loss_window().values();
    state.norm_window = optimizer_.norm_window().values();
    if (!in_background()) return write(arenas_, state);
    finish();
    CheckpointArenas arenas = arenas_;
    const std::vector<Tensor*> all = all_of(arenas);
    for (size_t i = 0; i < all.size(); ++i) copies_[i].start(*all[i]);
    copying_ = std::move(state);
}

void CheckpointWriter::poll() {
    if (copying_ && copies_.back().arrived()) start_writing();  // one stream: the last one comes last
    if (writing_.valid() && writing_.wait_for(std::chrono::seconds(0)) != std::future_status::timeout)
        writing_.get();
}

void CheckpointWriter::finish() {
    if (copying_) start_writing();
    if (writing_.valid()) writing_.get();
}

void CheckpointWriter::start_writing() {
    CheckpointArenas on_host = arenas_;
    const std::vector<Tensor*> all = all_of(on_host);
    for (size_t i = 0; i < all.size(); ++i) *all[i] = copies_[i].wait();
    // Deferred where no thread can be started: get() writes then.
    writing_ = std::async(std::launch::async | std::launch::deferred,
                          [this, on_host, state = std::move(*copying_)] { write(on_host, state); });
    copying_.reset();
}

void CheckpointWriter::write(const CheckpointArenas& arenas, const TrainerState& state) const {
    save_checkpoint(target_.out, table_, config_, arenas, state, target_.tokenizer_directory);
    prune_checkpoints(target_.out, target_.keep);
}
