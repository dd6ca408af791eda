// build/train under mpirun: the same bits on any number of ranks, resumed on any other, stopped and refused
// as one.
#include <sys/ptrace.h>

#include "core/error.h"
#include "core/log.h"
#include "core/stop.h"
#include "model/checkpoint.h"
#include "tests/rank_run.h"

namespace {

class TrainRanks : public RankRun {};

}  // namespace

TEST_F(TrainRanks, AnyNumberGivesTheSameBits) {
    const std::string val = path("shards/val_*.bin");
    for (const auto& changes :
         {std::vector<std::string>{"--val-data", val, "--eval-every", "2", "--eval-batches", "5"},
          {"--dtype", "bf16", "--optimizer", "muon", "--deterministic-reduce", "6"}}) {
        const std::string alone = fresh();
        const Outcome expected = train_on(0, alone, changes);
        ASSERT_EQ(expected.exit_code, 0) << expected.err;
        for (const int ranks : {1, 2, 3, 4}) {
            SCOPED_TRACE(cat({ranks, " ranks"}));
            const std::string out = fresh();
            const Outcome outcome = train_on(ranks, out, changes);
            ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
            EXPECT_EQ(outcome.out, expected.out) << "one line, from one rank";
            EXPECT_EQ(steps_of(out), steps_of(alone));
            EXPECT_EQ(count(outcome.err, "model: "), 1) << outcome.err;
        }
    }
}

TEST_F(TrainRanks, ResumedOnAnyOtherNumber) {
    const std::string whole = weights(train_on(0, fresh()));
    for (const auto& [before, after] : {std::pair{4, 1}, {4, 2}, {4, 3}, {1, 4}}) {
        SCOPED_TRACE(cat({"saved by ", before, ", resumed by ", after}));
        const std::string out = fresh();
        const Outcome first = train_on(before, out, {"--stop-at", "3"});
        ASSERT_EQ(first.exit_code, 0) << first.err;
        const Outcome rest = train_on(after, out);
        EXPECT_NE(rest.err.find("resuming from " + out + "/step_00000003"), std::string::npos) << rest.err;
        EXPECT_EQ(weights(rest), whole);
    }
}

// The guard refuses on all ranks alike; one of them says so.
TEST_F(TrainRanks, RefusedStepsAreToldOnce) {
    const std::vector<std::string> changes = {"--lr",       "1000",     "--weight-decay", "1000",
                                              "--schedule", "constant", "--steps",        "12"};
    const std::string alone = fresh(), out = fresh();
    train_on(0, alone, changes);
    const Outcome outcome = train_on(3, out, changes);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_EQ(steps_of(out), steps_of(alone));
    const int64_t skipped = log_lines(out, "end").back()["num_skipped"];
    EXPECT_GT(skipped, 0) << "the case must refuse steps";
    EXPECT_EQ(count(outcome.err, " skipped: "), skipped) << outcome.err;
}

// Roundings may depend on the number of ranks then; the numbers do not.
TEST_F(TrainRanks, WithoutATreeTheSumIsStillRight) {
    const auto loss = [](const Outcome& outcome) {
        const std::string line = outcome.last_line();
        return std::stod(line.substr(line.find("loss=") + 5));
    };
    const double expected = loss(train_on(0, fresh()));
    const Outcome five = train_on(5, fresh(), {"--deterministic-reduce", "0"});
    ASSERT_EQ(five.exit_code, 0) << five.err;
    EXPECT_NEAR(loss(five), expected, 1e-5 * expected);
}

TEST_F(TrainRanks, ASignalStopsAllAtOneStep) {
    const std::vector<std::string> long_run = {"--steps", "40"};
    const std::string whole = weights(train_on(0, fresh(), long_run)), out = fresh();
    const Outcome stopped =
        train_on(2, out, long_run, {.signal = SIGUSR1, .signal_when = log_contains(out, "\"step\":5,")});
    EXPECT_EQ(stopped.exit_code, kExitTryAgain) << stopped.err;
    EXPECT_EQ(count(stopped.err, "stopped by signal"), 1) << stopped.err;
    const int64_t last = log_lines(out, "step").back()["step"];
    EXPECT_LT(last, 40);
    EXPECT_NE(stopped.err.find(cat({"at step ", last, ";"})), std::string::npos) << stopped.err;
    const Outcome rest = train_on(3, out, long_run);
    EXPECT_EQ(weights(rest), whole) << rest.exit_code << rest.err;
    EXPECT_EQ(log_lines(out, "step").size(), 40u);
}

