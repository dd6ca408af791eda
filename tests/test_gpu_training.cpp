// Whole training steps on a device: the CUDA path in the emulator, and on a GPU where there is one, beside
// the CPU.
#include <cmath>
#include <filesystem>

#include "kernels/simt/machine.h"
#include "model/checkpoint.h"
#include "model/generate.h"
#include "tests/device_training.h"

TEST(GpuTraining, LossesAreThoseOfTheCpu) {
    for (Device device : gpus()) {
        for (const char* preset : {"tiny-gpt2", "tiny-qwen3"}) {
            for (Precision precision : {Precision::f32, Precision::bf16, Precision::fp8}) {
                SCOPED_TRACE(cat({device_name(device), " ", preset, " ", name_of(precision)}));
                const ModelConfig config = config_preset(preset);
                Training on_cpu(config, shape_on(Device::cpu, precision), {}),
                    on_gpu(config, shape_on(device, precision), {});
                const int64_t steps = precision == Precision::fp8 ? 10 : 20;
                const Values expected = on_cpu.train(0, steps), actual = on_gpu.train(0, steps);
                EXPECT_LT(expected.back(), 0.8 * expected.front()) << "nothing was learnt";
                // f32: sums in another order, magnified by twenty updates. bf16: an activation that rounds
                // the other way moves a loss by 2^-9 of what it contributes. fp8: it may turn a code, which
                // is 2^-3 of an element then; the first loss does not notice, and with each update the two
                // runs are a little farther apart.
                const auto tolerance = [&](size_t step) {
                    if (precision == Precision::f32) return 2e-5;
                    if (precision == Precision::bf16) return 5e-3;
                    return step == 0 ? 2e-5 : 1e-3 * static_cast<double>(step + 1);
                };
                for (size_t step = 0; step < expected.size(); ++step)
                    EXPECT_NEAR(actual[step], expected[step], tolerance(step) * expected[step])
                        << "step " << step;
            }
        }
    }
}

// Operands err by 2^-4 at random; of sums, and of losses, far less is left (0.4 % at most here).
TEST(GpuTraining, Fp8LearnsWhatBf16Learns) {
    for (const char* preset : {"tiny-gpt2", "tiny-qwen3"}) {
        SCOPED_TRACE(preset);
        const ModelConfig config = config_preset(preset);
        Training bf16_run(config, shape_on(Device::cpu, Precision::bf16), {}),
            fp8_run(config, shape_on(Device::cpu, Precision::fp8), {});
        const Values expected = bf16_run.train(0, 20), actual = fp8_run.train(0, 20);
        EXPECT_NE(bf16_run.hash(), fp8_run.hash()) << "was it FP8 at all?";
        for (size_t step = 0; step < expected.size(); ++step)
            EXPECT_NEAR(actual[step], expected[step], 1e-2 * expected[step]) << "step " << step;
    }
}

TEST(GpuTraining, MuonToo) {
    for (Device device : gpus()) {
        const ModelConfig config = config_preset("tiny-llama");
        const OptimizerConfig muon{.muon = true};
        Training on_cpu(config, shape_on(Device::cpu, Precision::bf16), muon),
            on_gpu(config, shape_on(device, Precision::bf16), muon);
        const Values expected = on_cpu.train(0, 5), actual = on_gpu.train(0, 5);
        for (size_t step = 0; step < expected.size(); ++step)
            EXPECT_NEAR(actual[step], expected[step], 1e-2 * expected[step]) << "step " << step;
    }
}

