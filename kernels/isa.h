// One source, several instruction sets. Every kernels/*.cpp is compiled once per set (Makefile: ISAS) with
// its code inside `namespace ISA_NAMESPACE`; the `plain` compilation also defines the public function, which
// picks the best set that this processor and kernel allow. Objects of one set are linked into one relocatable
// file whose other symbols are made local (Makefile), so that no inline function compiled for AVX-512 can be
// taken by code that must run without it.
#pragma once
#include "core/device.h"

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

// A build may leave all but `plain` out (MemorySanitizer's: make test-full).
#if defined(__x86_64__) && !defined(INGOT_PLAIN_ONLY)
#define X86_ISAS 1
#endif

// KERNEL_ENTRY(void, name, (int a, int b), (a, b)), at file scope behind the namespace: the public function
// of the header, for what is the CPU's alone.
#if !defined(ISA_PLAIN)
#define KERNEL_ENTRY(result, name, parameters, arguments)
#define DEVICE_ENTRY(device, result, name, parameters, arguments)
#else
#if defined(X86_ISAS)
#define DECLARE_ISAS(result, name, parameters) \
    namespace isa_avx2 {                       \
    result name parameters;                    \
    }                                          \
    namespace isa_avx512 {                     \
    result name parameters;                    \
    }                                          \
    namespace isa_avx512_bf16 {                \
    result name parameters;                    \
    }
#define CALL_BEST_ISA(name, arguments)                                 \
    switch (current_isa()) {                                           \
        case Isa::avx512_bf16: return isa_avx512_bf16::name arguments; \
        case Isa::avx512: return isa_avx512::name arguments;           \
        case Isa::avx2: return isa_avx2::name arguments;               \
        case Isa::plain: break;                                        \
    }                                                                  \
    return isa_plain::name arguments;
#else
#define DECLARE_ISAS(result, name, parameters)
#define CALL_BEST_ISA(name, arguments) return isa_plain::name arguments;
#endif
#define KERNEL_ENTRY(result, name, parameters, arguments) \
    DECLARE_ISAS(result, name, parameters)                \
    result name parameters { CALL_BEST_ISA(name, arguments) }

// DEVICE_ENTRY(x.device, ...): the same for an op with a .cu file, whose code lies in on_simt (the emulator,
// always there) and, where the build has CUDA, in on_cuda. The device decides.
#if defined(INGOT_CUDA)
#define DECLARE_CUDA(result, name, parameters) \
    namespace on_cuda {                        \
    result name parameters;                    \
    }
#define CALL_CUDA(name, arguments) return on_cuda::name arguments;
#else
#define DECLARE_CUDA(result, name, parameters)
#define CALL_CUDA(name, arguments) fail_no_cuda();
#endif
#define DEVICE_ENTRY(device, result, name, parameters, arguments)     \
    DECLARE_ISAS(result, name, parameters)                            \
    DECLARE_CUDA(result, name, parameters)                            \
    namespace on_simt {                                               \
    result name parameters;                                           \
    }                                                                 \
    result name parameters {                                          \
        if ((device) == Device::simt) return on_simt::name arguments; \
        if ((device) == Device::cuda) CALL_CUDA(name, arguments)      \
        CALL_BEST_ISA(name, arguments)                                \
    }
#endif
