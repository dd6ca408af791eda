// The pool of threads. A call opens a job; workers that are awake join it, take indices from one counter and
// leave; the caller takes indices too, closes the job and waits only for the workers that joined. A sleeping
// or descheduled worker therefore never delays a call. Between calls workers spin for a moment, then sleep.
#include "core/threads.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "core/cgroup.h"
#include "core/error.h"

namespace {

constexpr int kMaxThreads = 256;
// Longer than the gap between two kernels of a step, much shorter than a scheduler's time slice.
constexpr int64_t kSpinNanoseconds = 1'000'000;

// The state word: | generation (47 bits) | workers inside (16 bits) | open (1 bit) |
constexpr uint64_t kOpen = 1;
constexpr uint64_t kOneWorker = 2;
constexpr uint64_t kInside = 0x1fffe;
constexpr uint64_t kOneGeneration = 0x20000;
uint64_t generation_of(uint64_t state) { return state / kOneGeneration; }

thread_local bool inside_task = false;

// A forked child has the pool's memory but none of its workers, and locks that nobody will open.
std::atomic<bool> in_forked_child{false};

void pause_core() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

int64_t now_nanoseconds() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * int64_t{1'000'000'000} + t.tv_nsec;
}

// Spins until done() or the time is over; false when it is over.
template <class Done>
bool spin_until(int64_t nanoseconds, Done done) {
    const int64_t deadline = now_nanoseconds() + nanoseconds;
    do {
        for (int i = 0; i < 32; ++i) {
            if (done()) return true;
            pause_core();
        }
    } while (now_nanoseconds() < deadline);
    return done();
}

class Pool {
public:
    ~Pool() = delete;  // lives as long as the process: exit() must not wait for tasks that run

    int size() const { return size_.load(std::memory_order_relaxed); }

    void resize(int n) {
        std::lock_guard call(call_mutex_);
        stop_workers();
        size_.store(n, std::memory_order_relaxed);
    }

    // False when another thread's job has the pool.
    bool run(int64_t count, TaskRef task) {
        std::unique_lock call(call_mutex_, std::try_to_lock);
        if (!call.owns_lock()) return false;
        if (workers_.empty()) start_workers();

        task_ = &task;
        count_ = count;
        error_ = nullptr;
        next_.store(0, std::memory_order_relaxed);
        const uint64_t generation = generation_of(state_.load(std::memory_order_relaxed)) + 1;
        // Publishes the job's fields. Sequentially consistent with sleepers_: either this thread sees the
        // sleeper, or the sleeper sees the new generation before it sleeps.
        state_.store(generation * kOneGeneration | kOpen, std::memory_order_seq_cst);
        if (sleepers_.load(std::memory_order_seq_cst) > 0) wake_workers();

        take_indices();
        // Once closed nobody joins; the acquire sees all that the workers inside have written.
        state_.fetch_and(~kOpen, std::memory_order_acq_rel);
        const auto empty = [&] { return (state_.load(std::memory_order_acquire) & kInside) == 0; };
        if (!spin_until(kSpinNanoseconds, empty))
            while (!empty()) std::this_thread::yield();

        if (error_ != nullptr) std::rethrow_exception(std::exchange(error_, nullptr));
        return true;
    }

private:
    void start_workers() {
        stopping_ = false;
        // With more threads than cores a spinning worker would hold the core that a working one needs.
        spin_nanoseconds_ = size() <= hardware_threads() ? kSpinNanoseconds : 0;
        const uint64_t generation = generation_of(state_.load(std::memory_order_relaxed));
        try {
            for (int i = 1; i < size(); ++i) workers_.emplace_back([this, generation] { work(generation); });
        } catch (const std::system_error& error) {
            const size_t started = workers_.size() + 1;
            stop_workers();
            fail_input(
                {.what = "cannot start a thread",
                 .where = error.code().message(),
                 .expected = cat({size(), " threads"}),
                 .actual = cat({started}),
                 .hint = cat({"--threads ", std::max<size_t>(1, started / 2), ", or raise `ulimit -u`"})});
        }
    }

