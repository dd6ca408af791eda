// Products of many matrices at once, and symmetric ones (kernels/matmul_gpu.h: multiply_batch).
#include "kernels/matmul_plan.h"
#include "tests/gpu_batch_product.h"
#include "tests/matmul_check.h"

namespace on_simt {
void run_batch_product(Tensor out, Tensor a, Tensor b, Tensor addend, const BatchProduct& product);
}
#if defined(INGOT_CUDA)
namespace on_cuda {
void run_batch_product(Tensor out, Tensor a, Tensor b, Tensor addend, const BatchProduct& product);
}
#endif
void run_batch_product(Tensor out, Tensor a, Tensor b, Tensor addend, const BatchProduct& product) {
#if defined(INGOT_CUDA)
    if (out.device == Device::cuda) return on_cuda::run_batch_product(out, a, b, addend, product);
#endif
    on_simt::run_batch_product(out, a, b, addend, product);
}

namespace {

using Bits = std::vector<uint8_t>;

int64_t total(const BatchProduct& p, int64_t size) { return p.batch * (size + p.gap); }

// Element (outer, inner) of a batch's operand.
double at(const Values& x, bool by_row, int64_t start, int64_t num_outer, int64_t num_inner, int64_t outer,
          int64_t inner) {
    return x[static_cast<size_t>(start + (by_row ? outer * num_inner + inner : inner * num_outer + outer))];
}

template <class T>
struct Data {
    BatchProduct p;
    Values a, b, addend;

    explicit Data(const BatchProduct& product)
        : p(product),
          a(representable<T>(normal_values(total(p, int64_t{p.rows} * p.inner), 1))),
          b(p.symmetric ? a : representable<T>(normal_values(total(p, int64_t{p.columns} * p.inner), 2))),
          addend(representable<T>(normal_values(total(p, int64_t{p.rows} * p.columns), 3))) {
        for (int64_t i = 0; p.symmetric && i < p.batch; ++i) {
            const int64_t n = p.rows, start = i * (n * n + p.gap);
            for (int64_t r = 0; r < n; ++r) {
                for (int64_t c = 0; c < r; ++c)
                    addend[static_cast<size_t>(start + c * n + r)] =
                        addend[static_cast<size_t>(start + r * n + c)];
            }
        }
    }
    Values expected() const {
        Values out(addend.size(), 0.5);
        const int64_t size = int64_t{p.rows} * p.columns;
        for (int64_t i = 0; i < p.batch; ++i) {
            const int64_t start_a = i * (int64_t{p.rows} * p.inner + p.gap);
            const int64_t start_b = i * (int64_t{p.columns} * p.inner + p.gap);
            for (int64_t r = 0; r < p.rows; ++r) {
                for (int64_t c = 0; c < p.columns; ++c) {
                    double sum = 0;
                    for (int64_t k = 0; k < p.inner; ++k)
                        sum += at(a, p.a_by_row, start_a, p.rows, p.inner, r, k) *
                               at(b, p.b_by_row, start_b, p.columns, p.inner, c, k);
                    const size_t to = static_cast<size_t>(i * (size + p.gap) + r * p.columns + c);
                    out[to] = p.scale * sum + p.addend_scale * addend[to];
                }
            }
        }
        return out;
    }
    // 0.5 where nothing is to be written. Bit i of odd_ones: tensor i is misaligned.
    Guarded<T> run(Device device, uint32_t odd_ones = 0) const {
        Guarded<T> out(Values(addend.size(), 0.5)), a_data(a), b_data(b), addend_data(addend);
        OnDevice on(device, odd_ones);
        const Tensor to = on(out.tensor()), from_a = on(a_data.tensor());
        const Tensor from_b = p.symmetric ? from_a : on(b_data.tensor());
        run_batch_product(to, from_a, from_b, p.addend_scale == 0 ? Tensor{} : on(addend_data.tensor()), p);
        on.fetch();
        return out;
    }
};

// A sum of `inner` products of bf16 numbers is exact but for f32's roundings; so is one of f32 numbers.
template <class T>
void expect_right(const BatchProduct& p, Device device, uint32_t odd_ones = 0) {
    SCOPED_TRACE(
        cat({p.batch, " x ", p.rows, " x ", p.columns, " x ", p.inner, p.a_by_row ? " rows" : " columns",
             p.b_by_row ? " rows" : " columns", p.symmetric ? " symmetric" : "", " gap ", p.gap, " odd ",
             odd_ones, " on ", device_name(device)}));
    const Data<T> data(p);
    expect_close(data.run(device, odd_ones).values(), data.expected(), kTolerance<T>, "out");
}

constexpr bool kLayouts[][2] = {{true, true}, {true, false}, {false, false}};
constexpr MatmulTile kTiles[] = {MatmulTile::small, MatmulTile::large};

}  // namespace

