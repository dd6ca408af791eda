// Appending to the key-value cache: the right rows, and nothing beside them, on every device.
#include "kernels/kv_cache.h"

#include "tests/on_device.h"

namespace {

template <class T>
void check_append(Device device, int64_t n, int64_t past, int64_t heads, int64_t kv_heads, int64_t dim) {
    SCOPED_TRACE(cat({device_name(device), " ", dtype_name(dtype_of<T>()), " n=", n, " past=", past}));
    const int64_t wide = (heads + 2 * kv_heads) * dim, channels = kv_heads * dim, rows = past + n + 2;
    const Values qkv = representable<T>(normal_values(n * wide, 1));
    const Values k0 = representable<T>(normal_values(rows * channels, 2)),
                 v0 = representable<T>(normal_values(rows * channels, 3));
    Guarded<T> input(qkv, 1), k(k0, 1), v(v0, 3);
    OnDevice on(device);
    kv_cache_append(on(k.tensor(rows, channels)), on(v.tensor(rows, channels)), on(input.tensor(n, wide)),
                    past);
    on.fetch();
    Values k_expected = k0, v_expected = v0;
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t c = 0; c < channels; ++c) {
            k_expected[(past + i) * channels + c] = qkv[i * wide + heads * dim + c];
            v_expected[(past + i) * channels + c] = qkv[i * wide + heads * dim + channels + c];
        }
    }
    EXPECT_TRUE(k.values() == k_expected);
    EXPECT_TRUE(v.values() == v_expected);
}

}  // namespace

TEST(KvCache, AppendsOnEveryDevice) {
    std::vector<Device> devices = gpus();
    devices.push_back(Device::cpu);
    for (Device device : devices) {
        check_append<float>(device, 1, 0, 1, 1, 8);
        check_append<float>(device, 5, 3, 4, 2, 24);
        check_append<bf16>(device, 3, 7, 3, 3, 64);
        check_append<bf16>(device, 0, 2, 2, 1, 8);
    }
}

TEST(KvCache, RefusesWhatDoesNotFit) {
    Guarded<float> k(4 * 8), v(4 * 8), qkv(2 * 24);
    expect_mentions(
        check_failure([&] { kv_cache_append(k.tensor(4, 8), v.tensor(4, 8), qkv.tensor(2, 24), 3); }),
        {"kv_cache_append", "past"});
}
