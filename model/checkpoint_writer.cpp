// A checkpoint's way: copying, writing, hashing, one rename. Threads touch host memory and files only: a
// device is the thread's that opened it, and so is MPI.
#include "model/checkpoint_writer.h"

#include <chrono>
#include <cstdio>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/threads.h"

namespace {

// The arenas that there are.
std::vector<ArenaPart*> all_of(CheckpointArenas& arenas) {
    std::vector<ArenaPart*> all = {&arenas.params, &arenas.moment1, &arenas.moment2};
    if (!arenas.master.data.absent()) all.push_back(&arenas.master);
    return all;
}

}  // namespace

CheckpointWriter::CheckpointWriter(Target target, const ParamTable& table, const ModelConfig& config,
                                   Optimizer& optimizer, const Sharding& sharding, Comm& comm,
                                   bool in_background, int64_t available_bytes)
    : target_(std::move(target)),
      table_(table),
      config_(config),
      optimizer_(optimizer),
      comm_(comm),
      arenas_(checkpoint_arenas(optimizer)),
      own_(sharding.own(comm.rank())) {
    // With stage 0 everybody has everything; each writes its part all the same.
    if (comm.size() > 1)
        for (ArenaPart* arena : all_of(arenas_)) arena->segments = own_;
    if (!in_background) return;
    const DType dtype = arenas_.params.data.dtype;
    const Device device = arenas_.params.data.device;
    try {
        const int64_t bytes = host_bytes(sharding, comm.rank(), dtype);
        if (bytes > available_bytes)
            fail_input({.what = "no host memory for a copy of the training state",
                        .expected = cat({"room for ", bytes, " bytes"}),
                        .actual = cat({available_bytes})});
        for (const ArenaPart* arena : all_of(arenas_)) {
            if (device != Device::cpu) {
                readbacks_.emplace_back(device, arena->data.bytes());
            } else {
                copies_.emplace_back(sharding.own_size(comm.rank()) * dtype_bytes(arena->data.dtype));
            }
        }
        in_background_ = true;
    } catch (const InputError& error) {
        readbacks_.clear();
        copies_.clear();
        std::fprintf(stderr, "training will wait for its checkpoints: %s\n", error.what());
    }
}

CheckpointWriter::~CheckpointWriter() = default;

int64_t CheckpointWriter::host_bytes(const Sharding& sharding, int rank, DType dtype) {
    const int64_t f32_arenas = dtype == DType::f32 ? 2 : 3;
    return sharding.own_size(rank) * (dtype_bytes(dtype) + f32_arenas * dtype_bytes(DType::f32));
}

void CheckpointWriter::save(TrainerState state) {
    CHECK(!optimizer_.queued(), "an update is under way");
    finish();
    state.num_updates = optimizer_.num_updates();
    state.num_skipped = optimizer_.num_skipped();
    state.skips_in_a_row = optimizer_.skips_in_a_row();
    state.loss_window = optimizer_.loss_window().values();
    state.norm_window = optimizer_.norm_window().values();
    state_ = std::move(state);
    if (in_background_) copy_to_host();
    if (comm_.size() > 1) {
        if (comm_.rank() == 0) begin();
        temporary_ = broadcast_text(comm_, temporary_, 0);
    }
    hashes_.assign(arena_files(arenas_.params.data.dtype).size(), "");
    stage_ = Stage::writing;
    copying_ = !readbacks_.empty();
    if (!copying_) start_writing();
    if (!in_background_) finish();
}

void CheckpointWriter::begin() {
    checkpoint_.emplace(target_.out, table_, config_, arenas_.params.data.dtype, state_,
                        target_.tokenizer_directory);
    temporary_ = checkpoint_->temporary();
}

