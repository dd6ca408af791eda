// Streams, events and graphs (streams.h). The n-th work of a stream is its ticket n; an event stands for a
// ticket, and so does whatever else one piece of work waits for.
#include "kernels/simt/streams.h"

#include <algorithm>
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

// What was captured. Streams and events have become edges: a node runs when those before it have.
struct CUgraph_st {
    struct Node {
        std::function<void()> run;
        std::vector<size_t> after;
    };
    std::vector<Node> nodes;
    const CUstream_st* origin = nullptr;  // the stream that began the capture
};
struct CUgraphExec_st {
    std::shared_ptr<const CUgraph_st> graph;
};
// Part of a capture that has begun: `tail` are the nodes that whatever comes next must follow.
struct Capture {
    std::shared_ptr<CUgraph_st> graph;  // null: none
    std::vector<size_t> tail;
};
struct CUstream_st {
    std::shared_ptr<Queue> queue = std::make_shared<Queue>();
    Capture capture;
};
struct CUevent_st {
    Ticket ticket;
    std::shared_ptr<steady_clock::time_point> time = std::make_shared<steady_clock::time_point>();
    Capture capture;  // where it was recorded
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

// Does one piece of work: of `ahead` if it has one that may run, else of any stream. False when none may.
bool do_work(const CUstream_st* ahead) {
    std::vector<Queue*> runnable;
    Queue* next = nullptr;
    for (const CUstream_st* stream : streams().open) {
        if (!stream->queue->runnable()) continue;
        runnable.push_back(stream->queue.get());
        if (stream == ahead) next = stream->queue.get();
    }
    if (runnable.empty()) return false;
    if (!next) next = runnable[random_below(runnable.size())];
    const Work work = std::move(next->waiting.front());
    next->waiting.pop_front();
    if (work.run) work.run();
    ++next->num_done;
    return true;
}
// In half of the cases one stream runs ahead of the others as far as it can.
template <class Done>
void work_until(Done done) {
    if (done()) return;
    const OpenDeviceMemory open;
    const CUstream_st* ahead = coin() ? streams().open[random_below(streams().open.size())] : nullptr;
    while (!done()) {
        if (!do_work(ahead)) violation(nullptr, "deadlock: no stream can go on");
    }
}
// A host that asks again and again must get an answer one day.
void work_a_little() {
    if (!coin()) return;
    const OpenDeviceMemory open;
    do_work(nullptr);
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
    if (!stream.capture.graph) return push(stream, {std::move(run), {}});
    auto& nodes = stream.capture.graph->nodes;
    nodes.push_back({std::move(run), std::move(stream.capture.tail)});
    stream.capture.tail = {nodes.size() - 1};
}
bool is_capturing(cudaStream_t stream) { return stream_at(stream).capture.graph != nullptr; }
void finish_stream(cudaStream_t stream) {
    const Queue& queue = *stream_at(stream).queue;
    work_until([&queue] { return queue.waiting.empty(); });
}
void finish_everything() { work_until(all_done); }

}  // namespace simt

using simt::stream_at;
using simt::streams;
using Lock = std::lock_guard<std::mutex>;

// ---- streams ----------------------------------------------------------------------------------------------

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

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    const Lock lock(simt::runtime_lock());
    simt::work_a_little();
    return stream_at(stream).queue->waiting.empty() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaDeviceSynchronize() {
    const Lock lock(simt::runtime_lock());
    for (const CUstream_st* stream : streams().open) {
        if (stream->capture.graph) return cudaErrorStreamCaptureUnsupported;
    }
    simt::finish_everything();
    return cudaSuccess;
}

