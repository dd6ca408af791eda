// What the emulator tells the sanitizers, so that they see threads, blocks and memory of the GPU instead of
// one process that jumps about. In a plain build every function here is empty.
//   AddressSanitizer  which stack is in use; memory that nobody may touch at present
//   MemorySanitizer   memory whose contents are undefined
//   ThreadSanitizer   one of its fibers for each thread of a block; what orders them
// The emulator's own files are never instrumented by ThreadSanitizer (README.md): SIMT_TSAN says that the
// program is.
#pragma once
#include <cstddef>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#endif
#if __has_feature(memory_sanitizer)
#define SIMT_MSAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#endif

#if defined(__SANITIZE_THREAD__)
#error "compile the emulator with -fno-sanitize=thread -DSIMT_TSAN"
#endif

#if defined(SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(SIMT_MSAN)
#include <sanitizer/msan_interface.h>
#endif
#if defined(SIMT_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_set_fiber_name(void* fiber, const char* name);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_read_range(void* address, unsigned long bytes);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace simt {

#if defined(SIMT_TSAN)
constexpr bool kTsan = true;
#else
constexpr bool kTsan = false;
#endif

// ---- memory -----------------------------------------------------------------------------------------------

inline void forbid([[maybe_unused]] const void* memory, [[maybe_unused]] size_t bytes) {
#if defined(SIMT_ASAN)
    __asan_poison_memory_region(memory, bytes);
#endif
}
inline void allow([[maybe_unused]] const void* memory, [[maybe_unused]] size_t bytes) {
#if defined(SIMT_ASAN)
    __asan_unpoison_memory_region(memory, bytes);
#endif
}
inline void undefine([[maybe_unused]] const void* memory, [[maybe_unused]] size_t bytes) {
#if defined(SIMT_MSAN)
    __msan_poison(memory, bytes);
#endif
}

// ---- stacks -----------------------------------------------------------------------------------------------

// Before and after a switch of stacks. The second also learns the bounds of the stack that was left.
inline void start_switch([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* stack,
                         [[maybe_unused]] size_t bytes) {
#if defined(SIMT_ASAN)
    __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
#endif
}
inline void finish_switch([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** left_stack,
                          [[maybe_unused]] size_t* left_bytes) {
#if defined(SIMT_ASAN)
    __sanitizer_finish_switch_fiber(fake_stack, left_stack, left_bytes);
#endif
}

// ---- threads ----------------------------------------------------------------------------------------------

inline void* current_tsan_fiber() {
#if defined(SIMT_TSAN)
    return __tsan_get_current_fiber();
#else
    return nullptr;
#endif
}
inline void* create_tsan_fiber([[maybe_unused]] const char* name) {
#if defined(SIMT_TSAN)
    void* const fiber = __tsan_create_fiber(0);
    __tsan_set_fiber_name(fiber, name);
    return fiber;
#else
    return nullptr;
#endif
}
// Orders nothing: only acquire and release do.
inline void switch_tsan_fiber([[maybe_unused]] void* fiber) {
#if defined(SIMT_TSAN)
    __tsan_switch_to_fiber(fiber, 1);
#endif
}
// What was done before a release of a word is visible after an acquire of it.
inline void release([[maybe_unused]] void* word) {
#if defined(SIMT_TSAN)
    __tsan_release(word);
#endif
}
inline void acquire([[maybe_unused]] void* word) {
#if defined(SIMT_TSAN)
    __tsan_acquire(word);
#endif
}
// A read by code that is not instrumented.
inline void note_read([[maybe_unused]] const void* memory, [[maybe_unused]] size_t bytes) {
#if defined(SIMT_TSAN)
    __tsan_read_range(const_cast<void*>(memory), bytes);
#endif
}
// While one lives, the thread's accesses are the emulator's own (memset and its like are seen even in files
// that are not instrumented).
class OwnAccesses {
public:
#if defined(SIMT_TSAN)
    OwnAccesses() {
        AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
        AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
    }
    ~OwnAccesses() {
        AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
        AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    }
#else
    OwnAccesses() {}
#endif
    OwnAccesses(const OwnAccesses&) = delete;
    OwnAccesses& operator=(const OwnAccesses&) = delete;
};

}  // namespace simt
