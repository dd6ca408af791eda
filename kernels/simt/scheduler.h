// Between the emulator's own files: the block that runs, its threads, who goes on next, and complaints.
#pragma once
#include <cstdint>
#include <cstring>
#include <functional>

#include "kernels/simt/simt.h"

namespace simt {

constexpr int kLanes = 32;
constexpr int kMaxThreads = 1024;

// ---- running a grid (scheduler.cpp) -----------------------------------------------------------------------

// All its blocks, one after another, on the calling thread. One grid at a time (streams.cpp holds a lock).
void execute_grid(const LaunchSite& site, const std::function<void()>& thread);

const LaunchSite* current_launch();  // null outside kernels
int current_thread();                // its index in the block
// The calling thread cannot go on until make_ready() names it; another one runs.
void wait_at(const Site& site);
void make_ready(int warp, uint32_t lanes);
// The lanes of a warp that the block has and that have not ended.
uint32_t alive_lanes(int warp);
// Words that stand for barriers towards ThreadSanitizer; no two blocks share one.
char* sync_word(int index);

// ---- collectives (warp.cpp) -------------------------------------------------------------------------------

// Done by the last lane of `mask` to arrive, for all of them: `arguments[lane]` is what each one gave.
using Exchange = void (*)(void* const* arguments, uint32_t mask);
void collective(uint32_t mask, const Site& site, void* arguments, Exchange exchange,
                bool orders_memory = false);
void start_block_of_warps();
void end_lane(int warp, int lane);  // aborts when others wait for it

// ---- shared memory and asynchronous copies (shared_memory.cpp) --------------------------------------------

void start_block_memory(int64_t dynamic_bytes);
void end_block_memory();
void end_thread_copies(int thread);
char* shared_address(uint32_t offset);  // the inverse of shared_offset()

// ---- sm_90 (barriers.cpp, bulk_copy.cpp, wgmma.cpp) -------------------------------------------------------

void start_block_of_barriers();
void bytes_have_come(uint64_t* barrier, int64_t bytes, const Site& site);
extern int num_bulk_copies;  // under way
void start_bulk_copies();
void complete_a_bulk_copy();
void end_block_copies();
void start_block_of_products();

// ---- device memory (device_memory.cpp) --------------------------------------------------------------------

bool is_device_memory(const void* address, size_t bytes);
void check_guards();  // aborts when a kernel wrote beside an allocation

// Pointers to equal texts may differ.
inline bool same_place(const Site& a, const Site& b) {
    return a.line == b.line && (a.what == b.what || std::strcmp(a.what, b.what) == 0) &&
           (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

// ---- chance -----------------------------------------------------------------------------------------------

Order order();
uint64_t random_bits();
inline uint64_t random_below(uint64_t n) {
    return static_cast<uint64_t>(static_cast<unsigned __int128>(random_bits()) * n >> 64);
}
inline bool coin() { return random_bits() >> 63; }

// ---- complaints -------------------------------------------------------------------------------------------

// Prints "simt: WHAT: at PLACE: block, thread of the kernel launched at PLACE" as one line and aborts. `site`
// may be null; outside kernels only WHAT is known.
[[noreturn]] void violation(const Site* site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// While one lives, a crash in a kernel is told in the same way. Sanitizers tell it better and are left alone.
class CrashReports {
public:
    CrashReports();
    ~CrashReports();
    CrashReports(const CrashReports&) = delete;
    CrashReports& operator=(const CrashReports&) = delete;
};
bool in_stack_guard(const void* address);  // just below the stack of the thread that runs

}  // namespace simt
