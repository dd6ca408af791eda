// Memory that GPU kernels keep for themselves: what is planned for a model is what its training asks for, and
// is there from the beginning.
#include "kernels/workspace.h"

#include <cmath>

#include "kernels/matmul_plan.h"
#include "model/activations.h"
#include "model/run_memory.h"
#include "tests/device_training.h"

namespace {

constexpr const char* kUses[] = {"sorted_ids", "norm_sums",   "qknorm_sums", "column_sums",
                                 "split_sums", "square_sums", "scalar",      "library"};

void expect_sizes(const WorkspaceSizes& actual, const WorkspaceSizes& expected) {
    for (int i = 0; i < kNumWorkspaces; ++i)
        EXPECT_EQ(actual[static_cast<Workspace>(i)], expected[static_cast<Workspace>(i)]) << kUses[i];
}

int64_t planned_bytes(const ModelConfig& config, const RunNeeds& needs) {
    for (const MemoryPlan::Line& line : plan_run(config, needs).lines)
        if (line.name == "device workspaces") return line.bytes;
    return -1;
}

}  // namespace

TEST(Workspace, ATrainingRunAsksForWhatIsPlannedAndNoMore) {
    for (Device device : gpus()) {
        for (const char* preset : {"tiny-gpt2", "tiny-qwen3"}) {
            for (Precision precision : {Precision::f32, Precision::bf16, Precision::fp8}) {
                const bool muon = precision == Precision::bf16;
                SCOPED_TRACE(cat(
                    {device_name(device), " ", preset, " ", name_of(precision), muon ? " Muon" : " AdamW"}));
                const ModelConfig config = config_preset(preset);
                RunNeeds needs;
                needs.shape = shape_on(device, precision);
                needs.optimizer.muon = muon;
                WorkspaceSizes planned = workspace_sizes(config, needs.shape);
                EXPECT_EQ(planned_bytes(config, needs), planned.total());
                release_workspaces(device);
                Training training(config, needs.shape, needs.optimizer);
                expect_sizes(allocated_workspaces(device), planned);
                training.train(0, 2);  // a second micro-batch, too
                expect_sizes(allocated_workspaces(device), planned);
                // Had nothing been reserved, the same would have been asked for.
                release_workspaces(device);
                Training unreserved(config, needs.shape, needs.optimizer);
                release_workspaces(device);
                unreserved.train(0, 1);
                planned[Workspace::scalar] = allocated_workspaces(device)[Workspace::scalar];  // sampling's
                if (device == Device::cuda)
                    planned[Workspace::library] = allocated_workspaces(device)[Workspace::library];
                expect_sizes(allocated_workspaces(device), planned);
            }
        }
        release_workspaces(device);
    }
}

// Enough tokens for split products, and for biases' gradients in parts.
TEST(Workspace, ALargerBatchIsPlannedToo) {
    for (Device device : gpus()) {
        constexpr int64_t kManyRows = 44;
        const ModelConfig config = config_preset("tiny-gpt2");
        RunShape shape = shape_on(device, Precision::f32);
        shape.num_rows = kManyRows;
        const WorkspaceSizes planned = workspace_sizes(config, shape);
        EXPECT_EQ(planned[Workspace::split_sums], kMatmulSplitSumsBytes);
        EXPECT_GT(planned[Workspace::column_sums], 0);
        release_workspaces(device);
        Training training(config, shape, {});
        const Batch batch = batch_of(config, 1, kManyRows);
        EXPECT_TRUE(std::isfinite(step_loss(training.model, batch, 1e-3f, false)));
        expect_sizes(allocated_workspaces(device), planned);
        release_workspaces(device);
    }
}

