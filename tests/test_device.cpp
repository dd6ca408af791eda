// Device memory, copies, events, graphs and batches, on the emulator and on a GPU where there is one.
#include "core/device.h"

#include <numeric>

#include "kernels/residual.h"
#include "kernels/simt/machine.h"
#include "model/batch_tensors.h"
#include "tests/on_device.h"

namespace {

Tensor host_ids(std::vector<int32_t>& ids) { return tensor_of(ids.data(), static_cast<int64_t>(ids.size())); }

std::vector<int32_t> ids_of(Tensor t) {
    std::vector<int32_t> ids(static_cast<size_t>(t.size()));
    copy_tensor(host_ids(ids), t);
    return ids;
}

}  // namespace

TEST(Device, NamesComeBack) {
    for (Device device : {Device::cpu, Device::simt}) {
        EXPECT_EQ(device_from_name(device_name(device)), device);
    }
    EXPECT_THROW(device_from_name("gpu"), InputError);
    EXPECT_NE(device_from_name("auto"), Device::simt) << "the emulator is never chosen for anyone";
}

// What is said where there is no GPU that can be used: one line each, with what to do.
TEST(Device, UnusableGpusAreRefused) {
    const auto complaint = [](const simt::Machine& machine, int index = 0) -> std::string {
        simt::set_machine(machine);
        try {
            open_device(Device::simt, index);
        } catch (const InputError& error) {
            simt::set_machine({});
            return error.what();
        }
        simt::set_machine({});
        return "";
    };
    EXPECT_EQ(complaint({}), "");
    EXPECT_EQ(
        complaint({.driver = 12040, .toolkit = 13000}),
        "the GPU's driver is older than the CUDA toolkit of this build: expected a driver for CUDA 13.0 or "
        "later, got CUDA 12.4  hint: update the driver, or build with an older toolkit");
    EXPECT_EQ(complaint({.driver = 0}),
              "no GPU was found: --device cuda: expected an NVIDIA GPU and its driver, got no driver  hint: "
              "--device cpu, or check nvidia-smi");
    EXPECT_EQ(complaint({.num_gpus = 0}),
              "no GPU was found: --device cuda: expected an NVIDIA GPU and its driver, got no device  hint: "
              "--device cpu, or check nvidia-smi");
    EXPECT_EQ(
        complaint({.num_gpus = 2}, 2),
        "there is no such GPU: expected 0 to 1, got 2  hint: CUDA_VISIBLE_DEVICES chooses among several");
    EXPECT_EQ(complaint({.capability = 75}),
              "the GPU is too old: emulated GPU (simt): expected compute capability 8.0 or later, got 7.5  "
              "hint: --device cpu");
}

TEST(Device, BuffersAreZeroedAndTellTheirDevice) {
    for (Device device : gpus()) {
        Buffer buffer(1000 * 4, device);
        EXPECT_EQ(buffer.device(), device);
        EXPECT_EQ(buffer.tensor(DType::i32).device, device);
        EXPECT_TRUE(ids_of(buffer.tensor(DType::i32)) == std::vector<int32_t>(1000));
        Buffer moved = std::move(buffer);
        EXPECT_EQ(moved.device(), device);
        EXPECT_EQ(buffer.data(), nullptr);
        EXPECT_GT(device_info(device).total_bytes, 0);
        EXPECT_GE(device_info(device).capability, 80);
        EXPECT_NE(device_info(device).toolkit.find('.'), std::string::npos);
    }
}

TEST(Device, CopiesGoEveryWay) {
    for (Device device : gpus()) {
        std::vector<int32_t> ids(777);
        std::iota(ids.begin(), ids.end(), 5);
        const std::vector<int32_t> expected = ids;
        const Buffer first(777 * 4, device), second(777 * 4, device);
        copy_tensor(first.tensor(DType::i32), host_ids(ids));
        std::fill(ids.begin(), ids.end(), -1);  // ordinary memory may change on return
        copy_tensor(second.tensor(DType::i32), first.tensor(DType::i32));
        EXPECT_TRUE(ids_of(second.tensor(DType::i32)) == expected);
        EXPECT_TRUE(ids_of(second.tensor(DType::i32).rows(700, 77)) ==
                    std::vector<int32_t>(expected.begin() + 700, expected.end()));
        const HostCopy copy(second.tensor(DType::i32));
        EXPECT_EQ(copy.tensor().as<int32_t>()[776], 781);
        zero_tensor(second.tensor(DType::i32).rows(1, 775));
        const std::vector<int32_t> rest = ids_of(second.tensor(DType::i32));
        EXPECT_EQ(std::accumulate(rest.begin(), rest.end(), 0), 5 + 781);
    }
}

TEST(Device, CopiesRefuseWhatDoesNotFit) {
    const Buffer device(16, Device::simt), host(20);
    EXPECT_THROW(copy_tensor(device.tensor(), host.tensor()), InternalError);
    EXPECT_THROW(copy_tensor(device.tensor(DType::f32), device.tensor(DType::i32)), InternalError);
}

