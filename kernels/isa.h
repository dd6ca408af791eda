// One source, several instruction sets. Every kernels/*.cpp is compiled once per set (Makefile: ISAS) with
// its code inside `namespace ISA_NAMESPACE`; the `plain` compilation also defines the public function, which
// picks the best set that this processor and kernel allow. Objects of one set are linked into one relocatable
// file whose other symbols are made local (Makefile), so that no inline function compiled for AVX-512 can be
// taken by code that must run without it.
#pragma once

enum class Isa : int { plain = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };

Isa best_isa();         // by CPUID and XGETBV
Isa current_isa();      // best_isa() unless set
void set_isa(Isa isa);  // for --isa, tests and benches; InputError above best_isa()
const char* isa_name(Isa isa);
Isa isa_from_name(const char* name);  // "auto" gives best_isa(); InputError for an unknown name

#ifndef ISA_NAMESPACE
#define ISA_NAMESPACE isa_plain
#define ISA_PLAIN 1
#endif

// KERNEL_ENTRY(void, name, (int a, int b), (a, b)), at file scope behind the namespace: the public function
// of the header.
#if !defined(ISA_PLAIN)
#define KERNEL_ENTRY(result, name, parameters, arguments)
#elif defined(__x86_64__)
#define KERNEL_ENTRY(result, name, parameters, arguments)                  \
    namespace isa_avx2 {                                                   \
    result name parameters;                                                \
    }                                                                      \
    namespace isa_avx512 {                                                 \
    result name parameters;                                                \
    }                                                                      \
    namespace isa_avx512_bf16 {                                            \
    result name parameters;                                                \
    }                                                                      \
    result name parameters {                                               \
        switch (current_isa()) {                                           \
            case Isa::avx512_bf16: return isa_avx512_bf16::name arguments; \
            case Isa::avx512: return isa_avx512::name arguments;           \
            case Isa::avx2: return isa_avx2::name arguments;               \
            case Isa::plain: break;                                        \
        }                                                                  \
        return isa_plain::name arguments;                                  \
    }
#else
#define KERNEL_ENTRY(result, name, parameters, arguments) \
    result name parameters { return isa_plain::name arguments; }
#endif
