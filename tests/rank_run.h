// Runs of build/train on the toy corpus under mpirun.
#pragma once
#include "tests/run_ranks.h"
#include "tests/toy_run.h"

class RankRun : public ToyRun {
protected:
    void SetUp() override {
        if (mpirun_path().empty()) GTEST_SKIP() << "no mpirun";
    }
    // Six micro-batches a step: for four ranks 1, 2, 1 and 2 of them.
    static std::vector<std::string> with(const std::vector<std::string>& more) {
        std::vector<std::string> changes = {"--steps",       "6",   "--seq-len",      "16",
                                            "--micro-batch", "2",   "--batch-tokens", "192",
                                            "--device",      "cpu", "--threads",      "1"};
        changes.insert(changes.end(), more.begin(), more.end());
        return changes;
    }
    static Outcome train_on(int num_ranks, const std::string& out, const std::vector<std::string>& more = {},
                            const RunOptions& options = {}) {
        const std::vector<std::string> all = flags(out, with(more));
        return num_ranks == 0 ? run_program("train", all, options)
                              : run_ranks(num_ranks, "train", all, options);
    }
    // What a run's steps were, without their times and costs.
    static std::vector<std::string> steps_of(const std::string& out) {
        std::vector<std::string> steps;
        for (auto line : log_lines(out, "")) {
            for (const char* key :
                 {"ms", "tokens_per_s", "mfu", "sent_bytes", "peak_rss_bytes", "plan_bytes"})
                line.erase(key);
            steps.push_back(line.dump());
        }
        return steps;
    }
    static int64_t count(const std::string& text, const std::string& word) {
        int64_t found = 0;
        for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++found;
        return found;
    }
};
