// Runs grids: the threads of a block as fibers in an order that CUDA allows and few programs expect. Who
// waits is told by wait_at(), who may go on by make_ready(); whoever waits or ends picks the next thread and
// switches to it.
#include "kernels/simt/scheduler.h"

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/simt/fibers.h"
#include "kernels/simt/sanitizers.h"

thread_local constinit uint3 threadIdx = {0, 0, 0}, blockIdx = {0, 0, 0};
thread_local constinit dim3 blockDim, gridDim;

namespace simt {
namespace {

constexpr int kMaxWarps = kMaxThreads / kLanes;

struct ThreadState {
    Fiber* fiber;  // null: not started
    Site waits_at;
    uint3 index;
};

// The block that runs.
struct Block {
    const LaunchSite* launch = nullptr;
    const std::function<void()>* thread = nullptr;
    int num_threads = 0, num_ended = 0;
    int current = 0;  // thread
    ThreadState threads[kMaxThreads];
    uint32_t ready_warps = 0;  // those with a lane in `ready`
    uint32_t ready[kMaxWarps], alive[kMaxWarps], waited_for_previous[kMaxWarps];
    uint32_t yielded[kMaxWarps], yielded_warps = 0;  // in fixed orders they come after all that are ready
    int pushed_warp = -1;                            // goes on whenever it can, so that the warps drift apart
    int64_t idle_yields = 0;
    // __syncthreads
    int at_barrier = 0, predicates = 0, predicates_before = 0;
    Site barrier;
    int num_barriers = 0;
};
Block block;

Fiber host;                    // the stack that called execute_grid()
Fiber fibers[2][kMaxThreads];  // a set for every other block: ThreadSanitizer takes neighbours for unordered
int num_created[2] = {0, 0};
int fiber_set = 0;
Fiber* parked[kMaxThreads];  // created fibers that have no thread (not used under ThreadSanitizer)
int num_parked = 0;

// ---- chance -----------------------------------------------------------------------------------------------

struct Chance {
    Order order = Order::random;
    uint64_t state = 0;
    Chance() {
        const char* text = std::getenv("SIMT_ORDER");
        if (text && std::strcmp(text, "ascending") == 0) {
            order = Order::ascending;
        } else if (text && std::strcmp(text, "descending") == 0) {
            order = Order::descending;
        } else if (text && std::strcmp(text, "random") != 0) {
            violation(nullptr, "SIMT_ORDER is %s: expected ascending, descending or random", text);
        }
        text = std::getenv("SIMT_SEED");
        seed(text ? std::strtoull(text, nullptr, 10) : 1);
    }
    // splitmix64, so that seeds 1 and 2 have nothing in common.
    void seed(uint64_t s) {
        s += 0x9e3779b97f4a7c15u;
        s = (s ^ s >> 30) * 0xbf58476d1ce4e5b9u;
        s = (s ^ s >> 27) * 0x94d049bb133111ebu;
        state = s ^ s >> 31;
        if (state == 0) state = 1;
    }
};
Chance& chance() {
    static Chance only;
    return only;
}

int random_bit_of(uint32_t mask, uint32_t random) {
    const int turn = static_cast<int>(random & 31);
    return (std::countr_zero(std::rotr(mask, turn)) + turn) & 31;
}

// ---- who is next ------------------------------------------------------------------------------------------

[[noreturn]] void report_deadlock() {
    // Threads that wait at one place are told together.
    char text[2000];
    size_t length = 0;
    bool told[kMaxThreads] = {};
    for (int t = 0; t < block.num_threads; ++t) {
        if (told[t] || !(block.alive[t / kLanes] >> t % kLanes & 1)) continue;
        const Site& site = block.threads[t].waits_at;
        int count = 0;
        for (int other = t; other < block.num_threads; ++other) {
            const Site& its = block.threads[other].waits_at;
            if (!(block.alive[other / kLanes] >> other % kLanes & 1)) continue;
            if (!same_place(its, site)) continue;
            told[other] = true;
            ++count;
        }
        const int printed =
            std::snprintf(text + length, sizeof text - length, "%s%d threads (first: %d) in %s at %s:%d",
                          length ? ", " : "", count, t, site.what, site.file, site.line);
        length += static_cast<size_t>(printed);
        if (length >= sizeof text) break;
    }
    violation(nullptr, "deadlock: no thread can go on: %s; %d have ended", text, block.num_ended);
}

// -1: all have ended.
int next_thread() {
    if (block.num_ended == block.num_threads) return -1;
    while (num_bulk_copies > 0 &&
           (block.ready_warps == 0 || (order() == Order::random && random_below(8) == 0))) {
        complete_a_bulk_copy();
    }
    if (block.ready_warps == 0 && block.yielded_warps != 0) {
        for (int w = 0; w < kMaxWarps; ++w) block.ready[w] = std::exchange(block.yielded[w], 0u);
        block.ready_warps = std::exchange(block.yielded_warps, 0u);
    }
    if (block.ready_warps == 0) report_deadlock();
    int warp = 0, lane = 0;
    switch (chance().order) {
        case Order::ascending:
            warp = std::countr_zero(block.ready_warps);
            lane = std::countr_zero(block.ready[warp]);
            break;
        case Order::descending:
            warp = 31 - std::countl_zero(block.ready_warps);
            lane = 31 - std::countl_zero(block.ready[warp]);
            break;
        case Order::random: {
            const uint64_t random = random_bits();
            warp = block.pushed_warp;
            if (warp < 0 || block.ready[warp] == 0) {
                warp = random_bit_of(block.ready_warps, static_cast<uint32_t>(random >> 32));
            }
            lane = random_bit_of(block.ready[warp], static_cast<uint32_t>(random >> 40));
            break;
        }
    }
    block.ready[warp] &= ~(1u << lane);
    if (block.ready[warp] == 0) block.ready_warps &= ~(1u << warp);
    return warp * kLanes + lane;
}

// Never inlined: the address of a thread_local must not be kept across a switch.
__attribute__((noinline)) void set_current(int thread) {
    block.current = thread;
    threadIdx = block.threads[thread].index;
}

void fiber_loop();

void create_fibers(int set, int count) {
    for (int& n = num_created[set]; n < count; ++n) {
        char name[32];
        std::snprintf(name, sizeof name, "thread %d of a block", n);
        create_fiber(fibers[set][n], name, fiber_loop);
    }
}
Fiber& fiber_for(int thread) {
    if (kTsan) return fibers[fiber_set][thread];
    if (num_parked > 0) return *parked[--num_parked];
    create_fibers(0, num_created[0] + 1);
    return fibers[0][num_created[0] - 1];
}

void switch_to(int thread, Fiber& from) {
    Fiber*& fiber = block.threads[thread].fiber;
    if (!fiber) fiber = &fiber_for(thread);
    set_current(thread);
    switch_fiber(from, *fiber);
}

void end_thread() {
    const int thread = block.current, warp = thread / kLanes, lane = thread % kLanes;
    if (!(block.waited_for_previous[warp] >> lane & 1)) {
        violation(nullptr, "a thread ended without wait_for_previous(), which every kernel calls first");
    }
    if (block.at_barrier > 0) {
        violation(nullptr, "a thread ended while others wait in %s at %s:%d", block.barrier.what,
                  block.barrier.file, block.barrier.line);
    }
    end_lane(warp, lane);
    end_thread_copies(thread);
    block.alive[warp] &= ~(1u << lane);
    ++block.num_ended;
    block.idle_yields = 0;
    release(sync_word(2));
}

// A fiber runs threads of blocks one after another. A thread that never waits costs no switch: the fiber that
// has ended one begins the next.
void fiber_loop() {
    for (;;) {
        Fiber& self = *block.threads[block.current].fiber;
        acquire(&host);
        (*block.thread)();
        end_thread();
        const int next = next_thread();
        if (!kTsan && next >= 0 && !block.threads[next].fiber) {
            block.threads[next].fiber = &self;
            set_current(next);
            continue;
        }
        if (!kTsan) parked[num_parked++] = &self;
        if (next < 0) {
            switch_fiber(self, host);
        } else {
            switch_to(next, self);
        }
    }
}

void run_block() {
    block.num_ended = 0;
    block.at_barrier = block.predicates = block.num_barriers = 0;
    block.idle_yields = 0;
    for (int t = 0; t < block.num_threads; ++t) block.threads[t].fiber = nullptr;
    const int num_warps = (block.num_threads + kLanes - 1) / kLanes;
    for (int w = 0; w < num_warps; ++w) {
        const int lanes = std::min(block.num_threads - w * kLanes, kLanes);
        block.ready[w] = block.alive[w] = 0xffffffffu >> (kLanes - lanes);
        block.waited_for_previous[w] = 0;
    }
    block.ready_warps = 0xffffffffu >> (kMaxWarps - num_warps);
    block.pushed_warp = coin() ? static_cast<int>(random_below(static_cast<uint64_t>(num_warps))) : -1;
    fiber_set ^= kTsan;
    start_block_memory(block.launch->smem_bytes);
    start_block_of_warps();
    start_block_of_barriers();
    start_block_of_products();
    switch_to(next_thread(), host);
    acquire(sync_word(2));
    end_block_copies();
    end_block_memory();
}

}  // namespace

void set_order(Order order) { chance().order = order; }
void set_seed(uint64_t seed) { chance().seed(seed); }
Order order() { return chance().order; }

uint64_t random_bits() {  // xorshift64*
    uint64_t& s = chance().state;
    s ^= s >> 12;
    s ^= s << 25;
    s ^= s >> 27;
    return s * 0x2545f4914f6cdd1du;
}

void execute_grid(const LaunchSite& site, const std::function<void()>& thread) {
    block.launch = &site;
    block.thread = &thread;
    block.num_threads = static_cast<int>(site.block.x * site.block.y * site.block.z);
    for (unsigned t = 0; t < static_cast<unsigned>(block.num_threads); ++t) {
        block.threads[t].index = {t % site.block.x, t / site.block.x % site.block.y,
                                  t / site.block.x / site.block.y};
    }
    adopt_stack(host);
    if (kTsan) {  // by the host: a fiber begins with the history of its creator
        create_fibers(0, block.num_threads);
        create_fibers(1, block.num_threads);
        start_bulk_copies();
    }
    blockDim = site.block;
    gridDim = site.grid;
    const uint64_t num_blocks = uint64_t{site.grid.x} * site.grid.y * site.grid.z;
    std::vector<uint64_t> shuffled;
    if (order() == Order::random) {
        shuffled.resize(num_blocks);
        for (uint64_t i = 0; i < num_blocks; ++i) {
            const uint64_t j = random_below(i + 1);
            shuffled[i] = shuffled[j];
            shuffled[j] = i;
        }
    }
    const CrashReports crash_reports;
    release(&host);
    for (uint64_t i = 0; i < num_blocks; ++i) {
        const uint64_t b = !shuffled.empty()              ? shuffled[i]
                           : order() == Order::descending ? num_blocks - 1 - i
                                                          : i;
        blockIdx = {static_cast<unsigned>(b % site.grid.x),
                    static_cast<unsigned>(b / site.grid.x % site.grid.y),
                    static_cast<unsigned>(b / site.grid.x / site.grid.y)};
        run_block();
    }
    check_guards();
    block.launch = nullptr;
}

const LaunchSite* current_launch() { return block.launch; }
bool in_stack_guard(const void* address) {
    if (!block.launch) return false;
    const char* const stack = static_cast<const char*>(block.threads[block.current].fiber->stack);
    const char* const a = static_cast<const char*>(address);
    return a < stack && a >= stack - kStackGuardBytes;
}
int current_thread() { return block.current; }
uint32_t alive_lanes(int warp) { return warp * kLanes < block.num_threads ? block.alive[warp] : 0; }

void wait_at(const Site& site) {
    const int self = block.current;
    block.threads[self].waits_at = site;
    const int next = next_thread();
    if (next != self) switch_to(next, *block.threads[self].fiber);
}

void make_ready(int warp, uint32_t lanes) {
    block.ready[warp] |= lanes;
    block.ready_warps |= 1u << warp;
    block.idle_yields = 0;
}

void yield() {
    if (++block.idle_yields > 4'000'000) violation(nullptr, "threads spin and none of them gets on");
    const int warp = block.current / kLanes;
    if (order() == Order::random) {
        // Who spins must not be the one that is pushed ahead.
        const auto num_warps = static_cast<uint64_t>((block.num_threads + kLanes - 1) / kLanes);
        block.pushed_warp = coin() ? static_cast<int>(random_below(num_warps)) : -1;
        block.ready[warp] |= 1u << block.current % kLanes;
        block.ready_warps |= 1u << warp;
    } else {
        block.yielded[warp] |= 1u << block.current % kLanes;
        block.yielded_warps |= 1u << warp;
    }
    wait_at({"a loop that waits", "?", 0});
}

void grid_dependency_wait() {
    block.waited_for_previous[block.current / kLanes] |= 1u << block.current % kLanes;
}

int block_barrier(const Site& site, int predicate) {
    if (block.num_ended > 0) {
        violation(&site, "%s after %d of %d threads have ended", site.what, block.num_ended,
                  block.num_threads);
    }
    if (block.at_barrier == 0) {
        block.barrier = site;
    } else if (!same_place(site, block.barrier)) {
        violation(&site, "%s in divergent code: other threads wait in %s at %s:%d", site.what,
                  block.barrier.what, block.barrier.file, block.barrier.line);
    }
    char* const word = sync_word(block.num_barriers % 2);
    release(word);
    ++block.at_barrier;
    block.predicates += predicate != 0;
    if (block.at_barrier == block.num_threads) {
        block.predicates_before = block.predicates;
        block.at_barrier = block.predicates = 0;
        ++block.num_barriers;
        for (int w = 0; w * kLanes < block.num_threads; ++w) make_ready(w, block.alive[w]);
    }
    wait_at(site);  // the last to arrive need not be the first to go on
    acquire(word);
    return block.predicates_before;
}

// One word for all: what came before some fence is visible after the next one.
void fence() {
    static char word;
    release(&word);
    acquire(&word);
}

void trap(const Site& site) { violation(&site, "__trap"); }

}  // namespace simt
