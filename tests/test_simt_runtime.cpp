// The emulator of CUDA's runtime: the order of streams, events and graphs, memory, and what copies refuse.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/simt_device.h"
#include "tests/simt_planted.h"

using namespace on_simt;

namespace {

class SimtRuntime : public testing::Test {
protected:
    void SetUp() override {
        simt::set_order(simt::Order::random);
        simt::set_seed(1);
    }
};

class TestStream {
public:
    explicit TestStream(unsigned flags = cudaStreamNonBlocking) {
        cudaStreamCreateWithFlags(&stream_, flags);
    }
    ~TestStream() { cudaStreamDestroy(stream_); }
    TestStream(const TestStream&) = delete;
    TestStream& operator=(const TestStream&) = delete;
    operator cudaStream_t() const { return stream_; }

private:
    cudaStream_t stream_ = nullptr;
};
class TestEvent {
public:
    TestEvent() { cudaEventCreateWithFlags(&event_, cudaEventDisableTiming); }
    ~TestEvent() { cudaEventDestroy(event_); }
    TestEvent(const TestEvent&) = delete;
    TestEvent& operator=(const TestEvent&) = delete;
    operator cudaEvent_t() const { return event_; }

private:
    cudaEvent_t event_ = nullptr;
};

// A log of letters: each launch writes its own.
__global__ void write_kernel(char* log, int* count, char letter) {
    wait_for_previous();
    log[atomicAdd(count, 1)] = letter;
}
class Log {
public:
    Log() : letters_(std::vector<char>(64)), count_(std::vector<int>(1)) { cudaDeviceSynchronize(); }
    void write(char letter, cudaStream_t stream) {
        start(write_kernel, {1, 1, 0, stream}, letters_.data(), count_.data(), letter);
    }
    std::string text() const {
        cudaDeviceSynchronize();
        const std::vector<char> letters = letters_.values();
        return {letters.data(), static_cast<size_t>(count_.values()[0])};
    }

private:
    DeviceArray<char> letters_;
    DeviceArray<int> count_;
};
bool before(const std::string& text, char first, char second) { return text.find(first) < text.find(second); }

template <class Body>
void for_seeds(Body body) {
    for (uint64_t seed = 1; seed <= 40; ++seed) {
        SCOPED_TRACE(seed);
        simt::set_seed(seed);
        body();
    }
}

// ---- streams ----------------------------------------------------------------------------------------------

TEST_F(SimtRuntime, AStreamKeepsItsOrderAndStreamsDoNot) {
    int first_ahead = 0, all_ahead = 0;
    for_seeds([&] {
        const TestStream a, b;
        Log log;
        for (const char letter : {'1', '2', '3', '4'}) log.write(letter, a);
        for (const char letter : {'x', 'y'}) log.write(letter, b);
        const std::string text = log.text();
        EXPECT_EQ(text.size(), 6u);
        EXPECT_TRUE(before(text, '1', '2') && before(text, '2', '3') && before(text, '3', '4') &&
                    before(text, 'x', 'y'));
        first_ahead += before(text, '1', 'x');
        all_ahead += before(text, '4', 'x');
    });
    EXPECT_GT(first_ahead, 5);
    EXPECT_LT(first_ahead, 35);
    EXPECT_GT(all_ahead, 3);  // a stream runs as far ahead as it can
}

TEST_F(SimtRuntime, WorkWaitsForTheHostInRandomOrderOnly) {
    const TestStream stream;
    int* pinned;
    cudaMallocHost(&pinned, sizeof(int));
    const DeviceArray<int> one(std::vector<int>{1});
    for (const bool random : {false, true}) {
        simt::set_order(random ? simt::Order::random : simt::Order::ascending);
        *pinned = 0;
        cudaMemcpyAsync(pinned, one.data(), sizeof(int), cudaMemcpyDeviceToHost, stream);
        EXPECT_EQ(*pinned, random ? 0 : 1);
        cudaStreamSynchronize(stream);
        EXPECT_EQ(*pinned, 1);
    }
    cudaFreeHost(pinned);
}

TEST_F(SimtRuntime, EventsOrderStreams) {
    int unordered = 0;
    for_seeds([&] {
        const TestStream a, b;
        const TestEvent event;
        Log log;
        cudaStreamWaitEvent(b, event);  // never recorded: nothing to wait for
        log.write('0', b);
        log.write('1', a);
        log.write('2', a);
        cudaEventRecord(event, a);
        log.write('3', a);
        cudaStreamWaitEvent(b, event);
        log.write('x', b);
        cudaEventRecord(event, a);  // the wait above was for the earlier record
        const std::string text = log.text();
        EXPECT_TRUE(before(text, '2', 'x'));
        unordered += before(text, 'x', '3');
    });
    EXPECT_GT(unordered, 5);
    EXPECT_LT(unordered, 35);
}

TEST_F(SimtRuntime, AnEventIsWaitedForAlone) {
    int others_left = 0;
    for_seeds([&] {
        const TestStream a, b;
        const TestEvent event;
        Log log;
        int* pinned;
        cudaMallocHost(&pinned, 2 * sizeof(int));
        const DeviceArray<int> ones(std::vector<int>{1, 1});
        pinned[0] = pinned[1] = 0;
        cudaMemcpyAsync(pinned, ones.data(), sizeof(int), cudaMemcpyDeviceToHost, a);
        cudaEventRecord(event, a);
        cudaMemcpyAsync(pinned + 1, ones.data(), sizeof(int), cudaMemcpyDeviceToHost, b);
        EXPECT_EQ(cudaEventSynchronize(event), cudaSuccess);
        EXPECT_EQ(cudaEventQuery(event), cudaSuccess);
        EXPECT_EQ(pinned[0], 1);
        others_left += pinned[1] == 0;
        cudaFreeHost(pinned);
    });
    EXPECT_GT(others_left, 5);
}

TEST_F(SimtRuntime, AQueryIsAnsweredOneDay) {
    const TestStream stream;
    const TestEvent event;
    Log log;
    for (int i = 0; i < 10; ++i) log.write('a', stream);
    cudaEventRecord(event, stream);
    EXPECT_EQ(cudaStreamQuery(stream), cudaErrorNotReady);
    int asked = 0;
    while (cudaEventQuery(event) == cudaErrorNotReady) ++asked;
    EXPECT_GT(asked, 5);
    EXPECT_EQ(cudaStreamQuery(stream), cudaSuccess);
}

TEST_F(SimtRuntime, TheNullStreamTakesTurnsWithBlockingStreams) {
    int free_ahead = 0;
    for_seeds([&] {
        const TestStream blocking(cudaStreamDefault), free(cudaStreamNonBlocking);
        Log log;
        log.write('1', blocking);
        log.write('2', nullptr);
        log.write('3', blocking);
        log.write('x', free);
        const std::string text = log.text();
        EXPECT_TRUE(before(text, '1', '2') && before(text, '2', '3')) << text;
        free_ahead += before(text, 'x', '3');
    });
    EXPECT_GT(free_ahead, 5);
}

TEST_F(SimtRuntime, ElapsedTime) {
    cudaEvent_t begin, end;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    float ms = -1.0f;
    EXPECT_EQ(cudaEventElapsedTime(&ms, begin, end), cudaErrorInvalidResourceHandle);
    Log log;
    const TestStream stream;
    cudaEventRecord(begin, stream);
    log.write('a', stream);
    cudaEventRecord(end, stream);
    EXPECT_EQ(cudaEventElapsedTime(&ms, begin, end), cudaErrorNotReady);
    cudaEventSynchronize(end);
    EXPECT_EQ(cudaEventElapsedTime(&ms, begin, end), cudaSuccess);
    EXPECT_GT(ms, 0.0f);
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
}

TEST_F(SimtRuntime, MissingWaitsShow) {
    int event = 0, pinned = 0;
    for_seeds([&] {
        EXPECT_TRUE(run_planted("two_streams"));
        EXPECT_TRUE(run_planted("pinned_copy"));
        event += !run_planted("no_event_wait");
        pinned += !run_planted("pinned_reused");
    });
    EXPECT_GT(event, 10);  // a half is expected: the streams' order is by chance
    EXPECT_EQ(pinned, 40);
}

// ---- graphs -----------------------------------------------------------------------------------------------

TEST_F(SimtRuntime, AGraphIsReplayedWithItsBranches) {
    int x_ahead = 0;
    for_seeds([&] {
        const TestStream a, b;
        const TestEvent fork, join;
        Log log;
        ASSERT_EQ(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal), cudaSuccess);
        log.write('1', a);
        cudaEventRecord(fork, a);
        cudaStreamWaitEvent(b, fork);
        log.write('2', a);
        log.write('x', b);
        cudaEventRecord(join, b);
        cudaStreamWaitEvent(a, join);
        log.write('3', a);
        EXPECT_EQ(cudaStreamSynchronize(a), cudaErrorStreamCaptureUnsupported);
        EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorStreamCaptureUnsupported);
        cudaGraph_t graph;
        ASSERT_EQ(cudaStreamEndCapture(a, &graph), cudaSuccess);
        cudaGraphExec_t exec;
        ASSERT_EQ(cudaGraphInstantiate(&exec, graph), cudaSuccess);
        EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
        EXPECT_EQ(log.text(), "");
        cudaGraphLaunch(exec, b);
        cudaGraphLaunch(exec, b);
        EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
        log.write('4', b);
        const std::string text = log.text();
        ASSERT_EQ(text.size(), 9u);
        for (const size_t turn : {0, 4}) {
            EXPECT_EQ(text[turn], '1');
            EXPECT_EQ(text[turn + 3], '3');
            x_ahead += text[turn + 1] == 'x';
        }
        EXPECT_EQ(text[8], '4');
    });
    EXPECT_GT(x_ahead, 20);
    EXPECT_LT(x_ahead, 60);
}

