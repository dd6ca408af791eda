// Streams, events and graphs (streams.h). The n-th work of a stream is its ticket n; an event stands for a
// ticket, and so does whatever else one piece of work waits for.
#include "kernels/simt/streams.h"

#include <chrono>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/simt/device_memory.h"
#include "kernels/simt/scheduler.h"

using std::chrono::steady_clock;

namespace simt {
namespace {

struct Queue;
struct Ticket {
    std::shared_ptr<Queue> queue;  // null: nothing to wait for
    uint64_t number = 0;
    bool done() const;
};
struct Work {
    std::function<void()> run;
    std::vector<Ticket> after;
};
struct Queue {
    std::deque<Work> waiting;
    uint64_t num_pushed = 0, num_done = 0;
    bool blocking = false;  // takes turns with the null stream
    bool runnable() const {
        if (waiting.empty()) return false;
        for (const Ticket& ticket : waiting.front().after) {
            if (!ticket.done()) return false;
        }
        return true;
    }
};
bool Ticket::done() const { return !queue || queue->num_done >= number; }

}  // namespace
}  // namespace simt

using simt::Queue;
using simt::Ticket;

// A graph is what was captured, in the order of the calls, which is one that its streams and events allow.
struct CUgraph_st {
    std::vector<std::function<void()>> works;
};
struct CUgraphExec_st {
    std::shared_ptr<CUgraph_st> graph;
};
struct CUstream_st {
    std::shared_ptr<Queue> queue = std::make_shared<Queue>();
    std::shared_ptr<CUgraph_st> capture;  // while it captures
    bool captures_for_another = false;    // joined by an event
};
struct CUevent_st {
    Ticket ticket;
    std::shared_ptr<steady_clock::time_point> time = std::make_shared<steady_clock::time_point>();
    std::shared_ptr<CUgraph_st> capture;  // recorded in a stream that captured
};

namespace simt {
namespace {

struct Streams {
    std::mutex lock;
    CUstream_st null_stream;
    std::vector<CUstream_st*> open;
    Streams() {
        null_stream.queue->blocking = true;
        open.push_back(&null_stream);
    }
};
// Never destroyed: objects with static lifetime use streams late.
Streams& streams() {
    static Streams* const only = new Streams;
    return *only;
}
CUstream_st& stream_at(cudaStream_t handle) { return handle ? *handle : streams().null_stream; }

// Does work until `done()`. In half of the cases one stream runs ahead of the others as far as it can.
template <class Done>
void work_until(Done done) {
    if (done()) return;
    const OpenDeviceMemory open;
    const CUstream_st* ahead = coin() ? streams().open[random_below(streams().open.size())] : nullptr;
    std::vector<Queue*> runnable;
    while (!done()) {
        runnable.clear();
        Queue* next = nullptr;
        for (const CUstream_st* stream : streams().open) {
            if (!stream->queue->runnable()) continue;
            runnable.push_back(stream->queue.get());
            if (stream == ahead) next = stream->queue.get();
        }
        if (runnable.empty()) violation(nullptr, "deadlock: no stream can go on");
        if (!next) next = runnable[random_below(runnable.size())];
        const Work work = std::move(next->waiting.front());
        next->waiting.pop_front();
        if (work.run) work.run();
        ++next->num_done;
    }
}

void push(CUstream_st& stream, Work work) {
    Queue& queue = *stream.queue;
    // The null stream waits for all blocking streams and they for it.
    const bool is_null = &stream == &streams().null_stream;
    for (const CUstream_st* other : streams().open) {
        const bool other_is_null = other == &streams().null_stream;
        if (queue.blocking && other->queue->blocking && is_null != other_is_null) {
            work.after.push_back({other->queue, other->queue->num_pushed});
        }
    }
    queue.waiting.push_back(std::move(work));
    ++queue.num_pushed;
    if (order() != Order::random) work_until([&queue] { return queue.waiting.empty(); });
}

bool all_done() {
    for (const CUstream_st* stream : streams().open) {
        if (!stream->queue->waiting.empty()) return false;
    }
    return true;
}

}  // namespace

std::mutex& runtime_lock() { return streams().lock; }

void enqueue(cudaStream_t handle, std::function<void()> run) {
    CUstream_st& stream = stream_at(handle);
    if (stream.capture) {
        stream.capture->works.push_back(std::move(run));
        return;
    }
    push(stream, {std::move(run), {}});
}
bool is_capturing(cudaStream_t stream) { return stream_at(stream).capture != nullptr; }
void finish_stream(cudaStream_t stream) {
    const Queue& queue = *stream_at(stream).queue;
    work_until([&queue] { return queue.waiting.empty(); });
}
void finish_everything() { work_until(all_done); }

}  // namespace simt

