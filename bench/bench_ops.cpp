// Every op but matmul and attention at the shapes of GPT-2 124M and Qwen3 with 8192 tokens, so that
// activations come from memory. bytes_per_second counts what an op must read and write, once; the two triads
// are the yardstick: no op that leaves the cache can pass them. One run per dtype, all threads, the best
// instruction set.
#include <benchmark/benchmark.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/threads.h"
#include "kernels/adamw.h"
#include "kernels/cast.h"
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/gelu.h"
#include "kernels/global_norm.h"
#include "kernels/layernorm.h"
#include "kernels/muon.h"
#include "kernels/qknorm.h"
#include "kernels/relu2.h"
#include "kernels/residual.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/sampling.h"
#include "kernels/swiglu.h"

namespace {

constexpr int64_t kTokens = 8192, kChannels = 768, kHidden = 3072, kVocab = 50257;
constexpr int64_t kHeads = 12, kHeadDim = 64;
constexpr int64_t kParameters = 16 << 20;

// Tensors of one benchmark, made when it starts and freed when it ends.
class Tensors {
public:
    Tensor make(DType dtype, int64_t d0, int64_t d1 = -1) {
        const int64_t count = d0 * (d1 < 0 ? 1 : d1);
        buffers_.emplace_back(count * dtype_bytes(dtype));
        const Tensor t = make_tensor(buffers_.back().data(), dtype, d0, d1);
        // Values in (-1, 1) without a pattern that a cache or a branch could learn.
        for (int64_t i = 0; i < count; ++i) {
            const float value = static_cast<float>(i * 2654435761 % 65521) / 32768.0f - 1;
            if (dtype == DType::f32) t.as<float>()[i] = value;
            if (dtype == DType::bf16) t.as<bf16>()[i] = to_bf16(value);
        }
        return t;
    }
    Tensor ids(int64_t count, int64_t limit) {
        const Tensor t = make(DType::i32, count);
        for (int64_t i = 0; i < count; ++i) t.as<int32_t>()[i] = static_cast<int32_t>(i * 2654435761 % limit);
        return t;
    }
    Tensor bytes(int64_t count) { return make(DType::u8, count); }

private:
    std::vector<Buffer> buffers_;
};

// What one call does, and how many bytes it must move.
struct Work {
    std::function<void()> run;
    int64_t bytes;
};

void add(const std::string& name, std::function<Work(Tensors&)> prepare) {
    benchmark::RegisterBenchmark(name.c_str(),
                                 [prepare = std::move(prepare)](benchmark::State& state) {
                                     Tensors tensors;
                                     const Work work = prepare(tensors);
                                     for (auto _ : state) work.run();
                                     state.SetBytesProcessed(state.iterations() * work.bytes);
                                 })
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond)
        ->MinTime(0.2);
}

// a = b + s c in plain C++: what the memory gives to anything that streams. Plain stores also read the line
// they write, which STREAM does not count.
void add_triad() {
    add("triad", [](Tensors& t) {
        const Tensor a = t.make(DType::f32, kParameters), b = t.make(DType::f32, kParameters),
                     c = t.make(DType::f32, kParameters);
        return Work{[=] {
                        parallel_ranges(kParameters, 1 << 15, [&](int64_t begin, int64_t end) {
                            float* out = a.as<float>();
                            const float *x = b.as<float>(), *y = c.as<float>();
                            for (int64_t i = begin; i < end; ++i) out[i] = x[i] + 3.0f * y[i];
                        });
                    },
                    a.bytes() + b.bytes() + c.bytes()};
    });
    add("update in place", [](Tensors& t) {  // AdamW's pattern: three arrays read and written, one read
        const Tensor a = t.make(DType::f32, kParameters), b = t.make(DType::f32, kParameters),
                     c = t.make(DType::f32, kParameters), d = t.make(DType::f32, kParameters);
        return Work{[=] {
                        parallel_ranges(kParameters, 1 << 15, [&](int64_t begin, int64_t end) {
                            float *x = a.as<float>(), *y = b.as<float>(), *z = c.as<float>();
                            const float* g = d.as<float>();
                            for (int64_t i = begin; i < end; ++i) {
                                x[i] += g[i];
                                y[i] += g[i];
                                z[i] += g[i];
                            }
                        });
                    },
                    2 * (a.bytes() + b.bytes() + c.bytes()) + d.bytes()};
    });
}

