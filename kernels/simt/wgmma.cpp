// wgmma (hopper.h). Each warp's 16 rows are a collective of their own, for nothing keeps the four warps
// together. The product is computed when its group is waited for or, by chance, committed: until then the
// sums are NaN, and a tile that is overwritten too early spoils them.
#include <bit>
#include <cstring>
#include <utility>
#include <vector>

#include "core/bf16.h"
#include "core/fp8.h"
#include "kernels/simt/hopper.h"
#include "kernels/simt/sanitizers.h"
#include "kernels/simt/scheduler.h"

namespace simt {
namespace {

constexpr int kRows = 16, kMaxColumns = 256;

struct Product {
    Wgmma operation;
    uint32_t a[kLanes][4];
    size_t sums;  // index of its Sums
    int group;
};
// Of one warp, [kRows][n]; `d` are the lanes' registers.
struct Sums {
    float* d[kLanes];
    int n, num_products;
    std::vector<float> values;
};
struct Warp {
    std::vector<Product> products;
    std::vector<Sums> sums;
    int num_committed = 0;
    bool fenced = false;
};
Warp warps[kMaxThreads / kLanes];

// Where a lane's register i lies in the warp's [kRows][n].
int row_of(int lane, int i) { return lane / 4 + 8 * (i / 2 % 2); }
int column_of(int lane, int i) { return 8 * (i / 4) + 2 * (lane % 4) + i % 2; }

// ---- matrices in shared memory, as descriptors say --------------------------------------------------------

struct Descriptor {
    uint32_t begin, leading, stride, swizzle_bytes;
    explicit Descriptor(uint64_t bits)
        : begin(static_cast<uint32_t>(bits & 0x3fff) << 4),
          leading(static_cast<uint32_t>(bits >> 16 & 0x3fff) << 4),
          stride(static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4) {
        const uint32_t mode = static_cast<uint32_t>(bits >> 62);
        swizzle_bytes = mode == 0 ? 0 : 256u >> mode;  // 1, 2, 3: 128, 64, 32
    }
    // Of element (outer, k), where `outer` is a row of A or a column of B. Rows of 16 bytes without a
    // swizzle, else of swizzle_bytes, in groups of 8.
    uint32_t offset(uint32_t outer, uint32_t k, bool mn_major, uint32_t element_bytes) const {
        const uint32_t row = mn_major ? k : outer, along = element_bytes * (mn_major ? outer : k);  // bytes
        const uint32_t width = swizzle_bytes ? swizzle_bytes : 16;
        uint32_t across = stride, next = leading;
        if (mn_major && !swizzle_bytes) std::swap(across, next);
        uint32_t at = begin + row / 8 * across + row % 8 * width + along / width * next + along % width;
        if (swizzle_bytes) at ^= (at >> 7 & (swizzle_bytes / 16 - 1)) << 4;
        return at;
    }
};
template <class T>
float element(const Descriptor& descriptor, int outer, int k, bool mn_major) {
    const char* const address = shared_address(
        descriptor.offset(static_cast<uint32_t>(outer), static_cast<uint32_t>(k), mn_major, sizeof(T)));
    note_read(address, sizeof(T));
    T number;
    std::memcpy(&number, address, sizeof(T));
    return to_float(number);
}

// A of numbers TA, B of TB.
template <class TA, class TB>
void compute(Warp& warp, int warp_index, const Product& product) {
    constexpr int kK = 32 / sizeof(TA);
    const Wgmma& operation = product.operation;
    const Descriptor a_rows(operation.a_descriptor), b_columns(operation.b_descriptor);
    float a[kRows][kK];
    for (int lane = 0; lane < kLanes && operation.a; ++lane) {
        for (int i = 0; i < 8; ++i) {
            const uint32_t half = product.a[lane][i / 2] >> 16 * (i % 2);
            a[lane / 4 + 8 * (i / 2 % 2)][2 * (lane % 4) + i % 2 + 8 * (i / 4)] =
                std::bit_cast<float>(half << 16);
        }
    }
    for (int row = 0; row < kRows && !operation.a; ++row) {
        for (int k = 0; k < kK; ++k) {
            a[row][k] = element<TA>(a_rows, warp_index % 4 * kRows + row, k, operation.a_mn_major);
        }
    }
    std::vector<float>& sums = warp.sums[product.sums].values;
    for (int column = 0; column < operation.n; ++column) {
        float b[kK];
        for (int k = 0; k < kK; ++k) b[k] = element<TB>(b_columns, column, k, operation.b_mn_major);
        for (int row = 0; row < kRows; ++row) {
            float sum = 0.0f;
            for (int k = 0; k < kK; ++k) sum += a[row][k] * b[k];
            float& out = sums[static_cast<size_t>(row * operation.n + column)];
            out = operation.accumulate ? out + sum : sum;
        }
    }
}

// Groups [0, end).
void complete(Warp& warp, int warp_index, int end) {
    size_t num_done = 0;
    for (const Product& product : warp.products) {
        if (product.group >= end) break;
        acquire(sync_word(160 + warp_index));
        switch (product.operation.numbers) {
            case WgmmaNumbers::bf16: compute<bf16, bf16>(warp, warp_index, product); break;
            case WgmmaNumbers::e4m3: compute<e4m3, e4m3>(warp, warp_index, product); break;
            case WgmmaNumbers::e5m2: compute<e5m2, e4m3>(warp, warp_index, product); break;
        }
        release(sync_word(224 + warp_index));
        Sums& sums = warp.sums[product.sums];
        ++num_done;
        if (--sums.num_products > 0) continue;
        for (int lane = 0; lane < kLanes; ++lane) {
            for (int i = 0; i < sums.n / 2; ++i) {
                sums.d[lane][i] =
                    sums.values[static_cast<size_t>(row_of(lane, i) * sums.n + column_of(lane, i))];
            }
        }
        sums.n = 0;
    }
    const OwnAccesses own;
    warp.products.erase(warp.products.begin(), warp.products.begin() + static_cast<std::ptrdiff_t>(num_done));
    if (warp.products.empty()) warp.sums.clear();
}

// ---- one lane's part --------------------------------------------------------------------------------------

struct Arguments {
    float* d;
    const Wgmma* operation;
};

void add_product(void* const* arguments, uint32_t) {
    const OwnAccesses own;
    const Arguments& first = *static_cast<Arguments*>(arguments[0]);
    const int warp_index = current_thread() / kLanes;
    Warp& warp = warps[warp_index];
    Product product{*first.operation, {}, 0, warp.num_committed};
    while (product.sums < warp.sums.size() &&
           (warp.sums[product.sums].n == 0 || warp.sums[product.sums].d[0] != first.d)) {
        ++product.sums;
    }
    const int n = product.operation.n;
    if (product.sums == warp.sums.size()) {
        warp.sums.push_back({{}, n, 0, std::vector<float>(static_cast<size_t>(kRows * n))});
    }
    Sums& sums = warp.sums[product.sums];
    for (int lane = 0; lane < kLanes; ++lane) {
        const Arguments& mine = *static_cast<Arguments*>(arguments[lane]);
        if (product.operation.a) std::memcpy(product.a[lane], mine.operation->a, sizeof product.a[lane]);
        if (sums.num_products > 0) continue;
        sums.d[lane] = mine.d;
        for (int i = 0; i < n / 2; ++i) {
            sums.values[static_cast<size_t>(row_of(lane, i) * n + column_of(lane, i))] = mine.d[i];
            mine.d[i] = __builtin_nanf("");
        }
    }
    ++sums.num_products;
    warp.products.push_back(product);
}
void fence_warp(void* const*, uint32_t) { warps[current_thread() / kLanes].fenced = true; }
void commit(void* const*, uint32_t) {
    const int warp_index = current_thread() / kLanes;
    Warp& warp = warps[warp_index];
    ++warp.num_committed;
    if (order() == Order::random && coin()) complete(warp, warp_index, warp.num_committed);
}

}  // namespace

void start_block_of_products() {
    for (Warp& warp : warps) {
        warp.products.clear();
        warp.sums.clear();
        warp.num_committed = 0;
        warp.fenced = false;
    }
}

void wgmma(float* d, const Wgmma& operation, const char* file, int line) {
    const Site site{"wgmma", file, line};
    if (operation.n % 8 != 0 || operation.n < 8 || operation.n > kMaxColumns) {
        violation(&site, "wgmma of %d columns: expected a multiple of 8 up to 256", operation.n);
    }
    if (operation.numbers != WgmmaNumbers::bf16 &&
        (operation.a || operation.a_mn_major || operation.b_mn_major)) {
        violation(&site, "wgmma of FP8 numbers: both operands lie in shared memory by lines of k");
    }
    if (!warps[current_thread() / kLanes].fenced) violation(&site, "wgmma without a wgmma.fence before it");
    release(sync_word(160 + current_thread() / kLanes));
    Arguments arguments{d, &operation};
    collective(0xffffffffu, site, &arguments, add_product);
}
void wgmma_fence(const char* file, int line) {
    collective(0xffffffffu, {"wgmma.fence", file, line}, nullptr, fence_warp);
}
void wgmma_commit(const char* file, int line) {
    collective(0xffffffffu, {"wgmma.commit_group", file, line}, nullptr, commit);
}
void wgmma_wait(int pending_groups, const char* file, int line) {
    struct Pending {
        int groups;
    } pending{pending_groups};
    collective(0xffffffffu, {"wgmma.wait_group", file, line}, &pending, [](void* const* arguments, uint32_t) {
        const int warp_index = current_thread() / kLanes;
        Warp& warp = warps[warp_index];
        complete(warp, warp_index, warp.num_committed - static_cast<Pending*>(arguments[0])->groups);
        warp.fenced = false;
    });
    acquire(sync_word(224 + current_thread() / kLanes));  // the tiles were read by one lane for all
}

}  // namespace simt
