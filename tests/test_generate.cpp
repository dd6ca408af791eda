// The decoder against the whole forward pass, for every family, dtype and way of cutting the prompt; and the
// loop that samples: stop tokens, limits, seeds.
#include "model/generate.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "model/transformer.h"
#include "tests/op_check.h"

namespace {
ModelConfig windowed(ModelConfig config, int64_t window) {
    config.windows.assign(size_t(config.num_layers), window);
    config.windows[0] = 0;
    return config;
}

// Weights large enough that every token of the context shows in the logits.
void fill_params(Transformer& model) {
    const ParamTable& table = model.table();
    std::vector<float> arena(size_t(table.arena_size()));
    init_params(table, tensor_of(arena.data(), table.arena_size()), 3);
    for (int64_t i = 0; i < table.arena_size(); ++i) {
        const float x = arena[i] == 1 ? 1 : 4 * arena[i];
        if (model.shape().dtype == DType::bf16) {
            model.params().as<bf16>()[i] = to_bf16(x);
        } else {
            model.params().as<float>()[i] = x;
        }
    }
}

Values whole_forward(Transformer& model, const std::vector<int32_t>& tokens) {
    const int64_t n = int64_t(tokens.size()), V = model.config().vocab_size;
    Batch batch;
    batch.num_rows = 1, batch.seq_len = n;
    batch.tokens = tokens;
    batch.targets.assign(tokens.size(), -1);
    set_document_bounds(batch, -1);
    Guarded<float> logits(n * V);
    model.forward_logits(batch, logits.tensor(n, V));
    return logits.values();
}

Transformer evaluator(const ModelConfig& config, DType dtype, int64_t seq_len) {
    return Transformer(config, {.seq_len = seq_len, .dtype = dtype, .backward = false});
}
}  // namespace

TEST(Generate, DecoderMatchesTheWholeForward) {
    const std::vector<ModelConfig> configs = {config_preset("tiny-gpt2"), config_preset("tiny-llama"),
                                              windowed(config_preset("tiny-qwen2"), 5),
                                              windowed(config_preset("tiny-qwen3"), 64)};
    for (const DType dtype : {DType::f32, DType::bf16}) {
        // The same products, but attention adds in another order; bf16 then rounds some activations the other
        // way.
        const double tolerance = dtype == DType::f32 ? 2e-5 : 0.05;
        for (const ModelConfig& config : configs) {
            SCOPED_TRACE(config.family + " " + dtype_name(dtype));
            constexpr int64_t kTokens = 150;  // more than one chunk of a prompt
            const std::vector<int32_t> tokens = random_ids(kTokens, 0, int32_t(config.vocab_size), 5);
            Transformer model = evaluator(config, dtype, kTokens);
            fill_params(model);
            const Values expected = whole_forward(model, tokens);
            Decoder decoder(config, model.table(), model.params(), kTokens);
            for (const std::vector<int64_t>& cut :
                 {std::vector<int64_t>{150}, {1, 1, 1, 7, 1, 129, 1, 1, 8}}) {
                decoder.reset();
                for (const int64_t count : cut) {
                    const Tensor after = decoder.append(tokens.data() + decoder.length(), count);
                    const float* logits = after.as<float>();
                    const int64_t last = decoder.length() - 1, V = config.vocab_size;
                    expect_close(Values(logits, logits + V),
                                 Values(expected.begin() + last * V, expected.begin() + (last + 1) * V),
                                 tolerance, cat({"logits after token ", last}));
                }
                EXPECT_EQ(decoder.length(), kTokens);
            }
        }
    }
}

class GenerateLoop : public testing::Test {
protected:
    ModelConfig config = config_preset("tiny-llama");
    Transformer model = evaluator(config, DType::f32, 64);
    GenerateParams params;
    GenerateLoop() {
        fill_params(model);
        params.max_new_tokens = 12;
    }
    std::vector<int32_t> run(int64_t context = 64) {
        Decoder decoder(config, model.table(), model.params(), context);
        return generate(decoder, {1, 2, 3}, params, {});
    }
};

TEST_F(GenerateLoop, GreedyIsTheArgmaxOfTheWholeForward) {
    params.sampling.temperature = 0;
    std::vector<int32_t> text = {1, 2, 3};
    for (const int32_t token : run()) {
        const Values logits = whole_forward(model, text);
        const auto last = logits.end() - config.vocab_size;
        EXPECT_EQ(token, std::max_element(last, logits.end()) - last);
        text.push_back(token);
    }
    EXPECT_EQ(text.size(), 15u);
}

TEST_F(GenerateLoop, SeedsDecide) {
    const std::vector<int32_t> first = run();
    EXPECT_EQ(run(), first);
    params.seed = 1;
    EXPECT_NE(run(), first);
}

TEST_F(GenerateLoop, EndsWhereItShould) {
    const std::vector<int32_t> all = run();
    ASSERT_EQ(all.size(), 12u);
    EXPECT_EQ(run(8), (std::vector<int32_t>(all.begin(), all.begin() + 6)))
        << "8 places: 3 of the prompt, 5 to go on from";
    params.max_new_tokens = 0;
    EXPECT_TRUE(run().empty());
    params.max_new_tokens = 12;

    const size_t first = size_t(std::find(all.begin(), all.end(), all[5]) - all.begin());
    params.stop_tokens = {int32_t(config.vocab_size), all[5]};
    EXPECT_EQ(run(), (std::vector<int32_t>(all.begin(), all.begin() + first)))
        << "the stop token is not emitted";
    params.stop_tokens.clear();

    Decoder decoder(config, model.table(), model.params(), 64);
    std::vector<int32_t> seen;
    const auto emit = [&](int32_t token) {
        seen.push_back(token);
        return seen.size() < 4;
    };
    EXPECT_EQ(generate(decoder, {1, 2, 3}, params, emit), seen);
    EXPECT_EQ(seen, (std::vector<int32_t>(all.begin(), all.begin() + 4)));
}

TEST_F(GenerateLoop, BadTokensAndFullContextsAreRefusedInWords) {
    const auto message = [&](const std::vector<int32_t>& prompt) -> std::string {
        Decoder decoder(config, model.table(), model.params(), 4);
        try {
            generate(decoder, prompt, params, {});
        } catch (const InputError& error) {
            return error.what();
        }
        return "";
    };
    expect_mentions(message({}), {"prompt"});
    expect_mentions(message({1, 512}), {"token id", "token 1", "0 to 511", "512"});
    expect_mentions(message({1, 2, 3, 4, 5}), {"context", "at most 4", "5"});
    EXPECT_THROW(Decoder(config, model.table(), model.params(), 257), InputError);
}