void add_norms(DType dtype, const std::string& suffix) {
    add("rmsnorm_forward" + suffix, [=](Tensors& t) {
        const Tensor x = t.make(dtype, kTokens, kChannels), y = t.make(dtype, kTokens, kChannels);
        const Tensor w = t.make(dtype, kChannels), rstd = t.make(DType::f32, kTokens);
        return Work{[=] { rmsnorm_forward(y, rstd, x, w, 1e-5f); }, x.bytes() + y.bytes()};
    });
    add("rmsnorm_backward" + suffix, [=](Tensors& t) {
        const Tensor x = t.make(dtype, kTokens, kChannels), dx = t.make(dtype, kTokens, kChannels);
        const Tensor dy = t.make(dtype, kTokens, kChannels), w = t.make(dtype, kChannels);
        const Tensor rstd = t.make(DType::f32, kTokens), dw = t.make(DType::f32, kChannels);
        return Work{[=] { rmsnorm_backward(dx, dw, dy, x, w, rstd, false); }, 3 * x.bytes()};
    });
    add("layernorm_forward" + suffix, [=](Tensors& t) {
        const Tensor x = t.make(dtype, kTokens, kChannels), y = t.make(dtype, kTokens, kChannels);
        const Tensor w = t.make(dtype, kChannels), mean = t.make(DType::f32, kTokens),
                     rstd = t.make(DType::f32, kTokens);
        return Work{[=] { layernorm_forward(y, mean, rstd, x, w, w, 1e-5f); }, x.bytes() + y.bytes()};
    });
    add("layernorm_backward" + suffix, [=](Tensors& t) {
        const Tensor x = t.make(dtype, kTokens, kChannels), dx = t.make(dtype, kTokens, kChannels);
        const Tensor dy = t.make(dtype, kTokens, kChannels), w = t.make(dtype, kChannels);
        const Tensor mean = t.make(DType::f32, kTokens), rstd = t.make(DType::f32, kTokens);
        const Tensor dw = t.make(DType::f32, kChannels), db = t.make(DType::f32, kChannels);
        return Work{[=] { layernorm_backward(dx, dw, db, dy, x, w, mean, rstd, false); }, 3 * x.bytes()};
    });
}

void add_heads(DType dtype, const std::string& suffix) {
    constexpr int64_t kWidth = 3 * kHeads * kHeadDim, kNormed = 2 * kHeads * kHeadDim;
    add("rope_forward" + suffix, [=](Tensors& t) {
        const Tensor qkv = t.make(dtype, kTokens, kWidth), table = t.make(DType::f32, 1024, kHeadDim);
        const Tensor positions = t.ids(kTokens, 1024);
        rope_table(table, 1e4, {}, 1024, 0);
        return Work{[=] { rope_forward(qkv, table, positions, kHeads, kHeads); }, 2 * (qkv.bytes() * 2 / 3)};
    });
    add("qknorm_forward" + suffix, [=](Tensors& t) {
        const Tensor qkv = t.make(dtype, kTokens, kWidth), raw = t.make(dtype, kTokens, kNormed);
        const Tensor rstd = t.make(DType::f32, kTokens, 2 * kHeads), w = t.make(dtype, kHeadDim);
        return Work{[=] { qknorm_forward(qkv, rstd, raw, w, w, 1e-6f, kHeads, kHeads); }, 3 * raw.bytes()};
    });
    add("qknorm_backward" + suffix, [=](Tensors& t) {
        const Tensor dqkv = t.make(dtype, kTokens, kWidth), raw = t.make(dtype, kTokens, kNormed);
        const Tensor rstd = t.make(DType::f32, kTokens, 2 * kHeads), w = t.make(dtype, kHeadDim);
        const Tensor dw = t.make(DType::f32, kHeadDim);
        return Work{[=] { qknorm_backward(dqkv, dw, dw, raw, rstd, w, w, kHeads, kHeads); }, 3 * raw.bytes()};
    });
}

