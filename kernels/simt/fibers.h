// Fibers: stacks of their own that run in turns on one thread of the process. A switch is a dozen
// instructions (x86-64, aarch64) or ucontext's two system calls elsewhere (or with SIMT_UCONTEXT).
#pragma once
#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(SIMT_UCONTEXT)
#define SIMT_UCONTEXT 1
#endif
#if defined(SIMT_UCONTEXT)
#include <ucontext.h>
#endif

namespace simt {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kStackGuardBytes = 64 << 10;  // below it; a multiple of every page size in use

struct Fiber {
#if defined(SIMT_UCONTEXT)
    ucontext_t context;
#else
    void* stack_pointer = nullptr;  // while another one runs
#endif
    const void* stack = nullptr;  // its lowest address
    size_t stack_bytes = 0;
    void* fake_stack = nullptr;  // AddressSanitizer's
    void* tsan = nullptr;        // ThreadSanitizer's
};

// Gives `fiber` a stack, below which lies memory that nobody may touch. It is kept for good. The first switch
// to it calls `entry`, which must not return. `name` appears in ThreadSanitizer's reports.
void create_fiber(Fiber& fiber, const char* name, void (*entry)());
// The stack on which this is called, so that it can be left and come back to.
void adopt_stack(Fiber& fiber);
void switch_fiber(Fiber& from, Fiber& to);

}  // namespace simt
