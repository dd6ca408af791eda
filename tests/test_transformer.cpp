// The transformer against its float64 twin: logits, losses and the gradient of every parameter tensor by
// finite differences, for every family; and what must hold to the bit: recomputation, packing, threads,
// smaller batches.
#include "model/transformer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "core/error.h"
#include "core/threads.h"
#include "kernels/matmul_scratch.h"
#include "tests/model_twin.h"
#include "tests/op_check.h"
#include "tests/tiny_model.h"

namespace {
constexpr int64_t kVocab = 37;

ModelConfig llama_config() {
    ModelConfig c;
    c.vocab_size = kVocab;
    c.max_position = 16;
    c.channels = 12;
    c.num_layers = 2;
    c.num_heads = 4;  // H D = 32 is not C, and two query heads share a key-value head
    c.num_kv_heads = 2;
    c.head_dim = 8;
    c.mlp_dim = 13;
    c.rope_theta = 100;  // so that every pair of channels turns visibly within a few positions
    return c;
}

ModelConfig gpt2_config(Mlp mlp, bool tied) {
    ModelConfig c = llama_config();
    c.family = "gpt2";
    c.channels = 16;
    c.num_heads = c.num_kv_heads = 2;
    c.mlp_dim = 19;
    c.norm = Norm::layernorm;
    c.position = Position::learned;
    c.mlp = mlp;
    c.qkv_bias = c.out_bias = c.mlp_bias = true;
    c.tied_head = tied;
    return c;
}

ModelConfig llama_bias_config() {
    ModelConfig c = llama_config();
    c.qkv_bias = c.out_bias = c.mlp_bias = true;
    c.tied_head = true;
    c.num_kv_heads = 4;
    return c;
}

ModelConfig qwen2_config() {
    ModelConfig c = llama_config();
    c.family = "qwen2";
    c.qkv_bias = true;
    c.tied_head = true;
    c.windows = {0, 3};
    return c;
}

ModelConfig qwen3_config() {
    ModelConfig c = llama_config();
    c.family = "qwen3";
    c.qk_norm = true;
    c.num_kv_heads = 1;
    c.windows = {4, 4};
    return c;
}

struct Family {
    const char* name;
    ModelConfig config;
};
const std::vector<Family>& families() {
    static const std::vector<Family> all = {{"gpt2", gpt2_config(Mlp::gelu, true)},
                                            {"gpt2 relu2 untied", gpt2_config(Mlp::relu2, false)},
                                            {"llama", llama_config()},
                                            {"llama biases tied", llama_bias_config()},
                                            {"qwen2 window", qwen2_config()},
                                            {"qwen3 window", qwen3_config()}};
    return all;
}

// Two rows of nine tokens: a document that begins in mid-row, and two tokens without a target.
Batch batch_of(int64_t num_rows, int64_t seq_len, uint32_t seed) {
    Batch batch;
    batch.num_rows = num_rows;
    batch.seq_len = seq_len;
    batch.tokens = random_ids(num_rows * seq_len, 1, kVocab, seed);
    batch.targets = random_ids(num_rows * seq_len, 0, kVocab, seed + 1);
    if (seq_len > 4) {
        batch.tokens[3] = 0;
        batch.targets[2] = batch.targets[seq_len - 1] = -1;
    }
    set_document_bounds(batch, 0);
    return batch;
}

RunShape shape_of(int64_t num_rows, int64_t seq_len, DType dtype = DType::f32) {
    return {.num_rows = num_rows, .seq_len = seq_len, .dtype = dtype};
}

// Larger weights than at initialisation, so that attention, gates and norms matter to the loss; then as the
// dtype holds them. Returns the same values for the twin.
Values set_params(Transformer& model, uint64_t seed) {
    const ParamTable& table = model.table();
    std::vector<float> arena(size_t(table.arena_size()));
    init_params(table, tensor_of(arena.data(), table.arena_size()), seed);
    for (const ParamInfo& row : table.rows()) {
        const Values noise = normal_values(row.size(), uint32_t(row.offset + 1), row.rank == 2 ? 0.3 : 0.1);
        for (int64_t i = 0; i < row.size(); ++i) arena[row.offset + i] += float(noise[i]);
    }
    Values twin(arena.size());
    for (size_t i = 0; i < arena.size(); ++i) {
        if (model.shape().dtype == DType::bf16) {
            model.params().as<bf16>()[i] = to_bf16(arena[i]);
            arena[i] = to_float(to_bf16(arena[i]));
        } else {
            model.params().as<float>()[i] = arena[i];
        }
        twin[i] = arena[i];
    }
    return twin;
}

Values values_of(const float* p, int64_t n) { return Values(p, p + n); }
std::vector<uint8_t> bits_of(const float* p, int64_t n) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(p);
    return {bytes, bytes + n * 4};
}
std::vector<uint8_t> grad_bits(const Transformer& model) {
    return bits_of(model.grads().as<float>(), model.table().arena_size());
}

