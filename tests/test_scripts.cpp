// The shell scripts behind make: what they refuse, and the demo's course with stand-ins for the programs, so
// that it takes no training.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/run_program.h"

namespace {

class Scripts : public testing::Test {
protected:
    Scripts() {
        char pattern[] = "/tmp/ingot_scripts_XXXXXX";
        root_ = mkdtemp(pattern);
        make_directories(root_ + "/notes");
        write_file_atomic(root_ + "/notes/a.txt", "some text of one's own\n");
    }
    ~Scripts() override { std::filesystem::remove_all(root_); }
    std::string path(const std::string& name) const { return root_ + "/" + name; }
    void script(const std::string& name, const std::string& text) {
        make_directories(std::filesystem::path(path(name)).parent_path());
        write_file_atomic(path(name), "#!/bin/bash\nset -e\n" + text);
        std::filesystem::permissions(path(name), std::filesystem::perms::owner_all);
    }
    static Outcome bash(std::vector<std::string> words) { return run_program("/bin/bash", words); }

    // The demo on notes/, where build/evaluate says `bits_per_byte`.
    Outcome demo(const std::string& bits_per_byte) {
        // flag NAME "$@": the value that follows --NAME.
        const std::string flag =
            "flag() { local n=--$1; shift; while [ \"$1\" != $n ]; do shift; done; echo \"$2\"; }\n";
        script("build/curate", flag + "out=$(flag out \"$@\"); mkdir -p $out; flag sources \"$@\" >" +
                                   path("sources-used") + "; cp " + path("notes/a.txt") + " $out/val.txt\n");
        script("build/tokenize", "exit 0\n");
        script("build/generate", "exit 0\n");
        script("build/train", flag +
                                  "out=$(flag out \"$@\"); mkdir -p $out/step_00000300\n"
                                  "echo '{\"kind\":\"step\",\"tokens_per_s\":1234.5}' >$out/log.jsonl\n");
        script("build/evaluate", "echo 'evaluate: loss=1.5 perplexity=4.5 bits_per_byte=" + bits_per_byte +
                                     " tokens=10 bytes=20 seconds=0.1'\n");
        return run_program("/usr/bin/env", {"CORPUS=" + path("notes"), "DEMO_DIR=" + path("demo"),
                                            "LC_ALL=de_DE.UTF-8", "bash", "scripts/demo.sh", path("build")});
    }
    std::string root_;
};

}  // namespace

TEST_F(Scripts, ACorpusOfOnesOwnIsNotTakenForThePackagesCorpus) {
    const std::string corpus = path("corpus");
    make_directories(corpus);
    write_file_atomic(corpus + "/.recipe", "1\n");  // complete, by its own account
    const Outcome own = bash({"scripts/corpus.sh", "--from", path("notes"), corpus});
    EXPECT_EQ(own.exit_code, 0) << own.err;
    EXPECT_EQ(list_directory(corpus), std::vector<std::string>{"sources.json"});
    const auto sources = nlohmann::json::parse(read_file(corpus + "/sources.json"));
    EXPECT_EQ(sources.at(0).at("path"), std::filesystem::canonical(path("notes")).string());
    const Outcome absent = bash({"scripts/corpus.sh", "--from", path("nowhere"), corpus});
    EXPECT_EQ(absent.exit_code, 2);
    EXPECT_TRUE(
        absent.error_line().starts_with("error: corpus: " + path("nowhere") + " is not there  hint: "))
        << absent.err;
}

TEST_F(Scripts, TheDemoKeepsTheTwoCorporaApart) {
    make_directories(path("demo/corpus"));
    write_file_atomic(path("demo/corpus/.recipe"), "1\n");
    write_file_atomic(path("demo/corpus/sources.json"), "[]");
    const Outcome run = demo("0.25");
    ASSERT_EQ(run.exit_code, 0) << run.err << run.out;
    EXPECT_TRUE(run.last_line().starts_with("demo: ok val_bpb=0.25 xz_bpb=")) << run.out;
    EXPECT_NE(run.last_line().find(" tokens_per_s=1234 "), std::string::npos)
        << "a whole number: " << run.out;
    EXPECT_EQ(read_file(path("sources-used")), path("demo/corpus-own/sources.json") + "\n");
    EXPECT_EQ(read_file(path("demo/corpus/.recipe")), "1\n") << "the packages' corpus is as it was";
    EXPECT_EQ(read_file(path("demo/corpus/sources.json")), "[]");
}

TEST_F(Scripts, TheDemoIsNotOkWithoutAVerdict) {
    const Outcome run = demo("nan");
    EXPECT_EQ(run.exit_code, 1);
    EXPECT_TRUE(run.error_line().starts_with("error: demo: build/evaluate gave no bits per byte  hint: "))
        << run.err;
    EXPECT_EQ(run.out.find("demo: ok"), std::string::npos) << run.out;
}

TEST_F(Scripts, LintOfNothingIsNotClean) {
    make_directories(path("scripts"));
    std::filesystem::copy("scripts/lint.sh", path("scripts/lint.sh"));
    const Outcome lint = bash({path("scripts/lint.sh")});
    EXPECT_EQ(lint.exit_code, 2) << lint.out;
    EXPECT_EQ(lint.out, "");
    EXPECT_TRUE(lint.error_line().starts_with("error: lint: git lists no files in " + root_)) << lint.err;
    EXPECT_NE(lint.error_line().find("hint: "), std::string::npos) << lint.err;
}