// From the first step's end on, nothing but the numbers of the step before is waited for; and what is
// computed is what a host that waits for everything computes.
TEST(GpuTraining, AStepIsQueuedWithoutWaiting) {
    for (Device device : gpus()) {
        for (const OptimizerConfig& optimizing : {OptimizerConfig{}, OptimizerConfig{.muon = true}}) {
            SCOPED_TRACE(cat({device_name(device), optimizing.muon ? " Muon" : " AdamW"}));
            const ModelConfig config = config_preset("tiny-llama");
            const RunShape shape = shape_on(device, Precision::bf16);
            Training queued(config, shape, optimizing), waiting(config, shape, optimizing);
            int64_t waits = 0;
            std::vector<StepResult> results = queued.train_pipelined(0, 2, {});
            for (const StepResult& result : queued.train_pipelined(2, 5, {}, &waits))
                results.push_back(result);
            EXPECT_EQ(waits, 0);
            for (int64_t step = 0; step < 5; ++step) {
                const Batch batch = batch_of(config, static_cast<uint64_t>(step));
                const double targets = static_cast<double>(batch.num_targets());
                waiting.model.forward_backward(batch, 1 / static_cast<float>(targets), false);
                device_synchronize(device);
                const StepResult expected =
                    waiting.optimizer.step(waiting.model.grads(), 3e-3, waiting.model.total_loss() / targets);
                EXPECT_EQ(results[static_cast<size_t>(step)].loss, expected.loss) << step;
                EXPECT_EQ(results[static_cast<size_t>(step)].grad_norm, expected.grad_norm) << step;
            }
            EXPECT_EQ(queued.hash(), waiting.hash());
        }
    }
}

// The device refuses by itself, and the updates after a refused one have the numbers that they would have had
// without it: bias correction and rounding count applied updates.
TEST(GpuTraining, RefusedStepsChangeNothing) {
    for (Device device : gpus()) {
        for (const OptimizerConfig& optimizing : {OptimizerConfig{}, OptimizerConfig{.muon = true}}) {
            SCOPED_TRACE(cat({device_name(device), optimizing.muon ? " Muon" : " AdamW"}));
            const ModelConfig config = config_preset("tiny-llama");
            const RunShape shape = shape_on(device, Precision::bf16);
            Training spoilt(config, shape, optimizing), sound(config, shape, optimizing);
            const std::vector<StepResult> results = spoilt.train_pipelined(0, 5, {3, 4});
            sound.train_pipelined(0, 3, {});
            EXPECT_EQ(spoilt.hash(), sound.hash());
            for (size_t step = 0; step < 5; ++step) {
                EXPECT_EQ(results[step].applied, step < 3) << step;
                EXPECT_STREQ(results[step].reason, step < 3 ? "" : "non-finite gradient");
            }
            EXPECT_EQ(spoilt.optimizer.num_updates(), 3);
            EXPECT_EQ(spoilt.optimizer.num_skipped(), 2);
            EXPECT_EQ(spoilt.optimizer.skips_in_a_row(), 2);
            spoilt.train_pipelined(5, 7, {});
            sound.train_pipelined(5, 7, {});
            EXPECT_EQ(spoilt.hash(), sound.hash());
            EXPECT_EQ(spoilt.optimizer.skips_in_a_row(), 0);
        }
    }
}

class GpuCheckpoint : public DirectoryTest {};

TEST_F(GpuCheckpoint, EqualRunsAndResumedRunsGiveEqualBits) {
    for (Device device : gpus()) {
        for (Precision precision : {Precision::f32, Precision::bf16, Precision::fp8}) {
            SCOPED_TRACE(cat({device_name(device), " ", name_of(precision)}));
            const ModelConfig config = config_preset("tiny-llama");
            const RunShape shape = shape_on(device, precision);
            Training straight(config, shape, {}), again(config, shape, {}), first(config, shape, {}),
                resumed(config, shape, {});
            straight.train(0, 4);
            again.train(0, 4);
            EXPECT_EQ(straight.hash(), again.hash());
            first.train(0, 2);
            TrainerState state;
            state.step = 2, state.num_updates = first.optimizer.num_updates();
            save_checkpoint(out_, first.model.table(), config, checkpoint_arenas(first.optimizer), state, "");
            load_checkpoint(verify_newest_checkpoint(out_), resumed.model.table(), config, resumed.optimizer);
            resumed.train(2, 4);
            EXPECT_EQ(resumed.hash(), straight.hash());
            std::filesystem::remove_all(out_ + "/" + checkpoint_name(2));
        }
    }
}

