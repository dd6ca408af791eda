// Collectives of a warp. Each lane leaves a pointer to its arguments, on its own stack, and waits; the last
// one to arrive carries the operation out for all. It touches the lanes' registers only: memory is read and
// written by the lane that owns the address (simt.h), and only __syncwarp orders it.
#include <bit>

#include "core/fp8.h"
#include "kernels/simt/sanitizers.h"
#include "kernels/simt/scheduler.h"

namespace simt {
namespace {

// Lanes that wait for each other.
struct Group {
    uint32_t mask, arrived;
    Site site;
    int number;  // counts the groups of a warp
};
struct Warp {
    Group groups[kLanes];
    int num_groups = 0, num_before = 0;
    void* arguments[kLanes];
};
Warp warps[kMaxThreads / kLanes];

// The group that `lane` belongs to, a new one if it is the first. Aborts unless all agree on lanes and place.
Group& join(Warp& warp, int warp_index, int lane, uint32_t mask, const Site& site) {
    if (!(mask >> lane & 1))
        violation(&site, "%s: lane %d is not in its own mask %08x", site.what, lane, mask);
    if (const uint32_t missing = mask & ~alive_lanes(warp_index)) {
        violation(&site, "%s: lane %d of mask %08x has ended or does not exist", site.what,
                  std::countr_zero(missing), mask);
    }
    for (int g = 0; g < warp.num_groups; ++g) {
        Group& group = warp.groups[g];
        if (!(group.mask >> lane & 1) || !(group.arrived & mask)) continue;
        // This lane is waited for by one that it will wait for itself.
        if (!same_place(group.site, site)) {
            violation(&site, "%s in divergent code: lane %d waits in %s at %s:%d", site.what,
                      std::countr_zero(group.arrived), group.site.what, group.site.file, group.site.line);
        }
        if (group.mask != mask) {
            violation(&site, "%s: lane %d has mask %08x, lane %d has %08x", site.what, lane, mask,
                      std::countr_zero(group.arrived), group.mask);
        }
        return group;
    }
    return warp.groups[warp.num_groups++] = {mask, 0, site, warp.num_before++};
}

template <class Body>
void each(uint32_t mask, Body body) {
    for (; mask; mask &= mask - 1) body(std::countr_zero(mask));
}

}  // namespace

void collective(uint32_t mask, const Site& site, void* arguments, Exchange exchange, bool orders_memory) {
    const int warp_index = current_thread() / kLanes, lane = current_thread() % kLanes;
    Warp& warp = warps[warp_index];
    Group& group = join(warp, warp_index, lane, mask, site);
    char* const word = sync_word(16 + 4 * warp_index + group.number % 4);
    if (orders_memory) release(word);
    warp.arguments[lane] = arguments;
    group.arrived |= 1u << lane;
    if (group.arrived == mask) {
        if (exchange) exchange(warp.arguments, mask);
        make_ready(warp_index, mask);
        group = warp.groups[--warp.num_groups];
    }
    wait_at(site);
    if (orders_memory) acquire(word);
}

void start_block_of_warps() {
    for (Warp& warp : warps) warp.num_groups = warp.num_before = 0;
}

void end_lane(int warp_index, int lane) {
    const Warp& warp = warps[warp_index];
    for (int g = 0; g < warp.num_groups; ++g) {
        const Group& group = warp.groups[g];
        if (group.mask >> lane & 1) {
            violation(nullptr, "a thread ended while lane %d waits for it in %s at %s:%d",
                      std::countr_zero(group.arrived), group.site.what, group.site.file, group.site.line);
        }
    }
}

unsigned lane_id() { return static_cast<unsigned>(current_thread()) % kLanes; }

void warp_barrier(unsigned mask, const Site& site) { collective(mask, site, nullptr, nullptr, true); }

// ---- numbers ----------------------------------------------------------------------------------------------

namespace {
struct Number {
    uint64_t mine, result;
    int source;
};
}  // namespace

uint64_t shuffle(unsigned mask, uint64_t bits, int source_lane, const Site& site) {
    if (source_lane < 0 || source_lane >= kLanes || !(mask >> source_lane & 1)) {
        violation(&site, "%s: lane %u reads lane %d, which is not in mask %08x", site.what, lane_id(),
                  source_lane, mask);
    }
    Number number{bits, 0, source_lane};
    collective(mask, site, &number, [](void* const* arguments, uint32_t mask) {
        each(mask, [&](int lane) {
            Number& n = *static_cast<Number*>(arguments[lane]);
            n.result = static_cast<Number*>(arguments[n.source])->mine;
        });
    });
    return number.result;
}

unsigned ballot(unsigned mask, bool predicate, const Site& site) {
    Number number{predicate, 0, 0};
    collective(mask, site, &number, [](void* const* arguments, uint32_t mask) {
        uint32_t votes = 0;
        each(mask, [&](int lane) {
            votes |= static_cast<uint32_t>(static_cast<Number*>(arguments[lane])->mine) << lane;
        });
        each(mask, [&](int lane) { static_cast<Number*>(arguments[lane])->result = votes; });
    });
    return static_cast<unsigned>(number.result);
}

unsigned match_any(unsigned mask, uint64_t bits, const Site& site) {
    Number number{bits, 0, 0};
    collective(mask, site, &number, [](void* const* arguments, uint32_t mask) {
        each(mask, [&](int lane) {
            Number& n = *static_cast<Number*>(arguments[lane]);
            each(mask, [&](int other) {
                n.result |= uint64_t{static_cast<Number*>(arguments[other])->mine == n.mine} << other;
            });
        });
    });
    return static_cast<unsigned>(number.result);
}

unsigned reduce(unsigned mask, unsigned bits, Reduce operation, const Site& site) {
    Number number{bits, 0, static_cast<int>(operation)};
    collective(mask, site, &number, [](void* const* arguments, uint32_t mask) {
        const Number& first = *static_cast<Number*>(arguments[std::countr_zero(mask)]);
        const auto operation = static_cast<Reduce>(first.source);
        uint32_t sum = static_cast<uint32_t>(first.mine);
        each(mask & (mask - 1), [&](int lane) {
            const uint32_t x = static_cast<uint32_t>(static_cast<Number*>(arguments[lane])->mine);
            const int signed_sum = static_cast<int>(sum), signed_x = static_cast<int>(x);
            switch (operation) {
                case Reduce::add: sum += x; break;
                case Reduce::min_signed: sum = signed_x < signed_sum ? x : sum; break;
                case Reduce::max_signed: sum = signed_x > signed_sum ? x : sum; break;
                case Reduce::min_unsigned: sum = x < sum ? x : sum; break;
                case Reduce::max_unsigned: sum = x > sum ? x : sum; break;
                case Reduce::bit_and: sum &= x; break;
                case Reduce::bit_or: sum |= x; break;
                case Reduce::bit_xor: sum ^= x; break;
            }
        });
        each(mask, [&](int lane) { static_cast<Number*>(arguments[lane])->result = sum; });
    });
    return static_cast<unsigned>(number.result);
}

// ---- matrices (kernels/mma.h draws the fragments) ---------------------------------------------------------

namespace {

constexpr uint32_t kAll = 0xffffffffu;

struct Rows {
    MatrixRow* row;
    uint32_t* load;
    const uint32_t* store;
    int count;
    bool transposed;
};

uint32_t half_of(uint32_t word, int which) { return word >> 16 * which & 0xffffu; }

void distribute(void* const* arguments, uint32_t) {
    const auto row = [&](int matrix, int r) -> const uint32_t* {
        return static_cast<Rows*>(arguments[8 * matrix + r])->row->words;
    };
    for (int lane = 0; lane < kLanes; ++lane) {
        Rows& rows = *static_cast<Rows*>(arguments[lane]);
        const int group = lane / 4, pair = lane % 4;
        for (int m = 0; m < rows.count; ++m) {
            if (!rows.transposed) {
                rows.load[m] = row(m, group)[pair];
                continue;
            }
            const uint32_t low = half_of(row(m, 2 * pair)[group / 2], group % 2);
            const uint32_t high = half_of(row(m, 2 * pair + 1)[group / 2], group % 2);
            rows.load[m] = high << 16 | low;
        }
    }
}

void collect(void* const* arguments, uint32_t) {
    const int count = static_cast<Rows*>(arguments[0])->count;
    const bool transposed = static_cast<Rows*>(arguments[0])->transposed;
    for (int m = 0; m < count; ++m) {
        for (int r = 0; r < 8; ++r) {
            uint32_t* const words = static_cast<Rows*>(arguments[8 * m + r])->row->words;
            for (int pair = 0; pair < 4; ++pair) {
                const auto fragment = [&](int lane) { return static_cast<Rows*>(arguments[lane])->store[m]; };
                if (!transposed) {
                    words[pair] = fragment(4 * r + pair);
                } else {  // element [r][c] is held by lane 4 c + r / 2
                    const uint32_t low = half_of(fragment(4 * (2 * pair) + r / 2), r % 2);
                    const uint32_t high = half_of(fragment(4 * (2 * pair + 1) + r / 2), r % 2);
                    words[pair] = high << 16 | low;
                }
            }
        }
    }
}

struct Mma {
    float* c;
    const uint32_t *a, *b;
};

using Four = float __attribute__((vector_size(16)));

// c += a b of one warp. What an operand's word holds is kPerWord neighbours along the inner dimension, each 1
// / kPerWord of it and a float by number_a or number_b.
template <int kPerWord, class NumberA, class NumberB>
void multiply(void* const* arguments, const NumberA& number_a, const NumberB& number_b) {
    constexpr int kInner = 8 * kPerWord, kBits = 32 / kPerWord;
    float a[16][kInner];
    Four b[kInner][2], c[16][2];  // [row][column / 4][column % 4]
    for (int lane = 0; lane < kLanes; ++lane) {
        const Mma& mma = *static_cast<Mma*>(arguments[lane]);
        const int group = lane / 4, first = kPerWord * (lane % 4);
        for (int n = 0; n < kPerWord; ++n) {
            for (int i = 0; i < 4; ++i) {
                a[group + 8 * (i % 2)][first + n + kInner / 2 * (i / 2)] = number_a(mma.a[i] >> kBits * n);
            }
            for (int i = 0; i < 2; ++i) {
                b[first + n + kInner / 2 * i][group / 4][group % 4] = number_b(mma.b[i] >> kBits * n);
            }
        }
    }
    for (int row = 0; row < 16; ++row) {
        Four left = {}, right = {};
        for (int k = 0; k < kInner; ++k) {
            left += a[row][k] * b[k][0];
            right += a[row][k] * b[k][1];
        }
        c[row][0] = left;
        c[row][1] = right;
    }
    for (int lane = 0; lane < kLanes; ++lane) {
        float* const out = static_cast<Mma*>(arguments[lane])->c;
        const int group = lane / 4, column = 2 * (lane % 4);
        for (int i = 0; i < 4; ++i) out[i] += c[group + 8 * (i / 2)][column / 4][column % 4 + i % 2];
    }
}

struct Bf16Number {
    float operator()(uint32_t bits) const { return std::bit_cast<float>(bits << 16); }
};
template <class T>
struct Fp8Numbers {
    float numbers[256];
    constexpr Fp8Numbers() : numbers() {
        for (int bits = 0; bits < 256; ++bits) numbers[bits] = to_float(T{static_cast<uint8_t>(bits)});
    }
    float operator()(uint32_t bits) const { return numbers[bits & 0xff]; }
};
constexpr Fp8Numbers<e4m3> kE4m3Numbers;
constexpr Fp8Numbers<e5m2> kE5m2Numbers;

}  // namespace

void distribute_rows(uint32_t* r, const MatrixRow& mine, int count, bool transposed, const Site& site) {
    Rows rows{const_cast<MatrixRow*>(&mine), r, nullptr, count, transposed};
    collective(kAll, site, &rows, distribute);
}
void collect_rows(MatrixRow& mine, const uint32_t* r, int count, bool transposed, const Site& site) {
    Rows rows{&mine, nullptr, r, count, transposed};
    collective(kAll, site, &rows, collect);
}

void mma_m16n8k16(float* c, const uint32_t* a, const uint32_t* b, const char* file, int line) {
    Mma mma{c, a, b};
    collective(kAll, {"mma", file, line}, &mma,
               [](void* const* arguments, uint32_t) { multiply<2>(arguments, Bf16Number{}, Bf16Number{}); });
}

void mma_m16n8k32(float* c, const uint32_t* a, const uint32_t* b, bool a_is_e5m2, const char* file,
                  int line) {
    Mma mma{c, a, b};
    const auto e4m3_by_e4m3 = [](void* const* arguments, uint32_t) {
        multiply<4>(arguments, kE4m3Numbers, kE4m3Numbers);
    };
    const auto e5m2_by_e4m3 = [](void* const* arguments, uint32_t) {
        multiply<4>(arguments, kE5m2Numbers, kE4m3Numbers);
    };
    collective(kAll, {"mma", file, line}, &mma, a_is_e5m2 ? Exchange{e5m2_by_e4m3} : Exchange{e4m3_by_e4m3});
}

}  // namespace simt
