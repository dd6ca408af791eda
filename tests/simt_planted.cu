// Kernels with planted bugs (simt_planted.h): `kBug` names the line that is left out or wrong.
#include "tests/simt_planted.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/mma.h"
#include "kernels/simt/hopper.h"
#include "tests/simt_device.h"

namespace GPU_NAMESPACE {
namespace {

enum class Bug {
    none,
    no_first_barrier,
    no_second_barrier,
    divergent_barrier,
    read_past_end,
    write_past_end,
    shared_past_end,
    no_zero,
    unset_memory,
    wait_too_few,
    no_barrier_after_wait,
    no_barrier_before_reuse,
    no_syncwarp_after_stmatrix,
    no_syncwarp,
    blocks_overlap,
    no_fence,
    no_empty_wait,
    no_syncwarp_before_arrive,
    host_pointer,
    misaligned,
    no_wait_for_previous,
};

// ---- reduce: sums of a block, round after round -----------------------------------------------------------

constexpr int kRounds = 4, kReduceThreads = 256;

template <Bug kBug>
__global__ void reduce_kernel(float* out, const float* x) {
    if (kBug != Bug::no_wait_for_previous) wait_for_previous();
    SHARED(float, sums, [kReduceThreads / kWarp]);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    for (int round = 0; round < kRounds; ++round) {
        const float sum = warp_sum(x[round * kReduceThreads + threadIdx.x]);
        if (lane == 0) sums[warp] = sum;
        if (kBug == Bug::divergent_barrier) {
            if (warp < 4) __syncthreads();
        } else if (kBug != Bug::no_first_barrier) {
            __syncthreads();
        }
        float total = 0.0f;
        for (int w = 0; w < kReduceThreads / kWarp; ++w) total += sums[w];
        out[round * kReduceThreads + threadIdx.x] = total;
        if (kBug != Bug::no_second_barrier) __syncthreads();
    }
}

template <Bug kBug>
bool reduce() {
    std::vector<float> x(kRounds * kReduceThreads), expected(x.size());
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 7);
    for (size_t i = 0; i < x.size(); ++i) {
        for (int t = 0; t < kReduceThreads; ++t) expected[i] += x[i / kReduceThreads * kReduceThreads + t];
    }
    const DeviceArray<float> inp(x), out(x.size());
    start(reduce_kernel<kBug>, {1, kReduceThreads}, out.data(),
          kBug == Bug::host_pointer ? x.data() : inp.data());
    return out.values() == expected;
}

// ---- shift: out[i] = x[i + 1], and x[count - 1] at the end; 128 bits at a time in its second half ---------

template <Bug kBug>
__global__ void shift_kernel(float* out, const float* x, int count) {
    wait_for_previous();
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    const int last = kBug == Bug::read_past_end ? count : count - 1;
    if (i < count) out[i] = x[i + 1 <= last ? i + 1 : last];
    if (kBug == Bug::write_past_end && i == count) out[i] = 0.0f;
    if (kBug == Bug::misaligned && i == 0) out[0] = load128(x + 1)[0];
}

template <Bug kBug>
bool shift() {
    const int count = 1000;
    std::vector<float> x(count), expected(count);
    for (int i = 0; i < count; ++i) x[i] = static_cast<float>(i);
    for (int i = 0; i < count; ++i) expected[i] = static_cast<float>(i + 1 < count ? i + 1 : count - 1);
    const DeviceArray<float> out(x.size());
    if (kBug == Bug::unset_memory) {
        const DeviceArray<float> unset(x.size());
        start(shift_kernel<kBug>, {8, 128}, out.data(), unset.data(), count);
        return out.values() == expected;
    }
    const DeviceArray<float> inp(x);
    start(shift_kernel<kBug>, {8, 128}, out.data(), inp.data(), count);
    return out.values() == expected;
}

// ---- histogram: counts of x % 8 in shared memory, added by all blocks; the last one writes the total ------

template <Bug kBug>
__global__ void histogram_kernel(unsigned* counts, unsigned* total, unsigned* done, const int* x, int count) {
    wait_for_previous();
    SHARED(unsigned, own, [8]);
    SHARED(bool, is_last, [1]);
    const unsigned num_zeroed = kBug == Bug::no_zero ? 0 : kBug == Bug::shared_past_end ? 9 : 8;
    unsigned* const zeroed = own;
    if (threadIdx.x < num_zeroed) zeroed[threadIdx.x] = 0;
    __syncthreads();
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < count) atomicAdd(&own[x[i] % 8], 1u);
    __syncthreads();
    if (threadIdx.x < 8) {
        if (kBug == Bug::blocks_overlap) {
            counts[threadIdx.x] += own[threadIdx.x];
        } else {
            atomicAdd(&counts[threadIdx.x], own[threadIdx.x]);
        }
        if (kBug != Bug::no_fence) __threadfence();
    }
    __syncthreads();
    if (threadIdx.x == 0) is_last[0] = atomicAdd(done, 1u) == gridDim.x - 1;
    __syncthreads();
    if (!is_last[0]) return;
    if (kBug != Bug::no_fence) __threadfence();
    if (threadIdx.x < 8) atomicAdd(total, counts[threadIdx.x]);
}

