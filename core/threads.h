// One pool of threads for the whole process. Work is split by index, never by thread: what a task computes
// may depend on its index only, so that results are the same bits for any number of threads.
#pragma once
#include <cstdint>
#include <type_traits>
#include <utility>

int hardware_threads();  // cores this process may run on (affinity and cgroup respected)
// For each of so many processes on this machine: its part of the cores, of those that it may run on.
int threads_of_each(int num_processes);
int num_threads();
// 1..256; joins and restarts the pool. Not while parallel_for runs. A child forked after the pool came to be
// computes serially, whatever is set: threads do not survive a fork.
void set_num_threads(int n);

// A non-owning reference to a callable, so that headers need no std::function.
class TaskRef {
public:
    template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, TaskRef>) TaskRef(F&& f)
        : object_(const_cast<void*>(static_cast<const void*>(&f))), call_([](void* object, int64_t index) {
              (*static_cast<std::remove_reference_t<F>*>(object))(index);
          }) {}
    void operator()(int64_t index) const { call_(object_, index); }

private:
    void* object_;
    void (*call_)(void*, int64_t);
};

// Calls task(i) for every i in [0, count), each once, on all threads; returns when all are done. Tasks are
// handed out one by one from a shared counter (so uneven tasks balance). Nested calls run serially in the
// caller. The first exception thrown by a task is rethrown here. Workers spin briefly between calls, then
// sleep. Threads that cannot be started are an InputError.
void parallel_for(int64_t count, TaskRef task);

// While it lives, parallel_for of its thread runs serially: for work in the background that takes long, since
// the pool has one job at a time and others would run serially meanwhile.
class SerialScope {
public:
    SerialScope();
    ~SerialScope();  // in the thread that made it
    SerialScope(const SerialScope&) = delete;
    SerialScope& operator=(const SerialScope&) = delete;

private:
    bool before_;
};

// Calls task(begin, end) over fixed pieces of `grain` indices; the pieces do not depend on the number of
// threads.
template <class F>
void parallel_ranges(int64_t count, int64_t grain, F&& task) {
    const int64_t pieces = (count + grain - 1) / grain;
    parallel_for(pieces, [&](int64_t piece) {
        const int64_t begin = piece * grain;
        const int64_t end = begin + grain < count ? begin + grain : count;
        task(begin, end);
    });
}
