// As many independent chains of multiply-adds as the matrix product's tile has: nothing but the FMA units
// limits them.
#include "kernels/fma_peak.h"

#include <chrono>

#include "core/threads.h"
#include "kernels/matmul_tile.h"

namespace ISA_NAMESPACE {
namespace {

constexpr int kChains = kTileRows * kTileVectors;
constexpr int64_t kLoops = 1'000'000 / kChains;
constexpr int64_t kTasksPerThread = 8;

template <class Units>
void multiply_add_loop(int64_t loops) {
    VecU a{}, b{};
    asm volatile("" : "+m"(a), "+m"(b));  // values that the compiler cannot know
    Vec sum[kChains] = {};
    for (int chain = 0; chain < kChains; ++chain) asm volatile("" : "+m"(sum[chain]));  // no two known equal
    for (int64_t i = 0; i < loops; ++i) {
#pragma GCC unroll 24
        for (int chain = 0; chain < kChains; ++chain) sum[chain] = Units::multiply_add(a, b, sum[chain]);
    }
    for (int chain = 0; chain < kChains; ++chain) asm volatile("" : : "m"(sum[chain]));
}

template <class Units>
double best_flops(int rounds) {
    double best = 0;
    const int64_t tasks = num_threads() * kTasksPerThread;
    for (int round = 0; round < rounds; ++round) {
        const auto start = std::chrono::steady_clock::now();
        parallel_for(tasks, [](int64_t) { multiply_add_loop<Units>(kLoops); });
        const double seconds =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        const double flops = 2.0 * Units::kElements * kWidth * kChains * kLoops * static_cast<double>(tasks);
        if (flops / seconds > best) best = flops / seconds;
    }
    return best;
}

}  // namespace

double fma_peak_flops(MatmulMath math, int rounds) {
    return math == MatmulMath::bf16 ? best_flops<Bf16Units>(rounds) : best_flops<FloatUnits<false>>(rounds);
}

}  // namespace ISA_NAMESPACE

KERNEL_ENTRY(double, fma_peak_flops, (MatmulMath math, int rounds), (math, rounds))
