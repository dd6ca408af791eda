// How the emulator says that a kernel, or the host that drives it, broke a rule: one line, then abort().
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <iterator>

#include "kernels/simt/sanitizers.h"
#include "kernels/simt/scheduler.h"

namespace simt {

void violation(const Site* site, const char* format, ...) {
    char text[3000];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    std::fprintf(stderr, "simt: %s", text);
    if (site) std::fprintf(stderr, ": at %s:%d", site->file, site->line);
    if (const LaunchSite* const launch = current_launch()) {
        std::fprintf(stderr, ": block (%u,%u,%u), thread (%u,%u,%u) of the kernel launched at %s:%d",
                     blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z, launch->file,
                     launch->line);
    }
    std::fprintf(stderr, "\n");
    std::abort();
}
void misaligned_access(const void* address) {
    violation(nullptr, "128-bit access to %p, which is not aligned to 16 bytes", address);
}

#if defined(SIMT_ASAN) || defined(SIMT_MSAN) || defined(SIMT_TSAN)
CrashReports::CrashReports() {}
CrashReports::~CrashReports() {}
#else
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
struct sigaction before[std::size(kSignals)];
stack_t stack_before;
alignas(16) char signal_stack[64 << 10];  // a kernel may have used up its own

void report_crash(int signal, siginfo_t* info, void*) {
    for (int s : kSignals) std::signal(s, SIG_DFL);
    if (signal == SIGFPE) violation(nullptr, "integer division by zero");
    if (signal == SIGILL) violation(nullptr, "illegal instruction");
    if (in_stack_guard(info->si_addr)) violation(nullptr, "a kernel used more than its 256 KiB of stack");
    // Of an access that is not aligned the processor does not tell the address.
    violation(nullptr, "memory fault at %p%s", info->si_addr,
              info->si_addr ? "" : ": a null pointer, or a 128-bit access that is not aligned");
}

}  // namespace

CrashReports::CrashReports() {
    stack_t stack = {};
    stack.ss_sp = signal_stack;
    stack.ss_size = sizeof signal_stack;
    sigaltstack(&stack, &stack_before);
    struct sigaction action = {};
    action.sa_sigaction = report_crash;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &action, &before[i]);
}
CrashReports::~CrashReports() {
    for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &before[i], nullptr);
    sigaltstack(&stack_before, nullptr);
}
#endif

}  // namespace simt
