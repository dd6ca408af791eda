// bench_gpu without a GPU: every row runs in the emulator, and what is made of times is computed right.
#include <nlohmann/json.hpp>
#include <set>

#include "bench/gpu_report.h"
#include "bench/gpu_train.h"
#include "model/run_memory.h"
#include "tests/run_program.h"

namespace {

using Json = nlohmann::json;

std::vector<Json> lines_of(const std::string& text) {
    std::vector<Json> lines;
    for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1)
        lines.push_back(Json::parse(text.substr(begin, end - begin)));
    return lines;
}

// Ops that a GPU can run.
std::vector<std::string> ported_ops() {
    std::vector<std::string> ops;
    for (const std::string& op : gpu_row_ops()) {
        if (std::filesystem::exists("kernels/" + op + ".cu")) ops.push_back(op);
    }
    return ops;
}

GpuRow a_row() {
    return {"matmul",
            "forward qkv",
            "llama-1b",
            {{"N", 8}, {"outputs", 4}},
            {"bf16", DType::bf16, MatmulMath::bf16},
            3e9,
            5e12,
            {}};
}

std::string temporary_file(const std::string& text) {
    const std::string path =
        (std::filesystem::temp_directory_path() / cat({"ingot_bench_gpu_", getpid()})).string();
    write_file_atomic(path, text);
    return path;
}

}  // namespace

TEST(BenchGpu, EveryRowRunsInTheEmulator) {
    std::string ops;
    for (const std::string& op : ported_ops()) ops += (ops.empty() ? "" : ",") + op;
    const std::string path = temporary_file("");
    const Outcome run =
        run_program("bench/bench_gpu", {"--device", "simt", "--smoke", "--op", ops, "--json", path});
    EXPECT_EQ(run.exit_code, 0) << run.out << run.err;
    const Outcome list = run_program("bench/bench_gpu", {"--smoke", "--list", "--op", ops});
    const std::vector<Json> expected = lines_of(list.out), lines = lines_of(read_file(path));
    std::filesystem::remove(path);
    ASSERT_EQ(lines.size(), expected.size());
    EXPECT_EQ(run.last_line(), cat({"bench_gpu: ", lines.size(), " of ", lines.size(), " rows, 0 failed"}));
    for (size_t i = 0; i < lines.size(); ++i) {
        for (const char* key : {"op", "pass", "shape", "dtype", "bytes", "flops"})
            EXPECT_EQ(lines[i].at(key), expected[i].at(key));
        EXPECT_FALSE(lines[i].contains("us")) << "the emulator's times say nothing";
        for (const char* key : {"gpu", "driver", "toolkit", "commit"}) EXPECT_NE(lines[i].at(key), "") << key;
    }
}

TEST(BenchGpu, EveryOpHasRowsOfItsOwn) {
    const GpuRowChoice choice{.ops = {},
                              .models = {"gpt2-124m", "gpt2-1558m", "llama-1b", "qwen2.5-7b"},
                              .tokens = {8192, 32768},
                              .seq_lens = {1024, 4096, 16384},
                              .precisions = parse_precisions("fp32,bf16", "--dtypes"),
                              .elements = 1 << 20};
    std::set<std::string> keys, ops;
    for (const GpuRow& row : gpu_rows(choice)) {
        EXPECT_TRUE(keys.insert(row.op + row.pass + row.shape() + row.precision.name).second)
            << "two rows of one name: " << row.op << " " << row.pass << " " << row.shape();
        EXPECT_GT(row.bytes, 0) << row.op << " " << row.pass;
        ops.insert(row.op);
    }
    EXPECT_EQ(ops, std::set<std::string>(gpu_row_ops().begin(), gpu_row_ops().end()));
}

// Counted by hand for one shape each.
TEST(BenchGpu, BytesAndFlops) {
    GpuRowChoice choice{.ops = {"matmul", "attention", "rmsnorm", "adamw"},
                        .models = {"llama-1b"},
                        .tokens = {4096},
                        .seq_lens = {1024},
                        .precisions = parse_precisions("bf16", "--dtypes"),
                        .elements = 1000};
    int found = 0;
    for (const GpuRow& row : gpu_rows(choice)) {
        if (row.op == "matmul" && row.pass == "forward mlp_down") {
            EXPECT_EQ(row.flops, 2.0 * 4096 * 2048 * 8192);
            EXPECT_EQ(row.bytes, 2.0 * (4096 * 2048 + 4096 * 8192 + 2048 * 8192));
            ++found;
        }
        if (row.op == "attention" && row.pass == "backward") {  // 32 heads of 64, 8 key heads, 4 documents
            EXPECT_EQ(row.flops, 10.0 * 4 * 32 * (1024 * 1025 / 2) * 64);
            EXPECT_EQ(row.bytes, 2.0 * 4096 * (2 * 48 * 64 + 2 * 32 * 64) + 4.0 * 4096 * 32);
            EXPECT_EQ(row.shape(), "llama-1b B=4 T=1024 H=32 K=8 D=64");
            ++found;
        }
        if (row.op == "rmsnorm" && row.pass == "backward") {
            EXPECT_EQ(row.bytes, 4 * 2.0 * 4096 * 2048);
            ++found;
        }
        if (row.op == "adamw") {
            EXPECT_EQ(row.bytes, 30 * 1000)
                << "master, m and v read and written, a gradient read, bf16 written";
            ++found;
        }
    }
    EXPECT_EQ(found, 4);
}

