// A hash map from a pair of token ids to a small value: open addressing, linear probing, no removal. It never
// iterates, so its layout cannot leak into results.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

template <class Value>
class PairMap {
public:
    PairMap() : slots_(kSmallest) {}

    // The value of (left, right), or null.
    const Value* find(int32_t left, int32_t right) const {
        const uint64_t key = key_of(left, right);
        for (size_t i = hash(key) & (slots_.size() - 1);; i = (i + 1) & (slots_.size() - 1)) {
            if (slots_[i].key == key) return &slots_[i].value;
            if (slots_[i].key == kEmpty) return nullptr;
        }
    }
    // The value of (left, right), made with Value{} when absent. The reference lives until the next call.
    Value& operator()(int32_t left, int32_t right) {
        if ((count_ + 1) * 2 > slots_.size()) grow();
        Slot& slot = slot_of(key_of(left, right));
        if (slot.key == kEmpty) {
            slot.key = key_of(left, right);
            ++count_;
        }
        return slot.value;
    }
    size_t size() const { return count_; }

private:
    static constexpr uint64_t kEmpty = ~uint64_t{0};  // ids are not negative
    static constexpr size_t kSmallest = 16;
    struct Slot {
        uint64_t key = kEmpty;
        Value value{};
    };
    static uint64_t key_of(int32_t left, int32_t right) {
        return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
    }
    static size_t hash(uint64_t key) {
        key *= 0x9E3779B97F4A7C15u;  // Fibonacci hashing; the high half is the mixed one
        return static_cast<size_t>(key >> 32 ^ key >> 15);
    }
    Slot& slot_of(uint64_t key) {
        size_t i = hash(key) & (slots_.size() - 1);
        while (slots_[i].key != key && slots_[i].key != kEmpty) i = (i + 1) & (slots_.size() - 1);
        return slots_[i];
    }
    void grow() {
        std::vector<Slot> old(slots_.size() * 2);
        old.swap(slots_);
        for (Slot& slot : old)
            if (slot.key != kEmpty) slot_of(slot.key) = std::move(slot);
    }

    std::vector<Slot> slots_;
    size_t count_ = 0;
};
