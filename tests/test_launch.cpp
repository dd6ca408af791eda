// scripts/launch/mpirun.sh: on this machine, and on two hosts that are network namespaces. What it promises
// of signals, of ranks and cables that break, and of hosts that are not there.
#include <optional>

#include "core/log.h"
#include "core/stop.h"
#include "tests/run_ranks.h"
#include "tests/toy_run.h"
#include "tests/two_hosts.h"

namespace {

class Launch : public ToyRun {
protected:
    void SetUp() override {
        const std::string mpirun = mpirun_path();
        if (mpirun.empty()) GTEST_SKIP() << "no mpirun";
        if (std::filesystem::canonical(mpirun).string().find("hydra") != std::string::npos)
            GTEST_SKIP() << "mpirun is not Open MPI's";
    }
    // Steps of some milliseconds: two ranks on two cores that others want too wait as long for each other.
    static std::vector<std::string> with(const std::vector<std::string>& more) {
        std::vector<std::string> changes = {"--batch-tokens", "2048", "--device", "cpu", "--threads", "1"};
        changes.insert(changes.end(), more.begin(), more.end());
        return changes;
    }
    static std::string hostfile(const std::string& text) {
        const std::string file = fresh("hosts");
        write_file_atomic(file, text);
        return file;
    }
    // `variables` of the script, and the flags of a run into `out`; words before them run it elsewhere.
    static Outcome launch(const std::vector<std::string>& variables, const std::string& out,
                          const std::vector<std::string>& changes, const RunOptions& options = {},
                          std::vector<std::string> words = {}) {
        const std::string program = words.empty() ? "/usr/bin/env" : TwoHosts::kIp;
        if (!words.empty()) words.push_back("/usr/bin/env");
        const std::string build = std::filesystem::path(program_path("train")).parent_path();
        words.insert(words.end(), {"BUILD=" + build, "PLACE=--bind-to none", "OMPI_ALLOW_RUN_AS_ROOT=1",
                                   "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1", "ASAN_OPTIONS=detect_leaks=0"});
        words.insert(words.end(), variables.begin(), variables.end());
        words.push_back("scripts/launch/mpirun.sh");
        for (const std::string& flag : flags(out, with(changes))) words.push_back(flag);
        return run_program(program, words, options);
    }
    static Outcome launch_here(const std::string& out, const std::vector<std::string>& changes,
                               const RunOptions& options = {}, const std::string& variable = "RESTARTS=3") {
        return launch({"HOSTFILE=" + hostfile("localhost slots=2  # of this machine\n"), variable}, out,
                      changes, options);
    }
    // A signal to one rank in the middle of step `step` and later; sends nothing itself.
    static RunOptions strike(const std::string& out, int rank, int signal, bool& sent) {
        RunOptions options{.signal = SIGURG};
        options.signal_when = [=, &sent, begun = log_contains(out, "\"step\":30,")] {
            if (!sent && begun()) {
                const pid_t pid = pid_of_rank(rank, out);
                sent = pid > 0 && kill(pid, signal) == 0;
            }
            return false;
        };
        return options;
    }
    static int64_t count_steps(const std::string& out) {
        int64_t steps = 0;
        if (!path_exists(out + "/log.jsonl")) return 0;
        const std::string text = read_file(out + "/log.jsonl"), word = "\"kind\":\"step\"";
        for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++steps;
        return steps;
    }
    static void expect_line(const Outcome& outcome, const std::string& begin, const std::string& words) {
        EXPECT_EQ(outcome.exit_code, 2) << outcome.err;
        EXPECT_TRUE(outcome.err.starts_with(begin)) << outcome.err;
        EXPECT_NE(outcome.err.find(words), std::string::npos) << outcome.err;
        EXPECT_NE(outcome.err.find("  hint: "), std::string::npos) << outcome.err;
        EXPECT_EQ(outcome.err.find('\n'), outcome.err.size() - 1) << "one line: " << outcome.err;
        EXPECT_EQ(outcome.out, "");
    }
};

class LaunchOnTwoHosts : public Launch {
protected:
    void SetUp() override {
        Launch::SetUp();
        if (IsSkipped()) return;
        hosts_.emplace(root_);
        if (!hosts_->missing().empty()) GTEST_SKIP() << hosts_->missing();
    }
    Outcome launch_on_both(const std::string& out, const std::vector<std::string>& changes,
                           const RunOptions& options = {}, const std::string& second = TwoHosts::address(1)) {
        const std::string file =
            hostfile(TwoHosts::address(0) + " slots=1\n# the other one\n\n" + second + " slots=1\n");
        return launch({"HOSTFILE=" + file, "RSH=" + hosts_->rsh(), "WAIT_S=1"}, out, changes, options,
                      TwoHosts::on(0));
    }
    std::optional<TwoHosts> hosts_;
};

// The network namespace of a process: which host it is on.
std::string host_of(pid_t pid) {
    std::error_code gone;
    return std::filesystem::read_symlink("/proc/" + std::to_string(pid) + "/ns/net", gone).string();
}

}  // namespace