TEST_F(SimtRuntime, ACaptureMustCloseOnItself) {
    const TestStream a, b;
    const TestEvent event, outside;
    Log log;
    cudaGraph_t graph;
    EXPECT_EQ(cudaStreamEndCapture(a, &graph), cudaErrorInvalidValue);
    log.write('0', b);
    cudaEventRecord(outside, b);
    cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal);
    EXPECT_EQ(cudaStreamWaitEvent(a, outside), cudaErrorStreamCaptureIsolation);
    cudaEventRecord(event, a);
    EXPECT_EQ(cudaEventSynchronize(event), cudaErrorStreamCaptureUnsupported);
    cudaStreamWaitEvent(b, event);
    log.write('x', b);
    EXPECT_EQ(cudaStreamEndCapture(b, &graph), cudaErrorStreamCaptureUnmatched);
    EXPECT_EQ(cudaStreamEndCapture(a, &graph), cudaErrorStreamCaptureUnjoined);
    EXPECT_EQ(graph, nullptr);
    EXPECT_EQ(log.text(), "0");
}

// ---- memory and copies ------------------------------------------------------------------------------------

TEST_F(SimtRuntime, TheDevice) {
    int count = 0, device = -1;
    EXPECT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
    EXPECT_EQ(count, 1);
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
    EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
    EXPECT_EQ(device, 0);
    EXPECT_EQ(cudaSetDevice(1), cudaErrorInvalidDevice);
    EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidDevice);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    EXPECT_STREQ(cudaGetErrorName(cudaErrorMemoryAllocation), "cudaErrorMemoryAllocation");
    EXPECT_STREQ(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory");
    cudaDeviceProp properties;
    EXPECT_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
    EXPECT_STREQ(properties.name, "emulated GPU (simt)");
    EXPECT_EQ(properties.sharedMemPerBlockOptin, 227u << 10);
}