// What a readback gives is of the moment of its start, and only the waits for it are waits.
TEST(Device, AReadbackArrivesWhileTheHostGoesOn) {
    for (Device device : gpus()) {
        SCOPED_TRACE(device_name(device));
        std::vector<int32_t> ids(1000);
        std::iota(ids.begin(), ids.end(), 5);
        const Buffer memory(4000, device);
        Readback readback(device, 4000);
        EXPECT_TRUE(readback.arrived()) << "nothing is under way";
        for (int round = 0; round < 3; ++round) {
            const int64_t waits = num_device_waits();
            copy_tensor(memory.tensor(DType::i32), host_ids(ids));
            readback.start(memory.tensor(DType::i32));
            zero_tensor(memory.tensor(DType::i32));
            EXPECT_EQ(num_device_waits(), waits) << "all of this is queued";
            const Tensor arrived = readback.wait();
            EXPECT_LE(num_device_waits(), waits + 1);
            EXPECT_TRUE(readback.arrived());
            EXPECT_TRUE(std::equal(ids.begin(), ids.end(), arrived.as<int32_t>()));
            readback.wait();
            EXPECT_LE(num_device_waits(), waits + 1) << "what is there is not waited for";
            ids[0] += 1;
        }
        readback.start(memory.tensor(DType::i32).rows(0, 10));
        Readback moved = std::move(readback);
        EXPECT_EQ(moved.wait().size(), 10);
        EXPECT_THROW(moved.start(Buffer(4004, device).tensor()), InternalError);
    }
    std::vector<int32_t> ids = {1, 2, 3};
    Readback on_cpu(Device::cpu, 12);
    on_cpu.start(host_ids(ids));
    ids[1] = 7;
    EXPECT_TRUE(on_cpu.arrived());
    EXPECT_EQ(on_cpu.wait().as<int32_t>()[1], 2);
}

TEST(Device, WaitsAreCounted) {
    for (Device device : gpus()) {
        const Buffer memory(4000, device);
        DeviceEvent event(device);
        const int64_t before = num_device_waits();
        EXPECT_TRUE(event.passed());
        event.wait();
        EXPECT_EQ(num_device_waits(), before) << "it was never recorded";
        ids_of(memory.tensor(DType::i32));
        EXPECT_EQ(num_device_waits(), before + 1);
        device_synchronize(device);
        EXPECT_EQ(num_device_waits(), before + 2);
    }
}

TEST(Device, ATimerMeasuresWhatLiesBetween) {
    std::vector<Device> devices = gpus();
    devices.push_back(Device::cpu);
    for (Device device : devices) {
        SCOPED_TRACE(device_name(device));
        std::vector<int32_t> ones(1 << 20, 1);
        const Buffer big(4 << 20, device), small(4, device);
        DeviceTimer nothing(device), long_one(device), short_one(device);
        for (int round = 0; round < 2; ++round) {  // a timer may be used again
            short_one.start();
            zero_tensor(small.tensor(DType::i32));
            short_one.stop();
            long_one.start();
            for (int i = 0; i < 16; ++i) copy_tensor(big.tensor(DType::i32), host_ids(ones));
            long_one.stop();
        }
        nothing.start();
        nothing.stop();
        EXPECT_GT(long_one.ms(), 0.1) << "64 MiB";
        EXPECT_LT(long_one.ms(), 10000);
        EXPECT_GT(long_one.ms(), short_one.ms());
        EXPECT_GE(nothing.ms(), 0);
        EXPECT_EQ(long_one.ms(), long_one.ms());
        DeviceTimer moved = std::move(long_one);
        EXPECT_GT(moved.ms(), 0.1);
    }
}

TEST(Device, AGraphRunsAgainWithWhatLiesInItsTensors) {
    for (Device device : gpus()) {
        OnDevice on(device);
        Guarded<float> x(Values{1, 2, 3}), y(Values{10, 20, 30});
        const Tensor dx = on(x.tensor()), dy = on(y.tensor());
        DeviceGraph graph(device);
        EXPECT_FALSE(graph.recorded());
        graph.record([&] {
            residual_forward(dy, dy, dx);
            residual_forward(dx, dx, dx);
        });
        EXPECT_TRUE(graph.recorded());
        on.fetch();
        EXPECT_TRUE(y.values() == Values({10, 20, 30})) << "recording runs nothing";
        graph.launch();
        graph.launch();
        on.fetch();
        EXPECT_TRUE(x.values() == Values({4, 8, 12}));
        EXPECT_TRUE(y.values() == Values({13, 26, 39}));
    }
}

TEST(Device, AFailedRecordingLeavesTheDeviceUsable) {
    for (Device device : gpus()) {
        DeviceGraph graph(device);
        EXPECT_THROW(graph.record([] { throw InternalError("broken"); }), InternalError);
        EXPECT_FALSE(graph.recorded());
        OnDevice on(device);
        Guarded<float> x(Values{1, 2});
        residual_forward(on(x.tensor()), on(x.tensor()), on(x.tensor()));
        on.fetch();
        EXPECT_TRUE(x.values() == Values({2, 4}));
    }
}

TEST(BatchTensors, OnADeviceShapesDependOnTheNumberOfTokensOnly) {
    for (Device device : gpus()) {
        BatchTensors tensors(12, device);
        for (int32_t round = 0; round < 5; ++round) {  // more batches than stagings
            Batch batch;
            batch.num_rows = 1, batch.seq_len = 6;
            batch.tokens = {1, 2, 3, 4, 5, round};
            batch.targets = {2, 3, -1, 5, round, 7};
            batch.positions = {0, 1, 2, 0, 1, round};
            batch.cu_seqlens = {0, 3, 6};
            tensors.load(batch, 0.25f * static_cast<float>(round));
            batch.tokens.assign(6, -9);  // the copy was made
            EXPECT_TRUE(ids_of(tensors.tokens) == std::vector<int32_t>({1, 2, 3, 4, 5, round}));
            EXPECT_TRUE(ids_of(tensors.targets) == batch.targets);
            EXPECT_TRUE(ids_of(tensors.positions) == batch.positions);
            EXPECT_TRUE(ids_of(tensors.cu_seqlens) == std::vector<int32_t>({0, 3, 6, 6, 6, 6, 6}));
            EXPECT_EQ(*HostCopy(tensors.dloss_scale).tensor().as<float>(), 0.25f * static_cast<float>(round));
        }
    }
}