// ---- events -----------------------------------------------------------------------------------------------

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
    if (stream.capture.graph) return cudaSuccess;
    simt::enqueue(handle, [time = event->time] { *time = steady_clock::now(); });
    event->ticket = {stream.queue, stream.queue->num_pushed};
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
    const Lock lock(simt::runtime_lock());
    CUstream_st& stream = stream_at(handle);
    if (!event->capture.graph) {
        // What came before a capture does not become part of it.
        if (stream.capture.graph) return cudaErrorStreamCaptureIsolation;
        simt::push(stream, {nullptr, {event->ticket}});
        return cudaSuccess;
    }
    if (!stream.capture.graph) stream.capture.graph = event->capture.graph;  // this stream joins the capture
    if (stream.capture.graph != event->capture.graph) return cudaErrorStreamCaptureIsolation;
    auto& tail = stream.capture.tail;
    tail.insert(tail.end(), event->capture.tail.begin(), event->capture.tail.end());
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    const Lock lock(simt::runtime_lock());
    if (event->capture.graph) return cudaErrorStreamCaptureUnsupported;
    simt::work_until([event] { return event->ticket.done(); });
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    const Lock lock(simt::runtime_lock());
    if (event->capture.graph) return cudaErrorStreamCaptureUnsupported;
    if (!event->ticket.done()) simt::work_a_little();
    return event->ticket.done() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end) {
    const Lock lock(simt::runtime_lock());
    if (!begin->ticket.queue || !end->ticket.queue) return cudaErrorInvalidResourceHandle;
    if (!begin->ticket.done() || !end->ticket.done()) return cudaErrorNotReady;
    *ms = std::chrono::duration<float, std::milli>(*end->time - *begin->time).count();
    return cudaSuccess;
}

// ---- graphs -----------------------------------------------------------------------------------------------

namespace {

// In a random order that the edges allow; half of the time deep into one branch before the others.
void run_graph(const CUgraph_st& graph) {
    const size_t count = graph.nodes.size();
    std::vector<size_t> missing(count), ready;
    std::vector<std::vector<size_t>> followers(count);
    for (size_t n = 0; n < count; ++n) {
        missing[n] = graph.nodes[n].after.size();
        for (size_t before : graph.nodes[n].after) followers[before].push_back(n);
        if (missing[n] == 0) ready.push_back(n);
    }
    const bool deep = simt::coin();
    for (size_t done = 0; done < count; ++done) {
        const size_t pick = deep && done > 0 ? ready.size() - 1 : simt::random_below(ready.size());
        const size_t n = ready[pick];
        ready.erase(ready.begin() + static_cast<std::ptrdiff_t>(pick));
        graph.nodes[n].run();
        for (size_t follower : followers[n]) {
            if (--missing[follower] == 0) ready.push_back(follower);
        }
    }
}

// Whether all nodes come before the end of `capture`.
bool is_joined(const Capture& capture) {
    std::vector<bool> seen(capture.graph->nodes.size());
    std::vector<size_t> todo = capture.tail;
    while (!todo.empty()) {
        const size_t n = todo.back();
        todo.pop_back();
        if (seen[n]) continue;
        seen[n] = true;
        const auto& after = capture.graph->nodes[n].after;
        todo.insert(todo.end(), after.begin(), after.end());
    }
    return std::find(seen.begin(), seen.end(), false) == seen.end();
}

}  // namespace

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    const Lock lock(simt::runtime_lock());
    if (!stream || stream->capture.graph) return cudaErrorStreamCaptureUnsupported;
    stream->capture.graph = std::make_shared<CUgraph_st>();
    stream->capture.graph->origin = stream;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    const Lock lock(simt::runtime_lock());
    *graph = nullptr;
    if (!stream || !stream->capture.graph) return cudaErrorInvalidValue;
    const Capture capture = stream->capture;
    if (capture.graph->origin != stream) return cudaErrorStreamCaptureUnmatched;
    for (CUstream_st* other : streams().open) {
        if (other->capture.graph == capture.graph) other->capture = {};
    }
    if (!is_joined(capture)) return cudaErrorStreamCaptureUnjoined;
    *graph = new CUgraph_st(*capture.graph);
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
    *exec = new CUgraphExec_st{std::make_shared<const CUgraph_st>(*graph)};
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    const Lock lock(simt::runtime_lock());
    simt::enqueue(stream, [graph = exec->graph] { run_graph(*graph); });
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
