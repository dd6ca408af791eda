// Attention on real shapes: forward, backward and decoding. One line a shape: median and spread of the wall
// time, GFLOP/s (causal pairs only: 4 D a visible pair forward, 10 D backward) and the share of this
// machine's FMA peak.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "bench/parse.h"
#include "core/error.h"
#include "core/flags.h"
#include "core/log.h"
#include "core/rng.h"
#include "core/threads.h"
#include "kernels/attention.h"
#include "kernels/fma_peak.h"
#include "kernels/isa.h"

namespace {

struct Shape {
    const char* name;
    int64_t rows, length, num_heads, num_kv_heads, dim, window;
};
constexpr Shape kShapes[] = {
    {"gpt2-124m 1x1024", 1, 1024, 12, 12, 64, 0}, {"gpt2-124m 4x256", 4, 256, 12, 12, 64, 0},
    {"gpt2-124m 4x64", 4, 64, 12, 12, 64, 0},     {"demo 12x256", 12, 256, 6, 6, 64, 0},
    {"documents 64x16", 64, 16, 12, 12, 64, 0},   {"window 1x2048/256", 1, 2048, 12, 12, 64, 256},
    {"llama-gqa 1x1024", 1, 1024, 16, 4, 128, 0}, {"long 1x4096", 1, 4096, 2, 2, 64, 0},
    {"dim80 1x512", 1, 512, 8, 8, 80, 0},
};

struct Times {
    double median, p10, p90;
};
Times measure(const std::function<void()>& body) {
    body();
    std::vector<double> seconds;
    for (double spent = 0; (spent < 0.4 || seconds.size() < 5) && seconds.size() < 200;) {
        const double start = seconds_now();
        body();
        seconds.push_back(seconds_now() - start);
        spent += seconds.back();
    }
    return {quantile(seconds, 0.5), quantile(seconds, 0.1), quantile(seconds, 0.9)};
}

void report(const std::string& name, const char* what, const Times& t, double flops, double peak) {
    const double gflops = flops / t.median * 1e-9;
    std::printf("%-20s %-14s %9.0f us  (%.0f..%.0f)  %7.1f GFLOP/s  %5.1f %%%s\n", name.c_str(), what,
                t.median * 1e6, t.p10 * 1e6, t.p90 * 1e6, gflops, 100 * gflops / peak,
                gflops > peak ? "  ABOVE PEAK: not to be trusted" : "");
}

// GFLOP/s, the highest seen: a disturbed measurement reads low and would flatter the share.
double peak_gflops(MatmulMath math) {
    static double highest[2] = {0, 0};
    double& peak = highest[math == MatmulMath::bf16];
    return peak = std::max(peak, fma_peak_flops(math) * 1e-9);
}

void fill(Tensor t, uint64_t stream) {
    for (int64_t i = 0; i < t.size(); ++i) {
        const float x = random_normal({1, stream}, static_cast<uint64_t>(i));
        if (t.dtype == DType::f32) {
            t.as<float>()[i] = x;
        } else {
            t.as<bf16>()[i] = to_bf16(x);
        }
    }
}

double visible_pairs(const Shape& s) {
    double pairs = 0;
    for (int64_t t = 1; t <= s.length; ++t)
        pairs += static_cast<double>(s.window > 0 ? std::min(t, s.window) : t);
    return pairs * static_cast<double>(s.rows * s.num_heads);
}

void bench_training(const Shape& s, const Precision& precision) {
    const DType dtype = precision.dtype;
    const MatmulMath math = precision.math;
    const int64_t n = s.rows * s.length, channels = s.num_heads * s.dim, d = s.dim;
    const int64_t wide = (s.num_heads + 2 * s.num_kv_heads) * d, each = dtype_bytes(dtype);
    const AttentionShape shape{s.num_heads, s.num_kv_heads, s.window, 0};
    Buffer qkv_memory(n * wide * each), dqkv_memory(n * wide * each), out_memory(n * channels * each);
    Buffer dout_memory(n * channels * each), lse_memory(n * s.num_heads * 4);
    Buffer scratch_memory(attention_backward_scratch_bytes(n, s.length, d, shape));
    const Tensor qkv = make_tensor(qkv_memory.data(), dtype, n, wide);
    const Tensor dqkv = make_tensor(dqkv_memory.data(), dtype, n, wide);
    const Tensor out = make_tensor(out_memory.data(), dtype, n, channels);
    const Tensor dout = make_tensor(dout_memory.data(), dtype, n, channels);
    const Tensor lse = make_tensor(lse_memory.data(), DType::f32, s.num_heads, n);
    const Tensor scratch = make_tensor(scratch_memory.data(), DType::u8, scratch_memory.bytes());
    fill(qkv, 1);
    fill(dout, 2);
    std::vector<int32_t> bounds;
    for (int64_t r = 0; r <= s.rows; ++r) bounds.push_back(static_cast<int32_t>(r * s.length));
    const Tensor cu = tensor_of(bounds.data(), s.rows + 1);
    const double pairs = visible_pairs(s) * static_cast<double>(d);
    const double peak = peak_gflops(math);
    const std::string label = precision.name + " ";
    report(s.name, (label + "forward").c_str(),
           measure([&] { attention_forward(out, lse, qkv, cu, shape, math); }), 4 * pairs, peak);
    report(s.name, (label + "backward").c_str(),
           measure([&] { attention_backward(dqkv, dout, out, lse, qkv, cu, shape, math, scratch); }),
           10 * pairs, peak);
}

// One new token against `length` cached ones: bound by reading the cache.
void bench_decoding(const Shape& s, DType dtype, const char* precision) {
    const int64_t kv = s.num_kv_heads * s.dim, channels = s.num_heads * s.dim, each = dtype_bytes(dtype);
    Buffer memory((2 * s.length * kv + 2 * channels + 2 * kv) * each);
    auto* at = static_cast<uint8_t*>(memory.data());
    const auto take = [&](int64_t rows, int64_t width) {
        const Tensor t = make_tensor(at, dtype, rows, width);
        at += t.bytes();
        return t;
    };
    const Tensor k = take(s.length, kv), v = take(s.length, kv), out = take(1, channels);
    const Tensor qkv = take(1, channels + 2 * kv);
    fill(k, 3), fill(v, 4), fill(qkv, 5);
    const AttentionShape shape{s.num_heads, s.num_kv_heads, s.window, 0};
    const Times t = measure([&] { attention_cached(out, qkv, k, v, s.length - 1, shape); });
    std::printf("%-20s %-14s %9.1f us  (%.1f..%.1f)  %7.1f GB/s\n", s.name,
                (std::string(precision) + " decode").c_str(), t.median * 1e6, t.p10 * 1e6, t.p90 * 1e6,
                static_cast<double>(k.bytes() + v.bytes()) / t.median * 1e-9);
}

int body(int argc, char** argv) {
    std::string part, dtypes = "fp32,mixed,bf16", isa = "auto";
    int64_t threads = 0;
    bool decode = true;
    Flags flags("bench_attention", "Attention on real shapes: forward, backward and decoding.",
                "  make bench B=attention\n"
                "  make bench B=attention ARGS='--shape gpt2 --dtypes bf16 --no-decode --isa avx2'");
    flags.add("shape", part, "only shapes whose name holds this");
    flags.add("dtypes", dtypes, "fp32, bf16, or mixed (f32 operands, bf16 products), comma-separated");
    flags.add("decode", decode, "also one new token against a full cache, in fp32 and bf16");
    flags.add("isa", isa, "auto, plain, avx2, avx512 or avx512_bf16");
    flags.add("threads", threads, "threads; 0: all cores", 0, 256);
    flags.parse(argc, argv);
    const std::vector<Precision> precisions = parse_precisions(dtypes, "--dtypes");
    std::vector<Shape> shapes;
    std::string names;
    for (const Shape& s : kShapes) {
        if (std::string(s.name).find(part) != std::string::npos) shapes.push_back(s);
        names += (names.empty() ? "" : ", ") + std::string(s.name);
    }
    if (shapes.empty())
        fail_input({.what = "no shape has that name",
                    .where = "--shape",
                    .expected = "part of: " + names,
                    .actual = part,
                    .hint = "--shape gpt2"});
    if (threads > 0) set_num_threads(static_cast<int>(threads));
    set_isa(isa_from_name(isa.c_str()));

    std::printf("%d threads, %s; measured peak %.0f (fp32), %.0f (bf16) GFLOP/s\n", num_threads(),
                isa_name(current_isa()), peak_gflops(MatmulMath::f32), peak_gflops(MatmulMath::bf16));
    for (const Shape& s : shapes) {
        for (const Precision& precision : precisions) bench_training(s, precision);
        if (decode && s.rows == 1 && s.window == 0) {
            bench_decoding(s, DType::f32, "fp32");
            bench_decoding(s, DType::bf16, "bf16");
        }
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) { return run_main(argc, argv, body); }