// |x - y| / |y| over one tensor.
double relative_error(const Values& x, const Values& y) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < x.size(); ++i) difference += (x[i] - y[i]) * (x[i] - y[i]), norm += y[i] * y[i];
    return std::sqrt(difference / norm);
}

enum class Elements { all, some };

// Of `some`, about 48 a tensor: a stride that shares no factor with the row length meets every column in
// time.
int64_t stride_of(const ParamInfo& row, Elements elements) {
    if (elements == Elements::all) return 1;
    int64_t stride = std::max<int64_t>(1, row.size() / 48);
    while (std::gcd(stride, row.cols) != 1) ++stride;
    return stride;
}

// Central differences of the twin's loss.
void expect_gradients(const ModelConfig& config, DType dtype, MatmulMath math, Elements elements,
                      double tolerance) {
    const float scale = 0.25f;
    const Batch batch = batch_of(2, 9, 5);
    RunShape shape = shape_of(2, 9, dtype);
    shape.math = math;
    Transformer model(config, shape);
    const Values params = set_params(model, 1);
    const ModelTwin twin(config, model.table());

    const double loss = step_loss(model, batch, scale, false);
    EXPECT_NEAR(loss, twin.loss(params, batch), tolerance * loss);
    for (const ParamInfo& row : model.table().rows()) {
        const int64_t stride = stride_of(row, elements), count = (row.size() + stride - 1) / stride;
        Values expected(count), actual(count);
        parallel_ranges(count, 16, [&](int64_t begin, int64_t end) {
            Values moved = params;
            for (int64_t k = begin; k < end; ++k) {
                const int64_t i = row.offset + k * stride;
                const double step = 1e-4;
                moved[i] = params[i] + step;
                const double above = twin.loss(moved, batch);
                moved[i] = params[i] - step;
                const double below = twin.loss(moved, batch);
                moved[i] = params[i];
                expected[k] = scale * (above - below) / (2 * step);
                actual[k] = model.grads().as<float>()[i];
            }
        });
        EXPECT_LE(relative_error(actual, expected), tolerance) << row.hf_name;
    }
}
}  // namespace

// f32 keeps 24 bits; a few dozen roundings through two layers make 3e-6 of a tensor's norm here, and the
// second-order error of the differences (step 1e-4, third derivatives of order 1 to 100) stays below 1e-6:
// ten times that is allowed.
TEST(Transformer, GradientsMatchFiniteDifferences) {
    for (const Family& family : families()) {
        SCOPED_TRACE(family.name);
        expect_gradients(family.config, DType::f32, MatmulMath::f32, Elements::all, 3e-5);
    }
}

