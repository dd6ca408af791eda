// Queues of the emulated GPU: work waits in its stream until the host synchronises, and is then done in a
// random order among those that streams and events allow. In fixed orders (SIMT_ORDER) it is done at its
// call.
#pragma once
#include <cuda_runtime.h>

#include <functional>
#include <mutex>

namespace simt {

std::mutex& runtime_lock();  // held by every function of the runtime; the functions below expect it

void enqueue(cudaStream_t stream, std::function<void()> run);
bool is_capturing(cudaStream_t stream);
void finish_stream(cudaStream_t stream);
void finish_everything();

}  // namespace simt
