// Rows of ops that touch each element a few times: norms, rotations, activations, the residual stream,
// optimizer.
#include "bench/gpu_row_list.h"
#include "kernels/adamw.h"
#include "kernels/cast.h"
#include "kernels/embedding.h"
#include "kernels/gelu.h"
#include "kernels/global_norm.h"
#include "kernels/layernorm.h"
#include "kernels/qknorm.h"
#include "kernels/relu2.h"
#include "kernels/residual.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"

// The gradient of the stream is added to, as in a layer.
void add_norm(Rows& rows, const ModelConfig& c, int64_t n) {
    const int64_t channels = c.channels;
    const DType dtype = rows.dtype();
    const Sizes sizes = {{"N", n}, {"C", channels}};
    const double bytes = rows.element() * product({n, channels});
    if (c.norm == Norm::layernorm) {
        rows.add("layernorm", "forward", sizes, 2 * bytes, 0, [=](GpuTensors& t) -> Run {
            const Tensor y = t.make(dtype, n, channels), x = t.make(dtype, n, channels);
            const Tensor mean = t.make(DType::f32, n), rstd = t.make(DType::f32, n);
            const Tensor w = t.make(dtype, channels), b = t.make(dtype, channels);
            return [=] { layernorm_forward(y, mean, rstd, x, w, b, 1e-5f); };
        });
        rows.add("layernorm", "backward", sizes, 4 * bytes, 0, [=](GpuTensors& t) -> Run {
            const Tensor dx = t.make(dtype, n, channels), dy = t.make(dtype, n, channels);
            const Tensor x = t.make(dtype, n, channels), w = t.make(dtype, channels);
            const Tensor dw = t.make(DType::f32, channels), db = t.make(DType::f32, channels);
            const Tensor mean = t.make(DType::f32, n), rstd = t.make(DType::f32, n);
            return [=] { layernorm_backward(dx, dw, db, dy, x, w, mean, rstd, true); };
        });
        return;
    }
    rows.add("rmsnorm", "forward", sizes, 2 * bytes, 0, [=](GpuTensors& t) -> Run {
        const Tensor y = t.make(dtype, n, channels), x = t.make(dtype, n, channels);
        const Tensor rstd = t.make(DType::f32, n), w = t.make(dtype, channels);
        return [=] { rmsnorm_forward(y, rstd, x, w, 1e-5f); };
    });
    rows.add("rmsnorm", "backward", sizes, 4 * bytes, 0, [=](GpuTensors& t) -> Run {
        const Tensor dx = t.make(dtype, n, channels), dy = t.make(dtype, n, channels);
        const Tensor x = t.make(dtype, n, channels), w = t.make(dtype, channels);
        const Tensor dw = t.make(DType::f32, channels), rstd = t.make(DType::f32, n);
        return [=] { rmsnorm_backward(dx, dw, dy, x, w, rstd, true); };
    });
}

void add_heads(Rows& rows, const ModelConfig& c, int64_t n, int64_t length) {
    const int64_t h = c.num_heads, k = c.num_kv_heads, d = c.head_dim, wide = (h + 2 * k) * d;
    const DType dtype = rows.dtype();
    const Sizes sizes = {{"N", n}, {"H", h}, {"K", k}, {"D", d}};
    const double bytes = rows.element() * product({n, h + k, d});  // of queries and keys
    const auto rope = [&](const char* pass, auto op) {
        rows.add("rope", pass, sizes, 2 * bytes, 0, [=](GpuTensors& t) -> Run {
            Buffer table(length * d * 4);
            rope_table(table.tensor(DType::f32).view(length, d), 1e4, {}, length, length);
            const Tensor on_device = t.copy_of(table.tensor(DType::f32).view(length, d));
            const Tensor qkv = t.make(dtype, n, wide), positions = t.positions(n / length, length);
            return [=] { op(qkv, on_device, positions, h, k); };
        });
    };
    rope("forward", [](auto... arguments) { rope_forward(arguments...); });
    rope("backward", [](auto... arguments) { rope_backward(arguments...); });
    rows.add("qknorm", "forward", sizes, 3 * bytes, 0, [=](GpuTensors& t) -> Run {
        const Tensor qkv = t.make(dtype, n, wide), raw = t.make(dtype, n, (h + k) * d);
        const Tensor rstd = t.make(DType::f32, n, h + k), wq = t.make(dtype, d), wk = t.make(dtype, d);
        return [=] { qknorm_forward(qkv, rstd, raw, wq, wk, 1e-6f, h, k); };
    });
    rows.add("qknorm", "backward", sizes, 3 * bytes, 0, [=](GpuTensors& t) -> Run {
        const Tensor dqkv = t.make(dtype, n, wide), raw = t.make(dtype, n, (h + k) * d);
        const Tensor rstd = t.make(DType::f32, n, h + k), wq = t.make(dtype, d), wk = t.make(dtype, d);
        const Tensor dwq = t.make(DType::f32, d), dwk = t.make(DType::f32, d);
        return [=] { qknorm_backward(dqkv, dwq, dwk, raw, rstd, wq, wk, h, k); };
    });
}

