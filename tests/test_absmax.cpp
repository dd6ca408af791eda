// What all ops that raise an absmax have in common, beside its value (which their own tests compare for every
// shape): a NaN and an infinity reach it from wherever they are, a larger number that is there stays, and so
// does any where there is nothing to store.
#include <functional>

#include "kernels/attention.h"
#include "kernels/gelu.h"
#include "kernels/layernorm.h"
#include "kernels/qknorm.h"
#include "kernels/quantize.h"
#include "kernels/relu2.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "tests/absmax_check.h"

namespace {

constexpr int64_t kWidth = 64;  // of a row of every op's first input
constexpr int64_t kHeads = 2, kKvHeads = 1, kHeadDim = kWidth / (kHeads + 2 * kKvHeads);

// Tensors that an op needs beside the one that is looked at: ones, on the device.
class Others {
public:
    Others(OnDevice& on, int64_t rows) : on_(on), rows_(rows) {}
    template <class T>
    Tensor ones(int64_t d0, int64_t d1 = -1) {
        auto& all = std::get<std::vector<Guarded<T>>>(memory_);
        all.emplace_back(Values(static_cast<size_t>(d0 * (d1 < 0 ? 1 : d1)), 1.0));
        return on_(all.back().tensor(d0, d1));
    }
    Tensor matrix(int64_t width = kWidth) { return ones<bf16>(rows_, width); }
    Tensor column() { return ones<float>(rows_); }
    Tensor row() { return ones<bf16>(kWidth); }
    Tensor sums(int64_t width = kWidth) { return ones<float>(width); }
    int64_t rows() const { return rows_; }

private:
    OnDevice& on_;
    int64_t rows_;
    std::tuple<std::vector<Guarded<bf16>>, std::vector<Guarded<float>>, std::vector<Guarded<int32_t>>>
        memory_;
};

// inp [rows,kWidth] bf16 is what may be NaN; in place, it is the output too.
struct Op {
    const char* name;
    std::function<void(Others&, Tensor inp, Tensor absmax)> run;
};

const Op kOps[] = {
    {"raise_absmax", [](Others&, Tensor inp, Tensor absmax) { raise_absmax(absmax, inp); }},
    {"layernorm_forward",
     [](Others& o, Tensor inp, Tensor absmax) {
         layernorm_forward(o.matrix(), o.column(), o.column(), inp, o.row(), o.row(), 1e-5f, absmax);
     }},
    {"layernorm_backward",
     [](Others& o, Tensor inp, Tensor absmax) {
         layernorm_backward(o.matrix(), o.sums(), o.sums(), inp, o.matrix(), o.row(), o.column(), o.column(),
                            true, absmax);
     }},
    {"rmsnorm_forward",
     [](Others& o, Tensor inp, Tensor absmax) {
         rmsnorm_forward(o.matrix(), o.column(), inp, o.row(), 1e-5f, absmax);
     }},
    {"rmsnorm_backward",
     [](Others& o, Tensor inp, Tensor absmax) {
         rmsnorm_backward(o.matrix(), o.sums(), inp, o.matrix(), o.row(), o.column(), false, absmax);
     }},
    {"gelu_forward", [](Others& o, Tensor inp, Tensor absmax) { gelu_forward(o.matrix(), inp, absmax); }},
    {"gelu_backward",
     [](Others& o, Tensor inp, Tensor absmax) { gelu_backward(inp, o.matrix(), inp, absmax); }},
    {"relu2_forward", [](Others& o, Tensor inp, Tensor absmax) { relu2_forward(o.matrix(), inp, absmax); }},
    {"relu2_backward",
     [](Others& o, Tensor inp, Tensor absmax) { relu2_backward(inp, o.matrix(), inp, absmax); }},
    {"swiglu_forward",
     [](Others& o, Tensor inp, Tensor absmax) { swiglu_forward(o.matrix(kWidth / 2), inp, absmax); }},
    {"swiglu_backward",
     [](Others& o, Tensor inp, Tensor absmax) {
         swiglu_backward(o.matrix(2 * kWidth), o.matrix(2 * kWidth), inp, absmax);
     }},
    {"rope_backward",
     [](Others& o, Tensor inp, Tensor absmax) {
         rope_backward(inp, o.ones<float>(2, kHeadDim), o.ones<int32_t>(o.rows()), kHeads, kKvHeads, absmax);
     }},
    {"qknorm_backward",
     [](Others& o, Tensor inp, Tensor absmax) {
         constexpr int64_t kNormed = kHeads + kKvHeads;
         qknorm_backward(inp, o.sums(kHeadDim), o.sums(kHeadDim), o.matrix(kNormed * kHeadDim),
                         o.ones<float>(o.rows(), kNormed), o.ones<bf16>(kHeadDim), o.ones<bf16>(kHeadDim),
                         kHeads, kKvHeads, absmax);
     }},
};

// What the op makes of the number before it.
float raised(const Op& op, Device device, int64_t rows, const Values& values, float before) {
    const Guarded<bf16> inp(values);
    RaisedAbsmax absmax(device, before);
    OnDevice on(device);
    Others others(on, rows);
    op.run(others, on(inp.tensor(rows, kWidth)), absmax.tensor());
    on.fetch();
    return absmax.value();
}

std::vector<Device> all_devices() {
    std::vector<Device> devices = gpus();
    devices.push_back(Device::cpu);
    return devices;
}

}  // namespace