TEST(MatmulBatch, EqualsItsTwinOnEveryGpu) {
    for (Device device : gpus()) {
        for (const auto& [a_by_row, b_by_row] : kLayouts) {
            for (const int64_t gap : {0, 3, 8}) {
                BatchProduct p{.batch = 3, .rows = 5, .columns = 7, .inner = 9};
                p.a_by_row = a_by_row, p.b_by_row = b_by_row, p.gap = gap;
                p.scale = 0.5f, p.addend_scale = -2;
                expect_right<float>(p, device);
                expect_right<bf16>(p, device);
                p.rows = 72, p.columns = 40, p.inner = 48;
                expect_right<float>(p, device);
                p.bf16_math = true;
                for (const uint32_t odd_ones : misalignments(4)) expect_right<bf16>(p, device, odd_ones);
            }
        }
    }
}

TEST(MatmulBatch, SymmetricEqualsItsTwinOnEveryGpu) {
    for (Device device : gpus()) {
        for (const MatmulTile tile : kTiles) {
            const ForcedPlan forced({tile, 1});
            for (const bool by_row : {true, false}) {
                for (const int n : {1, 7, 72, 135, 200}) {
                    BatchProduct p{.batch = 2, .rows = n, .columns = n, .inner = n == 200 ? 16 : 33};
                    p.a_by_row = by_row, p.b_by_row = by_row, p.symmetric = true, p.gap = n % 8 ? 3 : 8;
                    p.addend_scale = n == 7 ? 0.0f : 1.5f;
                    expect_right<float>(p, device);
                    p.bf16_math = true;
                    expect_right<bf16>(p, device);
                }
            }
        }
    }
}

// What lies above the diagonal is a copy, and what lies below has the bits of the general product.
TEST(MatmulBatch, SymmetricToTheBit) {
    const auto check = [](auto zero, Device device, int n, bool by_row) {
        using T = decltype(zero);
        BatchProduct p{.batch = 2, .rows = n, .columns = n, .inner = 40};
        p.a_by_row = by_row, p.b_by_row = by_row, p.symmetric = true, p.bf16_math = sizeof(T) == 2;
        p.scale = 2.0315f, p.addend_scale = -4.775f;
        const Data<T> data(p);
        const Guarded<T> out = data.run(device);
        Data<T> general = data;
        general.p.symmetric = false;
        const Guarded<T> expected = general.run(device);
        for (int64_t i = 0; i < p.batch; ++i) {
            for (int64_t r = 0; r < n; ++r) {
                for (int64_t c = 0; c <= r; ++c) {
                    const int64_t below = (i * n + r) * n + c, above = (i * n + c) * n + r;
                    ASSERT_EQ(std::memcmp(&out[below], &out[above], sizeof(T)), 0) << r << " " << c;
                    ASSERT_EQ(std::memcmp(&out[below], &expected[below], sizeof(T)), 0) << r << " " << c;
                }
            }
        }
    };
    for (Device device : gpus()) {
        for (const MatmulTile tile : kTiles) {
            const ForcedPlan forced({tile, 1});
            for (const int n : {67, 136, 192}) {
                for (const bool by_row : {true, false}) {
                    SCOPED_TRACE(cat({n, by_row ? " rows" : " columns"}));
                    check(0.0f, device, n, by_row);
                    check(bf16{}, device, n, by_row);
                }
            }
        }
    }
}

// A product's bits depend neither on how many there are, nor on the tile, nor on the order of blocks.
TEST(MatmulBatch, EachAsAlone) {
    for (const bool symmetric : {false, true}) {
        BatchProduct p{.batch = 3, .rows = 136, .columns = symmetric ? 136 : 72, .inner = 56};
        p.symmetric = symmetric, p.bf16_math = true, p.addend_scale = 3;
        const Data<bf16> data(p);
        const auto all = [&](Device device) { return data.run(device).bytes(); };
        expect_same_bits_on_gpus(all);
        for (Device device : gpus()) {
            Bits alone;
            for (int64_t i = 0; i < p.batch; ++i) {
                Data<bf16> one = data;
                one.p.batch = 1;
                const auto keep = [&](Values& x) {
                    const auto size = static_cast<std::ptrdiff_t>(x.size()) / p.batch;
                    x = Values(x.begin() + i * size, x.begin() + (i + 1) * size);
                };
                keep(one.a), keep(one.b), keep(one.addend);
                alone = joined({alone, one.run(device).bytes()});
            }
            for (const MatmulTile tile : kTiles) {
                const ForcedPlan forced({tile, 1});
                EXPECT_TRUE(all(device) == alone);
            }
        }
    }
}

// So large that each fills a GPU: they go one by one.
TEST(MatmulBatch, LargeOnes) {
    for (Device device : gpus()) {
        BatchProduct p{.batch = 2, .rows = 264 * 128, .columns = 3, .inner = 5};
        p.addend_scale = -1, p.gap = 2;
        expect_right<float>(p, device);
    }
}