TEST(GpuTraining, RecomputationGivesTheSameBits) {
    for (Device device : gpus()) {
        for (Precision precision : {Precision::bf16, Precision::fp8}) {
            SCOPED_TRACE(cat({device_name(device), " ", name_of(precision)}));
            std::string hashes[3];
            for (Recompute level : {Recompute::none, Recompute::mlp, Recompute::block}) {
                RunShape shape = shape_on(device, precision);
                shape.recompute = level;
                Training run(config_preset("tiny-qwen3"), shape, {});
                run.train(0, 2);
                hashes[static_cast<int>(level)] = run.hash();
            }
            EXPECT_EQ(hashes[1], hashes[0]);
            EXPECT_EQ(hashes[2], hashes[0]);
        }
    }
}

// Every absmax is raised by the op that made the tensor, and on the CPU quantize() looks whether it was.
TEST(GpuTraining, Fp8ScalesAreOfTheTensorsThemselves) {
    ModelConfig relu2 = config_preset("tiny-gpt2");
    relu2.mlp = Mlp::relu2;
    for (const ModelConfig& config :
         {config_preset("tiny-gpt2"), relu2, config_preset("tiny-llama"), config_preset("tiny-qwen3")}) {
        for (Recompute level : {Recompute::none, Recompute::mlp, Recompute::block}) {
            RunShape shape = shape_on(Device::cpu, Precision::fp8);
            shape.recompute = level;
            Training run(config, shape, {});
            EXPECT_NO_THROW(run.train(0, 2)) << "level " << static_cast<int>(level);
        }
    }
}

// What is not finite goes through the quantisation of gradients, which saturates all else.
TEST(GpuTraining, Fp8RefusesWhatIsNotFinite) {
    for (Device device : {Device::cpu, gpus().front()}) {
        const ModelConfig config = config_preset("tiny-llama");
        Training run(config, shape_on(device, Precision::fp8), {});
        const std::vector<StepResult> results = run.train_pipelined(0, 4, {2});
        for (size_t step = 0; step < 4; ++step) EXPECT_EQ(results[step].applied, step != 2) << step;
        EXPECT_STREQ(results[2].reason, "non-finite gradient");
        EXPECT_TRUE(std::isfinite(results[3].loss));
    }
}

TEST(GpuTraining, Fp8NeedsAGpuThatHasIt) {
    simt::set_machine({.capability = 86});
    const RunShape shape = shape_on(Device::simt, Precision::fp8);
    try {
        Transformer model(config_preset("tiny-llama"), shape);
        ADD_FAILURE() << "FP8 on compute capability 8.6";
    } catch (const InputError& error) {
        EXPECT_NE(std::string(error.what()).find("8.9 or later for --dtype fp8"), std::string::npos)
            << error.what();
    }
    simt::set_machine({});
}

TEST(GpuGeneration, LogitsAreThoseOfTheCpu) {
    for (Device device : gpus()) {
        for (const char* preset : {"tiny-gpt2", "tiny-qwen3"}) {
            SCOPED_TRACE(cat({device_name(device), " ", preset}));
            const ModelConfig config = config_preset(preset);
            const ParamTable table(config);
            Buffer on_cpu(table.arena_size() * 4), on_gpu(table.arena_size() * 4, device);
            init_params(table, on_cpu.tensor(DType::f32), 3);
            copy_tensor(on_gpu.tensor(DType::f32), on_cpu.tensor(DType::f32));
            Decoder expected(config, table, on_cpu.tensor(DType::f32), 12),
                actual(config, table, on_gpu.tensor(DType::f32), 12);
            const std::vector<int32_t> tokens = random_ids(9, 0, static_cast<int32_t>(config.vocab_size), 3);
            for (const auto& [first, count] :
                 {std::pair{0, 5}, {5, 1}, {6, 3}}) {  // prefill, one token, a few
                const HostCopy logits(actual.append(&tokens[static_cast<size_t>(first)], count));
                const float* a = logits.tensor().as<float>();
                const float* e = expected.append(&tokens[static_cast<size_t>(first)], count).as<float>();
                expect_close(Values(a, a + config.vocab_size), Values(e, e + config.vocab_size), 1e-4,
                             "logits");
            }
        }
    }
}