TEST(Absmax, NansAndInfinitiesReachItFromAnywhere) {
    constexpr int64_t kRows = 37;
    for (Device device : all_devices()) {
        for (const Op& op : kOps) {
            for (int64_t place :
                 {int64_t{0}, kWidth - 1, 5 * kWidth + 31, 18 * kWidth + 32, kRows * kWidth - 1}) {
                for (double broken : {std::nan(""), HUGE_VAL}) {
                    Values values = normal_values(kRows * kWidth, 1);
                    values[static_cast<size_t>(place)] = broken;
                    const float largest = raised(op, device, kRows, values, 0);
                    EXPECT_FALSE(std::isfinite(largest)) << op.name << " on " << device_name(device) << ": "
                                                         << broken << " at " << place << ", " << largest;
                    EXPECT_TRUE(std::isnan(largest) || !std::isnan(broken)) << op.name;
                }
            }
        }
    }
}

TEST(Absmax, IsRaisedOnly) {
    constexpr int64_t kRows = 9;
    const Values values = normal_values(kRows * kWidth, 1), zeros(values.size(), 0.0);
    for (Device device : all_devices()) {
        for (const Op& op : kOps) {
            SCOPED_TRACE(cat({op.name, " on ", device_name(device)}));
            const float largest = raised(op, device, kRows, values, 0);
            EXPECT_GT(largest, 0);
            EXPECT_EQ(raised(op, device, kRows, values, 0.5f * largest), largest);
            EXPECT_EQ(raised(op, device, kRows, values, 1e6f), 1e6f);
            EXPECT_LE(raised(op, device, kRows, zeros, 0), 1) << "a tensor of zeros";
            EXPECT_EQ(raised(op, device, 0, {}, 0.25f), 0.25f) << "nothing to store";
        }
    }
}

TEST(Absmax, IsOneF32) {
    const Guarded<bf16> inp(Values(4, 1.0)), out(4);
    const Guarded<float> two(Values(2, 0.0));
    expect_mentions(check_failure([&] { gelu_forward(out.tensor(), inp.tensor(), two.tensor()); }),
                    {"gelu_forward", "absmax", "f32[1]", "f32[2]"});
    expect_mentions(
        check_failure([&] { relu2_forward(out.tensor(), inp.tensor(), inp.tensor().rows(0, 1)); }),
        {"relu2_forward", "absmax", "f32[1]", "bf16[1]"});
}