// Products that are split or not, sums of few rows and of many.
TEST(Workspace, OpsAskForWhatTheirSizesSay) {
    for (Device device : gpus()) {
        for (const int64_t rows : {1, 63, 64, 1000, 1023, 1024, 1500}) {
            for (const auto& [out, in] : {std::pair<int64_t, int64_t>{24, 40}, {300, 8}}) {
                SCOPED_TRACE(cat({device_name(device), " N=", rows, " OC=", out, " C=", in}));
                release_workspaces(device);
                Buffer dweight(out * in * 4, device), dbias(out * 4, device), dout(rows * out * 4, device),
                    inp(rows * in * 4, device);
                matmul_backward_weight(dweight.tensor(DType::f32).view(out, in), dbias.tensor(DType::f32),
                                       dout.tensor(DType::f32).view(rows, out),
                                       inp.tensor(DType::f32).view(rows, in), false, MatmulMath::f32);
                device_synchronize(device);
                WorkspaceSizes expected;
                expected[Workspace::split_sums] = split_sums_bytes(out, in, rows);
                expected[Workspace::column_sums] = column_sums_bytes(rows, out);
                if (device == Device::cuda)
                    expected[Workspace::library] = allocated_workspaces(device)[Workspace::library];
                expect_sizes(allocated_workspaces(device), expected);
            }
        }
        release_workspaces(device);
    }
}

TEST(Workspace, SizesOfLargeShapes) {
    EXPECT_EQ(split_sums_bytes(768, 768, 16384), kMatmulSplitSumsBytes);
    EXPECT_EQ(split_sums_bytes(768, 768, 1023), 0);
    EXPECT_EQ(split_sums_bytes(50257, 768, 16384), 0) << "large results are not split";
    // FP8 operands are padded: their inner dimension is what is split.
    for (const bool fp8 : {false, true}) {
        const RunShape shape{.num_rows = 1, .seq_len = 1023, .dtype = DType::bf16, .fp8 = fp8};
        EXPECT_EQ(workspace_sizes(config_preset("tiny-llama"), shape)[Workspace::split_sums],
                  fp8 ? kMatmulSplitSumsBytes : 0);
    }
    EXPECT_EQ(column_sums_bytes(16384, 768), 352 * 768 * 4);
    EXPECT_EQ(column_sums_bytes(16384, 1056 * 256), 0);
    EXPECT_EQ(sorted_ids_bytes(0), 0);
    EXPECT_EQ(sorted_ids_bytes(2049), (4 * 2049 + 2 * 512) * 4);
    // GPT-2's rows of 768: 96 packs of bf16, so 3 warps and five blocks on a multiprocessor; 192 of f32.
    EXPECT_EQ(norm_backward_cut(16384, 96).num_chunks, 631);
    EXPECT_EQ(norm_sums_bytes(16384, 768, DType::bf16, 2), 631 * 2 * 768 * 4);
    EXPECT_EQ(norm_sums_bytes(16384, 768, DType::f32, 1), 256 * 768 * 4);
    EXPECT_EQ(norm_sums_bytes(5, 768, DType::f32, 1), 2 * 768 * 4);
    EXPECT_EQ(qknorm_sums_bytes(16384, 128), 512 * 2 * 128 * 4);
    EXPECT_EQ(qknorm_sums_bytes(4, 128), 2 * 128 * 4);
}

TEST(Workspace, GrowsWhereNothingWasReservedAndKeepsWhatGraphsHold) {
    for (Device device : gpus()) {
        release_workspaces(device);
        void* const small = device_workspace(device, Workspace::scalar, 100);
        EXPECT_EQ(device_workspace(device, Workspace::scalar, 50), small);
        EXPECT_NE(device_workspace(device, Workspace::square_sums, 50), small) << "uses do not share";
        EXPECT_NE(device_workspace(device, Workspace::scalar, 101), small);
        EXPECT_EQ(allocated_workspaces(device)[Workspace::scalar], 100 + 200);
        WorkspaceSizes sizes;
        sizes[Workspace::scalar] = 200, sizes[Workspace::square_sums] = 51;
        reserve_workspaces(device, sizes);
        EXPECT_EQ(allocated_workspaces(device)[Workspace::scalar], 100 + 200);
        EXPECT_EQ(allocated_workspaces(device)[Workspace::square_sums], 50 + 51);
        EXPECT_EQ(allocated_workspaces(device).total(), 401);
        release_workspaces(device);
        EXPECT_EQ(allocated_workspaces(device).total(), 0);
    }
}