template <Bug kBug>
bool histogram() {
    const int count = 1000;
    std::vector<int> x(count);
    std::vector<unsigned> expected(8);
    for (int i = 0; i < count; ++i) ++expected[(x[i] = i * i % 11) % 8];
    const DeviceArray<int> inp(x);
    const DeviceArray<unsigned> counts(std::vector<unsigned>(8)), total(std::vector<unsigned>(1)),
        done(std::vector<unsigned>(1));
    start(histogram_kernel<kBug>, {8, 128}, counts.data(), total.data(), done.data(), inp.data(), count);
    return counts.values() == expected && total.values()[0] == static_cast<unsigned>(count);
}

// ---- reverse: of each warp's values, through shared memory ------------------------------------------------

template <Bug kBug>
__global__ void reverse_kernel(float* out, const float* x) {
    wait_for_previous();
    SHARED(float, values, [4][kWarp]);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    values[warp][lane] = x[threadIdx.x];
    if (kBug != Bug::no_syncwarp) __syncwarp();
    out[threadIdx.x] = values[warp][kWarp - 1 - lane];
}

template <Bug kBug>
bool reverse() {
    std::vector<float> x(128), expected(128);
    for (int i = 0; i < 128; ++i) x[i] = static_cast<float>(i);
    for (int i = 0; i < 128; ++i) expected[i] = static_cast<float>(i / kWarp * kWarp + kWarp - 1 - i % kWarp);
    const DeviceArray<float> inp(x), out(x.size());
    start(reverse_kernel<kBug>, {1, 128}, out.data(), inp.data());
    return out.values() == expected;
}

// ---- matmul: C [32,32] = A [32,K] B [32,K]^T, tiles fetched one ahead, C through shared memory ------------

constexpr int kTile = 32, kDepth = 16, kStages = 2, kMatmulThreads = 64;

template <Bug kBug>
__global__ void matmul_kernel(bf16* c, const bf16* a, const bf16* b, int depth) {
    wait_for_previous();
    DYN_SHARED(bf16, tiles);  // [kStages][2][kTile][kDepth], then [kTile][kTile]
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const auto tile = [&](int step, int matrix) {
        return tiles + (step % kStages * 2 + matrix) * kTile * kDepth;
    };
    const int steps = depth / kDepth;
    const auto fetch = [&](int step) {
        const int row = static_cast<int>(threadIdx.x) / 2, column = static_cast<int>(threadIdx.x) % 2 * 8;
        const int64_t from = int64_t{row} * depth + step * kDepth + column;
        cp_async16(tile(step, 0) + row * kDepth + column, a + from);
        cp_async16(tile(step, 1) + row * kDepth + column, b + from);
    };
    float sums[4][4] = {};
    fetch(0);
    cp_async_commit();
    for (int step = 0; step < steps; ++step) {
        if (step + 1 < steps) fetch(step + 1);
        cp_async_commit();
        cp_async_wait<kBug == Bug::wait_too_few ? 2 : 1>();
        if (kBug != Bug::no_barrier_after_wait) __syncthreads();
        uint32_t rows[4];
        ldmatrix_x4(rows, tile(step, 0) + (warp * 16 + lane % 16) * kDepth + lane / 16 * 8);
        for (int pair = 0; pair < 2; ++pair) {
            uint32_t columns[4];
            ldmatrix_x4(columns,
                        tile(step, 1) + (pair * 16 + lane % 8 + lane / 16 * 8) * kDepth + lane / 8 % 2 * 8);
            mma_bf16(sums[2 * pair], rows, {columns[0], columns[1]});
            mma_bf16(sums[2 * pair + 1], rows, {columns[2], columns[3]});
        }
        if (kBug != Bug::no_barrier_before_reuse) __syncthreads();
    }
    bf16* const staged = tiles + kStages * 2 * kTile * kDepth + warp * 16 * kTile;  // the warp's 16 rows
    for (int pair = 0; pair < 2; ++pair) {
        const uint32_t fragments[4] = {pack_bf16(sums[2 * pair][0], sums[2 * pair][1]),
                                       pack_bf16(sums[2 * pair][2], sums[2 * pair][3]),
                                       pack_bf16(sums[2 * pair + 1][0], sums[2 * pair + 1][1]),
                                       pack_bf16(sums[2 * pair + 1][2], sums[2 * pair + 1][3])};
        simt::store_matrices(staged + lane % 16 * kTile + pair * 16 + lane / 16 * 8, fragments, 4, false);
    }
    if (kBug != Bug::no_syncwarp_after_stmatrix) __syncwarp();
    for (int i = lane; i < 16 * kTile / 8; i += kWarp) {
        store128(c + warp * 16 * kTile + i * 8, load128(staged + i * 8));
    }
}

