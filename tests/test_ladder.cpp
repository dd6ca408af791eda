// Every rung of the two ladders computes what the CPU does, on the emulator and on a GPU where there is one.
#include "bench/ladder/ladder.h"

#include <filesystem>
#include <set>
#include <string>

#include "bench/ladder/problems.h"
#include "core/io.h"
#include "tests/on_device.h"

TEST(Ladder, EveryGemmRungIsRight) {
    for (Device device : gpus()) {
        // Several blocks in each direction; fewer steps than a pipeline has stages, and more.
        for (int64_t inputs : {kGemmStep, 2 * kGemmStep, 7 * kGemmStep}) {
            GemmProblem problem(device, kGemmTile, 2 * kGemmTile, inputs);
            for (const Rung<GemmOperands>& rung : gemm_ladder()) {
                EXPECT_LE(problem.error_of(rung), kLadderTolerance)
                    << rung.name << " on " << device_name(device) << " C=" << inputs;
            }
        }
        GemmProblem tall(device, 2 * kGemmTile, kGemmTile, kGemmStep);
        for (const Rung<GemmOperands>& rung : gemm_ladder()) {
            EXPECT_LE(tall.error_of(rung), kLadderTolerance) << rung.name << " on " << device_name(device);
        }
    }
}

TEST(Ladder, EveryAttentionRungIsRight) {
    for (Device device : gpus()) {
        for (int64_t tiles : {1, 3}) {
            AttentionProblem problem(device, 2, tiles * kQueryTile, 2, tiles == 1 ? 2 : 1, true);
            for (const Rung<AttentionOperands>& rung : attention_ladder()) {
                EXPECT_LE(problem.error_of(rung), kLadderTolerance)
                    << rung.name << " on " << device_name(device) << " T=" << tiles * kQueryTile;
            }
        }
    }
}

// The reading path names every rung, and every rung says what it is about.
TEST(Ladder, TheReadingPathHasEveryRung) {
    std::set<std::string> files;
    const std::string readme = read_file("bench/ladder/README.md");
    for (const auto& entry : std::filesystem::directory_iterator("bench/ladder")) {
        if (entry.path().extension() == ".cu") files.insert(entry.path().stem());
    }
    std::set<std::string> rungs;
    for (const auto& rung : gemm_ladder()) rungs.insert(rung.name);
    for (const auto& rung : attention_ladder()) rungs.insert(rung.name);
    EXPECT_EQ(rungs, files);
    for (const std::string& name : rungs) {
        EXPECT_NE(readme.find(name + ".cu"), std::string::npos) << name;
        const std::string source = read_file("bench/ladder/" + name + ".cu");
        EXPECT_NE(source.find("Expected:"), std::string::npos) << name;
        EXPECT_TRUE(source.find("Cost:") != std::string::npos || name.ends_with("_production")) << name;
    }
}
