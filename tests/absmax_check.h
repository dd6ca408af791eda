// The number that an op raises to the largest magnitude of what it stores (kernels/quantize.h), to the bit:
//   RaisedAbsmax absmax(device);
//   swiglu_forward(on(out), on(gate_up), absmax.tensor());
//   on.fetch();
//   absmax.expect(out, "out");
#pragma once
#include <bit>

#include "tests/on_device.h"

class RaisedAbsmax {
public:
    explicit RaisedAbsmax(Device device, float before = 0)
        : before_(before), number_(Values{before}), on_(device) {}

    Tensor tensor() { return on_(number_.tensor()); }
    float value() {
        on_.fetch();
        return number_[0];
    }
    template <class T>
    void expect(const Guarded<T>& stored, const char* what) {
        uint32_t largest = std::bit_cast<uint32_t>(before_);
        for (int64_t i = 0; i < stored.size(); ++i) {
            largest = std::max(largest, std::bit_cast<uint32_t>(to_float(stored[i])) & 0x7fffffffu);
        }
        EXPECT_EQ(std::bit_cast<uint32_t>(value()), largest)
            << "absmax of " << what << ": " << value() << ", not " << std::bit_cast<float>(largest);
    }

private:
    float before_;
    Guarded<float> number_;
    OnDevice on_;
};
