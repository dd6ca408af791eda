// Starts a program as several ranks of one job by mpirun, on this machine.
#pragma once
#include "tests/run_program.h"

// Where mpirun is; "" where there is none.
inline std::string mpirun_path() {
    for (const char* path : {"/usr/bin/mpirun", "/usr/local/bin/mpirun"})
        if (path_exists(path)) return path;
    return "";
}
inline Outcome run_ranks(int num_ranks, const std::string& name, const std::vector<std::string>& arguments,
                         RunOptions options = {}) {
    std::vector<std::string> line;
    // Open MPI wants to be told: ranks beyond the cores, any user, no words of its own about a rank's end.
    if (std::filesystem::canonical(mpirun_path()).string().find("hydra") == std::string::npos)
        line = {"--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--quiet"};
    options.variable = "ASAN_OPTIONS=detect_leaks=0";  // MPI's own
    line.insert(line.end(), {"-np", std::to_string(num_ranks), program_path(name)});
    line.insert(line.end(), arguments.begin(), arguments.end());
    return run_program(mpirun_path(), line, options);
}
