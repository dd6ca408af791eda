// From token shards to micro-batches. Window i of a shard is its tokens [i*T, i*T + T]: T inputs and T
// targets, one token shared with the next window; windows never cross shards. A sample is a window; which
// window global sample s is depends on (seed, s) alone, so any rank count, micro-batch or resume sees the
// same samples in the same order, and the whole state is the next global sample index.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/batch.h"
#include "data/shards.h"

enum class LoaderOrder : uint8_t {
    shuffled,    // endless: epoch e visits every whole window once, permuted by (seed, e)
    sequential,  // once, in order: every token but each shard's first is a target exactly once
};

struct LoaderOptions {
    int64_t seq_len = 0;      // T
    int64_t micro_batch = 1;  // B, rows of next()
    LoaderOrder order = LoaderOrder::shuffled;
    uint64_t seed = 0;
    int64_t samples_per_step = 0;  // next() never crosses a multiple of this; 0: no such bound
    // next() serves samples [share_begin, share_end) of each step only: a rank's; 0, 0: all of them. With a
    // stride it goes on so many samples behind the begin of the last micro-batch; 0: behind its end.
    int64_t share_begin = 0, share_end = 0, share_stride = 0;
    int64_t vocab_size = 0;      // ids must be below it; 0: the manifest's
    int32_t eot = -1;            // for shards without a manifest; -1: none
    bool mask_documents = true;  // end-of-text starts a new document (core/batch.h)
};

class Loader {
public:
    // patterns: globs of shards; `flag` is named in messages. InputError also when not one window fits.
    Loader(const std::string& patterns, const std::string& flag, const LoaderOptions& options);
    ~Loader();
    Loader(Loader&&) noexcept;

    // Samples [first, first + count). Sequential order ends at num_windows(): the last batch has fewer rows,
    // and the last window of a shard is padded with token 0 and target -1. May be called from several
    // threads.
    Batch batch_at(int64_t first, int64_t count) const;

    // The next micro-batch, prepared by a thread while the previous one is used. Empty (num_rows 0) after the
    // end of a sequential pass.
    Batch next();
    int64_t next_sample() const;  // the first sample that next() will return
    void seek(int64_t sample);    // resume here; with a share, at the begin of a step

    int64_t num_windows() const;       // samples per epoch
    int64_t tokens_per_epoch() const;  // targets per epoch, padding not counted
    int64_t seq_len() const;
    int64_t micro_batch() const;
    int32_t eot() const;
    const ShardSet& shards() const;

private:
    struct State;
    std::unique_ptr<State> state_;
};