using simt::stream_at;
using simt::streams;
using Lock = std::lock_guard<std::mutex>;

// ---- streams
// -------------------------------------------------------------------------------------------------------

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    const Lock lock(simt::runtime_lock());
    *stream = new CUstream_st;
    (*stream)->queue->blocking = !(flags & cudaStreamNonBlocking);
    streams().open.push_back(*stream);
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    const Lock lock(simt::runtime_lock());
    simt::finish_stream(stream);
    std::erase(streams().open, stream);
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    const Lock lock(simt::runtime_lock());
    if (simt::is_capturing(stream)) return cudaErrorStreamCaptureUnsupported;
    simt::finish_stream(stream);
    return cudaSuccess;
}

namespace {
// A host that asks again and again must get an answer one day: by chance, one piece of work is done.
void work_a_little() {
    if (!simt::coin()) return;
    bool asked = false;
    simt::work_until([&asked] { return std::exchange(asked, true) || simt::all_done(); });
}
}  // namespace

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    const Lock lock(simt::runtime_lock());
    work_a_little();
    return stream_at(stream).queue->waiting.empty() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaDeviceSynchronize() {
    const Lock lock(simt::runtime_lock());
    for (const CUstream_st* stream : streams().open) {
        if (stream->capture) return cudaErrorStreamCaptureUnsupported;
    }
    simt::finish_everything();
    return cudaSuccess;
}

// ---- events
// --------------------------------------------------------------------------------------------------------

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    *event = new CUevent_st;
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    const Lock lock(simt::runtime_lock());
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
    const Lock lock(simt::runtime_lock());
    CUstream_st& stream = stream_at(handle);
    event->capture = stream.capture;
    simt::enqueue(handle, [time = event->time] { *time = steady_clock::now(); });
    if (!stream.capture) event->ticket = {stream.queue, stream.queue->num_pushed};
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
    const Lock lock(simt::runtime_lock());
    CUstream_st& stream = stream_at(handle);
    if (event->capture) {
        if (!stream.capture) {
            stream.capture = event->capture;
            stream.captures_for_another = true;
        }
        return stream.capture == event->capture ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
    }
    if (stream.capture) return cudaSuccess;  // work from before the capture is ordered by the graph's launch
    simt::push(stream, {nullptr, {event->ticket}});
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    const Lock lock(simt::runtime_lock());
    if (event->capture) return cudaErrorStreamCaptureUnsupported;
    simt::work_until([event] { return event->ticket.done(); });
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    const Lock lock(simt::runtime_lock());
    if (event->capture) return cudaErrorStreamCaptureUnsupported;
    if (!event->ticket.done()) work_a_little();
    return event->ticket.done() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end) {
    const Lock lock(simt::runtime_lock());
    if (!begin->ticket.queue || !end->ticket.queue) return cudaErrorInvalidResourceHandle;
    if (!begin->ticket.done() || !end->ticket.done()) return cudaErrorNotReady;
    *ms = std::chrono::duration<float, std::milli>(*end->time - *begin->time).count();
    return cudaSuccess;
}

// ---- graphs
// --------------------------------------------------------------------------------------------------------

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    const Lock lock(simt::runtime_lock());
    if (!stream || stream->capture) return cudaErrorStreamCaptureUnsupported;
    stream->capture = std::make_shared<CUgraph_st>();
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    const Lock lock(simt::runtime_lock());
    if (!stream || !stream->capture || stream->captures_for_another) return cudaErrorStreamCaptureUnsupported;
    *graph = new CUgraph_st(*stream->capture);
    for (CUstream_st* other : streams().open) {
        if (other != stream && other->capture == stream->capture) {
            other->capture = nullptr;
            other->captures_for_another = false;
        }
    }
    stream->capture = nullptr;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
    *exec = new CUgraphExec_st{std::make_shared<CUgraph_st>(*graph)};
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    const Lock lock(simt::runtime_lock());
    simt::enqueue(stream, [graph = exec->graph] {
        for (const auto& work : graph->works) work();
    });
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
