// Work that several threads of one parallel_for need and any of them may do.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "kernels/isa.h"

namespace ISA_NAMESPACE {

// Things numbered 0, 1, ... : whichever thread first needs one makes it; others that need it then wait. What
// was made before ensure() returns is visible behind it.
class OnDemand {
public:
    void forget(int64_t count) { states_ = std::vector<std::atomic<uint8_t>>(static_cast<size_t>(count)); }
    bool begun(int64_t i) const { return state(i).load(std::memory_order_relaxed) != kAbsent; }
    template <class Make>
    void ensure(int64_t i, Make&& make) {
        std::atomic<uint8_t>& state = states_[static_cast<size_t>(i)];
        if (state.load(std::memory_order_acquire) == kReady) return;
        uint8_t absent = kAbsent;
        if (state.compare_exchange_strong(absent, kInWork, std::memory_order_acquire)) {
            make();
            state.store(kReady, std::memory_order_release);
            return;
        }
        for (int spins = 0; state.load(std::memory_order_acquire) != kReady; ++spins) {
            if (spins > 1000) std::this_thread::yield();  // the other one may have lost its core
        }
    }

private:
    static constexpr uint8_t kAbsent = 0, kInWork = 1, kReady = 2;
    const std::atomic<uint8_t>& state(int64_t i) const { return states_[static_cast<size_t>(i)]; }
    std::vector<std::atomic<uint8_t>> states_;
};

}  // namespace ISA_NAMESPACE