TEST_F(TrainRanks, RefusalsAreOneLineOfOneRank) {
    const auto expect_refused = [&](const Outcome& outcome, const std::string& words, int exit_code = 2) {
        EXPECT_EQ(outcome.exit_code, exit_code) << outcome.err;
        EXPECT_NE(outcome.err.find(words), std::string::npos) << words << "\n" << outcome.err;
        EXPECT_EQ(count(outcome.err, "error: "), 1) << outcome.err;
        EXPECT_FALSE(outcome.timed_out);
    };
    const std::string out = fresh();
    expect_refused(train_on(3, out, {"--batch-tokens", "64"}), "more ranks than micro-batches in a step");
    expect_refused(train_on(5, out), "--deterministic-reduce: expected at least 5, got 4");
    expect_refused(train_on(2, out, {"--lerning-rate", "1"}), "lerning-rate");
    expect_refused(train_on(2, out, {"--device", "simt"}),
                   "several ranks and shards train on CPUs only so far");
    EXPECT_FALSE(path_exists(out));

    // A damaged checkpoint without another to go back to: rank 0 alone reads it.
    ASSERT_EQ(train_on(2, out, {"--stop-at", "2"}).exit_code, 0);
    const std::string weights_file = out + "/step_00000002/model.safetensors";
    std::string bytes = read_file(weights_file);
    bytes[bytes.size() / 2] ^= 1;
    write_file_atomic(weights_file, bytes);
    expect_refused(train_on(2, out), "step_00000002");
}

TEST_F(TrainRanks, RanksWithOtherFlagsAreNamed) {
    // mpirun -np 1 train ... : -np 2 train ... --lr 1e-2
    std::vector<std::string> more = {"1", program_path("train")};
    const std::string out = fresh();
    for (const std::string& word : flags(out, with({}))) more.push_back(word);
    more.insert(more.end(), {":", "-np", "2", program_path("train")});
    for (const std::string& word : flags(out, with({"--lr", "1e-2"}))) more.push_back(word);
    const Outcome outcome = run_mpirun(more);
    EXPECT_EQ(outcome.exit_code, 2) << outcome.err;
    EXPECT_NE(outcome.err.find("error: the configuration differs between ranks: rank 1 on "),
              std::string::npos)
        << outcome.err;
    EXPECT_NE(outcome.err.find("expected lr = 0.003 as rank 0"), std::string::npos) << outcome.err;
    EXPECT_NE(outcome.err.find("got lr = 0.01"), std::string::npos) << outcome.err;
}

// Hosts with another build, with other shards under the same name, or without the run directory.
TEST_F(TrainRanks, RanksWithAnotherProgramDataOrDirectoryAreNamed) {
    const std::string other = path("train-of-another-build");
    std::filesystem::copy_file(program_path("train"), other);
    std::ofstream(other, std::ios::app | std::ios::binary) << "x";
    const std::string out = fresh();
    std::vector<std::string> words = {"1", program_path("train")};
    for (const std::string& word : flags(out, with({}))) words.push_back(word);
    words.insert(words.end(), {":", "-np", "1", other});
    for (const std::string& word : flags(out, with({}))) words.push_back(word);
    const auto expect_named = [&](const Outcome& outcome, const std::string& what) {
        EXPECT_EQ(outcome.exit_code, 2) << outcome.err;
        EXPECT_NE(outcome.err.find("error: " + what + " differs between ranks: rank 1 on "),
                  std::string::npos)
            << outcome.err;
        EXPECT_EQ(count(outcome.err, "error: "), 1) << outcome.err;
        EXPECT_FALSE(outcome.timed_out);
    };
    expect_named(run_mpirun(words), "the program");

    const std::string here = path("host-a"), there = path("host-b");
    for (const std::string& host : {here, there}) make_directories(host);
    std::filesystem::create_directory_symlink(path("shards"), here + "/data");
    ToyCorpus::write(there + "/data", 2);
    words = {"1", "--wdir", here, program_path("train")};
    const std::vector<std::string> relative = with({"--train-data", "data/train_*.bin"});
    for (const std::string& word : flags(out, relative)) words.push_back(word);
    words.insert(words.end(), {":", "-np", "1", "--wdir", there, program_path("train")});
    for (const std::string& word : flags(out, relative)) words.push_back(word);
    expect_named(run_mpirun(words), "the training data");

    // An --out that is not one and the same directory: said before anything is trained.
    words = {"1", "--wdir", here, program_path("train")};
    for (const std::string& word : flags("apart", with({}))) words.push_back(word);
    words.insert(words.end(), {":", "-np", "1", "--wdir", there, program_path("train")});
    for (const std::string& word : flags("apart", with({}))) words.push_back(word);
    const Outcome apart = run_mpirun(words);
    EXPECT_EQ(apart.exit_code, 2) << apart.err;
    EXPECT_NE(apart.err.find("error: this rank does not see the run directory: apart on "), std::string::npos)
        << apart.err;
    EXPECT_EQ(count(apart.err, "error: "), 1) << apart.err;
    EXPECT_FALSE(path_exists(here + "/apart/log.jsonl"));
}