TEST_F(Launch, ASignalSavesTheRunAndTellsWhetherToComeBack) {
    const std::vector<std::string> changes = {"--steps", "150"};
    const std::string whole = hash_of(fresh(), with(changes)), out = fresh();
    for (const auto& [signal, exit_code] :
         {std::pair{SIGUSR1, kExitTryAgain}, {SIGTERM, kExitTryAgain}, {SIGINT, 130}}) {
        SCOPED_TRACE(strsignal(signal));
        RunOptions options{.signal = signal};
        options.signal_when = [&, before = count_steps(out)] { return count_steps(out) >= before + 10; };
        const Outcome stopped = launch_here(out, changes, options);
        ASSERT_EQ(stopped.exit_code, exit_code) << stopped.err;
        EXPECT_NE(stopped.err.find("stopped by signal 10 at step"), std::string::npos) << stopped.err;
        EXPECT_EQ(stopped.err.find("restart"), std::string::npos) << "who was asked to stop stays away";
        EXPECT_EQ(stopped.out, "");
    }
    // Before it listens to signals there is nothing to save.
    const Outcome early = launch_here(
        fresh(), changes, {.signal = SIGUSR1, .signal_when = [] { return pid_of_rank(0, root_) > 0; }});
    EXPECT_EQ(early.exit_code, kExitTryAgain) << early.err;
    const Outcome rest = launch_here(out, changes);
    EXPECT_EQ(rest.exit_code, 0) << rest.err;
    EXPECT_EQ(weights(rest), whole);
    EXPECT_EQ(count_steps(out), 150) << "none twice: each stop was saved";
}

TEST_F(Launch, AJobThatBreaksIsStartedAgain) {
    const std::vector<std::string> changes = {"--steps", "60", "--checkpoint-every", "10"};
    const std::string whole = hash_of(fresh(), with(changes));
    bool sent = false;
    const std::string out = fresh();
    const Outcome outcome = launch_here(out, changes, strike(out, 1, SIGKILL, sent));
    ASSERT_TRUE(sent) << outcome.err;
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_NE(outcome.err.find("; restart 1 of 3\n"), std::string::npos) << outcome.err;
    EXPECT_NE(outcome.err.find("resuming from " + out), std::string::npos) << outcome.err;
    EXPECT_EQ(weights(outcome), whole);

    sent = false;
    const std::string given_up = fresh();
    const Outcome once = launch_here(given_up, changes, strike(given_up, 1, SIGKILL, sent), "RESTARTS=0");
    ASSERT_TRUE(sent) << once.err;
    EXPECT_NE(once.exit_code, 0);
    EXPECT_NE(once.exit_code, kExitTryAgain);
    EXPECT_TRUE(once.error_line().starts_with("error: mpirun.sh: the job broke with exit code ")) << once.err;
}

