// Starts a program as several ranks of one job by mpirun, on this machine.
#pragma once
#include <fstream>

#include "tests/run_program.h"

// Where mpirun is; "" where there is none.
inline std::string mpirun_path() {
    for (const char* path : {"/usr/bin/mpirun", "/usr/local/bin/mpirun"})
        if (path_exists(path)) return path;
    return "";
}
// The process that is rank `rank` of the job with `word` in its command line; 0 when there is none.
inline pid_t pid_of_rank(int rank, const std::string& word) {
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
        const std::string name = entry.path().filename().string();
        if (name.find_first_not_of("0123456789") != std::string::npos) continue;
        const auto text = [&](const char* file) {
            std::ifstream stream(entry.path() / file);
            return std::string(std::istreambuf_iterator<char>(stream), {});
        };
        if (text("cmdline").find(word) == std::string::npos) continue;
        const std::string environment = std::string(1, '\0') + text("environ"), end(1, '\0');
        for (const char* variable : {"OMPI_COMM_WORLD_RANK=", "PMI_RANK=", "PMIX_RANK="}) {
            const std::string value = variable + std::to_string(rank);
            if (environment.find(end + value + end) != std::string::npos) return std::stoi(name);
        }
    }
    return 0;
}
// mpirun -np WORDS...
inline Outcome run_mpirun(const std::vector<std::string>& words, RunOptions options = {}) {
    std::vector<std::string> line;
    // Open MPI wants to be told: ranks beyond the cores, any user, no words of its own about a rank's end.
    if (std::filesystem::canonical(mpirun_path()).string().find("hydra") == std::string::npos)
        line = {"--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--quiet"};
    options.variable = "ASAN_OPTIONS=detect_leaks=0";  // MPI's own
    line.push_back("-np");
    line.insert(line.end(), words.begin(), words.end());
    return run_program(mpirun_path(), line, options);
}
inline Outcome run_ranks(int num_ranks, const std::string& name, const std::vector<std::string>& arguments,
                         const RunOptions& options = {}) {
    std::vector<std::string> words = {std::to_string(num_ranks), program_path(name)};
    words.insert(words.end(), arguments.begin(), arguments.end());
    return run_mpirun(words, options);
}
