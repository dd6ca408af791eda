// sm_90's barriers (hopper.h): bar.sync with a number, and mbarriers, whose state is the 64-bit word itself.
#include "kernels/simt/hopper.h"
#include "kernels/simt/sanitizers.h"
#include "kernels/simt/scheduler.h"

namespace simt {
namespace {

// ---- named barriers ---------------------------------------------------------------------------------------

constexpr int kNamed = 16;
struct Named {
    int threads = 0, arrived = 0, num_before = 0;
    Site site;
    uint32_t waiting[kMaxThreads / kLanes] = {};
};
Named named[kNamed];

// ---- mbarriers --------------------------------------------------------------------------------------------

// Bits: 20 arrivals that are missing, 20 that a phase needs, 22 bytes that are missing (signed), 1 parity, 1
// zero: memory that nobody initialised has it set.
struct Phase {
    int missing, needed;
    int bytes;
    int parity;
};
Phase unpack(uint64_t word, const Site& site) {
    if (word >> 63) violation(&site, "%s: the barrier was never initialised", site.what);
    return {static_cast<int>(word & 0xfffff), static_cast<int>(word >> 20 & 0xfffff),
            static_cast<int>(static_cast<int64_t>(word << 2) >> 42), static_cast<int>(word >> 62)};
}
uint64_t pack(const Phase& phase) {
    return static_cast<uint64_t>(phase.missing) | static_cast<uint64_t>(phase.needed) << 20 |
           (static_cast<uint64_t>(phase.bytes) & 0x3fffff) << 40 | static_cast<uint64_t>(phase.parity) << 62;
}

struct Waiter {
    const uint64_t* barrier;
    int thread;
};
Waiter waiters[kMaxThreads];
int num_waiters = 0;

// Two words for ThreadSanitizer: who waits for one phase learns nothing of the next.
void* phase_word(uint64_t* barrier, int parity) { return reinterpret_cast<char*>(barrier) + parity; }

void update(uint64_t* barrier, Phase phase) {
    if (phase.missing == 0 && phase.bytes == 0) {
        phase.missing = phase.needed;
        phase.parity ^= 1;
        int kept = 0;
        for (int i = 0; i < num_waiters; ++i) {
            if (waiters[i].barrier == barrier) {
                make_ready(waiters[i].thread / kLanes, 1u << waiters[i].thread % kLanes);
            } else {
                waiters[kept++] = waiters[i];
            }
        }
        num_waiters = kept;
    }
    *barrier = pack(phase);
}

}  // namespace

void start_block_of_barriers() {
    num_waiters = 0;
    for (Named& barrier : named) barrier = {};
}

void named_barrier(int id, int threads, bool wait, const char* file, int line) {
    const Site site{wait ? "bar.sync" : "bar.arrive", file, line};
    if (id < 1 || id >= kNamed || threads <= 0 || threads % kLanes != 0) {
        violation(&site, "%s: barrier %d of %d threads: expected 1 to 15, and whole warps", site.what, id,
                  threads);
    }
    Named& barrier = named[id];
    if (barrier.arrived > 0 && barrier.threads != threads) {
        violation(&site, "%s: barrier %d of %d threads, of %d in %s at %s:%d", site.what, id, threads,
                  barrier.threads, barrier.site.what, barrier.site.file, barrier.site.line);
    }
    char* const word = sync_word(192 + 2 * id + barrier.num_before % 2);
    release(word);
    barrier.site = site;
    barrier.threads = threads;
    const int thread = current_thread();
    if (wait) barrier.waiting[thread / kLanes] |= 1u << thread % kLanes;
    if (++barrier.arrived == threads) {
        for (int w = 0; w < kMaxThreads / kLanes; ++w) {
            if (barrier.waiting[w]) make_ready(w, barrier.waiting[w]);
            barrier.waiting[w] = 0;
        }
        barrier.arrived = 0;
        ++barrier.num_before;
    }
    if (!wait) return;
    wait_at(site);
    acquire(word);
}

uint64_t new_mbarrier(uint64_t* barrier, int arrivals, const Site& site) {
    check_shared(barrier, 8, site);
    if (arrivals < 1 || arrivals > 0xfffff) violation(&site, "%s for %d arrivals", site.what, arrivals);
    return pack({arrivals, arrivals, 0, 0});
}

bool use_mbarrier(uint64_t* barrier, Mbarrier use, int value, const Site& site) {
    check_shared(barrier, 8, site);
    Phase phase = unpack(*barrier, site);
    switch (use) {
        case Mbarrier::arrive:
            if (phase.missing == 0) {
                violation(&site, "%s: all %d threads have arrived already", site.what, phase.needed);
            }
            release(phase_word(barrier, phase.parity));
            --phase.missing;
            update(barrier, phase);
            return true;
        case Mbarrier::expect_bytes:
            phase.bytes += value;
            update(barrier, phase);
            return true;
        case Mbarrier::test:
            if (phase.parity == value) yield();
            break;
        case Mbarrier::wait:
            while (unpack(*barrier, site).parity == value) {
                waiters[num_waiters++] = {barrier, current_thread()};
                wait_at(site);
            }
            break;
    }
    if (unpack(*barrier, site).parity == value) return false;
    acquire(phase_word(barrier, value));
    return true;
}

void bytes_have_come(uint64_t* barrier, int64_t bytes, const Site& site) {
    Phase phase = unpack(*barrier, site);
    release(phase_word(barrier, phase.parity));
    phase.bytes -= static_cast<int>(bytes);
    update(barrier, phase);
}

}  // namespace simt