TEST_F(Launch, WhatCannotStartIsOneLine) {
    const std::string out = fresh(), file = hostfile("# nobody\n\n");
    expect_line(launch({"HOSTFILE=" + file}, out, {}), "error: mpirun.sh: " + file, "names no host");
    expect_line(launch({"HOSTFILE=/nowhere"}, out, {}), "error: mpirun.sh: /nowhere", "cannot be read");
    expect_line(launch({"BUILD=/nowhere"}, out, {}), "error: mpirun.sh: /nowhere/train", "is not there");
    expect_line(launch({"MPIRUN=mpirum"}, out, {}), "error: mpirun.sh: there is no mpirum", "deps.sh");
    // The trainer's own refusals stay its own, and are not tried again.
    const Outcome wrong = launch_here(out, {"--lerning-rate", "1"});
    EXPECT_EQ(wrong.exit_code, 2) << wrong.err;
    EXPECT_TRUE(wrong.err.starts_with("error: unknown flag: --lerning-rate")) << wrong.err;
    EXPECT_EQ(wrong.err.find("restart"), std::string::npos) << wrong.err;
    EXPECT_FALSE(path_exists(out));
}

TEST_F(LaunchOnTwoHosts, TheBitsAreThoseOfOneRank) {
    const std::vector<std::string> changes = {"--steps", "40"};
    const std::string whole = hash_of(fresh(), with(changes)), out = fresh();
    std::string first, second;
    RunOptions options{.signal = SIGURG};
    options.signal_when = [&, begun = log_contains(out, "\"step\":5,")] {
        if (first.empty() && begun()) {
            first = host_of(pid_of_rank(0, out));
            second = host_of(pid_of_rank(1, out));
        }
        return false;
    };
    const Outcome outcome = launch_on_both(out, changes, options);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_EQ(weights(outcome), whole);
    EXPECT_NE(outcome.err.find("2 ranks of 1 threads"), std::string::npos) << outcome.err;
    EXPECT_FALSE(first.empty() || second.empty()) << "both ranks were seen at work";
    EXPECT_NE(first, second) << "each on a host of its own";
    EXPECT_NE(first, host_of(getpid()));
}

TEST_F(LaunchOnTwoHosts, AHostThatIsNotThereIsOneLine) {
    const std::string out = fresh();
    const double start = seconds_now();
    const Outcome outcome = launch_on_both(out, {}, {}, "10.77.0.3");
    expect_line(outcome, "error: mpirun.sh: 10.77.0.3 has not answered", "no route to 10.77.0.3");
    EXPECT_LT(seconds_now() - start, 10 * kTimeFactor);
    EXPECT_FALSE(path_exists(out));
}

// The cable is pulled in the middle of the run and put back when a rank has been missed.
TEST_F(LaunchOnTwoHosts, ACutCableIsNamedAndTheRunGoesOn) {
    const std::vector<std::string> changes = {"--steps", "60", "--checkpoint-every", "25", "--watchdog", "3"};
    const std::string whole = hash_of(fresh(), with(changes)), out = fresh();
    double cut = 0, mended = 0;
    RunOptions options{.signal = SIGURG};
    options.signal_when = [&, begun = log_contains(out, "\"step\":30,")] {
        if (cut == 0 && begun()) {
            hosts_->set_cable("down");
            cut = seconds_now();
        }
        // Both ranks are gone, each having missed the other.
        if (cut > 0 && mended == 0 && pid_of_rank(0, out) == 0 && pid_of_rank(1, out) == 0) {
            hosts_->set_cable("up");
            mended = seconds_now();
        }
        return false;
    };
    const Outcome outcome = launch_on_both(out, changes, options);
    ASSERT_GT(mended, 0) << outcome.err;
    EXPECT_LT(mended - cut, 15 * kTimeFactor) << "too late";
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_NE(outcome.err.find("error: rank 1 on " + TwoHosts::name(1) + " has been silent for"),
              std::string::npos)
        << outcome.err;
    EXPECT_NE(outcome.err.find("; restart 1 of 3\n"), std::string::npos) << outcome.err;
    EXPECT_EQ(weights(outcome), whole);
}