void CheckpointWriter::copy_to_host() {
    const std::vector<ArenaPart*> all = all_of(arenas_);
    for (size_t i = 0; i < readbacks_.size(); ++i) readbacks_[i].start(all[i]->data);
    if (copies_.empty()) return;
    parallel_for(static_cast<int64_t>(own_.size()), [&](int64_t s) {
        const ArenaSegment& segment = own_[static_cast<size_t>(s)];
        for (size_t i = 0; i < all.size(); ++i) {
            const DType dtype = all[i]->data.dtype;
            all[i]->for_each_piece(
                segment.begin, segment.begin + segment.size, [&](Tensor piece, int64_t at) {
                    const Tensor copy =
                        copies_[i].tensor(dtype).rows(segment.local + at - segment.begin, piece.size());
                    std::memcpy(copy.data, piece.data, static_cast<size_t>(piece.bytes()));
                });
        }
    });
}

CheckpointArenas CheckpointWriter::copied() const {
    CheckpointArenas arenas = arenas_;
    const std::vector<ArenaPart*> all = all_of(arenas);
    for (size_t i = 0; i < copies_.size(); ++i)
        *all[i] = {copies_[i].tensor(all[i]->data.dtype), own_, false};
    return arenas;
}

void CheckpointWriter::start_writing() {
    CheckpointArenas arenas = copied();
    if (copying_) {
        const std::vector<ArenaPart*> all = all_of(arenas);
        for (size_t i = 0; i < readbacks_.size(); ++i) all[i]->data = readbacks_[i].wait();
        copying_ = false;
    }
    if (comm_.size() > 1) return start([this, arenas] { write_checkpoint_part(temporary_, table_, arenas); });
    stage_ = Stage::ending;  // alone there is nobody to wait for
    start([this, arenas] {
        begin();
        write_checkpoint_part(temporary_, table_, arenas);
        hash_own_files();
        commit();
    });
}

// SHA-256 is slower than the disk's cache: each file has a thread of its own.
void CheckpointWriter::hash_own_files() {
    const std::vector<std::string> files = arena_files(arenas_.params.data.dtype);
    parallel_for(static_cast<int64_t>(files.size()), [&](int64_t i) {
        if (i % comm_.size() == comm_.rank())
            hashes_[static_cast<size_t>(i)] = sha256_file(temporary_ + "/" + files[static_cast<size_t>(i)]);
    });
}

void CheckpointWriter::commit() {
    checkpoint_->commit(hashes_);
    prune_checkpoints(target_.out, target_.keep, target_.keep_every);
}

// In a thread; where none can be started, or training waits anyhow, when it is asked for.
void CheckpointWriter::start(std::function<void()> work) {
    // The CPU's pool is the model's: what is written beside it must not take it.
    const bool serially = in_background_ && arenas_.params.data.on_host();
    const auto policy = in_background_ ? std::launch::async | std::launch::deferred : std::launch::deferred;
    work_ = std::async(policy, [work = std::move(work), serially] {
        if (!serially) return work();
        const SerialScope here;
        work();
    });
}

void CheckpointWriter::wait() {
    try {
        if (work_.valid()) work_.get();
    } catch (...) {  // it comes to nothing
        stage_ = Stage::none;
        checkpoint_.reset();
        throw;
    }
}

void CheckpointWriter::poll() {
    if (copying_ && readbacks_.back().arrived()) start_writing();  // one stream: the last one comes last
    if (busy()) return;
    wait();
    if (comm_.size() == 1) go_on();
}

bool CheckpointWriter::busy() {
    return copying_ ||
           (work_.valid() && work_.wait_for(std::chrono::seconds(0)) == std::future_status::timeout);
}

void CheckpointWriter::go_on() {
    wait();
    switch (stage_) {
        case Stage::none: return;
        case Stage::writing: stage_ = Stage::hashing; return start([this] { hash_own_files(); });
        case Stage::hashing:
            for (size_t i = 0; i < hashes_.size(); ++i)
                hashes_[i] = broadcast_text(comm_, hashes_[i], static_cast<int>(i) % comm_.size());
            stage_ = Stage::ending;
            if (comm_.rank() == 0) start([this] { commit(); });
            return;
        case Stage::ending: checkpoint_.reset(); stage_ = Stage::none;
    }
}

void CheckpointWriter::finish() {
    while (stage_ != Stage::none) {
        if (copying_) start_writing();
        wait();
        comm_.barrier();
        go_on();
    }
}
