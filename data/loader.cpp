// Windows over shards, their order, and the thread that prepares the next micro-batch.
#include "data/loader.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>

#include "core/error.h"
#include "core/rng.h"

namespace {

// Keeps the data order's random numbers apart from those of weights and rounding, which share the seed.
constexpr uint64_t kOrderStream = uint64_t{0x6f72646572} << 24;  // "order"

}  // namespace

struct Loader::State {
    ShardSet set;
    LoaderOptions options;
    std::vector<int64_t> first_window;  // of each shard, and their number at the end
    int64_t num_targets = 0;
    int64_t next_sample = 0;

    // The prefetch thread fills `ready` with the batch that starts at `wanted`; it never holds more than one.
    std::thread thread;
    std::mutex mutex;
    std::condition_variable changed;
    int64_t wanted = 0;
    bool requested = false, stopping = false;
    std::optional<Batch> ready;
    std::exception_ptr failure;

    State(const std::string& patterns, const std::string& flag, const LoaderOptions& o)
        : set(patterns, flag, o.vocab_size, o.eot), options(o) {
        CHECK(o.seq_len > 0 && o.micro_batch > 0, cat({"T=", o.seq_len, " B=", o.micro_batch}));
        if (options.share_end == 0) options.share_end = o.samples_per_step;
        CHECK(options.share_begin >= 0 && options.share_begin <= options.share_end &&
                  options.share_end <= o.samples_per_step,
              cat({"share [", o.share_begin, ", ", o.share_end, ") of ", o.samples_per_step}));
        next_sample = options.share_begin;
        const bool whole_only = o.order == LoaderOrder::shuffled;
        int64_t windows = 0;
        for (const ShardReader& shard : set.shards()) {
            first_window.push_back(windows);
            const int64_t targets = std::max<int64_t>(shard.num_tokens() - 1, 0);
            const int64_t here = (targets + (whole_only ? 0 : o.seq_len - 1)) / o.seq_len;
            windows += here;
            num_targets += whole_only ? here * o.seq_len : targets;
        }
        first_window.push_back(windows);
        if (windows == 0) {
            fail_input({.what = "too little data for one window",
                        .where = cat({flag, " ", patterns}),
                        .expected = cat({"a shard of at least ", whole_only ? o.seq_len + 1 : 2, " tokens"}),
                        .actual = cat({set.num_tokens(), " tokens in ", set.shards().size(), " shards"}),
                        .hint = "lower --seq-len, or give more data"});
        }
    }
    ~State() { stop_thread(); }

    int64_t num_windows() const { return first_window.back(); }

    int64_t window_of(int64_t sample) const {
        if (options.order == LoaderOrder::sequential) return sample;
        const auto n = static_cast<uint64_t>(num_windows());
        const uint64_t epoch = static_cast<uint64_t>(sample) / n;
        const RandomPermutation order({options.seed, kOrderStream + epoch}, n);
        return static_cast<int64_t>(order(static_cast<uint64_t>(sample) % n));
    }

    void fill_row(int64_t window, int32_t* tokens, int32_t* targets) const {
        const auto shard_index =
            std::upper_bound(first_window.begin(), first_window.end(), window) - first_window.begin() - 1;
        const ShardReader& shard = set.shards()[static_cast<size_t>(shard_index)];
        const int64_t begin = (window - first_window[static_cast<size_t>(shard_index)]) * options.seq_len;
        const int64_t count = std::min(options.seq_len, shard.num_tokens() - 1 - begin);
        shard.copy(begin, count, tokens);
        shard.copy(begin + 1, count, targets);
        std::fill(tokens + count, tokens + options.seq_len, 0);
        std::fill(targets + count, targets + options.seq_len, -1);
    }