TEST(BenchGpu, SharesAreOfTheMeasuredCeilings) {
    const GpuTiming timing{10e-3, 9e-3, 12e-3, 20};
    const GpuCeilings ceilings{.copy = 3e12, .f32 = 50e12, .bf16 = 800e12};
    const Json line = Json::parse(gpu_json_line(a_row(), &timing, ceilings, 8000, {{"gpu", "G"}}).text());
    EXPECT_DOUBLE_EQ(line.at("us"), 10000);
    EXPECT_DOUBLE_EQ(line.at("us_p90"), 12000);
    EXPECT_DOUBLE_EQ(line.at("gb_per_s"), 300);
    EXPECT_DOUBLE_EQ(line.at("copy_frac"), 0.1);
    EXPECT_DOUBLE_EQ(line.at("tflops"), 500);
    EXPECT_DOUBLE_EQ(line.at("matmul_frac"), 0.625);
    EXPECT_DOUBLE_EQ(line.at("x_library"), 0.8);
    EXPECT_EQ(line.at("gpu"), "G");
    EXPECT_FALSE(line.contains("too_fast"));
    const std::string text = gpu_table_line(a_row(), &timing, ceilings, 8000);
    for (const char* part : {"matmul forward qkv", "llama-1b N=8 outputs=4", " 10000.0 ", " 300 ", " 10.0 ",
                             " 500.0 ", " 62.5 ", " 0.80\n"})
        EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
    GpuRow f32 = a_row();
    f32.precision = {"fp32", DType::f32, MatmulMath::f32};
    EXPECT_TRUE(too_fast(f32, timing, ceilings)) << "500 of 50 TFLOP/s";
    EXPECT_NE(gpu_table_line(f32, &timing, ceilings, 0).find("too fast"), std::string::npos);
    EXPECT_FALSE(too_fast(a_row(), timing, {})) << "no ceiling, no judgement";
}

TEST(BenchGpu, AnotherLibrarysTimesAreFoundByTheRow) {
    const std::string path = temporary_file(
        "{\"kind\":\"train\",\"model\":\"x\"}\n\n"
        "{\"op\":\"matmul\",\"pass\":\"forward qkv\",\"shape\":\"llama-1b N=8 outputs=4\",\"dtype\":\"bf16\","
        "\"us\":12.5}\n");
    const LibraryTimes times(path);
    EXPECT_EQ(times.us(a_row()), 12.5);
    GpuRow other = a_row();
    other.precision.name = "fp32";
    EXPECT_EQ(times.us(other), 0);
    write_file_atomic(path, "{\"op\":1,\"us\":2}\n");
    EXPECT_THROW(LibraryTimes{path}, InputError);
    std::filesystem::remove(path);
}

TEST(BenchGpu, EachRepetitionIsTimedByItself) {
    int runs = 0;
    const Buffer evicted(1000, Device::simt);
    const GpuTiming timing = time_row([&] { ++runs; }, evicted.tensor(), Device::simt, 7);
    EXPECT_EQ(runs, 7 + 3) << "three to warm up";
    EXPECT_EQ(timing.repetitions, 7);
    EXPECT_LE(timing.p10_s, timing.median_s);
    EXPECT_LE(timing.median_s, timing.p90_s);
}

TEST(BenchGpu, RefusesWhatItDoesNotKnow) {
    expect_refusal(run_program("bench/bench_gpu", {"--op", "attention,atention"}),
                   {"unknown op: --op", "matmul, attention", "got atention"}, "op");
    expect_refusal(run_program("bench/bench_gpu", {"--shapes", "gpt9"}), {"unknown model preset", "gpt9"},
                   "model");
    expect_refusal(run_program("bench/bench_gpu", {"--device", "cpu"}), {"--device"}, "device");
}