// Who dies or is stopped in the middle of a run is named, the job ends, and the next one goes on from the
// newest checkpoint to the same end.
TEST_F(TrainRanks, ADeadOrSilentRankEndsTheJobByName) {
    const std::vector<std::string> changes = {"--steps", "300",        "--checkpoint-every",
                                              "20",      "--watchdog", "3"};
    const std::string whole = weights(train_on(0, fresh(), changes));
    for (const auto& [victim, signal, words] : {std::tuple{1, SIGKILL, "has died"},
                                                {2, SIGSTOP, "has been silent for"},
                                                {0, SIGSTOP, "has been silent for"}}) {
        SCOPED_TRACE(cat({"signal ", signal, " to rank ", victim}));
        const std::string out = fresh();
        const auto step_6 = log_contains(out, "\"step\":6,");
        bool sent = false;
        const auto strike = [&, victim = victim, signal = signal] {
            // Checkpoints are written while steps go on.
            if (!sent && step_6() && !newest_checkpoint(out).empty()) {
                const pid_t pid = pid_of_rank(victim, out);
                sent = pid > 0 && kill(pid, signal) == 0;
            }
            return false;
        };
        const double start = seconds_now();
        const Outcome outcome = train_on(3, out, changes, {.signal = SIGURG, .signal_when = strike});
        ASSERT_TRUE(sent) << outcome.err;
        EXPECT_NE(outcome.exit_code, 0);
        EXPECT_FALSE(outcome.timed_out);
        EXPECT_LT(seconds_now() - start, 30) << "too late";
        const std::string line = cat({"error: rank ", victim, " on "});
        const size_t at = outcome.err.find(line);
        ASSERT_NE(at, std::string::npos) << outcome.err;
        EXPECT_NE(outcome.err.find(words, at), std::string::npos) << outcome.err;
        EXPECT_NE(outcome.err.find(": last heard of in step ", at), std::string::npos) << outcome.err;
        EXPECT_EQ(count(outcome.err, "error: "), 1) << outcome.err;
        const Outcome rest = train_on(2, out, changes);
        EXPECT_NE(rest.err.find("resuming from"), std::string::npos) << rest.err;
        EXPECT_EQ(weights(rest), whole);
    }
}

// A rank whose heartbeat goes on while its main thread does not: a debugger has it. All stages, for with 3
// the others wait for it in the middle of their own passes.
TEST_F(TrainRanks, AHangingRankEndsTheJobByName) {
    for (const auto& [victim, zero] : {std::pair{1, "0"}, {2, "3"}, {0, "1"}}) {
        SCOPED_TRACE(cat({"rank ", victim, ", stage ", zero}));
        const std::string out = fresh();
        const auto step_6 = log_contains(out, "\"step\":6,");
        pid_t held = 0;
        const auto hold = [&, victim = victim] {
            if (held == 0 && step_6()) {
                const pid_t pid = pid_of_rank(victim, out);
                if (pid > 0 && ptrace(PTRACE_SEIZE, pid, nullptr, nullptr) == 0 &&
                    ptrace(PTRACE_INTERRUPT, pid, nullptr, nullptr) == 0)
                    held = pid;
            }
            // Its launcher hears of its end only when its debugger has.
            if (held > 0) waitpid(held, nullptr, __WALL | WNOHANG);
            return false;
        };
        const double start = seconds_now();
        const Outcome outcome = train_on(3, out, {"--steps", "3000", "--watchdog", "2", "--zero", zero},
                                         {.signal = SIGURG, .signal_when = hold});
        ASSERT_GT(held, 0) << outcome.err;
        EXPECT_NE(outcome.exit_code, 0);
        EXPECT_FALSE(outcome.timed_out);
        EXPECT_LT(seconds_now() - start, 30) << "too late";
        EXPECT_NE(outcome.err.find(cat({"error: rank ", victim, " on "})), std::string::npos) << outcome.err;
        EXPECT_NE(outcome.err.find("keeps the others waiting for 2 s"), std::string::npos) << outcome.err;
        EXPECT_EQ(count(outcome.err, "error: "), 1) << outcome.err;
    }
}

// Job control stops all ranks; nobody has died when they go on.
TEST_F(TrainRanks, AJobThatWasStoppedGoesOn) {
    const std::vector<std::string> changes = {"--steps", "30", "--watchdog", "2"};
    const std::string whole = weights(train_on(0, fresh(), changes)), out = fresh();
    const auto step_6 = log_contains(out, "\"step\":6,");
    double stopped = 0;
    bool gone_on = false;
    const auto tell = [&](int signal) {
        for (int rank = 0; rank < 2; ++rank) {
            const pid_t pid = pid_of_rank(rank, out);
            EXPECT_GT(pid, 0);
            if (pid > 0) kill(pid, signal);
        }
    };
    const auto pause = [&] {
        if (stopped == 0 && step_6()) {
            tell(SIGSTOP);
            stopped = seconds_now();
        }
        if (stopped > 0 && !gone_on && seconds_now() - stopped > 5) {
            tell(SIGCONT);
            gone_on = true;
        }
        return false;
    };
    const Outcome outcome = train_on(2, out, changes, {.signal = SIGURG, .signal_when = pause});
    EXPECT_TRUE(gone_on);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_EQ(weights(outcome), whole);
}
