// All matrix products of a training step (forward, input gradient, weight gradient) as a share of this
// machine's own FMA peak. Every layer has its own weights, gradients and activations, so they come from
// memory, not from a warm cache. Peak and step are measured in turn, in the same run, by wall clock: medians
// with p10/p90 over the steps. A speed above the peak is a broken measurement and ends the program.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "bench/parse.h"
#include "bench/shapes.h"
#include "core/error.h"
#include "core/flags.h"
#include "core/log.h"
#include "core/threads.h"
#include "kernels/fma_peak.h"
#include "kernels/isa.h"
#include "kernels/matmul.h"

namespace {

struct Options {
    std::string model = "gpt2-124m";
    std::string dtypes = "fp32,bf16";
    std::string isas = "auto";
    std::string tokens = "256,1024";
    int64_t threads = 0;
    int64_t steps = 7;
    bool accumulate = false;
    bool detail = false;
};

// Owns its memory; values in (-1, 1) / 32, cheap to make and without a denormal.
class Matrix {
public:
    Matrix(DType dtype, int64_t rows, int64_t columns)
        : buffer_(rows * columns * dtype_bytes(dtype)),
          tensor_(make_tensor(buffer_.data(), dtype, rows, columns)) {
        parallel_ranges(tensor_.size(), 1 << 16, [&](int64_t begin, int64_t end) {
            uint32_t state = static_cast<uint32_t>(begin) * 2654435761u + 1;
            for (int64_t i = begin; i < end; ++i) {
                state = state * 1664525u + 1013904223u;
                const float x = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-36f;
                if (dtype == DType::f32) {
                    tensor_.as<float>()[i] = x;
                } else {
                    tensor_.as<bf16>()[i] = to_bf16(x);
                }
            }
        });
    }
    operator Tensor() const { return tensor_; }

private:
    Buffer buffer_;
    Tensor tensor_;
};

constexpr const char* kProducts[] = {"forward", "backward_input", "backward_weight"};

// One linear layer of one transformer layer, and the time its three products took.
struct Linear {
    const LinearShape* shape;
    Matrix weight, dweight, inp, out, dinp;
    std::vector<double> seconds[3] = {};

    Linear(const LinearShape& s, int64_t tokens, DType dtype)
        : shape(&s),
          weight(dtype, s.outputs, s.inputs),
          dweight(DType::f32, s.outputs, s.inputs),
          inp(dtype, tokens, s.inputs),
          out(dtype, tokens, s.outputs),
          dinp(dtype, tokens, s.inputs) {}