TEST_F(Scripts, UnknownGroupsOfPackagesAreRefused) {
    const Outcome deps = bash({"scripts/deps.sh", "build", "biuld"});
    EXPECT_EQ(deps.exit_code, 2);
    EXPECT_EQ(
        deps.err,
        "error: deps: unknown group 'biuld'  hint: build, test, test-full, bench, lint, demo or peers\n");
}

namespace {

// A stand-in for a test or benchmark of gpu_check.sh that prints its JSON where --json says.
const char* const kToJson = "while [ \"$1\" != --json ]; do shift; done\n";

}  // namespace

class GpuCheck : public Scripts {
protected:
    // The results, which must be one whole JSON document whatever happened.
    Outcome check(const std::vector<std::string>& sections, const RunOptions& options = {},
                  const char* limit_s = "50") {
        std::vector<std::string> words = {
            "OUT=" + path("out"),  "BUILD=" + path("gpu"), std::string("LIMIT_S=") + limit_s,
            "TESTS=test_one",      "DEVICE=simt",          "bash",
            "scripts/gpu_check.sh"};
        words.insert(words.end(), sections.begin(), sections.end());
        const Outcome run = run_program("/usr/bin/env", words, options);
        results_ = nlohmann::json::parse(read_file(path("out/gpu_check.json")));
        return run;
    }
    std::string status(size_t section) const { return results_.at("sections").at(section).at("status"); }
    nlohmann::json results_;
};

TEST_F(GpuCheck, ResultsOfAllSectionsLieInOneFile) {
    script("gpu/bench/bench_gpu",
           std::string(kToJson) + "echo 'a \"table\"\t\\'; echo '{\"op\":\"gelu\"}' >$2\n");
    script("gpu/bench/bench_train", std::string(kToJson) + "printf '{\"kind\":\"train\"}\\n{\"ki' >$2\n");
    script("gpu/tests/test_one", "echo '[       OK ] A.B (0 ms)'\n");
    const Outcome run = check({"tests", "bench", "train"});
    EXPECT_EQ(run.exit_code, 0) << run.out << run.err;
    EXPECT_NE(run.last_line().find("tests ok, bench ok, train ok"), std::string::npos) << run.out;
    ASSERT_EQ(results_.at("sections").size(), 3u);
    EXPECT_EQ(results_.at("sections").at(0).at("note"), "1 passed, 0 failed, 0 skipped");
    EXPECT_EQ(results_.at("sections").at(1).at("note"), "a \"table\" \\");
    ASSERT_EQ(results_.at("lines").size(), 2u) << "half a line is none";
    EXPECT_EQ(results_.at("lines").at(0).at("op"), "gelu");
    EXPECT_EQ(results_.at("lines").at(1).at("kind"), "train");
}

TEST_F(GpuCheck, FailuresAndTimeLimitsAreToldAndTheRestStillRuns) {
    script("gpu/tests/test_one", "echo '[  FAILED  ] A.B (1 ms)'; exit 1\n");
    script("gpu/bench/bench_gpu",
           std::string(kToJson) + "echo '{\"op\":\"rope\"}' >$2; echo begun; sleep 60\n");
    const Outcome run = check({"tests", "bench", "train"}, {}, "8");
    EXPECT_EQ(run.exit_code, 1);
    EXPECT_EQ(status(0), "failed");
    EXPECT_NE(results_.at("sections").at(0).at("log").get<std::string>().find("[  FAILED  ] A.B"),
              std::string::npos);
    EXPECT_EQ(status(1), "cut off");
    EXPECT_EQ(status(2), "skipped") << "no time is left";
    EXPECT_EQ(results_.at("lines").at(0).at("op"), "rope") << "what was measured is kept";
}

TEST_F(GpuCheck, StoppedItLeavesWholeResults) {
    script("gpu/bench/bench_gpu",
           std::string(kToJson) + "echo '{\"op\":\"rope\"}' >$2; touch " + path("begun") + "; sleep 60\n");
    const Outcome run =
        check({"bench"}, {.signal = SIGTERM, .signal_when = [this] { return path_exists(path("begun")); }});
    EXPECT_EQ(run.exit_code, 1) << run.out;
    EXPECT_EQ(status(0), "cut off");
    EXPECT_EQ(results_.at("lines").size(), 1u);
}

TEST_F(GpuCheck, UnknownSectionsAreRefused) {
    const Outcome run = bash({"scripts/gpu_check.sh", "bench", "trian"});
    EXPECT_EQ(run.exit_code, 2);
    EXPECT_TRUE(run.error_line().starts_with("error: gpu_check: unknown section 'trian'  hint: ")) << run.err;
}

TEST_F(Scripts, LookingIntoKernelsSaysWhatIsMissing) {
    for (const char* what : {"has-profiler", "has-sass"}) {
        const Outcome nameless = bash({"scripts/inspect.sh", what, "", "/nvcc"});
        EXPECT_EQ(nameless.exit_code, 2);
        EXPECT_TRUE(nameless.error_line().starts_with("error: inspect: no op was named  hint: K=attention"));
        const Outcome no_cuda = bash({"scripts/inspect.sh", what, "attention", ""});
        EXPECT_EQ(no_cuda.exit_code, 2);
        EXPECT_TRUE(no_cuda.error_line().starts_with("error: inspect: this build has no CUDA"))
            << no_cuda.err;
    }
}