void add_elementwise(DType dtype, const std::string& suffix) {
    const auto unary = [&](const char* name, void (*forward)(Tensor, Tensor, Tensor, Stream),
                           void (*backward)(Tensor, Tensor, Tensor, Tensor, Stream)) {
        add(name + ("_forward" + suffix), [=](Tensors& t) {
            const Tensor x = t.make(dtype, kTokens, kHidden), y = t.make(dtype, kTokens, kHidden);
            return Work{[=] { forward(y, x, {}, {}); }, 2 * x.bytes()};
        });
        add(name + ("_backward" + suffix), [=](Tensors& t) {
            const Tensor x = t.make(dtype, kTokens, kHidden), dy = t.make(dtype, kTokens, kHidden),
                         dx = t.make(dtype, kTokens, kHidden);
            return Work{[=] { backward(dx, x, dy, {}, {}); }, 3 * x.bytes()};
        });
    };
    unary("gelu", gelu_forward, gelu_backward);
    unary("relu2", relu2_forward, relu2_backward);
    add("swiglu_forward" + suffix, [=](Tensors& t) {
        const Tensor x = t.make(dtype, kTokens, 2 * kHidden), y = t.make(dtype, kTokens, kHidden);
        return Work{[=] { swiglu_forward(y, x); }, x.bytes() + y.bytes()};
    });
    add("swiglu_backward" + suffix, [=](Tensors& t) {
        const Tensor x = t.make(dtype, kTokens, 2 * kHidden), dx = t.make(dtype, kTokens, 2 * kHidden),
                     dy = t.make(dtype, kTokens, kHidden);
        return Work{[=] { swiglu_backward(dx, x, dy); }, 2 * x.bytes() + dy.bytes()};
    });
    add("residual_forward" + suffix, [=](Tensors& t) {
        const Tensor a = t.make(dtype, kTokens, kChannels), b = t.make(dtype, kTokens, kChannels),
                     out = t.make(dtype, kTokens, kChannels);
        return Work{[=] { residual_forward(out, a, b); }, 3 * a.bytes()};
    });
}

void add_embedding(DType dtype, const std::string& suffix) {
    add("embedding_forward" + suffix, [=](Tensors& t) {
        const Tensor wte = t.make(dtype, kVocab, kChannels), wpe = t.make(dtype, 1024, kChannels),
                     out = t.make(dtype, kTokens, kChannels);
        const Tensor tokens = t.ids(kTokens, kVocab), positions = t.ids(kTokens, 1024);
        return Work{[=] { embedding_forward(out, wte, wpe, tokens, positions); }, 2 * out.bytes()};
    });
    add("embedding_backward" + suffix, [=](Tensors& t) {
        const Tensor dwte = t.make(DType::f32, kVocab, kChannels), dout = t.make(dtype, kTokens, kChannels);
        const Tensor tokens = t.ids(kTokens, kVocab);
        return Work{[=] { embedding_backward(dwte, {}, dout, tokens, {}); },
                    dout.bytes() + 2 * kTokens * kChannels * 4};
    });
}

