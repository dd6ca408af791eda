// One block of words on the device, one copy a batch.
#include "model/batch_tensors.h"

#include <algorithm>
#include <bit>

#include "core/error.h"

namespace {
constexpr size_t kStagings = 2;
// tokens [N], targets [N], positions [N], cu_seqlens [N+1], dloss_scale [1]
int64_t words(int64_t num_tokens) { return 4 * num_tokens + 2; }

Tensor view_of(const std::vector<int32_t>& ids) {
    return tensor_of(ids.data(), static_cast<int64_t>(ids.size()));
}
}  // namespace

int64_t BatchTensors::device_bytes(int64_t max_tokens) { return words(max_tokens) * dtype_bytes(DType::i32); }

BatchTensors::BatchTensors(int64_t max_tokens, Device device) : device_(device) {
    if (device == Device::cpu) return;
    memory_ = Buffer(device_bytes(max_tokens), device);
    for (size_t i = 0; i < kStagings; ++i) {
        stagings_.push_back(
            {static_cast<int32_t*>(device_allocate_host(device, memory_.bytes())), DeviceEvent(device)});
    }
}

BatchTensors::~BatchTensors() {
    for (Staging& staging : stagings_) {
        staging.copied.wait();
        device_release_host(device_, staging.words);
    }
}

void BatchTensors::load(const Batch& batch, float scale) {
    if (device_ == Device::cpu) {
        tokens = view_of(batch.tokens);
        targets = view_of(batch.targets);
        positions = view_of(batch.positions);
        cu_seqlens = view_of(batch.cu_seqlens);
        scale_ = scale;
        dloss_scale = tensor_of(&scale_, 1);
        return;
    }
    const int64_t n = static_cast<int64_t>(batch.tokens.size());
    CHECK(words(n) * dtype_bytes(DType::i32) <= memory_.bytes(), cat({"tokens=", n}));
    Staging& staging = stagings_[next_++ % kStagings];
    staging.copied.wait();
    int32_t* next = staging.words;
    for (const std::vector<int32_t>* ids :
         {&batch.tokens, &batch.targets, &batch.positions, &batch.cu_seqlens})
        next = std::copy(ids->begin(), ids->end(), next);
    int32_t* const scale_word = staging.words + words(n) - 1;
    std::fill(next, scale_word, static_cast<int32_t>(n));  // no document begins or ends there
    *scale_word = std::bit_cast<int32_t>(scale);

    const Tensor all = memory_.tensor(DType::i32).rows(0, words(n));
    copy_tensor(all, tensor_of(staging.words, words(n)));
    staging.copied.record();
    tokens = all.rows(0, n);
    targets = all.rows(n, n);
    positions = all.rows(2 * n, n);
    cu_seqlens = all.rows(3 * n, n + 1);
    dloss_scale = all.rows(4 * n + 1, 1);
    dloss_scale.dtype = DType::f32;
}
