// RMSNorm against its float64 twin, its gradient against finite differences, and the promises of
// kernels/rmsnorm.h.
#include "kernels/rmsnorm.h"

#include "tests/absmax_check.h"

namespace {

constexpr double kEps = 1e-5;

struct Shape {
    int64_t rows, channels;
};
constexpr Shape kShapes[] = {{1, 1},   {9, 1},   {1, 7},    {3, 16}, {17, 67},
                             {5, 768}, {40, 33}, {2000, 3}, {0, 8}};

// On a GPU rows belong to warps or blocks and lie in registers as far as they fit: a shape for each case, in
// vectors and in single elements, with several chunks of rows.
constexpr Shape kGpuShapes[] = {{1, 1},  {9, 1},    {1, 7},   {3, 16}, {17, 67},  {5, 768},
                                {9, 64}, {133, 33}, {3, 200}, {0, 8},  {3, 1700}, {5, 1096}};
constexpr Shape kLongRows[] = {{2, 4104},
                               {3, 8456}};  // where vectors of memory do not fit the registers either

Values twin(const Values& x, const Values& w, int64_t rows) {
    const size_t channels = w.size();
    Values y(x.size());
    for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
        double square = 0;
        for (size_t c = 0; c < channels; ++c) square += x[row * channels + c] * x[row * channels + c];
        const double rstd = 1 / std::sqrt(square / static_cast<double>(channels) + kEps);
        for (size_t c = 0; c < channels; ++c) y[row * channels + c] = x[row * channels + c] * rstd * w[c];
    }
    return y;
}

// The gradient of <dy, y> in closed form: fast enough for every shape; the finite differences below vouch for
// it.
void twin_backward(Values& dx, Values& dw, const Values& dy, const Values& x, const Values& w, int64_t rows) {
    const size_t channels = w.size();
    for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
        const size_t at = row * channels;
        double square = 0, product = 0;
        for (size_t c = 0; c < channels; ++c) square += x[at + c] * x[at + c];
        const double rstd = 1 / std::sqrt(square / static_cast<double>(channels) + kEps);
        for (size_t c = 0; c < channels; ++c) product += dy[at + c] * w[c] * x[at + c] * rstd;
        product /= static_cast<double>(channels);
        for (size_t c = 0; c < channels; ++c) {
            dx[at + c] += rstd * (dy[at + c] * w[c] - x[at + c] * rstd * product);
            dw[c] += dy[at + c] * x[at + c] * rstd;
        }
    }
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
    const Values dy = representable<T>(normal_values(size, 3)),
                 dx0 = representable<T>(normal_values(size, 4));
    const Values dw0 = normal_values(s.channels, 5);

    Guarded<T> x_data(x, offset), w_data(w, 3 * offset), y(size), dy_data(dy), dx(size), dx_sum(dx0);
    Guarded<float> rstd(s.rows), dw(dw0, 1), dw_again(dw0);
    RaisedAbsmax y_absmax(device), dx_absmax(device), dx_sum_absmax(device);
    OnDevice on(device, odd_ones);
    const auto matrix = [&](const Guarded<T>& g) { return on(g.tensor(s.rows, s.channels)); };
    const auto vector = [&](const auto& g) { return on(g.tensor()); };
    rmsnorm_forward(matrix(y), vector(rstd), matrix(x_data), vector(w_data), kEps, y_absmax.tensor());
    rmsnorm_backward(matrix(dx), vector(dw), matrix(dy_data), matrix(x_data), vector(w_data), vector(rstd),
                     false, dx_absmax.tensor());
    rmsnorm_backward(matrix(dx_sum), vector(dw_again), matrix(dy_data), matrix(x_data), vector(w_data),
                     vector(rstd), true, dx_sum_absmax.tensor());
    on.fetch();
    y_absmax.expect(y, "y");
    dx_absmax.expect(dx, "dx");
    dx_sum_absmax.expect(dx_sum, "dx accumulated");

    expect_close(y.values(), twin(x, w, s.rows), kTolerance<T>, "y");
    Values expected_dx(x.size()), expected_sum = dx0, expected_dw = representable<float>(dw0), ignored = dw0;
    twin_backward(expected_dx, expected_dw, dy, x, w, s.rows);
    twin_backward(expected_sum, ignored, dy, x, w, s.rows);
    if (s.channels == 1) {
        // Two terms of size |dy w rstd| cancel but for eps: what they are rounded by is what may be left.
        for (size_t i = 0; i < x.size(); ++i) {
            const double term = dy[i] * w[0] / std::sqrt(x[i] * x[i] + kEps);
            EXPECT_NEAR(dx.values()[i], expected_dx[i], kTolerance<T> * std::abs(term)) << "dx of row " << i;
        }
    } else {
        expect_close(dx.values(), expected_dx, kTolerance<T>, "dx");
    }
    expect_close(dx_sum.values(), expected_sum, kTolerance<T>, "dx accumulated");
    expect_close(dw.values(), expected_dw, kTolerance<float>, "dw");  // f32 whatever T
    if (odd_ones != 0 && odd_ones != ~0u) return;  // the two may have been added up in different orders
    EXPECT_TRUE(dw.bytes() == dw_again.bytes());
}

}  // namespace

