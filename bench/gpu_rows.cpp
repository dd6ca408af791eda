// Which rows there are.
#include "bench/gpu_rows.h"

#include <algorithm>

#include "bench/gpu_row_list.h"

std::string GpuRow::shape() const {
    std::string text = model;
    for (const auto& [name, size] : sizes) text += cat({text.empty() ? "" : " ", name, "=", size});
    return text;
}

const std::vector<std::string>& gpu_row_ops() {
    static const std::vector<std::string> ops = {
        "matmul",   "attention", "kv_cache", "cross_entropy", "loss_sum",    "layernorm",
        "rmsnorm",  "rope",      "qknorm",   "swiglu",        "gelu",        "relu2",
        "residual", "embedding", "adamw",    "muon",          "global_norm", "cast"};
    return ops;
}

std::vector<GpuRow> gpu_rows(const GpuRowChoice& choice) {
    std::vector<GpuRow> result;
    for (const Precision& precision : choice.precisions) {
        for (const std::string& model : choice.models) {
            const ModelConfig c = config_preset(model);
            Rows rows(choice, result, model, precision);
            for (int64_t n : choice.tokens) {
                const int64_t length = std::min(n, choice.seq_lens[0]);
                add_matmul(rows, c, n);
                add_cross_entropy(rows, c, n);
                add_norm(rows, c, n);
                if (c.position == Position::rope) add_heads(rows, c, n, length);
                add_activations(rows, c, n);
                add_stream(rows, c, n, length);
            }
            const int64_t most = *std::max_element(choice.tokens.begin(), choice.tokens.end());
            for (int64_t length : choice.seq_lens) {
                if (length <= most) add_attention(rows, c, most / length * length, length);
            }
            add_muon(rows, c);
        }
        Rows rows(choice, result, "", precision);
        add_arrays(rows, choice.elements);
    }
    return result;
}

GpuRow ceiling_matmul(int64_t n, const Precision& precision) {
    const DType dtype = precision.dtype;
    const MatmulMath math = precision.math;
    return {"matmul",
            "ceiling",
            "",
            {{"N", n}, {"outputs", n}, {"inputs", n}},
            precision,
            3 * product({n, n}) * static_cast<double>(dtype_bytes(dtype)),
            2 * product({n, n, n}),
            [=](GpuTensors& t) -> Run {
                const Tensor out = t.make(dtype, n, n), inp = t.make(dtype, n, n), w = t.make(dtype, n, n);
                return [=] { matmul_forward(out, inp, w, {}, math); };
            }};
}

GpuRow ceiling_copy(int64_t bytes) {
    return {"copy",
            "ceiling",
            "",
            {{"bytes", bytes}},
            {"u8", DType::u8, MatmulMath::f32},
            2 * product({bytes}),
            0,
            [=](GpuTensors& t) -> Run {
                const Tensor out = t.make(DType::bf16, bytes / 2), inp = t.make(DType::bf16, bytes / 2);
                return [=] { copy_tensor(out, inp); };
            }};
}