template <Bug kBug>
bool matmul() {
    const int depth = 6 * kDepth;
    std::vector<bf16> a(kTile * depth), b(kTile * depth);
    // Small whole numbers: sums are exact in bf16 in any order.
    for (size_t i = 0; i < a.size(); ++i) a[i] = to_bf16(static_cast<float>(i * 7 % 3) - 1.0f);
    for (size_t i = 0; i < b.size(); ++i) b[i] = to_bf16(static_cast<float>(i * 5 % 4) - 1.0f);
    const DeviceArray<bf16> da(a), db(b), dc(kTile * kTile);
    const int64_t smem_bytes = (kStages * 2 * kTile * kDepth + kTile * kTile) * 2;
    start(matmul_kernel<kBug>, {1, kMatmulThreads, smem_bytes}, dc.data(), da.data(), db.data(), depth);
    const std::vector<bf16> c = dc.values();
    for (int row = 0; row < kTile; ++row) {
        for (int column = 0; column < kTile; ++column) {
            float sum = 0.0f;
            for (int k = 0; k < depth; ++k)
                sum += to_float(a[row * depth + k]) * to_float(b[column * depth + k]);
            if (to_float(c[row * kTile + column]) != sum) return false;
        }
    }
    return true;
}

// ---- ring: one warp fetches pieces of `x` by bulk copies, two take their sums -----------------------------

constexpr int kPiece = 64;
template <Bug kBug>
__global__ void ring_kernel(float* sums, const float* x, int pieces) {
    wait_for_previous();
    SHARED(Pack<float>, ring, [kStages][kPiece / 4]);
    SHARED(uint64_t, full, [kStages]);
    SHARED(uint64_t, empty, [kStages]);
    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; ++s) {
            simt::mbarrier_init(&full[s], 1);
            simt::mbarrier_init(&empty[s], 2);
        }
    }
    __syncthreads();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp == 2) {
        if (lane != 0) return;
        for (int p = 0; p < pieces; ++p) {
            if (kBug != Bug::no_empty_wait) simt::mbarrier_wait(&empty[p % kStages], p / kStages % 2 ^ 1);
            simt::mbarrier_expect_bytes(&full[p % kStages], kPiece * 4);
            simt::mbarrier_arrive(&full[p % kStages]);
            simt::load_bytes(ring[p % kStages], x + p * kPiece, kPiece * 4, &full[p % kStages]);
        }
        return;
    }
    float sum = 0.0f;
    for (int p = 0; p < pieces; ++p) {
        if (warp == 0) {
            simt::mbarrier_wait(&full[p % kStages], p / kStages % 2);
        } else {
            while (!simt::mbarrier_test(&full[p % kStages], p / kStages % 2)) {
            }
        }
        const float* const piece = reinterpret_cast<const float*>(ring[p % kStages]);
        sum += warp_sum(piece[warp * 32 + lane]);
        if (kBug != Bug::no_syncwarp_before_arrive) __syncwarp();
        if (lane == 0) simt::mbarrier_arrive(&empty[p % kStages]);
    }
    if (lane == 0) sums[warp] = sum;
}
template <Bug kBug>
bool ring() {
    const int pieces = 7;
    std::vector<float> x(pieces * kPiece), expected(2);
    for (size_t i = 0; i < x.size(); ++i) expected[i / 32 % 2] += x[i] = static_cast<float>(i % 13);
    const DeviceArray<float> inp(x), out(2);
    start(ring_kernel<kBug>, {1, 96}, out.data(), inp.data(), pieces);
    return out.values() == expected;
}

