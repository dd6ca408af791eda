// The pool: every index once, on any number of threads, nested, failing, resized and called from several
// threads.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <mutex>
#include <numeric>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/log.h"
#include "core/threads.h"

namespace {

struct WithThreads {
    explicit WithThreads(int n) { set_num_threads(n); }
    ~WithThreads() { set_num_threads(hardware_threads()); }
};

}  // namespace

TEST(Threads, HardwareThreadsAreSane) {
    EXPECT_GE(hardware_threads(), 1);
    EXPECT_LE(hardware_threads(), 256);
    EXPECT_EQ(num_threads(), hardware_threads());
    EXPECT_THROW(set_num_threads(0), InternalError);
    EXPECT_THROW(set_num_threads(257), InternalError);
}

TEST(Threads, EveryIndexOnce) {
    for (const int threads : {1, 2, 3, 8, 33}) {
        const WithThreads with(threads);
        EXPECT_EQ(num_threads(), threads);
        for (const int64_t count : {0, 1, 2, 7, 1000}) {
            std::vector<std::atomic<int>> calls(static_cast<size_t>(count));
            parallel_for(count, [&](int64_t i) { ++calls[static_cast<size_t>(i)]; });
            for (auto& n : calls) EXPECT_EQ(n, 1);
        }
    }
}

TEST(Threads, ManySmallCallsSeeEachOthersWrites) {
    const WithThreads with(4);
    std::vector<int64_t> values(16);  // plain memory: each call must see all that the one before wrote
    for (int64_t call = 0; call < 20'000; ++call)
        parallel_for(
            16, [&](int64_t i) { values[static_cast<size_t>(i)] += values[static_cast<size_t>(i)] == call; });
    for (int64_t v : values) EXPECT_EQ(v, 20'000);
}

// Who takes part in tasks that outlast a wake-up by far, so that every thread must appear.
std::set<std::thread::id> threads_at_work() {
    std::mutex mutex;
    std::set<std::thread::id> ids;
    parallel_for(8, [&](int64_t) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        std::lock_guard lock(mutex);
        ids.insert(std::this_thread::get_id());
    });
    return ids;
}

TEST(Threads, SleepingWorkersWakeUp) {
    const WithThreads with(2);
    for (int round = 0; round < 3; ++round) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));  // beyond the spinning: they sleep
        const std::set<std::thread::id> ids = threads_at_work();
        EXPECT_EQ(ids.size(), 2u);
        EXPECT_EQ(ids.count(std::this_thread::get_id()), 1u) << "the caller takes part";
    }
}

TEST(Threads, NestedCallsRunInTheCaller) {
    const WithThreads with(4);
    std::atomic<int> wrong{0}, total{0};
    parallel_for(8, [&](int64_t) {
        const auto me = std::this_thread::get_id();
        parallel_for(8, [&](int64_t) {
            wrong += std::this_thread::get_id() != me;
            ++total;
        });
    });
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(total, 64);
}

TEST(Threads, CallersOnOtherThreadsDoNotWait) {
    const WithThreads with(3);
    std::atomic<int64_t> sum{0};
    std::vector<std::thread> callers;
    for (int c = 0; c < 4; ++c)
        callers.emplace_back([&] {
            for (int round = 0; round < 500; ++round) parallel_for(10, [&](int64_t i) { sum += i; });
        });
    for (std::thread& caller : callers) caller.join();
    EXPECT_EQ(sum, 4 * 500 * 45);
}

TEST(Threads, ExceptionsComeBackAndThePoolLives) {
    for (const int threads : {1, 4}) {
        const WithThreads with(threads);
        for (int round = 0; round < 100; ++round) {
            std::atomic<int> calls{0};
            try {
                parallel_for(100, [&](int64_t i) {
                    ++calls;
                    if (i == 3) throw std::runtime_error("task 3");
                });
                FAIL() << "nothing was thrown";
            } catch (const std::runtime_error& error) {
                EXPECT_STREQ(error.what(), "task 3");
            }
            EXPECT_GE(calls, 1);
            std::atomic<int> after{0};
            parallel_for(10, [&](int64_t) { ++after; });
            EXPECT_EQ(after, 10);
        }
    }
    const WithThreads with(4);
    EXPECT_THROW(parallel_for(4, [&](int64_t) { set_num_threads(2); }), InternalError);
}

TEST(Threads, RangesAreFixedPieces) {
    for (const int threads : {1, 3}) {
        const WithThreads with(threads);
        std::mutex mutex;
        std::set<std::pair<int64_t, int64_t>> pieces;
        parallel_ranges(25, 10, [&](int64_t begin, int64_t end) {
            std::lock_guard lock(mutex);
            pieces.emplace(begin, end);
        });
        EXPECT_EQ(pieces, (std::set<std::pair<int64_t, int64_t>>{{0, 10}, {10, 20}, {20, 25}}));
    }
}

TEST(Threads, NestedCallsRunInTheCallerOfASerialCallToo) {
    const WithThreads with(4);
    const auto me = std::this_thread::get_id();
    std::atomic<int> wrong{0}, total{0};
    parallel_for(1, [&](int64_t) {  // one task: nothing to share
        parallel_for(64, [&](int64_t) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));  // time for a worker to take one
            wrong += std::this_thread::get_id() != me;
            ++total;
        });
    });
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(total, 64);
    // Only until the call is over: the next one is parallel again.
    EXPECT_GT(threads_at_work().size(), 1u);
}

// The workers exist here and not in the child. They are asleep, falling asleep or at work when it is forked;
// the alarm turns a hang into a failure.
TEST(Threads, AForkedChildFinishes) {
    const WithThreads with(4);
    for (int round = 0; round < 200; ++round) {
        std::atomic<int> sum{0};
        parallel_for(8, [&](int64_t) { ++sum; });
        std::this_thread::sleep_for(std::chrono::microseconds(round * 20));  // they spin for one millisecond
        const pid_t child = fork();
        if (child == 0) {
            alarm(20);
            std::atomic<int> done{0};
            for (int call = 0; call < 10; ++call) parallel_for(10, [&](int64_t) { ++done; });
            set_num_threads(3);
            parallel_for(10, [&](int64_t) { ++done; });
            _exit(done == 110 ? 0 : 1);
        }
        int status = -1;
        waitpid(child, &status, 0);
        ASSERT_EQ(status, 0) << "round " << round << ": 14 is a hang, ended by the alarm";
    }
}

// Every thread's stack needs address space: with little of it left, not all of 200 can start.
TEST(ThreadsDeathTest, ThreadsThatCannotStartAreToldInOneLine) {
    const auto start = [] {
        set_num_threads(200);
        std::ifstream statm("/proc/self/statm");
        rlim_t pages = 0;
        statm >> pages;
        const rlim_t bytes = pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + (rlim_t{100} << 20);
        const rlimit limit{bytes, bytes};
        setrlimit(RLIMIT_AS, &limit);
        char name[] = "program";
        char* argv[] = {name, nullptr};
        _exit(run_main(1, argv, [](int, char**) {
            parallel_for(1000, [](int64_t) {});
            return 0;
        }));
    };
    testing::FLAGS_gtest_death_test_style = "threadsafe";  // a process without a pool yet
    EXPECT_EXIT(
        start(), testing::ExitedWithCode(2),
        "^error: cannot start a thread: .*: expected 200 threads, got .*  hint: --threads [1-9].*\n$");
}
