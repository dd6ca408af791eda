// Command-line flags and TOML: one line per option feeds the parser, --help, the printed configuration and
// the stored one. Unknown, repeated and out-of-range flags are InputErrors with the nearest name. (CLI11 does
// the parsing, in flags.cpp only.)
#pragma once
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

class Flags {
public:
    // description: one sentence; examples: printed under --help as they are.
    Flags(std::string program, std::string description, std::string examples = {});
    ~Flags();
    Flags(const Flags&) = delete;

    // The variable's value at this call is the default shown by --help. `name` without dashes. Ranges are
    // inclusive.
    void add(std::string_view name, std::string& value, std::string_view help, bool required = false);
    void add(std::string_view name, int64_t& value, std::string_view help, int64_t min = 0,
             int64_t max = std::numeric_limits<int64_t>::max());
    void add(std::string_view name, double& value, std::string_view help, double min = 0,
             double max = std::numeric_limits<double>::infinity());
    void add(std::string_view name, bool& value, std::string_view help);  // --name and --no-name
    void add_choice(std::string_view name, std::string& value, std::vector<std::string> choices,
                    std::string_view help);
    void add_list(std::string_view name, std::vector<std::string>& values,
                  std::string_view help);  // --name a --name b
    void add_positional(std::string_view name, std::vector<std::string>& values, std::string_view help,
                        int64_t min_count);

    // Sub-commands: `build/tokenize train ...`. The chosen one's name is command(); "" when none was
    // declared.
    Flags& subcommand(std::string name, std::string description, std::string examples = {});

    // Reads --config FILE.toml first (flags override it), then argv. --help prints to stdout and exits 0.
    void parse(int argc, char** argv);
    std::string command() const;
    bool given(std::string_view name) const;  // on the command line or in the file
    std::string resolved_toml() const;        // every option with its value, in order: `name = value`

private:
    struct State;
    std::unique_ptr<State> state_;
};

// The candidate nearest to `name` by edit distance, or "" when none is near.
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);