// ---- streams: what the host may get wrong -----------------------------------------------------------------

__global__ void add_one_kernel(float* x) {
    wait_for_previous();
    x[threadIdx.x] += 1.0f;
}

bool two_streams(bool wait) {
    std::vector<float> x(64, 1.0f);
    const DeviceArray<float> data(x);
    cudaStream_t first, second;
    cudaEvent_t added;
    cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&added, cudaEventDisableTiming);
    start(add_one_kernel, {1, 64, 0, first}, data.data());
    cudaEventRecord(added, first);
    if (wait) cudaStreamWaitEvent(second, added);
    cudaMemcpyAsync(x.data(), data.data(), 64 * sizeof(float), cudaMemcpyDeviceToHost, second);
    cudaDeviceSynchronize();
    cudaEventDestroy(added);
    cudaStreamDestroy(first);
    cudaStreamDestroy(second);
    return x == std::vector<float>(64, 2.0f);
}

bool pinned_copy(bool wait) {
    float* pinned;
    cudaMallocHost(&pinned, 64 * sizeof(float));
    for (int i = 0; i < 64; ++i) pinned[i] = 1.0f;
    const DeviceArray<float> data(64);
    cudaStream_t stream;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaMemcpyAsync(data.data(), pinned, 64 * sizeof(float), cudaMemcpyHostToDevice, stream);
    if (wait) cudaStreamSynchronize(stream);
    for (int i = 0; i < 64; ++i) pinned[i] = 5.0f;
    cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
    cudaFreeHost(pinned);
    return data.values() == std::vector<float>(64, 1.0f);
}

bool read_on_host() {
    const DeviceArray<float> data(std::vector<float>(64, 1.0f));
    return *static_cast<volatile float*>(data.data()) == 1.0f;
}

bool never_freed() {
    void* memory;
    cudaMalloc(&memory, 1000);
    memory = nullptr;
    return true;
}

struct Run {
    const char* name;
    bool (*run)();
};
const Run kRuns[] = {
    // correct
    {"reduce", reduce<Bug::none>},
    {"shift", shift<Bug::none>},
    {"histogram", histogram<Bug::none>},
    {"reverse", reverse<Bug::none>},
    {"matmul", matmul<Bug::none>},
    {"ring", ring<Bug::none>},
    {"two_streams", [] { return two_streams(true); }},
    {"pinned_copy", [] { return pinned_copy(true); }},
    // with a bug
    {"no_first_barrier", reduce<Bug::no_first_barrier>},
    {"no_second_barrier", reduce<Bug::no_second_barrier>},
    {"divergent_barrier", reduce<Bug::divergent_barrier>},
    {"no_wait_for_previous", reduce<Bug::no_wait_for_previous>},
    {"host_pointer", reduce<Bug::host_pointer>},
    {"read_past_end", shift<Bug::read_past_end>},
    {"write_past_end", shift<Bug::write_past_end>},
    {"unset_memory", shift<Bug::unset_memory>},
    {"misaligned", shift<Bug::misaligned>},
    {"shared_past_end", histogram<Bug::shared_past_end>},
    {"no_zero", histogram<Bug::no_zero>},
    {"blocks_overlap", histogram<Bug::blocks_overlap>},
    {"no_fence", histogram<Bug::no_fence>},
    {"no_syncwarp", reverse<Bug::no_syncwarp>},
    {"wait_too_few", matmul<Bug::wait_too_few>},
    {"no_barrier_after_wait", matmul<Bug::no_barrier_after_wait>},
    {"no_barrier_before_reuse", matmul<Bug::no_barrier_before_reuse>},
    {"no_syncwarp_after_stmatrix", matmul<Bug::no_syncwarp_after_stmatrix>},
    {"no_empty_wait", ring<Bug::no_empty_wait>},
    {"no_syncwarp_before_arrive", ring<Bug::no_syncwarp_before_arrive>},
    {"no_event_wait", [] { return two_streams(false); }},
    {"pinned_reused", [] { return pinned_copy(false); }},
    {"read_on_host", read_on_host},
    {"never_freed", never_freed},
};

}  // namespace
}  // namespace GPU_NAMESPACE

bool run_planted(const char* name) {
    for (const auto& run : GPU_NAMESPACE::kRuns) {
        if (std::strcmp(run.name, name) == 0) return run.run();
    }
    std::fprintf(stderr, "simt_planted: no kernel or bug is called %s\n", name);
    std::exit(2);
}
