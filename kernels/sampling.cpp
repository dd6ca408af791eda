// Sampling on the CPU, in double and in one fixed order. Ids are sorted only as far down as the draw reaches,
// which for real distributions is a few dozen of them.
#include "kernels/sampling.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/check.h"
#include "kernels/isa.h"

#ifdef ISA_PLAIN
void check_sampling(Tensor logits, const SamplingParams& params, float uniform) {
    const ArgumentCheck check{"sample_token", logits.device};
    check.tensor("logits", logits, DType::f32, {-1});
    check.that(logits.dims[0] > 0, "logits", "at least one", 0);
    check.that(params.temperature >= 0, "temperature", "at least 0", params.temperature);
    check.that(params.top_k >= 0, "top_k", "at least 0", static_cast<double>(params.top_k));
    check.that(params.top_p >= 0 && params.top_p <= 1, "top_p", "0 to 1", params.top_p);
    check.that(uniform >= 0 && uniform < 1, "uniform", "[0,1)", static_cast<double>(uniform));
}
#endif

namespace ISA_NAMESPACE {
namespace {

// -1: there is none, or it is not finite, or a logit is NaN.
int32_t largest_logit(const float* logits, int64_t vocab_size) {
    int64_t best = 0;
    for (int64_t id = 0; id < vocab_size; ++id) {
        if (std::isnan(logits[id])) return -1;
        if (logits[id] > logits[best]) best = id;
    }
    return std::isfinite(logits[best]) ? static_cast<int32_t>(best) : -1;
}

// Ids by falling logit, ties by id, sorted as far as asked.
class Ranking {
public:
    Ranking(const float* logits, int64_t vocab_size)
        : logits_(logits), ids_(static_cast<size_t>(vocab_size)) {
        for (size_t i = 0; i < ids_.size(); ++i) ids_[i] = static_cast<int32_t>(i);
    }
    int32_t operator[](int64_t rank) {
        while (rank >= sorted_) sort_more();
        return ids_[static_cast<size_t>(rank)];
    }

private:
    void sort_more() {
        const auto before = [this](int32_t a, int32_t b) {
            return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b;
        };
        const int64_t size = static_cast<int64_t>(ids_.size());
        const int64_t next = std::min(size, std::max<int64_t>(64, 4 * sorted_));
        const auto begin = ids_.begin() + sorted_, end = ids_.begin() + next;
        if (next < size) std::nth_element(begin, end, ids_.end(), before);
        std::sort(begin, end, before);
        sorted_ = next;
    }

    const float* logits_;
    std::vector<int32_t> ids_;
    int64_t sorted_ = 0;
};

}  // namespace

int32_t sample_token(Tensor logits, const SamplingParams& params, float uniform) {
    check_sampling(logits, params, uniform);
    const float* data = logits.as<float>();
    const int64_t vocab_size = logits.dims[0];
    const int32_t best = largest_logit(data, vocab_size);
    if (best < 0 || params.temperature == 0) return best;

    const auto weight = [&](int32_t id) {
        return std::exp((static_cast<double>(data[id]) - static_cast<double>(data[best])) /
                        params.temperature);
    };
    Ranking ranking(data, vocab_size);
    const bool all = params.top_k == 0 || params.top_k >= vocab_size;
    int64_t count = all ? vocab_size : params.top_k;
    double total = 0;
    for (int64_t i = 0; i < count; ++i) total += weight(all ? static_cast<int32_t>(i) : ranking[i]);
    if (params.top_p < 1) {
        // The smallest set, never empty, whose share of what top_k left reaches top_p; it becomes the whole.
        double sum = 0;
        for (int64_t rank = 0; rank < count; ++rank) {
            sum += weight(ranking[rank]);
            if (sum >= params.top_p * total) count = rank + 1;
        }
        total = sum;
    }
    double sum = 0;
    int32_t last = best;
    for (int64_t rank = 0; rank < count; ++rank) {
        const double share = weight(ranking[rank]);
        if (share == 0) break;  // so is every later one
        sum += share;
        last = ranking[rank];
        if (sum > static_cast<double>(uniform) * total) break;
    }
    return last;  // also where the sums in two orders differ in the last bit
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(logits.device, int32_t, sample_token,
             (Tensor logits, const SamplingParams& params, float uniform), (logits, params, uniform))
