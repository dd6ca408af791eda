// Line-wise: resolved configurations are flat `name = value` lines.
#include "core/config_diff.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "core/io.h"

namespace {

using Lines = std::vector<std::pair<std::string, std::string>>;

Lines lines_of(const std::string& toml) {
    Lines lines;
    size_t begin = 0;
    while (begin < toml.size()) {
        const size_t end = std::min(toml.find('\n', begin), toml.size());
        const std::string line = toml.substr(begin, end - begin);
        const size_t equals = line.find(" = ");
        if (equals != std::string::npos && line[0] != '#')
            lines.emplace_back(line.substr(0, equals), line.substr(equals + 3));
        begin = end + 1;
    }
    return lines;
}

const std::string* find(const Lines& lines, const std::string& name) {
    for (const auto& [key, value] : lines) {
        if (key == name) return &value;
    }
    return nullptr;
}

}  // namespace

std::optional<ConfigDifference> first_difference(const std::string& stored_toml,
                                                 const std::string& given_toml,
                                                 const std::vector<std::string>& free) {
    const Lines stored = lines_of(stored_toml), given = lines_of(given_toml);
    const auto is_free = [&](const std::string& name) {
        return std::find(free.begin(), free.end(), name) != free.end();
    };
    for (const auto& [name, value] : stored) {
        if (is_free(name)) continue;
        const std::string* other = find(given, name);
        if (!other || *other != value) return ConfigDifference{name, value, other ? *other : "(absent)"};
    }
    for (const auto& [name, value] : given) {
        if (!is_free(name) && !find(stored, name)) return ConfigDifference{name, "(absent)", value};
    }
    return std::nullopt;
}

void check_run_directory(const std::string& out, const std::string& resolved_toml,
                         const std::vector<std::string>& free) {
    if (!path_exists(out)) return;
    const std::string stored_path = out + "/config.toml";
    if (path_exists(stored_path)) {
        const auto difference = first_difference(read_file(stored_path), resolved_toml, free);
        if (!difference) return;
        fail_input(
            {.what = cat({"output directory belongs to another run: --", difference->name, " differs"}),
             .where = stored_path,
             .expected = difference->stored,
             .actual = difference->given,
             .hint = "repeat that run's arguments to continue it, or choose another --out"});
    }
    const auto is_leftover = [](const std::string& name) {
        return name.starts_with(".config.toml.tmp-") || name == ".lock";
    };
    const std::vector<std::string> names = is_directory(out) ? list_directory(out) : std::vector{out};
    if (std::all_of(names.begin(), names.end(), is_leftover)) return;
    fail_input({.what = "output directory holds something that is not a training run",
                .where = out,
                .expected = "an empty or new directory, or one with config.toml",
                .hint = "choose another --out"});
}