    template <class F>
    void timed(int product, F&& f) {
        const double start = seconds_now();
        f();
        seconds[product].push_back(seconds_now() - start);
    }
    void forward(MatmulMath math) {
        timed(0, [&] { matmul_forward(out, inp, weight, {}, math); });
    }
    // The result of forward stands in for the gradient that would come back.
    void backward(MatmulMath math, bool accumulate) {
        timed(1, [&] { matmul_backward_input(dinp, out, weight, false, {}, math); });
        timed(2, [&] { matmul_backward_weight(dweight, {}, out, inp, accumulate, math); });
    }
};

void print_detail(const std::vector<Linear>& linears, int64_t tokens, double peak) {
    for (size_t first = 0; first < linears.size();) {
        const LinearShape& shape = *linears[first].shape;
        size_t end = first;
        while (end < linears.size() && linears[end].shape == &shape) ++end;
        for (int product = 0; product < 3; ++product) {
            std::vector<double> seconds;
            for (size_t i = first; i < end; ++i) {
                const std::vector<double>& s = linears[i].seconds[product];
                seconds.insert(seconds.end(), s.begin() + 1, s.end());
            }
            const double flops = 2.0 * static_cast<double>(tokens * shape.outputs * shape.inputs);
            const double median = flops / quantile(seconds, 0.5);
            std::printf(
                "  matmul shape=%s outputs=%lld inputs=%lld product=%s gflops=%.1f peak_share=%.3f "
                "p10=%.1f p90=%.1f ms=%.3f\n",
                shape.name, static_cast<long long>(shape.outputs), static_cast<long long>(shape.inputs),
                kProducts[product], median * 1e-9, median / peak, flops / quantile(seconds, 0.9) * 1e-9,
                flops / quantile(seconds, 0.1) * 1e-9, quantile(seconds, 0.5) * 1e3);
        }
        first = end;
    }
}

// False when a speed above the peak shows that the measurement is broken.
bool run(const Options& options, const ModelShape& model, const Precision& precision, int64_t tokens) {
    const DType dtype = precision.dtype;
    const MatmulMath math = precision.math;
    std::vector<Linear> linears;
    double flops = 0;
    for (const LinearShape& shape : model.linears) {
        flops += 6.0 * static_cast<double>(tokens * shape.outputs * shape.inputs * shape.count);
        for (int64_t i = 0; i < shape.count; ++i) linears.emplace_back(shape, tokens, dtype);
    }
    // Memory of the same kind lies together above; a step goes through the layers in turn.
    std::vector<Linear*> order;
    for (int64_t layer = 0, found = 1; found > 0; ++layer) {
        found = 0;
        size_t first = 0;
        for (const LinearShape& shape : model.linears) {
            if (layer < shape.count && shape.count > 1)
                order.push_back(&linears[first + static_cast<size_t>(layer)]), ++found;
            first += static_cast<size_t>(shape.count);
        }
    }
    order.push_back(&linears.back());

    std::vector<double> seconds, peaks;
    for (int64_t step = 0; step <= options.steps; ++step) {
        peaks.push_back(fma_peak_flops(math));
        const double start = seconds_now();
        for (Linear* linear : order) linear->forward(math);
        for (auto linear = order.rbegin(); linear != order.rend(); ++linear) {
            (*linear)->backward(math, options.accumulate);
        }
        if (step > 0) seconds.push_back(seconds_now() - start);  // the first step touches fresh pages
    }
    const double peak = quantile(peaks, 1), median = flops / quantile(seconds, 0.5);
    const double p10 = flops / quantile(seconds, 0.9), p90 = flops / quantile(seconds, 0.1);
    // What the step would take if every product met the machine as undisturbed as it did once.
    double best_seconds = 0;
    for (const Linear& linear : linears) {
        for (const std::vector<double>& times : linear.seconds) best_seconds += quantile(times, 0);
    }
    std::printf(
        "matmul_step model=%s tokens=%lld dtype=%s isa=%s threads=%d gflops=%.1f peak_gflops=%.1f "
        "peak_share=%.3f spread=%.3f p10=%.1f p90=%.1f best=%.1f best_share=%.3f ms=%.1f steps=%lld "
        "accumulate=%d\n",
        model.name, static_cast<long long>(tokens), precision.name.c_str(), isa_name(current_isa()),
        num_threads(), median * 1e-9, peak * 1e-9, median / peak, (p90 - p10) / median, p10 * 1e-9,
        p90 * 1e-9, flops / best_seconds * 1e-9, flops / best_seconds / peak, quantile(seconds, 0.5) * 1e3,
        static_cast<long long>(options.steps), options.accumulate);
    if (options.detail) print_detail(linears, tokens, peak);
    flush_stdout();
    if (p90 > peak) std::fprintf(stderr, "error: faster than the measured peak: the measurement is broken\n");
    return p90 <= peak;
}

int body(int argc, char** argv) {
    Options options;
    std::vector<std::string> models;
    for (const ModelShape& model : model_shapes()) models.push_back(model.name);
    Flags flags("bench_matmul",
                "The matrix products of a training step as a share of the machine's FMA peak.",
                "  make bench B=matmul\n  make bench B=matmul ARGS='--tokens 256 --dtypes bf16 --detail'");
    flags.add_choice("model", options.model, models, "whose shapes");
    flags.add("dtypes", options.dtypes,
              "fp32, bf16, or mixed (f32 operands, bf16 products), comma-separated");
    flags.add("isas", options.isas, "auto, plain, avx2, avx512, avx512_bf16, comma-separated");
    flags.add("tokens", options.tokens, "tokens of a step, comma-separated");
    flags.add("threads", options.threads, "threads; 0: all cores", 0, 256);
    flags.add("steps", options.steps, "timed steps per configuration", 1, 1000);
    flags.add("accumulate", options.accumulate, "add to the weight gradients instead of setting them");
    flags.add("detail", options.detail, "also one line per shape and product");
    flags.parse(argc, argv);
    if (options.threads > 0) set_num_threads(static_cast<int>(options.threads));
    const std::vector<Isa> isas = parse_isas(options.isas, "--isas");
    const std::vector<int64_t> token_counts = parse_counts(options.tokens, "--tokens");
    const std::vector<Precision> precisions = parse_precisions(options.dtypes, "--dtypes");
    for (const Isa isa : isas) set_isa(isa);  // refuses what is not there before anything is measured
    for (const ModelShape& model : model_shapes()) {
        if (model.name != options.model) continue;
        for (const Isa isa : isas) {
            set_isa(isa);
            for (const int64_t tokens : token_counts) {
                for (const Precision& precision : precisions) {
                    if (!run(options, model, precision, tokens)) return 1;
                }
            }
        }
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) { return run_main(argc, argv, body); }
