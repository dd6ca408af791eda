// Sampling on the GPU: one block, since the logits of one token are few. Nothing is sorted: the id at which a
// running sum over falling logits (ties by id) passes a target is found digit by digit of the logits' bits,
// from a histogram of how many logits, and how much probability, each digit holds. Three such searches
// (top-k, top-p, the draw) of four passes over V logits that stay in L2, about 50 reads of 4 V bytes in all:
// bound by latency, not measured yet.
//
// Probabilities are added as integers, in units of 2^-40 of the largest: the sums are exact, whatever the
// order, and so are the atomics. A vocabulary may have 2^23 ids.
#include "core/device.h"
#include "kernels/check.h"
#include "kernels/gpu.h"
#include "kernels/sampling.h"
#include "kernels/workspace.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kThreads = 1024;
constexpr int kBins = 256;                 // of one digit
constexpr double kUnit = 1099511627776.0;  // 2^40
constexpr int64_t kMaxVocab = int64_t{1} << 23;

// Larger floats have larger keys. The two zeros are equal.
__device__ uint32_t key_of(float x) {
    const uint32_t bits = __float_as_uint(x == 0 ? 0.0f : x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// exp((x - largest) / temperature) in units.
__device__ unsigned long long units_of(float x, float largest, double temperature) {
    const double weight = exp((static_cast<double>(x) - static_cast<double>(largest)) / temperature);
    return static_cast<unsigned long long>(weight * kUnit);
}

// A place in the order: all logits with larger keys, and the first `ties` of those with this key, by id.
struct Place {
    uint32_t key;
    unsigned long long ties;
    unsigned long long units;  // of everything up to there
};

struct Logits {
    const float* data;
    int64_t count;
    float largest;
    double temperature;
    __device__ unsigned long long units(float x) const { return units_of(x, largest, temperature); }
};

// The first place whose sum reaches `target`, at least 1: of units, or of logits where `count_logits`. Called
// by the whole block; the result is everyone's.
__device__ Place find_place(const Logits& logits, unsigned long long target, bool count_logits) {
    SHARED(unsigned long long, counts, [kBins]);
    SHARED(unsigned long long, units, [kBins]);
    SHARED(Place, place, [1]);
    SHARED(unsigned long long, before, [1]);  // count (or units) of what lies above the digits found so far
    if (threadIdx.x == 0) {
        place[0] = {0, 0, 0};
        before[0] = 0;
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (threadIdx.x < kBins) counts[threadIdx.x] = units[threadIdx.x] = 0;
        __syncthreads();
        // The digits above this one.
        const uint32_t prefix = shift == 24 ? 0 : place[0].key >> (shift + 8);
        for (int64_t i = threadIdx.x; i < logits.count; i += kThreads) {
            const uint32_t key = key_of(logits.data[i]);
            if (shift < 24 && key >> (shift + 8) != prefix) continue;
            atomicAdd(&counts[key >> shift & 255], 1ull);
            atomicAdd(&units[key >> shift & 255], logits.units(logits.data[i]));
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int digit = kBins - 1;
            // Bin 0 needs no test: what is asked for is never more than there is.
            for (; digit > 0; --digit) {
                const unsigned long long here = count_logits ? counts[digit] : units[digit];
                if (before[0] + here >= target) break;
                before[0] += here;
                place[0].units += units[digit];
            }
            place[0].key |= static_cast<uint32_t>(digit) << shift;
            if (shift == 0) {  // all that are left are equal
                const unsigned long long each = counts[digit] > 0 ? units[digit] / counts[digit] : 0;
                const unsigned long long missing = target - before[0];
                unsigned long long ties = count_logits ? missing : each > 0 ? (missing + each - 1) / each : 1;
                if (ties > counts[digit]) ties = counts[digit];
                place[0].ties = ties;
                place[0].units += ties * each;
            }
        }
        __syncthreads();
    }
    const Place found = place[0];
    __syncthreads();  // read by all before the next search begins
    return found;
}

// The id of the last logit of a place: the ties-th, by id, of those with its key.
__device__ int32_t id_at(const Logits& logits, const Place& place) {
    SHARED(int, warp_counts, [kThreads / kWarp]);
    SHARED(int32_t, id, [1]);
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    if (threadIdx.x == 0) id[0] = 0;
    unsigned long long seen = 0;
    for (int64_t first = 0; first < logits.count; first += kThreads) {
        const int64_t i = first + threadIdx.x;
        const bool equal = i < logits.count && key_of(logits.data[i]) == place.key;
        const uint32_t votes = __ballot_sync(kAllLanes, equal);
        if (lane == 0) warp_counts[warp] = __popc(votes);
        __syncthreads();
        unsigned long long rank = seen + static_cast<unsigned>(__popc(votes & ((1u << lane) - 1)));
        for (int w = 0; w < kThreads / kWarp; ++w) {
            if (w < warp) rank += static_cast<unsigned>(warp_counts[w]);
            seen += static_cast<unsigned>(warp_counts[w]);
        }
        if (equal && rank + 1 == place.ties) id[0] = static_cast<int32_t>(i);
        __syncthreads();
    }
    return id[0];
}

__global__ void __launch_bounds__(kThreads, 1)
    sample_token_kernel(int32_t* token, const float* data, int64_t count, double temperature, int64_t top_k,
                        double top_p, double uniform) {
    wait_for_previous();
    SHARED(int, any_nan, [1]);
    if (threadIdx.x == 0) any_nan[0] = 0;
    __syncthreads();
    float mine = -INFINITY;
    for (int64_t i = threadIdx.x; i < count; i += kThreads) {
        if (data[i] != data[i]) atomicMax(&any_nan[0], 1);
        mine = fmaxf(mine, data[i]);
    }
    const float largest = block_max<kThreads>(mine);
    const bool usable = any_nan[0] == 0 && largest < INFINITY && largest > -INFINITY;
    int32_t id = -1;
    if (usable) {
        const Logits logits{data, count, largest, temperature > 0 ? temperature : 1.0};
        Place last{key_of(largest), 1, 0};  // greedy: the first of the largest
        if (temperature > 0) {
            const int64_t kept = top_k > 0 && top_k < count ? top_k : count;
            last = find_place(logits, static_cast<unsigned long long>(kept), true);
            if (top_p < 1) {
                const double share = ceil(top_p * static_cast<double>(last.units));
                last = find_place(logits, share < 1 ? 1 : static_cast<unsigned long long>(share), false);
            }
            // The sum must pass the uniform draw, so it must reach the next whole unit.
            const auto below = static_cast<unsigned long long>(uniform * static_cast<double>(last.units));
            last = find_place(logits, below + 1 > last.units ? last.units : below + 1, false);
        }
        id = id_at(logits, last);
    }
    if (threadIdx.x == 0) *token = id;
}

}  // namespace

int32_t sample_token(Tensor logits, const SamplingParams& params, float uniform) {
    check_sampling(logits, params, uniform);
    const ArgumentCheck check{"sample_token", logits.device};
    check.that(logits.dims[0] <= kMaxVocab, "logits", "at most 2^23", static_cast<double>(logits.dims[0]));
    Tensor token =
        tensor_of(static_cast<int32_t*>(device_workspace(kThisDevice, Workspace::scalar, kScalarBytes)), 1);
    token.device = logits.device;
    launch(sample_token_kernel, 1, kThreads, 0, Stream{}, token.as<int32_t>(), logits.as<float>(),
           logits.dims[0], params.temperature, params.top_k, params.top_p, static_cast<double>(uniform));
    return *HostCopy(token).tensor().as<int32_t>();
}

}  // namespace GPU_NAMESPACE