    Batch batch_at(int64_t first, int64_t count) const {
        CHECK(first >= 0 && count >= 0, cat({"samples ", first, " + ", count}));
        if (options.order == LoaderOrder::sequential) {
            count = std::clamp<int64_t>(num_windows() - first, 0, count);
        }
        Batch batch;
        batch.num_rows = count;
        batch.seq_len = options.seq_len;
        batch.tokens.resize(static_cast<size_t>(count * options.seq_len));
        batch.targets.resize(batch.tokens.size());
        for (int64_t row = 0; row < count; ++row) {
            const int64_t at = row * options.seq_len;
            fill_row(window_of(first + row), batch.tokens.data() + at, batch.targets.data() + at);
        }
        set_document_bounds(batch, set.eot(), options.mask_documents);
        return batch;
    }

    // Rows of the micro-batch that starts at `sample`.
    int64_t rows_at(int64_t sample) const {
        if (options.samples_per_step == 0) return options.micro_batch;
        return std::min(options.micro_batch, options.share_end - sample % options.samples_per_step);
    }
    // The next sample to be served behind a micro-batch.
    int64_t served_after(int64_t first, int64_t num_rows) const {
        const int64_t step = options.samples_per_step;
        if (step == 0) return first + num_rows;
        const int64_t step_begin = first / step * step;
        const int64_t next = first + (options.share_stride > 0 ? options.share_stride : num_rows);
        return next < step_begin + options.share_end ? next : step_begin + step + options.share_begin;
    }

    void request(int64_t sample) {  // the mutex is held
        wanted = sample;
        requested = true;
        ready.reset();
        changed.notify_all();
    }

    void run() {
        std::unique_lock lock(mutex);
        for (;;) {
            changed.wait(lock, [&] { return requested || stopping; });
            if (stopping) return;
            requested = false;
            const int64_t sample = wanted;
            lock.unlock();
            Batch batch;
            std::exception_ptr error;
            try {
                batch = batch_at(sample, rows_at(sample));
            } catch (...) {
                error = std::current_exception();
            }
            lock.lock();
            if (requested) continue;  // a seek overtook this one
            failure = error;
            ready = std::move(batch);
            changed.notify_all();
        }
    }

    Batch next() {
        std::unique_lock lock(mutex);
        if (!thread.joinable()) {
            request(next_sample);
            thread = std::thread([this] { run(); });
        }
        changed.wait(lock, [&] { return ready.has_value(); });
        if (failure) std::rethrow_exception(failure);
        Batch batch = std::move(*ready);
        next_sample = served_after(next_sample, batch.num_rows);
        request(next_sample);
        return batch;
    }

    void seek(int64_t sample) {
        CHECK(sample >= 0, cat({"sample ", sample}));
        CHECK(options.share_begin == 0 || sample % options.samples_per_step == 0, cat({"sample ", sample}));
        const std::lock_guard lock(mutex);
        next_sample = sample + options.share_begin;
        if (thread.joinable()) request(next_sample);
    }

    void stop_thread() {
        {
            const std::lock_guard lock(mutex);
            stopping = true;
            changed.notify_all();
        }
        if (thread.joinable()) thread.join();
    }
};

Loader::Loader(const std::string& patterns, const std::string& flag, const LoaderOptions& options)
    : state_(std::make_unique<State>(patterns, flag, options)) {}
Loader::~Loader() = default;
Loader::Loader(Loader&&) noexcept = default;

Batch Loader::batch_at(int64_t first, int64_t count) const { return state_->batch_at(first, count); }
Batch Loader::next() { return state_->next(); }
int64_t Loader::next_sample() const { return state_->next_sample; }
void Loader::seek(int64_t sample) { state_->seek(sample); }
int64_t Loader::num_windows() const { return state_->num_windows(); }
int64_t Loader::tokens_per_epoch() const { return state_->num_targets; }
int64_t Loader::seq_len() const { return state_->options.seq_len; }
int64_t Loader::micro_batch() const { return state_->options.micro_batch; }
int32_t Loader::eot() const { return state_->set.eot(); }
const ShardSet& Loader::shards() const { return state_->set; }
