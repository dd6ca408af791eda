// LayerNorm against its float64 twin, its gradients against finite differences, and a mean far from zero.
#include "kernels/layernorm.h"

#include "tests/absmax_check.h"

namespace {

constexpr double kEps = 1e-5;

struct Shape {
    int64_t rows, channels;
};
constexpr Shape kShapes[] = {{1, 5}, {1, 7}, {3, 16}, {17, 67}, {5, 768}, {40, 33}, {2000, 3}, {0, 8}};
// On a GPU rows belong to warps or blocks and lie in registers as far as they fit: a shape for each case, in
// vectors and in single elements, with several chunks of rows.
constexpr Shape kGpuShapes[] = {{1, 5},    {1, 7},   {3, 16}, {17, 67},  {5, 768}, {9, 64},
                                {133, 33}, {3, 200}, {0, 8},  {3, 1700}, {5, 1096}};
constexpr Shape kLongRows[] = {{2, 4104},
                               {3, 8456}};  // where vectors of memory do not fit the registers either

struct RowStatistics {
    double mean, rstd;
};
RowStatistics statistics(const double* x, size_t channels) {
    double mean = 0, variance = 0;
    for (size_t c = 0; c < channels; ++c) mean += x[c] / static_cast<double>(channels);
    for (size_t c = 0; c < channels; ++c)
        variance += (x[c] - mean) * (x[c] - mean) / static_cast<double>(channels);
    return {mean, 1 / std::sqrt(variance + kEps)};
}

Values twin(const Values& x, const Values& w, const Values& b) {
    Values y(x.size());
    for (size_t at = 0; at < x.size(); at += w.size()) {
        const RowStatistics s = statistics(&x[at], w.size());
        for (size_t c = 0; c < w.size(); ++c) y[at + c] = (x[at + c] - s.mean) * s.rstd * w[c] + b[c];
    }
    return y;
}

struct Gradients {
    Values dx, dw, db;
};
// In closed form: fast enough for every shape; the finite differences below vouch for it.
Gradients twin_backward(const Values& dy, const Values& x, const Values& w) {
    Gradients g{Values(x.size()), Values(w.size()), Values(w.size())};
    const double count = static_cast<double>(w.size());
    for (size_t at = 0; at < x.size(); at += w.size()) {
        const RowStatistics s = statistics(&x[at], w.size());
        double mean_g = 0, mean_g_xhat = 0;
        for (size_t c = 0; c < w.size(); ++c) {
            mean_g += dy[at + c] * w[c] / count;
            mean_g_xhat += dy[at + c] * w[c] * (x[at + c] - s.mean) * s.rstd / count;
        }
        for (size_t c = 0; c < w.size(); ++c) {
            const double xhat = (x[at + c] - s.mean) * s.rstd;
            g.dx[at + c] = s.rstd * (dy[at + c] * w[c] - mean_g - xhat * mean_g_xhat);
            g.dw[c] += dy[at + c] * xhat;
            g.db[c] += dy[at + c];
        }
    }
    return g;
}

Values sum(Values a, const Values& b) {
    for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
    return a;
}

// On a GPU odd_ones says which tensors are misaligned (tests/on_device.h).
template <class T>
void check_shape(Shape s, Device device, uint32_t odd_ones = 0) {
    SCOPED_TRACE(cat({device_name(device), " ", dtype_name(dtype_of<T>()), " ", s.rows, " x ", s.channels,
                      ", odd ", odd_ones}));
    const int64_t offset = device == Device::cpu;
    const int64_t size = s.rows * s.channels;
    const Values x = representable<T>(normal_values(size, 1)),
                 w = representable<T>(normal_values(s.channels, 2, 0.5, 1));
    const Values b = representable<T>(normal_values(s.channels, 3)),
                 dy = representable<T>(normal_values(size, 4));
    const Values dx0 = representable<T>(normal_values(size, 5)),
                 dw0 = representable<float>(normal_values(s.channels, 6));

    Guarded<T> x_data(x, offset), w_data(w, 3 * offset), b_data(b), y(size), dy_data(dy), dx(size),
        dx_sum(dx0);
    Guarded<float> mean(s.rows), rstd(s.rows, 1), dw(dw0), db(dw0, 1), dw_again(dw0), db_again(dw0);
    RaisedAbsmax y_absmax(device), dx_absmax(device), dx_sum_absmax(device);
    OnDevice on(device, odd_ones);
    const auto matrix = [&](const Guarded<T>& g) { return on(g.tensor(s.rows, s.channels)); };
    const auto vector = [&](const auto& g) { return on(g.tensor()); };
    layernorm_forward(matrix(y), vector(mean), vector(rstd), matrix(x_data), vector(w_data), vector(b_data),
                      kEps, y_absmax.tensor());
    layernorm_backward(matrix(dx), vector(dw), vector(db), matrix(dy_data), matrix(x_data), vector(w_data),
                       vector(mean), vector(rstd), false, dx_absmax.tensor());
    layernorm_backward(matrix(dx_sum), vector(dw_again), vector(db_again), matrix(dy_data), matrix(x_data),
                       vector(w_data), vector(mean), vector(rstd), true, dx_sum_absmax.tensor());
    on.fetch();
    y_absmax.expect(y, "y");
    dx_absmax.expect(dx, "dx");
    dx_sum_absmax.expect(dx_sum, "dx accumulated");

    const Gradients expected = twin_backward(dy, x, w);
    // Few channels can lie so close together that rstd magnifies the rounding of x - mean; hence ten times
    // the bound.
    const double few = s.channels < 8 ? 10 : 1;
    expect_close(y.values(), twin(x, w, b), kTolerance<T> * few, "y");
    expect_close(dx.values(), expected.dx, std::max(kTolerance<T>, 1e-5 * few * few), "dx");
    expect_close(dx_sum.values(), sum(dx0, expected.dx), std::max(kTolerance<T>, 1e-5 * few * few),
                 "dx accumulated");
    expect_close(dw.values(), sum(dw0, expected.dw), kTolerance<float> * few, "dw");  // f32 whatever T
    expect_close(db.values(), sum(dw0, expected.db), kTolerance<float>, "db");
    if (odd_ones != 0 && odd_ones != ~0u) return;  // the two may have been added up in different orders
    EXPECT_TRUE(dw.bytes() == dw_again.bytes() && db.bytes() == db_again.bytes());
}

void check_large_mean(Device device, double mean_of_x) {
    const int64_t rows = 4, channels = 768;
    const Values x = representable<float>(normal_values(rows * channels, 1, 1, mean_of_x)), w(768, 1.0),
                 b(768, 0.0);
    Guarded<float> x_data(x), y(rows * channels), mean(rows), rstd(rows), w_data(w), b_data(b);
    OnDevice on(device);
    layernorm_forward(on(y.tensor(rows, channels)), on(mean.tensor()), on(rstd.tensor()),
                      on(x_data.tensor(rows, channels)), on(w_data.tensor()), on(b_data.tensor()), kEps);
    on.fetch();
    expect_close(y.values(), twin(x, w, b), kTolerance<float>, "y");  // as near as with mean 0
}

// 1 / channels is rounded down for one of the two sizes and up for the other.
void check_equal_values(Device device, int64_t channels) {
    Values values{0.0, 1.1, 1e9, -123456789.0};
    for (int i = 0; i < 30; ++i) values.push_back(1e9 + 12345678.9 * i);
    for (double value : values) {
        Guarded<float> x(Values(channels, value)), y(channels), mean(1), rstd(1), w(Values(channels, 1.0)),
            b(Values(channels, 0.5));
        OnDevice on(device);
        layernorm_forward(on(y.tensor(1, channels)), on(mean.tensor()), on(rstd.tensor()),
                          on(x.tensor(1, channels)), on(w.tensor()), on(b.tensor()), kEps);
        on.fetch();
        // x - mean is at most one rounding of x, which eps may then magnify 1 / sqrt(eps) times.
        for (int64_t c = 0; c < channels; ++c) {
            EXPECT_NEAR(y[c], 0.5, std::abs(value) * 6e-8 / std::sqrt(kEps));
        }
    }
}

}  // namespace