TEST_F(SimtRuntime, Memory) {
    size_t free_before, free_after, total;
    cudaMemGetInfo(&free_before, &total);
    {
        const DeviceArray<unsigned> memory(1000);
        EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.data()) % 256, 0u);
        cudaMemGetInfo(&free_after, &total);
        EXPECT_EQ(free_before - free_after, 4000u);
        EXPECT_EQ(memory.values(), std::vector<unsigned>(1000, 0xffffffffu));
        cudaMemset(memory.data(), 1, 8);
        EXPECT_EQ(memory.values()[1], 0x01010101u);
        EXPECT_EQ(memory.values()[2], 0xffffffffu);
    }
    cudaMemGetInfo(&free_after, &total);
    EXPECT_EQ(free_before, free_after);
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, total + 1), cudaErrorMemoryAllocation);
    EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
    EXPECT_EQ(memory, nullptr);
    EXPECT_EQ(cudaMalloc(&memory, 0), cudaSuccess);
    EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
}

TEST_F(SimtRuntime, PageableMemoryHasBeenReadAndWrittenAtReturn) {
    for_seeds([] {
        const TestStream stream;
        std::vector<int> values{1, 2, 3}, back(3);
        const DeviceArray<int> a(3), b(3);
        cudaMemcpyAsync(a.data(), values.data(), 12, cudaMemcpyHostToDevice, stream);
        values[0] = 100;
        cudaMemcpyAsync(b.data(), a.data(), 12, cudaMemcpyDeviceToDevice, stream);
        cudaMemcpyAsync(back.data(), b.data(), 12, cudaMemcpyDefault, stream);
        EXPECT_EQ(back, (std::vector<int>{1, 2, 3}));
    });
}

TEST_F(SimtRuntime, CopiesLookAtBothSides) {
    const DeviceArray<int> device(10);
    std::vector<int> host(20);
    int* pinned;
    cudaMallocHost(&pinned, 40);
    const auto copy = [](void* out, const void* inp, cudaMemcpyKind kind, size_t bytes = 40) {
        cudaMemcpy(out, inp, bytes, kind);
    };
    EXPECT_DEATH(copy(host.data(), host.data() + 10, cudaMemcpyHostToDevice),
                 "cudaMemcpy: destination 0x.* is not in device memory");
    EXPECT_DEATH(copy(device.data(), device.data(), cudaMemcpyHostToDevice),
                 "cudaMemcpy: source 0x.* is in device memory");
    EXPECT_DEATH(copy(device.data(), host.data(), cudaMemcpyDeviceToDevice),
                 "cudaMemcpy: source 0x.* is not in device memory");
    EXPECT_DEATH(copy(device.data(), host.data(), cudaMemcpyHostToDevice, 44),
                 "cudaMemcpy: destination: 44 bytes, 40 are left of its allocation");
    EXPECT_DEATH(copy(device.data(), pinned, cudaMemcpyHostToDevice, 44),
                 "44 bytes, 40 are left of its allocation");
    EXPECT_DEATH(cudaMemset(host.data(), 0, 4), "cudaMemsetAsync: destination 0x.* is not in device memory");
    EXPECT_DEATH(cudaFree(device.data() + 1), "cudaFree\\(0x.*\\): no such memory");
    EXPECT_DEATH(cudaFree(pinned), "cudaFree\\(0x.*\\): no such memory");
    cudaFreeHost(pinned);
}

}  // namespace