void add_activations(Rows& rows, const ModelConfig& c, int64_t n) {
    const int64_t wide = c.mlp_dim;
    const DType dtype = rows.dtype();
    const Sizes sizes = {{"N", n}, {"F", wide}};
    const double bytes = rows.element() * product({n, wide});
    if (c.mlp == Mlp::swiglu) {
        rows.add("swiglu", "forward", sizes, 3 * bytes, 0, [=](GpuTensors& t) -> Run {
            const Tensor out = t.make(dtype, n, wide), gate_up = t.make(dtype, n, 2 * wide);
            return [=] { swiglu_forward(out, gate_up); };
        });
        rows.add("swiglu", "backward", sizes, 5 * bytes, 0, [=](GpuTensors& t) -> Run {
            const Tensor dout = t.make(dtype, n, wide), gate_up = t.make(dtype, n, 2 * wide);
            const Tensor dgate_up = t.make(dtype, n, 2 * wide);
            return [=] { swiglu_backward(dgate_up, gate_up, dout); };
        });
        return;
    }
    const auto unary = [&](const char* op, auto forward, auto backward) {
        rows.add(op, "forward", sizes, 2 * bytes, 0, [=](GpuTensors& t) -> Run {
            const Tensor out = t.make(dtype, n, wide), inp = t.make(dtype, n, wide);
            return [=] { forward(out, inp, {}, {}); };
        });
        rows.add(op, "backward", sizes, 3 * bytes, 0, [=](GpuTensors& t) -> Run {
            const Tensor dinp = t.make(dtype, n, wide), inp = t.make(dtype, n, wide);
            const Tensor dout = t.make(dtype, n, wide);
            return [=] { backward(dinp, inp, dout, {}, {}); };
        });
    };
    unary("gelu", gelu_forward, gelu_backward);
    unary("relu2", relu2_forward, relu2_backward);
}

void add_stream(Rows& rows, const ModelConfig& c, int64_t n, int64_t length) {
    const int64_t channels = c.channels, vocab = c.vocab_size, documents = n / length;
    const bool learned = c.position == Position::learned;
    const DType dtype = rows.dtype();
    const Sizes sizes = {{"N", n}, {"C", channels}};
    const double count = product({n, channels}), bytes = rows.element() * count;
    rows.add("residual", "forward", sizes, 3 * bytes, 0, [=](GpuTensors& t) -> Run {
        const Tensor out = t.make(dtype, n, channels), a = t.make(dtype, n, channels);
        const Tensor b = t.make(dtype, n, channels);
        return [=] { residual_forward(out, a, b); };
    });
    const Sizes table_sizes = {{"N", n}, {"C", channels}, {"V", vocab}};
    rows.add("embedding", "forward", table_sizes, 2 * bytes, 0, [=](GpuTensors& t) -> Run {
        const Tensor out = t.make(dtype, n, channels), wte = t.make(dtype, vocab, channels);
        const Tensor wpe = learned ? t.make(dtype, length, channels) : Tensor{};
        const Tensor tokens = t.ids(n, vocab), positions = t.positions(documents, length);
        return [=] { embedding_forward(out, wte, wpe, tokens, positions); };
    });
    // Each token's own row of the gradient is read and written, if no two are the same.
    rows.add("embedding", "backward", table_sizes, bytes + 8 * count, 0, [=](GpuTensors& t) -> Run {
        const Tensor dout = t.make(dtype, n, channels), dwte = t.make(DType::f32, vocab, channels);
        const Tensor dwpe = learned ? t.make(DType::f32, length, channels) : Tensor{};
        const Tensor tokens = t.ids(n, vocab), positions = t.positions(documents, length);
        return [=] { embedding_backward(dwte, dwpe, dout, tokens, positions); };
    });
}

void add_arrays(Rows& rows, int64_t elements) {
    const Sizes sizes = {{"elements", elements}};
    const double count = product({elements});
    const bool rounded = rows.dtype() == DType::bf16;
    rows.add("adamw", "step", sizes, (rounded ? 30 : 28) * count, 0, [=](GpuTensors& t) -> Run {
        const Tensor master = t.make(DType::f32, elements), m = t.make(DType::f32, elements);
        const Tensor v = t.zeros(DType::f32, elements), grad = t.make(DType::f32, elements);
        const Tensor param = rounded ? t.make(DType::bf16, elements) : Tensor{};
        const AdamWStep step{.lr = 1e-4f,
                             .beta1 = 0.9f,
                             .beta2 = 0.95f,
                             .eps = 1e-8f,
                             .weight_decay = 0.1f,
                             .grad_scale = 1,
                             .step = 10,
                             .rounding = {.seed = 1, .stream = 2},
                             .first_index = 0};
        return [=] { adamw_step(param, master, m, v, grad, step); };
    });
    // Waits for its result: what a small sum takes is the way to the host and back.
    rows.add("global_norm", "sum of squares", sizes, 4 * count, 0, [=](GpuTensors& t) -> Run {
        const Tensor x = t.make(DType::f32, elements);
        return [=] { sum_of_squares(x); };
    });
    if (!rounded) {
        rows.add("cast", "scale in place", sizes, 8 * count, 0, [=](GpuTensors& t) -> Run {
            const Tensor x = t.make(DType::f32, elements);
            return [=] { scale_in_place(x, 1); };
        });
        rows.add("cast", "zero", sizes, 4 * count, 0, [=](GpuTensors& t) -> Run {
            const Tensor x = t.make(DType::f32, elements);
            return [=] { fill_zero(x); };
        });
        return;
    }
    rows.add("cast", "f32 to bf16", sizes, 6 * count, 0, [=](GpuTensors& t) -> Run {
        const Tensor out = t.make(DType::bf16, elements), inp = t.make(DType::f32, elements);
        return [=] { cast(out, inp); };
    });
    rows.add("cast", "stochastic", sizes, 6 * count, 0, [=](GpuTensors& t) -> Run {
        const Tensor out = t.make(DType::bf16, elements), inp = t.make(DType::f32, elements);
        return [=] { cast_stochastic(out, inp, {.seed = 1, .stream = 2}, 0); };
    });
}