void add_optimizers() {
    for (bool rounded : {false, true}) {
        add(rounded ? "adamw/bf16" : "adamw/f32", [=](Tensors& t) {
            const Tensor master = t.make(DType::f32, kParameters), m = t.make(DType::f32, kParameters);
            const Tensor v = t.make(DType::f32, kParameters), grad = t.make(DType::f32, kParameters);
            const Tensor param = rounded ? t.make(DType::bf16, kParameters) : Tensor{};
            fill_zero(v);
            const AdamWStep step{.lr = 1e-3f,
                                 .beta1 = 0.9f,
                                 .beta2 = 0.95f,
                                 .eps = 1e-8f,
                                 .weight_decay = 0.1f,
                                 .grad_scale = 1,
                                 .step = 10,
                                 .rounding = {.seed = 1, .stream = 2},
                                 .first_index = 0};
            return Work{[=] { adamw_step(param, master, m, v, grad, step); },
                        7 * master.bytes() + param.bytes()};
        });
    }
    add("sum_of_squares", [](Tensors& t) {
        const Tensor x = t.make(DType::f32, kParameters);
        return Work{[=] { benchmark::DoNotOptimize(sum_of_squares(x)); }, x.bytes()};
    });
    add("cast/f32 to bf16", [](Tensors& t) {
        const Tensor x = t.make(DType::f32, kParameters), out = t.make(DType::bf16, kParameters);
        return Work{[=] { cast(out, x); }, x.bytes() + out.bytes()};
    });
    add("cast_stochastic", [](Tensors& t) {
        const Tensor x = t.make(DType::f32, kParameters), out = t.make(DType::bf16, kParameters);
        return Work{[=] { cast_stochastic(out, x, {.seed = 1, .stream = 2}, 0); }, x.bytes() + out.bytes()};
    });
    for (MatmulMath math : {MatmulMath::f32, MatmulMath::bf16}) {  // bound by its products: see ms, not bytes
        add(math == MatmulMath::f32 ? "muon/f32" : "muon/bf16", [=](Tensors& t) {
            const MuonMatrices matrices{.rows = kHidden, .cols = kChannels, .offsets = {0}};
            const Tensor master = t.make(DType::f32, matrices.size()),
                         momentum = t.make(DType::f32, matrices.size());
            const Tensor grad = t.make(DType::f32, matrices.size()),
                         param = t.make(DType::bf16, matrices.size());
            const Tensor scratch = t.bytes(muon_scratch_bytes(matrices, math, Device::cpu));
            const MuonStep step{.lr = 0.02f,
                                .momentum = 0.95f,
                                .weight_decay = 0,
                                .grad_scale = 1,
                                .rounding = {},
                                .first_index = 0};
            return Work{[=] { muon_step(param, master, momentum, grad, matrices, step, math, scratch); },
                        5 * master.bytes() + param.bytes()};
        });
    }
}

void add_head() {
    for (DType dtype : {DType::f32, DType::bf16}) {  // bound by its products: see ms, not bytes
        add(cat({"cross_entropy/", dtype_name(dtype)}), [=](Tensors& t) {
            constexpr int64_t kRows = 256;
            const Tensor hidden = t.make(dtype, kRows, kChannels), dhidden = t.make(dtype, kRows, kChannels);
            const Tensor weight = t.make(dtype, kVocab, kChannels),
                         dweight = t.make(DType::f32, kVocab, kChannels);
            const Tensor losses = t.make(DType::f32, kRows), targets = t.ids(kRows, kVocab);
            const Tensor dloss_scale = t.make(DType::f32, 1);
            const Tensor scratch = t.bytes(cross_entropy_scratch_bytes(kRows, kVocab, dtype));
            const MatmulMath math = dtype == DType::f32 ? MatmulMath::f32 : MatmulMath::bf16;
            return Work{[=] {
                            cross_entropy(losses, dhidden, dweight, hidden, weight, targets, dloss_scale,
                                          false, math, scratch);
                        },
                        2 * weight.bytes() + dweight.bytes() + 6 * scratch.bytes()};
        });
    }
    for (int64_t top_k : {int64_t{0}, int64_t{50}}) {
        add(cat({"sample_token/top_k ", top_k}), [=](Tensors& t) {
            const Tensor logits = t.make(DType::f32, kVocab);
            return Work{[=] { benchmark::DoNotOptimize(sample_token(logits, {.top_k = top_k}, 0.3f)); },
                        logits.bytes()};
        });
    }
}

}  // namespace

int main(int argc, char** argv) {
    add_triad();
    for (DType dtype : {DType::f32, DType::bf16}) {
        const std::string suffix = cat({"/", dtype_name(dtype)});
        add_norms(dtype, suffix);
        add_heads(dtype, suffix);
        add_elementwise(dtype, suffix);
        add_embedding(dtype, suffix);
    }
    add_optimizers();
    add_head();
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    benchmark::RunSpecifiedBenchmarks();
}
