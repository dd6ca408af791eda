// scripts/launch/slurm.sbatch under a real Slurm of two nodes: jobs that are warned, preempted, requeued,
// cancelled or broken, and what they end with.
#include "tests/run_ranks.h"
#include "tests/slurm_cluster.h"
#include "tests/toy_run.h"

namespace {

class LaunchSlurm : public ToyRun {
protected:
    static void SetUpTestSuite() {
        ToyRun::SetUpTestSuite();
        if (SlurmCluster::missing().empty()) slurm_ = std::make_unique<SlurmCluster>(path("slurm"));
    }
    static void TearDownTestSuite() {
        slurm_.reset();
        ToyRun::TearDownTestSuite();
    }
    void SetUp() override {
        if (!slurm_) GTEST_SKIP() << SlurmCluster::missing();
        ASSERT_TRUE(slurm_->started()) << slurm_->log();
        if (slurm_->command({"srun", "--mpi=list"}).err.find("pmix") == std::string::npos &&
            slurm_->command({"srun", "--mpi=list"}).out.find("pmix") == std::string::npos)
            GTEST_SKIP() << "this Slurm has no PMIx";
    }
    // Steps of some milliseconds: two ranks on two cores that others want too wait as long for each other.
    static std::vector<std::string> with(const std::vector<std::string>& more) {
        std::vector<std::string> changes = {"--batch-tokens", "2048", "--device", "cpu", "--threads", "1"};
        changes.insert(changes.end(), more.begin(), more.end());
        return changes;
    }
    // A rank on each of two nodes, by sbatch, into `out`; what they say goes into `out`.txt. The number of
    // the job.
    static std::string submit(const std::string& out, const std::vector<std::string>& changes,
                              const std::string& launcher = "srun --mpi=pmix") {
        const std::string build = std::filesystem::path(program_path("train")).parent_path();
        std::vector<std::string> words = {"BUILD=" + build,
                                          "LAUNCHER=" + launcher,
                                          "OMPI_ALLOW_RUN_AS_ROOT=1",
                                          "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
                                          "ASAN_OPTIONS=detect_leaks=0",
                                          "sbatch",
                                          "--parsable",
                                          "--nodes",
                                          "2",
                                          "--output",
                                          out + ".txt",
                                          "scripts/launch/slurm.sbatch"};
        for (const std::string& flag : flags(out, with(changes))) words.push_back(flag);
        const Outcome outcome = slurm_->command(words);
        EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
        return outcome.last_line();
    }
    static std::string said(const std::string& out) {
        return path_exists(out + ".txt") ? read_file(out + ".txt") : "";
    }
    static int64_t count(const std::string& text, const std::string& word) {
        int64_t found = 0;
        for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++found;
        return found;
    }
    static int64_t count_steps(const std::string& out) {
        return path_exists(out + "/log.jsonl") ? count(read_file(out + "/log.jsonl"), "\"kind\":\"step\"")
                                               : 0;
    }
    static bool wait_for_steps(const std::string& out, int64_t steps) {
        return SlurmCluster::wait_until(30, [&] { return count_steps(out) >= steps; });
    }
    static bool wait_for(const std::string& job, const std::string& name, const std::string& value) {
        return SlurmCluster::wait_until(60, [&] { return slurm_->field(job, name) == value; });
    }
    static std::string weights_of(const std::string& out) {
        return weights(Outcome{.out = said(out), .err = {}});
    }

    inline static std::unique_ptr<SlurmCluster> slurm_;
};

}  // namespace

TEST_F(LaunchSlurm, AJobThatMustGoComesBackAndEndsWithTheSameBits) {
    const std::vector<std::string> changes = {"--steps", "300"};
    const std::string whole = hash_of(fresh(), with(changes)), out = fresh();
    const std::string job = submit(out, changes);
    int64_t restarts = 0;
    for (const std::vector<std::string>& words :
         {// The warning ahead of the time limit, as Slurm sends it.
          std::vector<std::string>{"scancel", "--signal=USR1", "--batch", job},
          // A job that is more important.
          {"srun", "--partition", "high", "--nodes", "2", "hostname"},
          // An administrator.
          {"scontrol", "requeue", job}}) {
        SCOPED_TRACE(words[0]);
        ASSERT_TRUE(wait_for_steps(out, count_steps(out) + 10)) << said(out);
        const Outcome outcome = slurm_->command(words);
        ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
        ASSERT_TRUE(wait_for(job, "Restarts", std::to_string(++restarts))) << said(out) << slurm_->log();
        ASSERT_LT(count_steps(out), 300) << "the run must be longer";
    }
    ASSERT_TRUE(wait_for(job, "JobState", "COMPLETED")) << slurm_->field(job, "JobState") << said(out);
    EXPECT_EQ(weights_of(out), whole) << said(out);
    EXPECT_EQ(count(said(out), "train: stopped by signal"), 3) << said(out);
    EXPECT_EQ(count(said(out), "resuming from " + out), 3) << said(out);
    EXPECT_EQ(count(said(out), "is queued again: stopped, and saved"), 2) << "Slurm itself did it once";
    EXPECT_EQ(count(said(out), "error: slurm.sbatch"), 0) << said(out);
    EXPECT_EQ(count_steps(out), 300) << "none twice: each stop was saved";
}

TEST_F(LaunchSlurm, ABrokenJobComesBack) {
    const std::vector<std::string> changes = {"--steps", "40", "--checkpoint-every", "5"};
    const std::string whole = hash_of(fresh(), with(changes));
    for (const char* launcher : {"srun --mpi=pmix", "mpirun --quiet"}) {
        SCOPED_TRACE(launcher);
        const std::string out = fresh(), job = submit(out, changes, launcher);
        ASSERT_TRUE(wait_for_steps(out, 12)) << said(out);
        const pid_t pid = pid_of_rank(1, out);
        ASSERT_GT(pid, 0);
        ASSERT_EQ(kill(pid, SIGKILL), 0);
        ASSERT_TRUE(wait_for(job, "JobState", "COMPLETED")) << slurm_->field(job, "JobState") << said(out);
        EXPECT_EQ(slurm_->field(job, "Restarts"), "1");
        EXPECT_NE(said(out).find("is queued again: broke with exit code "), std::string::npos) << said(out);
        EXPECT_EQ(weights_of(out), whole) << said(out);
    }
}

TEST_F(LaunchSlurm, WhatIsCancelledOrWrongStaysAway) {
    const std::string out = fresh(), other = fresh();
    const std::string job = submit(out, {"--steps", "100000"});
    ASSERT_TRUE(wait_for_steps(out, 20)) << said(out);
    ASSERT_EQ(slurm_->command({"scancel", job}).exit_code, 0);
    ASSERT_TRUE(wait_for(job, "JobState", "CANCELLED")) << slurm_->field(job, "JobState") << said(out);
    EXPECT_EQ(slurm_->field(job, "Restarts"), "0");
    EXPECT_EQ(said(out).find("queued again"), std::string::npos) << said(out);
    EXPECT_NE(said(out).find("train: stopped by signal"), std::string::npos) << "saved all the same";

    const std::string wrong = submit(other, {"--lerning-rate", "1"});
    ASSERT_TRUE(wait_for(wrong, "JobState", "FAILED")) << slurm_->field(wrong, "JobState") << said(other);
    EXPECT_EQ(slurm_->field(wrong, "Restarts"), "0");
    EXPECT_EQ(slurm_->field(wrong, "ExitCode"), "2:0");
    EXPECT_EQ(count(said(other), "error: unknown flag: --lerning-rate"), 1) << said(other);
}