// bf16 keeps 8 bits: each rounding errs by up to 2^-9 = 0.2 %, about twenty of them in a row feed each
// gradient, and these weights, larger than a model's, magnify them to 6 % in the worst tensor. A wrong term
// is off by more.
TEST(Transformer, Bf16GradientsMatchFiniteDifferences) {
    for (const Family& family : families()) {
        SCOPED_TRACE(family.name);
        expect_gradients(family.config, DType::bf16, MatmulMath::bf16, Elements::some, 0.1);
    }
}

// Operands of products are rounded to bf16, the stream and the norms are not: half of that.
TEST(Transformer, Bf16ProductsOfF32MatchFiniteDifferences) {
    for (const Family& family : families()) {
        SCOPED_TRACE(family.name);
        expect_gradients(family.config, DType::f32, MatmulMath::bf16, Elements::some, 0.06);
    }
}

TEST(Transformer, LogitsAndLossesMatchTheTwin) {
    for (const Family& family : families()) {
        SCOPED_TRACE(family.name);
        RunShape shape = shape_of(2, 9);
        shape.backward = false;
        Transformer model(family.config, shape);
        const Values params = set_params(model, 2);
        const ModelTwin twin(family.config, model.table());
        const Batch batch = batch_of(2, 9, 7);
        Guarded<float> logits(18 * kVocab), losses(18);
        model.forward_logits(batch, logits.tensor(18, kVocab));
        expect_close(logits.values(), twin.logits(params, batch), 2e-5, "logits");
        const double sum = model.forward_loss(batch, losses.tensor());
        expect_close(losses.values(), twin.losses(params, batch), 2e-5, "losses");
        double in_order = 0;
        for (const double loss : losses.values()) in_order += loss;
        EXPECT_EQ(sum, in_order);
    }
}

TEST(Transformer, GradientsAreSetThenAccumulated) {
    for (const Family& family : families()) {
        SCOPED_TRACE(family.name);
        Transformer whole(family.config, shape_of(2, 9)), parts(family.config, shape_of(1, 9));
        set_params(whole, 3), set_params(parts, 3);
        const Batch batch = batch_of(2, 9, 9);
        Batch half[2];
        for (int64_t r = 0; r < 2; ++r) {
            half[r].num_rows = 1, half[r].seq_len = 9;
            half[r].tokens.assign(batch.tokens.begin() + r * 9, batch.tokens.begin() + (r + 1) * 9);
            half[r].targets.assign(batch.targets.begin() + r * 9, batch.targets.begin() + (r + 1) * 9);
            set_document_bounds(half[r], 0);
        }
        whole.forward_backward(batch, 0.5f, false);
        parts.forward_backward(batch_of(1, 9, 99), 3, false);  // must leave no trace
        parts.forward_backward(half[0], 0.5f, false);
        const double loss = step_loss(parts, half[1], 0.5f, true);  // of both
        const int64_t size = whole.table().arena_size();
        // Sums over tokens in another order.
        expect_close(values_of(parts.grads().as<float>(), size), values_of(whole.grads().as<float>(), size),
                     1e-4, "gradients");
        EXPECT_NEAR(loss, whole.forward_loss(batch), 1e-6 * loss);
    }
}

TEST(Transformer, RecomputationGivesTheSameBits) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
        for (const Family& family : families()) {
            SCOPED_TRACE(std::string(family.name) + " " + dtype_name(dtype));
            RunShape shape = shape_of(2, 9, dtype);
            const Batch batch = batch_of(2, 9, 11);
            std::vector<uint8_t> bits[3];
            Values grads[3];
            for (const Recompute level : {Recompute::none, Recompute::mlp, Recompute::block}) {
                shape.recompute = level;
                Transformer model(family.config, shape);
                set_params(model, 4);
                model.forward_backward(batch, 1, false);
                bits[int(level)] = grad_bits(model);
                grads[int(level)] = values_of(model.grads().as<float>(), model.table().arena_size());
            }
            if (family.config.mlp == Mlp::gelu && dtype == DType::bf16) {
                // The product's epilogue takes the GELU of the sum in f32, the recomputation of the sum as it
                // was stored: activations differ by the rounding of their argument, 2^-9 of it.
                EXPECT_LE(relative_error(grads[int(Recompute::mlp)], grads[int(Recompute::none)]), 0.005);
            } else {
                EXPECT_TRUE(bits[int(Recompute::mlp)] == bits[int(Recompute::none)]);
            }
            EXPECT_TRUE(bits[int(Recompute::block)] == bits[int(Recompute::none)]);
        }
    }
}