TEST(RmsNorm, EqualsItsTwinOnEveryInstructionSet) {
    for_each_isa([] {
        for (Shape s : kShapes) {
            check_shape<float>(s, Device::cpu);
            check_shape<bf16>(s, Device::cpu);
        }
    });
}

TEST(RmsNorm, EqualsItsTwinOnGpus) {
    for (Device device : gpus()) {
        for (Shape s : kGpuShapes) {
            for (uint32_t odd_ones : misalignments(0)) {
                check_shape<float>(s, device, odd_ones);
                check_shape<bf16>(s, device, odd_ones);
            }
        }
        check_shape<float>(kLongRows[0], device);
        for (Shape s : kLongRows) check_shape<bf16>(s, device);
        for (uint32_t odd_ones : misalignments(10)) {
            check_shape<float>({9, 64}, device, odd_ones);
            check_shape<bf16>({9, 64}, device, odd_ones);
        }
    }
}

TEST(RmsNorm, TwinGradientIsTheFiniteDifference) {
    const int64_t rows = 3, channels = 5;
    const Values x = normal_values(rows * channels, 1), w = normal_values(channels, 2),
                 dy = normal_values(rows * channels, 3);
    Values dx(x.size()), dw(w.size());
    twin_backward(dx, dw, dy, x, w, rows);
    expect_close(dx, numeric_gradient([&](const Values& v) { return dot(dy, twin(v, w, rows)); }, x), 1e-6,
                 "dx");
    expect_close(dw, numeric_gradient([&](const Values& v) { return dot(dy, twin(x, v, rows)); }, w), 1e-6,
                 "dw");
}

TEST(RmsNorm, SameBitsForAnyNumberOfThreads) {
    const int64_t rows = 531, channels = 200;
    const Values values = normal_values(rows * channels, 1);
    expect_same_bits_for_any_threads([&] {
        Guarded<bf16> x(values), y(rows * channels), dx(rows * channels), w(normal_values(channels, 2));
        Guarded<float> rstd(rows), dw(Values(channels, 0.0));
        rmsnorm_forward(y.tensor(rows, channels), rstd.tensor(), x.tensor(rows, channels), w.tensor(), kEps);
        rmsnorm_backward(dx.tensor(rows, channels), dw.tensor(), x.tensor(rows, channels),
                         y.tensor(rows, channels), w.tensor(), rstd.tensor(), false);
        return joined({y.bytes(), rstd.bytes(), dx.bytes(), dw.bytes()});
    });
}

TEST(RmsNorm, SameBitsInAnyOrderOfAGpusThreads) {
    for (auto [rows, channels] : {Shape{13, 200}, {5, 1100}}) {
        const Values values = normal_values(rows * channels, 1);
        expect_same_bits_on_gpus([&, rows = rows, channels = channels](Device device) {
            Guarded<bf16> x(values), y(rows * channels), dx(rows * channels), w(normal_values(channels, 2));
            Guarded<float> rstd(rows), dw(Values(channels, 0.0));
            OnDevice on(device);
            const auto matrix = [&](const Guarded<bf16>& g) { return on(g.tensor(rows, channels)); };
            rmsnorm_forward(matrix(y), on(rstd.tensor()), matrix(x), on(w.tensor()), kEps);
            rmsnorm_backward(matrix(dx), on(dw.tensor()), matrix(x), matrix(y), on(w.tensor()),
                             on(rstd.tensor()), false);
            on.fetch();
            return joined({y.bytes(), rstd.bytes(), dx.bytes(), dw.bytes()});
        });
    }
}

TEST(RmsNorm, NaNReachesItsOwnRowOnly) {
    for (Device device : {Device::cpu, Device::simt}) {
        Values x = normal_values(2 * 40, 1);
        x[7] = std::nan("");
        Guarded<float> x_data(x), y(80), rstd(2), w(Values(40, 1.0));
        OnDevice on(device);
        rmsnorm_forward(on(y.tensor(2, 40)), on(rstd.tensor()), on(x_data.tensor(2, 40)), on(w.tensor()),
                        kEps);
        on.fetch();
        EXPECT_TRUE(std::isnan(y[0]) && std::isnan(y[39]));
        EXPECT_FALSE(std::isnan(y[40]) || std::isnan(y[79]));
    }
}

TEST(RmsNorm, NamesTheWrongArgument) {
    Guarded<float> x(Values(12, 1.0)), y(12), rstd(3), w(Values(5, 1.0));
    expect_mentions(check_failure([&] {
                        rmsnorm_forward(y.tensor(3, 4), rstd.tensor(), x.tensor(3, 4), w.tensor(), kEps);
                    }),
                    {"rmsnorm_forward", "argument w", "f32[4]", "f32[5]"});
    expect_mentions(check_failure([&] {
                        rmsnorm_forward(y.tensor(4, 3), rstd.tensor(), x.tensor(3, 4), w.tensor(), kEps);
                    }),
                    {"argument y", "f32[3,4]", "f32[4,3]"});
}