    void stop_workers() {
        {
            std::lock_guard lock(sleep_mutex_);
            stopping_ = true;
            state_.fetch_add(kOneGeneration, std::memory_order_seq_cst);
        }
        wake_.notify_all();
        for (std::thread& worker : workers_) worker.join();
        workers_.clear();
    }

    void wake_workers() {
        { std::lock_guard lock(sleep_mutex_); }  // a worker between its check and its wait must not miss this
        wake_.notify_all();
    }

    void work(uint64_t seen) {
        inside_task = true;  // a task's own parallel_for runs serially
        for (;;) {
            const auto changed = [&] {
                return generation_of(state_.load(std::memory_order_acquire)) != seen;
            };
            if (!spin_until(spin_nanoseconds_, changed)) {
                std::unique_lock lock(sleep_mutex_);
                sleepers_.fetch_add(1, std::memory_order_seq_cst);
                wake_.wait(lock,
                           [&] { return generation_of(state_.load(std::memory_order_seq_cst)) != seen; });
                sleepers_.fetch_sub(1, std::memory_order_relaxed);
            }
            if (stopping_.load(std::memory_order_relaxed)) return;
            uint64_t state = state_.load(std::memory_order_acquire);
            while ((state & kOpen) != 0 &&
                   !state_.compare_exchange_weak(state, state + kOneWorker, std::memory_order_acq_rel)) {
            }
            seen = generation_of(state);
            if ((state & kOpen) == 0) continue;
            take_indices();
            state_.fetch_sub(kOneWorker, std::memory_order_release);
        }
    }

    void take_indices() {
        try {
            for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) (*task_)(i);
        } catch (...) {
            next_.store(count_, std::memory_order_relaxed);  // hand out no more
            std::lock_guard lock(error_mutex_);
            if (error_ == nullptr) error_ = std::current_exception();
        }
    }

    // The words that threads fight over lie on cache lines of their own.
    alignas(64) std::atomic<uint64_t> state_{0};
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int> sleepers_{0};
    // The open job; written only while no worker is inside.
    alignas(64) const TaskRef* task_ = nullptr;
    int64_t count_ = 0;
    std::exception_ptr error_;
    std::mutex error_mutex_;

    std::mutex call_mutex_;  // one job at a time
    std::mutex sleep_mutex_;
    std::condition_variable wake_;
    std::atomic<bool> stopping_{false};
    std::atomic<int> size_{hardware_threads()};
    int64_t spin_nanoseconds_ = 0;
    std::vector<std::thread> workers_;
};

Pool& pool() {
    static Pool* const the_pool = [] {
        pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });
        return new Pool;
    }();
    return *the_pool;
}

int count_hardware_threads() {
    int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
    return std::clamp(std::min(cores, cgroup_cores()), 1, kMaxThreads);
}

}  // namespace

int hardware_threads() {
    static const int cores = count_hardware_threads();
    return cores;
}

int threads_of_each(int num_processes) {
    const auto cores =
        static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));  // of the machine, wherever we may run
    return std::min(hardware_threads(), std::max(1, cores / num_processes));
}

int num_threads() { return in_forked_child ? 1 : pool().size(); }

void set_num_threads(int n) {
    CHECK(n >= 1 && n <= kMaxThreads, cat({"n=", n}));
    CHECK(!inside_task, "set_num_threads inside parallel_for");
    if (!in_forked_child && n != num_threads()) pool().resize(n);
}

SerialScope::SerialScope() : before_(inside_task) { inside_task = true; }
SerialScope::~SerialScope() { inside_task = before_; }

void parallel_for(int64_t count, TaskRef task) {
    if (count <= 0) return;
    const bool parallel = !inside_task && count > 1 && num_threads() > 1;
    const SerialScope mark;
    if (parallel && pool().run(count, task)) return;
    for (int64_t i = 0; i < count; ++i) task(i);
}