TEST(Transformer, TrainingAndEvaluationGiveTheSameLossBits) {
    for (const Family& family : families()) {
        SCOPED_TRACE(family.name);
        RunShape evaluation = shape_of(2, 9);
        evaluation.backward = false;
        Transformer model(family.config, shape_of(2, 9)), evaluator(family.config, evaluation);
        set_params(model, 5), set_params(evaluator, 5);
        const Batch batch = batch_of(2, 9, 13);
        const double loss = step_loss(model, batch, 1, false);
        EXPECT_EQ(loss, model.forward_loss(batch));
        EXPECT_EQ(loss, evaluator.forward_loss(batch));
        EXPECT_TRUE(evaluator.grads().absent());
    }
}

TEST(Transformer, PackedDocumentsHaveTheLossesOfLoneOnes) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
        for (const Family& family : families()) {
            SCOPED_TRACE(std::string(family.name) + " " + dtype_name(dtype));
            Transformer model(family.config, shape_of(2, 9, dtype));
            set_params(model, 6);
            const Batch packed = batch_of(2, 9, 15);
            ASSERT_EQ(packed.cu_seqlens, (std::vector<int32_t>{0, 3, 9, 18}));
            Guarded<float> losses(18);
            model.forward_loss(packed, losses.tensor());
            for (size_t s = 0; s + 1 < packed.cu_seqlens.size(); ++s) {
                const int64_t begin = packed.cu_seqlens[s], end = packed.cu_seqlens[s + 1];
                Batch alone;
                alone.num_rows = 1, alone.seq_len = end - begin;
                alone.tokens.assign(packed.tokens.begin() + begin, packed.tokens.begin() + end);
                alone.targets.assign(packed.targets.begin() + begin, packed.targets.begin() + end);
                set_document_bounds(alone, 0);
                Guarded<float> expected(end - begin);
                model.forward_loss(alone, expected.tensor());
                EXPECT_EQ(bits_of(losses.data() + begin, end - begin), expected.bytes()) << "document " << s;
            }
        }
    }
}

TEST(Transformer, SameBitsForAnyNumberOfThreads) {
    for (const Family& family : families()) {
        SCOPED_TRACE(family.name);
        const Batch batch = batch_of(2, 9, 17);
        expect_same_bits_for_any_threads([&] {
            Transformer model(family.config, shape_of(2, 9));
            set_params(model, 7);
            double loss = step_loss(model, batch, 1, false);
            std::vector<uint8_t> bits = grad_bits(model);
            const auto* bytes = reinterpret_cast<const uint8_t*>(&loss);
            bits.insert(bits.end(), bytes, bytes + sizeof loss);
            return bits;
        });
    }
}

TEST(Transformer, SmallerBatchesRunInTheSameMemory) {
    for (const Family& family : families()) {
        SCOPED_TRACE(family.name);
        Transformer large(family.config, shape_of(3, 9)), exact(family.config, shape_of(1, 7));
        set_params(large, 8), set_params(exact, 8);
        const Batch full = batch_of(3, 9, 19), small = batch_of(1, 7, 21);
        large.forward_backward(full, 1, false);
        const std::vector<uint8_t> before = grad_bits(large);
        EXPECT_EQ(step_loss(large, small, 1, false), step_loss(exact, small, 1, false));
        EXPECT_TRUE(grad_bits(large) == grad_bits(exact));
        large.forward_backward(full, 1, false);
        EXPECT_TRUE(grad_bits(large) == before);
    }
}