namespace {

const GpuTrainChoice kTinyTraining{.model = "tiny-qwen3",
                                   .precision = {"bf16", DType::bf16, MatmulMath::bf16},
                                   .device = Device::simt,
                                   .seq_len = 8,
                                   .batch_tokens = 8 * 24};

int64_t planned(const GpuTrainChoice& choice, RunShape shape) {
    return plan_run(config_preset(choice.model), {.shape = shape, .optimizer = {}}).needed_bytes();
}

}  // namespace

TEST(BenchTrain, TheMicroBatchIsTheLargestPowerOfTwoThatFitsAndDividesTheStep) {
    GpuTrainChoice choice = kTinyTraining;
    RunShape shape = gpu_train_shape(choice, int64_t{1} << 40);
    EXPECT_EQ(shape.num_rows, 8) << "16 rows do not divide 24";
    EXPECT_TRUE(shape.recompute == Recompute::none);
    EXPECT_TRUE(shape.device == Device::simt && shape.dtype == DType::bf16 && shape.seq_len == 8);
    shape = gpu_train_shape(choice, planned(choice, shape) - 1);
    EXPECT_EQ(shape.num_rows, 4);
    choice.micro_batch = 3;
    EXPECT_EQ(gpu_train_shape(choice, int64_t{1} << 40).num_rows, 3) << "as given";
}

TEST(BenchTrain, RecomputationIsTheLeastThatFits) {
    GpuTrainChoice choice = kTinyTraining;
    RunShape one{
        .num_rows = 1, .seq_len = 8, .dtype = DType::bf16, .math = MatmulMath::bf16, .device = Device::simt};
    int64_t room[3];
    for (Recompute level : {Recompute::none, Recompute::mlp, Recompute::block}) {
        one.recompute = level;
        room[static_cast<int>(level)] = planned(choice, one);
    }
    ASSERT_TRUE(room[0] > room[1] && room[1] > room[2]);
    for (Recompute level : {Recompute::none, Recompute::mlp, Recompute::block}) {
        const RunShape shape = gpu_train_shape(choice, room[static_cast<int>(level)]);
        EXPECT_TRUE(shape.recompute == level) << static_cast<int>(level);
        EXPECT_GE(shape.num_rows, 1);
    }
    EXPECT_EQ(gpu_train_shape(choice, room[2] - 1).num_rows, 0) << "none fits";
    choice.recompute = "none";
    EXPECT_EQ(gpu_train_shape(choice, room[0] - 1).num_rows, 0) << "nothing else was asked for";
}

TEST(BenchTrain, StepsRunInTheEmulator) {
    if (ported_ops().size() != gpu_row_ops().size()) GTEST_SKIP() << "not every op has its CUDA kernels yet";
    const std::string path = temporary_file("");
    const Outcome run =
        run_program("bench/bench_train",
                    {"--device", "simt", "--models", "tiny-gpt2,tiny-qwen3", "--dtypes", "bf16", "--seq-len",
                     "8", "--batch-tokens", "32", "--micro-batch", "2", "--steps", "2", "--json", path});
    EXPECT_EQ(run.exit_code, 0) << run.out << run.err;
    const std::vector<Json> lines = lines_of(read_file(path));
    std::filesystem::remove(path);
    ASSERT_EQ(lines.size(), 2u);
    for (const Json& line : lines) {
        EXPECT_EQ(line.at("kind"), "train");
        EXPECT_EQ(line.at("micro_batches"), 2);
        EXPECT_EQ(line.at("steps"), 2);
        EXPECT_NEAR(line.at("loss").get<double>(), std::log(512.0), 0.7) << "random tokens";
        EXPECT_GE(line.at("device_bytes").get<double>(), 0.5 * line.at("plan_bytes").get<double>());
        EXPECT_LE(line.at("device_bytes").get<double>(), 1.5 * line.at("plan_bytes").get<double>() + 4e6);
        EXPECT_FALSE(line.contains("tokens_per_s")) << "the emulator has no speed";
    }
}

TEST(BenchTrain, RefusesStepsThatAreNoWholeNumberOfMicroBatches) {
    expect_refusal(run_program("bench/bench_train", {"--device", "simt", "--models", "tiny-gpt2", "--seq-len",
                                                     "8", "--batch-tokens", "40", "--micro-batch", "2"}),
                   {"--batch-tokens", "a multiple of 16", "got 40"}, "step");
    expect_refusal(
        run_program("bench/bench_train", {"--device", "simt", "--models", "gpt2-124m", "--seq-len", "2048"}),
        {"rows longer than the model's positions: --seq-len", "1024 tokens for gpt2-124m"}, "positions");
}
