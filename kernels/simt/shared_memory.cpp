// Shared memory of the block that runs, carved from one arena, and cp.async's copies into it.
//   [words for ThreadSanitizer | dynamic | gap | array | gap | array | gap | ...]
// Gaps belong to nobody: AddressSanitizer guards them, and every build looks at block's end whether they were
// written.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/simt/hopper.h"
#include "kernels/simt/sanitizers.h"
#include "kernels/simt/scheduler.h"

namespace simt {
namespace {

constexpr size_t kLimit = 227 << 10;       // what a block of sm_90 may ask for
constexpr size_t kStaticLimit = 48 << 10;  // what declared arrays may take of it
constexpr size_t kGap = 16;
constexpr unsigned char kGapByte = 0xa5;
constexpr size_t kWords = 2048;       // sync_word()
constexpr size_t kArena = 512 << 10;  // room for gaps and alignment

struct Array {
    const void* site;
    size_t begin, bytes;
    const char* file;
    int line;
};
struct Arena {
    char* memory = nullptr;
    size_t used = 0;  // offset
    size_t dynamic_bytes = 0, static_bytes = 0;
    Array arrays[64];
    int num_arrays = 0;
};
Arena arena;

void fill(size_t begin, size_t bytes) {
    const OwnAccesses own;
    allow(arena.memory + begin, bytes);
    std::memset(arena.memory + begin, 0xff, bytes);
    undefine(arena.memory + begin, bytes);
}
// From `begin` up to 16 bytes beyond the next multiple of 16.
size_t gap_bytes(size_t begin) { return (begin + kGap - 1) / kGap * kGap + kGap - begin; }
void add_gap(size_t begin) {
    const OwnAccesses own;
    const size_t bytes = gap_bytes(begin);
    allow(arena.memory + begin, bytes);
    std::memset(arena.memory + begin, kGapByte, bytes);
    forbid(arena.memory + begin, bytes);
    arena.used = begin + bytes;
}

void map_arena() {
    void* memory = mmap(nullptr, kArena, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) violation(nullptr, "no memory for a block's shared memory");
    arena.memory = static_cast<char*>(memory);
    forbid(arena.memory + kWords, kArena - kWords);
}

// ---- cp.async ---------------------------------------------------------------------------------------------

struct Copy {
    char* out;
    const char* inp;
    int bytes, valid_bytes;
    int group;
};
// Of one thread. `copies` holds those under way.
struct Copies {
    std::vector<Copy> under_way;
    int num_committed = 0;
};
Copies copies[kMaxThreads];

// Those of groups [0, end), or only of `end - 1`.
void complete(Copies& mine, int end, bool only_last = false) {
    size_t kept = 0;
    for (const Copy& copy : mine.under_way) {
        if (copy.group >= end || (only_last && copy.group != end - 1)) {
            mine.under_way[kept++] = copy;
            continue;
        }
        allow(copy.out, static_cast<size_t>(copy.bytes));
        std::memcpy(copy.out, copy.inp, static_cast<size_t>(copy.valid_bytes));
        std::memset(copy.out + copy.valid_bytes, 0, static_cast<size_t>(copy.bytes - copy.valid_bytes));
    }
    mine.under_way.resize(kept);
}

}  // namespace

void start_block_memory(int64_t dynamic_bytes) {
    if (!arena.memory) map_arena();
    arena.num_arrays = 0;
    arena.static_bytes = 0;
    arena.dynamic_bytes = static_cast<size_t>(dynamic_bytes);
    fill(kWords, arena.dynamic_bytes);
    add_gap(kWords + arena.dynamic_bytes);
}

void end_block_memory() {
    for (int i = -1; i < arena.num_arrays; ++i) {
        const size_t end =
            i < 0 ? kWords + arena.dynamic_bytes : arena.arrays[i].begin + arena.arrays[i].bytes;
        const size_t bytes = gap_bytes(end);
        allow(arena.memory + end, bytes);
        for (size_t k = 0; k < bytes; ++k) {
            if (static_cast<unsigned char>(arena.memory[end + k]) == kGapByte) continue;
            if (i < 0)
                violation(nullptr, "dynamic shared memory was written past its %zu bytes",
                          arena.dynamic_bytes);
            const Site site{"SHARED", arena.arrays[i].file, arena.arrays[i].line};
            violation(&site, "a shared array was written past its %zu bytes", arena.arrays[i].bytes);
        }
    }
    forbid(arena.memory + kWords, arena.used - kWords);
    if (kTsan) {
        // Memory without a history: the next block's accesses race with none of this one's, its barriers
        // order none.
        const OwnAccesses own;
        munmap(arena.memory, kArena);
        map_arena();
    }
}

char* sync_word(int index) { return arena.memory + 8 * index; }

void* shared_array(const void* site, size_t bytes, size_t alignment, const char* file, int line) {
    for (int i = 0; i < arena.num_arrays; ++i) {
        if (arena.arrays[i].site == site) return arena.memory + arena.arrays[i].begin;
    }
    const Site place{"SHARED", file, line};
    if (!current_launch()) violation(&place, "shared memory outside a kernel");
    const size_t begin = (arena.used + alignment - 1) / alignment * alignment;
    arena.static_bytes += (bytes + alignment - 1) / alignment * alignment;
    if (arena.static_bytes > kStaticLimit) {
        violation(&place, "a block's shared arrays take %zu bytes: more than 48 KiB must be dynamic",
                  arena.static_bytes);
    }
    if (arena.static_bytes + arena.dynamic_bytes > kLimit) {
        violation(&place, "a block's shared memory takes %zu bytes: the limit is 227 KiB",
                  arena.static_bytes + arena.dynamic_bytes);
    }
    if (arena.num_arrays == 64) violation(&place, "more than 64 shared arrays in a block");
    arena.arrays[arena.num_arrays++] = {site, begin, bytes, file, line};
    fill(begin, bytes);
    add_gap(begin + bytes);
    return arena.memory + begin;
}

uint32_t shared_offset(const void* shared) {
    return static_cast<uint32_t>(static_cast<const char*>(shared) - arena.memory - kWords);
}
char* shared_address(uint32_t offset) { return arena.memory + kWords + offset; }

void* dynamic_shared() { return arena.memory + kWords; }

bool is_shared(const void* address) {
    const char* const a = static_cast<const char*>(address);
    return a >= arena.memory + kWords && a < arena.memory + arena.used;
}

void check_shared(const void* address, int bytes, const Site& site) {
    if (!is_shared(address) || !is_shared(static_cast<const char*>(address) + bytes - 1)) {
        violation(&site, "%s: %p is not in shared memory", site.what, address);
    }
    if (reinterpret_cast<uintptr_t>(address) % static_cast<uintptr_t>(bytes) != 0) {
        violation(&site, "%s: shared address %p is not aligned to %d bytes", site.what, address, bytes);
    }
}

// ---- cp.async ---------------------------------------------------------------------------------------------

void issue_copy(void* shared, const void* global, int bytes, int valid_bytes, const Site& site) {
    if (valid_bytes > 0) {
        if (reinterpret_cast<uintptr_t>(global) % static_cast<uintptr_t>(bytes) != 0) {
            violation(&site, "%s: global address %p is not aligned to %d bytes", site.what, global, bytes);
        }
        if (!is_device_memory(global, static_cast<size_t>(valid_bytes))) {
            violation(&site, "%s: %d bytes at %p are not in device memory", site.what, valid_bytes, global);
        }
    }
    forbid(shared, static_cast<size_t>(bytes));
    undefine(shared, static_cast<size_t>(bytes));
    Copies& mine = copies[current_thread()];
    const OwnAccesses own;
    mine.under_way.push_back({static_cast<char*>(shared), static_cast<const char*>(global), bytes,
                              valid_bytes, mine.num_committed});
}

void copy_async_commit() {
    Copies& mine = copies[current_thread()];
    ++mine.num_committed;
    if (order() == Order::random && coin()) complete(mine, mine.num_committed, true);
}

void copy_async_wait(int pending_groups) {
    Copies& mine = copies[current_thread()];
    complete(mine, mine.num_committed - pending_groups);
}

void end_thread_copies(int thread) {
    Copies& mine = copies[thread];
    if (mine.num_committed == 0 && mine.under_way.empty()) return;
    complete(mine, mine.num_committed + 1);
    mine.num_committed = 0;
}

}  // namespace simt