TEST(Transformer, ABatchWithoutTargetsHasNoLossAndNoGradient) {
    for (const Family& family : families()) {
        SCOPED_TRACE(family.name);
        Transformer model(family.config, shape_of(1, 5));
        set_params(model, 9);
        Batch batch = batch_of(1, 5, 23);
        model.forward_backward(batch, 1, false);
        std::fill(batch.targets.begin(), batch.targets.end(), -1);
        EXPECT_EQ(step_loss(model, batch, 1, false), 0);
        for (int64_t i = 0; i < model.table().arena_size(); ++i)
            ASSERT_EQ(model.grads().as<float>()[i], 0) << i;
    }
}

TEST(Transformer, PlanIsWhatIsAllocated) {
    for (const Family& family : families()) {
        for (const Recompute level : {Recompute::none, Recompute::mlp, Recompute::block}) {
            for (const bool backward : {true, false}) {
                RunShape shape = shape_of(3, 9, DType::bf16);
                shape.recompute = level;
                shape.backward = backward;
                MemoryPlan plan;
                Transformer::plan(plan, family.config, shape);
                int64_t kernels_bytes = 0;  // theirs, kept from call to call
                for (const auto& line : plan.lines)
                    if (line.name == "matmul scratch" || line.name == "attention scratch")
                        kernels_bytes += line.bytes;
                EXPECT_GE(kernels_bytes, matmul_scratch_bytes(num_threads()));
                EXPECT_EQ(plan.total_bytes() - kernels_bytes,
                          Transformer(family.config, shape).allocated_bytes())
                    << family.name;
                EXPECT_NE(plan.text().find("total"), std::string::npos);
            }
        }
    }
    const auto activations = [](Recompute level) {
        RunShape shape = shape_of(4, 1024, DType::bf16);
        shape.recompute = level;
        MemoryPlan plan;
        Transformer::plan(plan, config_preset("gpt2-124m"), shape);
        for (const auto& line : plan.lines) {
            if (line.name == "activations") return line.bytes;
        }
        return int64_t{0};
    };
    EXPECT_LT(activations(Recompute::mlp), activations(Recompute::none) * 2 / 3);
    EXPECT_LT(activations(Recompute::block), activations(Recompute::mlp) / 3);
}

TEST(Transformer, BadBatchesAreRefusedInWords) {
    Transformer model(llama_config(), shape_of(1, 9));
    const auto message = [&](auto&& spoil) -> std::string {
        Batch batch = batch_of(1, 9, 25);
        spoil(batch);
        try {
            model.forward_loss(batch);
        } catch (const InputError& error) {
            return error.what();
        }
        return "";
    };
    EXPECT_EQ(message([](Batch&) {}), "");
    expect_mentions(message([](Batch& b) { b.tokens[4] = 37; }),
                    {"token id", "index 4", "0 to 36", "37", "another tokenizer"});
    expect_mentions(message([](Batch& b) { b.tokens[4] = -1; }), {"token id", "index 4", "-1"});
    expect_mentions(message([](Batch& b) { b.targets[5] = 40; }), {"target id", "index 5", "-1 to 36", "40"});
    expect_mentions(message([](Batch& b) { b.positions[1] = 9; }), {"position", "index 1", "0 to 8", "9"});

    Transformer wide(llama_config(), shape_of(2, 5));
    Batch joined = batch_of(2, 5, 27);
    joined.cu_seqlens = {0, 10};
    EXPECT_THROW(wide.forward_loss(joined), InputError);
    try {
        Transformer too_long(llama_config(), shape_of(1, 17));
        FAIL() << "a sequence of 17 with 16 positions was accepted";
    } catch (const InputError& error) {
        expect_mentions(error.what(), {"16", "17", "--seq-len 16"});
    }
}