TEST(LayerNorm, EqualsItsTwinOnEveryInstructionSet) {
    for_each_isa([] {
        for (Shape s : kShapes) {
            check_shape<float>(s, Device::cpu);
            check_shape<bf16>(s, Device::cpu);
        }
    });
}

TEST(LayerNorm, EqualsItsTwinOnGpus) {
    for (Device device : gpus()) {
        for (Shape s : kGpuShapes) {
            for (uint32_t odd_ones : misalignments(0)) {
                check_shape<float>(s, device, odd_ones);
                check_shape<bf16>(s, device, odd_ones);
            }
        }
        check_shape<float>(kLongRows[0], device);
        for (Shape s : kLongRows) check_shape<bf16>(s, device);
        for (uint32_t odd_ones : misalignments(13)) {
            check_shape<float>({9, 64}, device, odd_ones);
            check_shape<bf16>({9, 64}, device, odd_ones);
        }
    }
}

TEST(LayerNorm, OneChannelGivesTheBias) {
    for (Device device : {Device::cpu, Device::simt}) {
        Guarded<float> x(Values{3, -4}), y(2), mean(2), rstd(2), w(Values{2}), b(Values{0.5});
        OnDevice on(device);
        layernorm_forward(on(y.tensor(2, 1)), on(mean.tensor()), on(rstd.tensor()), on(x.tensor(2, 1)),
                          on(w.tensor()), on(b.tensor()), kEps);
        on.fetch();
        EXPECT_TRUE(y.values() == Values({0.5, 0.5}));
    }
}

