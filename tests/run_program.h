// Starts one of the programs that lie beside the tests' directory (build/train for build/tests/test_x)
// without a shell, and collects what it says: stdout, stderr, exit code. It can be signalled when a condition
// comes true, held to a largest file size, and is killed after a time limit. POSIX only.
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "core/io.h"

// Sanitizers make a program several times slower.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr double kTimeFactor = 5;
#else
constexpr double kTimeFactor = 1;
#endif

struct RunOptions {
    std::string input = {};                  // standard input
    double limit_s = 60 * kTimeFactor;       // SIGKILL after this: a hang is a failure, not a wait
    int signal = 0;                          // sent once, as soon as `signal_when` says so
    std::function<bool()> signal_when = {};  // asked every millisecond
    int64_t max_file_bytes = 0;              // RLIMIT_FSIZE; 0: none
    std::string stdout_path = {};            // a device to print to, such as /dev/full
    bool dead_reader = false;                // stdout and stderr are a pipe that nobody reads any more
    int ignored_signal = 0;                  // from the start, as nohup does with SIGHUP
    std::string variable = {};               // NAME=VALUE, beside PATH: all of its environment
};

struct Outcome {
    int exit_code = -1;  // -1: ended by `signal`
    int signal = 0;
    bool timed_out = false;
    std::string out, err;

    // What "error: ..." line stderr ends with; a failure explains itself in exactly one.
    std::string error_line() const {
        const size_t begin = err.rfind("\nerror: ");
        if (begin != std::string::npos) return err.substr(begin + 1);
        return err.starts_with("error: ") ? err : "(no error line) " + err;
    }
    std::string last_line() const {
        const size_t end = out.find_last_not_of('\n');
        if (end == std::string::npos) return "";
        const size_t before = out.rfind('\n', end);
        return out.substr(before + 1, end - before);  // npos + 1 is 0
    }
};

inline std::string program_path(const std::string& name) {
    return (std::filesystem::read_symlink("/proc/self/exe").parent_path().parent_path() / name).string();
}

inline Outcome run_program(const std::string& name, const std::vector<std::string>& arguments,
                           const RunOptions& options = {}) {
    // Files instead of pipes: nothing to drain, so nothing to deadlock on.
    std::string scratch = (std::filesystem::temp_directory_path() / "ingot-run-XXXXXX").string();
    if (!mkdtemp(scratch.data())) ADD_FAILURE() << "no temporary directory";
    const std::string in = scratch + "/in", out = scratch + "/out", err = scratch + "/err";
    write_file_atomic(in, options.input);
    for (const std::string& empty : {out, err})
        write_file_atomic(empty, "");  // it may die before it opens them

    const std::string program = program_path(name);
    std::vector<char*> argv = {const_cast<char*>(program.c_str())};
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    std::string path_variable = "PATH=/usr/bin:/bin";
    std::string variable = options.variable;
    char* environment[] = {path_variable.data(), variable.empty() ? nullptr : variable.data(), nullptr};

    const pid_t pid = fork();
    if (pid == 0) {  // only async-signal-safe calls from here: the parent has threads
        dup2(open(in.c_str(), O_RDONLY), STDIN_FILENO);
        dup2(open(out.c_str(), O_WRONLY | O_CREAT, 0600), STDOUT_FILENO);
        if (!options.stdout_path.empty()) dup2(open(options.stdout_path.c_str(), O_WRONLY), STDOUT_FILENO);
        dup2(open(err.c_str(), O_WRONLY | O_CREAT, 0600), STDERR_FILENO);
        int dead[2];
        if (options.dead_reader && pipe(dead) == 0) {
            close(dead[0]);
            dup2(dead[1], STDOUT_FILENO);
            dup2(dead[1], STDERR_FILENO);
        }
        // As an interactive shell gives them, whoever started the tests: a job in the background of a script
        // inherits an ignored SIGINT.
        for (const int given : {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGXFSZ}) signal(given, SIG_DFL);
        if (options.ignored_signal) signal(options.ignored_signal, SIG_IGN);
        if (options.max_file_bytes > 0) {
            const rlim_t bytes = static_cast<rlim_t>(options.max_file_bytes);
            const struct rlimit limit = {bytes, bytes};
            setrlimit(RLIMIT_FSIZE, &limit);
        }
        execve(program.c_str(), argv.data(), environment);
        _exit(127);
    }

    Outcome outcome;
    int status = 0;
    bool signalled = false;
    const auto start = std::chrono::steady_clock::now();
    while (pid > 0 && waitpid(pid, &status, WNOHANG) == 0) {
        if (options.signal && !signalled && options.signal_when()) {
            kill(pid, options.signal);
            signalled = true;
        }
        const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
        if (!outcome.timed_out && elapsed.count() > options.limit_s) {
            outcome.timed_out = true;
            kill(pid, SIGKILL);
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    if (WIFEXITED(status)) outcome.exit_code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) outcome.signal = WTERMSIG(status);
    outcome.out = read_file(out);
    outcome.err = read_file(err);
    std::filesystem::remove_all(scratch);
    EXPECT_FALSE(outcome.timed_out) << name << " was still running after " << options.limit_s << " s\n"
                                    << outcome.err;
    EXPECT_NE(outcome.exit_code, 127) << program << " cannot be started: build the programs first";
    return outcome;
}

// A refusal: exit 2, nothing on stdout, one line that holds every fragment.
inline void expect_refusal(const Outcome& outcome, const std::vector<std::string>& fragments,
                           const std::string& name) {
    SCOPED_TRACE(name);
    EXPECT_EQ(outcome.exit_code, 2) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    const std::string line = outcome.error_line();
    EXPECT_EQ(line.find('\n'), line.size() - 1) << "one line, the last: " << line;
    for (const std::string& fragment : fragments)
        EXPECT_NE(line.find(fragment), std::string::npos) << "no \"" << fragment << "\" in: " << line;
}
