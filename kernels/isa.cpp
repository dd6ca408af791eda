// Which instruction sets this processor offers, and which one is in use.
#include "kernels/isa.h"

#include <string>

#include "core/error.h"

#ifdef ISA_PLAIN  // one definition; the other compilations of this file are empty
namespace {
constexpr const char* kNames[] = {"plain", "avx2", "avx512", "avx512_bf16"};

Isa detect() {
#if defined(X86_ISAS)
    __builtin_cpu_init();  // reads CPUID and, for the wide registers, what the kernel saves (XGETBV)
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512cd");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) return Isa::avx512_bf16;
    if (avx512) return Isa::avx512;
    if (avx2) return Isa::avx2;
#endif
    return Isa::plain;
}

Isa& in_use() {
    static Isa isa = best_isa();
    return isa;
}
}  // namespace

Isa best_isa() {
    static const Isa isa = detect();
    return isa;
}
Isa current_isa() { return in_use(); }

void set_isa(Isa isa) {
    if (isa > best_isa()) {
        fail_input({.what = "instruction set is not available here",
                    .expected = cat({"at most ", isa_name(best_isa())}),
                    .actual = isa_name(isa),
                    .hint = "--isa auto"});
    }
    in_use() = isa;
}

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa isa_from_name(const char* name) {
    if (std::string(name) == "auto") return best_isa();
    for (int i = 0; i < 4; ++i) {
        if (std::string(name) == kNames[i]) return static_cast<Isa>(i);
    }
    fail_input({.what = "unknown instruction set",
                .expected = "auto, plain, avx2, avx512 or avx512_bf16",
                .actual = name,
                .hint = "--isa auto"});
}
#endif