TEST(LayerNorm, TwinGradientIsTheFiniteDifference) {
    const Values x = normal_values(15, 1), w = normal_values(5, 2), b = normal_values(5, 3),
                 dy = normal_values(15, 4);
    const Gradients g = twin_backward(dy, x, w);
    expect_close(g.dx, numeric_gradient([&](const Values& v) { return dot(dy, twin(v, w, b)); }, x), 1e-6,
                 "dx");
    expect_close(g.dw, numeric_gradient([&](const Values& v) { return dot(dy, twin(x, v, b)); }, w), 1e-6,
                 "dw");
    expect_close(g.db, numeric_gradient([&](const Values& v) { return dot(dy, twin(x, w, v)); }, b), 1e-6,
                 "db");
}

TEST(LayerNorm, LargeMeanCostsNoAccuracy) {
    for (double mean : {1e4, 1e6}) {
        for_each_isa([&] { check_large_mean(Device::cpu, mean); });
        for (Device device : gpus()) check_large_mean(device, mean);
    }
}

TEST(LayerNorm, ARowOfEqualValuesStaysFinite) {
    for (int64_t channels : {772, 775}) {
        for_each_isa([&] { check_equal_values(Device::cpu, channels); });
        for (Device device : gpus()) check_equal_values(device, channels);
    }
}

TEST(LayerNorm, SameBitsForAnyNumberOfThreads) {
    const int64_t rows = 531, channels = 200;
    const Values values = normal_values(rows * channels, 1);
    expect_same_bits_for_any_threads([&] {
        Guarded<bf16> x(values), y(rows * channels), dx(rows * channels), w(normal_values(channels, 2)),
            b(Values(200, 0.5));
        Guarded<float> mean(rows), rstd(rows), dw(Values(200, 0.0)), db(Values(200, 0.0));
        layernorm_forward(y.tensor(rows, channels), mean.tensor(), rstd.tensor(), x.tensor(rows, channels),
                          w.tensor(), b.tensor(), kEps);
        layernorm_backward(dx.tensor(rows, channels), dw.tensor(), db.tensor(), x.tensor(rows, channels),
                           y.tensor(rows, channels), w.tensor(), mean.tensor(), rstd.tensor(), false);
        return joined({y.bytes(), mean.bytes(), rstd.bytes(), dx.bytes(), dw.bytes(), db.bytes()});
    });
}

TEST(LayerNorm, SameBitsInAnyOrderOfAGpusThreads) {
    for (auto [rows, channels] : {Shape{13, 200}, {5, 1100}}) {
        const Values values = normal_values(rows * channels, 1);
        expect_same_bits_on_gpus([&, rows = rows, channels = channels](Device device) {
            Guarded<bf16> x(values), y(rows * channels), dx(rows * channels), w(normal_values(channels, 2)),
                b(Values(channels, 0.5));
            Guarded<float> mean(rows), rstd(rows), dw(Values(channels, 0.0)), db(Values(channels, 0.0));
            OnDevice on(device);
            const auto matrix = [&](const Guarded<bf16>& g) { return on(g.tensor(rows, channels)); };
            layernorm_forward(matrix(y), on(mean.tensor()), on(rstd.tensor()), matrix(x), on(w.tensor()),
                              on(b.tensor()), kEps);
            layernorm_backward(matrix(dx), on(dw.tensor()), on(db.tensor()), matrix(x), matrix(y),
                               on(w.tensor()), on(mean.tensor()), on(rstd.tensor()), false);
            on.fetch();
            return joined({y.bytes(), mean.bytes(), rstd.bytes(), dx.bytes(), dw.bytes(), db.bytes()});
        });
    }
}

TEST(LayerNorm, NamesTheWrongArgument) {
    Guarded<float> x(Values(12, 1.0)), y(12), mean(3), rstd(3), w(Values(4, 1.0)), b(Values(5, 1.0));
    expect_mentions(check_failure([&] {
                        layernorm_forward(y.tensor(3, 4), mean.tensor(), rstd.tensor(), x.tensor(3, 4),
                                          w.tensor(), b.tensor(), kEps);
                    }),
                    {"layernorm_forward", "argument b", "f32[4]", "f32[5]"});
}
