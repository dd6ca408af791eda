// Whose run directory is this? Compares two configurations as Flags::resolved_toml() prints them, so that a
// resumed run can be held to its own past.
#pragma once
#include <optional>
#include <string>
#include <vector>

struct ConfigDifference {
    std::string name, stored, given;  // values as written; "(absent)" when one side lacks the line
};
// The first option, in the stored order, that differs and is not among `free` names.
std::optional<ConfigDifference> first_difference(const std::string& stored_toml,
                                                 const std::string& given_toml,
                                                 const std::vector<std::string>& free);
// InputError unless `out` is new, empty, or holds a config.toml that agrees with `resolved_toml` in all but
// the free options. (A writer killed before its first config.toml leaves nothing that matters.)
void check_run_directory(const std::string& out, const std::string& resolved_toml,
                         const std::vector<std::string>& free);
