// The table. Steps are medians of those shown, the first ones left out. Batches of Megatron's, fms-fsdp's and
// torchtitan's runs are partly not given: they hardly matter to the time of a token.
#include "model/published_runs.h"

namespace {

struct Batch {
    int64_t rows, seq_len, micro_batches;
};
struct Setting {
    const char* gpu;
    int64_t num_gpus;
    int zero = 1;
    bool fp8 = false;
    Recompute recompute = Recompute::none;
};

PaperRun paper_run(const ModelConfig& model, const Setting& setting, const Batch& batch) {
    return {.model = model,
            .gpu = gpu_named(setting.gpu),
            .shape = {.num_rows = batch.rows,
                      .seq_len = batch.seq_len,
                      .dtype = DType::bf16,
                      .fp8 = setting.fp8,
                      .recompute = setting.recompute},
            .zero = setting.zero,
            .num_gpus = setting.num_gpus,
            .micro_batches = batch.micro_batches,
            .network = {}};
}

// Megatron's README gives sizes, rates and TFLOP/s: these are the shapes that agree with all three.
ModelConfig megatron(int64_t num_layers, int64_t channels) {
    ModelConfig config = config_preset("gpt2-124m");
    config.vocab_size = 131072;
    config.max_position = 4096;
    config.num_layers = num_layers;
    config.channels = channels;
    config.head_dim = 128;
    config.num_heads = config.num_kv_heads = channels / config.head_dim;
    config.mlp_dim = 4 * channels;
    config.tied_head = false;
    return config;
}

ModelConfig llama2_7b() {
    ModelConfig config = config_preset("llama-160m");
    config.max_position = 4096;
    config.num_layers = config.num_heads = config.num_kv_heads = 32;
    config.head_dim = 128;
    config.channels = 4096;
    config.mlp_dim = 11008;
    return config;
}

// Constants are chosen by every second run of the trainers that are like this one.
void choose_fitted(std::vector<PublishedRun>& runs) {
    for (size_t i = 0; i < runs.size(); ++i) {
        const std::string trainer = runs[i].trainer;
        runs[i].fitted = i % 2 == 0 && (trainer == "llm.c" || trainer == "llmq");
    }
}

std::vector<PublishedRun> all_runs() {
    const auto preset = [](const char* name) { return config_preset(name); };
    const char* const llmq1 = "benchmarks/H100x1.md";
    const char* const llmq8 = "benchmarks/H100x8.md";
    const char* const scripts = "scripts/run_gpt2_*.sh";
    const char* const megatron_table = "README.md";
    const auto bf16 = [](int64_t num_gpus) { return Setting{.gpu = "h100", .num_gpus = num_gpus}; };
    const auto fp8 = [](int64_t num_gpus, Recompute recompute = Recompute::none) {
        return Setting{.gpu = "h100", .num_gpus = num_gpus, .fp8 = true, .recompute = recompute};
    };
    const auto qwen = [&](const char* name, const Setting& setting, const Batch& batch, double rate,
                          const char* remark = "") {
        return PublishedRun{"llmq",
                            name,
                            paper_run(preset(name), setting, batch),
                            rate,
                            setting.num_gpus == 1 ? llmq1 : llmq8,
                            remark};
    };
    const auto gpt2 = [&](const char* name, const Setting& setting, const Batch& batch, double rate,
                          const char* source, const char* remark = "") {
        return PublishedRun{"llm.c", name, paper_run(preset(name), setting, batch), rate, source, remark};
    };
    const Setting a100{.gpu = "a100", .num_gpus = 8};
    return {
        gpt2("gpt2-124m", bf16(8), {64, 1024, 1}, 468e3, "modded-nanogpt records"),
        gpt2("gpt2-124m", a100, {64, 1024, 1}, 218e3, scripts),
        gpt2("gpt2-355m", a100, {64, 1024, 1}, 79.9e3, scripts),
        gpt2("gpt2-774m", a100, {32, 1024, 2}, 38.6e3, scripts),
        gpt2("gpt2-1558m", bf16(8), {16, 1024, 8}, 47.6e3, scripts),
        gpt2("gpt2-124m", bf16(1), {4, 1024, 1}, 144.5e3, "pull request 591", "small batch"),
        qwen("qwen2.5-0.5b", bf16(1), {32, 1024, 16}, 149e3),
        qwen("qwen2.5-1.5b", bf16(1), {32, 1024, 16}, 59.2e3),
        qwen("qwen2.5-3b", bf16(1), {16, 1024, 32}, 30.9e3),
        qwen("qwen2.5-7b", bf16(1), {4, 1024, 128}, 13.85e3),
        qwen("qwen2.5-0.5b", bf16(8), {32, 1024, 2}, 146.9e3),
        qwen("qwen2.5-1.5b", bf16(8), {32, 1024, 2}, 57.1e3),
        qwen("qwen2.5-3b", bf16(8), {16, 1024, 4}, 29.9e3),
        qwen("qwen2.5-7b", bf16(8), {8, 1024, 8}, 14.0e3),
        qwen("qwen2.5-0.5b", fp8(1), {32, 1024, 16}, 164e3),
        qwen("qwen2.5-1.5b", fp8(1), {32, 1024, 16}, 73.0e3),
        qwen("qwen2.5-3b", fp8(1), {16, 1024, 32}, 40.4e3),
        qwen("qwen2.5-7b", fp8(1, Recompute::mlp), {16, 1024, 32}, 19.15e3, "residual offloaded"),
        qwen("qwen2.5-0.5b", fp8(8), {64, 1024, 1}, 163.4e3),
        qwen("qwen2.5-1.5b", fp8(8), {32, 1024, 2}, 70.5e3),
        qwen("qwen2.5-3b", fp8(8), {16, 1024, 4}, 39.1e3),
        qwen("qwen2.5-7b", fp8(8, Recompute::mlp), {16, 1024, 4}, 19.8e3, "residual offloaded"),
        {"Megatron-LM", "GPT 1.7B", paper_run(megatron(24, 2048), bf16(48), {2, 4096, 2}), 36.3e3,
         megatron_table, ""},
        {"Megatron-LM", "GPT 7.1B", paper_run(megatron(30, 4096), bf16(96), {2, 4096, 2}), 10.2e3,
         megatron_table, "TP 2"},
        {"Megatron-LM", "GPT 16B", paper_run(megatron(32, 6144), bf16(192), {2, 4096, 2}), 4.8e3,
         megatron_table, "TP 4"},
        {"Megatron-Bridge", "llama-8b", paper_run(preset("llama-8b"), {"h100", 8, 3, true}, {1, 8192, 16}),
         14451, "performance-summary", ""},
        {"torchtitan", "llama-8b", paper_run(preset("llama-8b"), {"h200", 32, 3, true}, {2, 8192, 1}), 10938,
         "llama3-8b_h200_202506", "PyTorch"},
        {"fms-fsdp", "Llama-2-7B", paper_run(llama2_7b(), {"h100", 96, 3}, {2, 4096, 1}), 9600, "README.md",
         "PyTorch"},
    };
}

}  // namespace

const std::vector<PublishedRun>& published_runs() {
    static const std::vector<PublishedRun> runs = [] {
        std::vector<PublishedRun> all = all_runs();
        choose_fitted(all);
        return all;
    }();
    return runs;
}

double prediction_error(const PublishedRun& published) {
    const double predicted = tokens_per_second(published.run) / double(published.run.num_gpus);
    return predicted / published.tokens_per_second - 1;
}
