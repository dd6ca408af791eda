// Summing losses: the same total on every device.
#include "kernels/loss_sum.h"

#include "tests/on_device.h"

TEST(LossSum, AddsUpOnEveryDevice) {
    std::vector<Device> devices = gpus();
    devices.push_back(Device::cpu);
    for (Device device : devices) {
        SCOPED_TRACE(device_name(device));
        for (int64_t n : {0, 1, 7, 512, 1300}) {
            const Values values = representable<float>(normal_values(n, 1, 3, 5));
            Guarded<float> losses(values, 1);
            Guarded<double> total(Values{100});
            double expected = 0;
            for (double x : values) expected += x;
            OnDevice on(device);
            loss_sum(on(total.tensor()), on(losses.tensor()), false);
            on.fetch();
            EXPECT_NEAR(total[0], expected, 1e-12 * (1 + expected)) << n;
            loss_sum(on(total.tensor()), on(losses.tensor()), true);
            on.fetch();
            EXPECT_NEAR(total[0], 2 * expected, 1e-12 * (1 + expected)) << n;
        }
    }
}

TEST(LossSum, RefusesWrongArguments) {
    Guarded<float> losses(4), wrong(1);
    Guarded<double> total(1);
    expect_mentions(check_failure([&] { loss_sum(wrong.tensor(), losses.tensor(), false); }),
                    {"loss_sum", "total"});
    expect_mentions(check_failure([&] { loss_sum(total.tensor(), losses.tensor(2, 2), false); }), {"losses"});
}
