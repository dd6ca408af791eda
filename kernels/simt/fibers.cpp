// Stacks and the switch between them (fibers.h).
#include "kernels/simt/fibers.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "kernels/simt/sanitizers.h"

// simt_switch_stack(void** save, void* load): pushes what a function must preserve, exchanges the stack
// pointers and pops the other side's. Floating-point control words are not saved: kernels leave them alone.
#if !defined(SIMT_UCONTEXT)
extern "C" void simt_switch_stack(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.globl simt_switch_stack
.type simt_switch_stack, @function
simt_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size simt_switch_stack, .-simt_switch_stack
)");
#else
asm(R"(
.text
.p2align 4
.globl simt_switch_stack
.type simt_switch_stack, %function
simt_switch_stack:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size simt_switch_stack, .-simt_switch_stack
)");
#endif
#endif

namespace simt {
namespace {

void (*fiber_entry)();
Fiber* left;  // by the switch under way

void enter() {
    finish_switch(nullptr, &left->stack, &left->stack_bytes);
    fiber_entry();
}

}  // namespace

void create_fiber(Fiber& fiber, const char* name, void (*entry)()) {
    void* memory = mmap(nullptr, kStackGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kStackGuardBytes, PROT_NONE) != 0) {
        std::perror("simt: no memory for a fiber's stack");
        std::abort();
    }
    fiber_entry = entry;
    char* const stack = static_cast<char*>(memory) + kStackGuardBytes;
    fiber.stack = stack;
    fiber.stack_bytes = kStackBytes;
    fiber.tsan = create_tsan_fiber(name);
#if defined(SIMT_UCONTEXT)
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
#else
    // What simt_switch_stack pops: zeros, then the address of enter(). A debugger's trace ends at the null
    // return address behind it.
    uintptr_t* top = reinterpret_cast<uintptr_t*>(stack + kStackBytes);
#if defined(__x86_64__)
    top -= 1;  // enter() expects the stack pointer 8 beyond a multiple of 16, as after a call
    top[-1] = reinterpret_cast<uintptr_t>(enter);
    fiber.stack_pointer = top - 7;
#else
    fiber.stack_pointer = top - 20;
    top[-20 + 11] = reinterpret_cast<uintptr_t>(enter);  // x30, to which `ret` goes
#endif
#endif
}

void adopt_stack(Fiber& fiber) { fiber.tsan = current_tsan_fiber(); }

void switch_fiber(Fiber& from, Fiber& to) {
    start_switch(&from.fake_stack, to.stack, to.stack_bytes);
    switch_tsan_fiber(to.tsan);
    left = &from;
#if defined(SIMT_UCONTEXT)
    swapcontext(&from.context, &to.context);
#else
    simt_switch_stack(&from.stack_pointer, to.stack_pointer);
#endif
    finish_switch(from.fake_stack, &left->stack, &left->stack_bytes);
}

}  // namespace simt
