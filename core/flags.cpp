// Flags: a table of options. CLI11 splits the command line into names and texts; what a text means, its range
// and every message are decided here, alike for the command line and for TOML.
#include "core/flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <variant>

#include "core/error.h"
#include "core/io.h"
#include "core/toml.h"

namespace {

template <class T>
struct Range {
    T min, max;
    bool contains(T value) const { return value >= min && value <= max; }
};

struct Option {
    std::string name, help, placeholder;  // placeholder: what stands for the value in --help
    std::variant<std::string*, int64_t*, double*, bool*, std::vector<std::string>*> target;
    bool required = false, positional = false, given = false;
    int64_t min_count = 0;
    std::vector<std::string> choices;
    Range<int64_t> integers{};
    Range<double> numbers{};
    std::string default_toml;

    bool is_bool() const { return std::holds_alternative<bool*>(target); }
    bool is_list() const { return std::holds_alternative<std::vector<std::string>*>(target); }
    bool is_text() const { return std::holds_alternative<std::string*>(target) || is_list(); }
};

std::string join(const std::vector<std::string>& words, std::string_view separator) {
    std::string all;
    for (const std::string& word : words) {
        if (!all.empty()) all += separator;
        all += word;
    }
    return all;
}

template <class T>
std::string range_text(Range<T> range, T no_min, T no_max) {
    if (range.min <= no_min && range.max >= no_max) return "";
    if (range.max >= no_max) return cat({"at least ", range.min});
    if (range.min <= no_min) return cat({"at most ", range.max});
    return cat({range.min, " to ", range.max});
}
std::string range_text(const Option& option) {
    if (std::holds_alternative<int64_t*>(option.target)) {
        using Limits = std::numeric_limits<int64_t>;
        return range_text(option.integers, Limits::min(), Limits::max());
    }
    if (std::holds_alternative<double*>(option.target)) {
        using Limits = std::numeric_limits<double>;
        return range_text(option.numbers, Limits::lowest(), Limits::max());
    }
    return "";
}

std::string toml_value(const Option& option) {
    if (const auto* text = std::get_if<std::string*>(&option.target)) return toml_quote(**text);
    if (const auto* integer = std::get_if<int64_t*>(&option.target)) return cat({**integer});
    if (const auto* number = std::get_if<double*>(&option.target)) return cat({**number});
    if (const auto* boolean = std::get_if<bool*>(&option.target)) return **boolean ? "true" : "false";
    std::vector<std::string> quoted;
    for (const std::string& text : *std::get<std::vector<std::string>*>(option.target))
        quoted.push_back(toml_quote(text));
    return "[" + join(quoted, ", ") + "]";
}

std::string did_you_mean(std::string_view prefix, const std::string& name, std::string_view otherwise) {
    return name.empty() ? std::string(otherwise) : cat({"did you mean ", prefix, name, "?"});
}

// TOML writes 1_000 and +1 where from_chars knows 1000 and 1. A mark anywhere else stays, and is refused.
std::string plain_number(const std::string& text) {
    const auto is_digit = [&](size_t i) { return i < text.size() && text[i] >= '0' && text[i] <= '9'; };
    std::string plain;
    for (size_t i = 0; i < text.size(); ++i) {
        const bool mark = text[i] == '_' ? i > 0 && is_digit(i - 1) && is_digit(i + 1)
                                         : text[i] == '+' && i == 0 && is_digit(1);
        if (!mark && text[i] == '_') return text;
        if (!mark) plain += text[i];
    }
    return plain;
}

// A whole number or decimal number that is all of `text`, in range, or the default: that is always allowed.
template <class T>
void assign_number(T& value, const Option& option, const std::string& text, Range<T> range,
                   const std::string& where, const char* kind, const std::string& hint) {
    T parsed{};
    const char* const end = text.data() + text.size();
    const auto result = std::from_chars(text.data(), end, parsed);
    const bool too_large = result.ec == std::errc::result_out_of_range && result.ptr == end;
    if (!too_large && (result.ec != std::errc{} || result.ptr != end))
        fail_input({.what = "bad value",
                    .where = where,
                    .expected = kind,
                    .actual = "`" + text + "`",
                    .hint = hint});
    const bool is_default = !too_large && cat({parsed}) == option.default_toml;
    const bool finite = std::isfinite(static_cast<double>(parsed));
    if (!is_default && (too_large || !finite || !range.contains(parsed))) {
        const std::string allowed = range_text(option);
        fail_input({.what = "value out of range",
                    .where = where,
                    .expected = allowed.empty() ? cat({kind, " of 64 bits"}) : allowed,
                    .actual = text,
                    .hint = hint});
    }
    value = parsed;
}

// `help`: the command that tells what the option takes.
void assign(Option& option, const std::vector<std::string>& texts, const std::string& where,
            const std::string& help) {
    if (auto* list = std::get_if<std::vector<std::string>*>(&option.target)) {
        **list = texts;
        option.given = true;
        return;
    }
    if (texts.size() != 1)
        fail_input({.what = "repeated flag",
                    .where = where,
                    .expected = "one value",
                    .actual = cat({texts.size(), ": ", join(texts, ", ")}),
                    .hint = "give it once"});
    const std::string& text = texts[0];
    if (auto* integer = std::get_if<int64_t*>(&option.target)) {
        assign_number(**integer, option, text, option.integers, where, "an integer", help);
    } else if (auto* number = std::get_if<double*>(&option.target)) {
        assign_number(**number, option, text, option.numbers, where, "a number", help);
    } else if (auto* boolean = std::get_if<bool*>(&option.target)) {
        if (text != "true" && text != "false")
            fail_input({.what = "bad value",
                        .where = where,
                        .expected = "true or false",
                        .actual = text,
                        .hint = help});
        **boolean = text == "true";
    } else {
        const std::vector<std::string>& choices = option.choices;
        const bool known =
            choices.empty() || std::find(choices.begin(), choices.end(), text) != choices.end();
        if (!known && toml_quote(text) != option.default_toml)
            fail_input({.what = "bad value",
                        .where = where,
                        .expected = "one of " + join(choices, ", "),
                        .actual = "`" + text + "`",
                        .hint = did_you_mean("", nearest_name(text, choices), help)});
        *std::get<std::string*>(option.target) = text;
    }
    option.given = true;
}

// Appends `text` in lines of at most 100 columns that begin at `indent`; the first line stands at `column`.
void append_wrapped(std::string& out, std::string_view text, size_t column, size_t indent) {
    while (!text.empty()) {
        const size_t space = std::min(text.find(' '), text.size());
        if (column > indent && column + 1 + space > 100) {
            out += '\n' + std::string(indent, ' ');
            column = indent;
        } else if (column > indent) {
            out += ' ';
            ++column;
        }
        out += text.substr(0, space);
        column += space;
        text.remove_prefix(std::min(space + 1, text.size()));
    }
    out += '\n';
}

std::string help_line(const Option& option) {
    constexpr size_t kHelpColumn = 28;
    std::string line = option.positional  ? "  " + option.placeholder
                       : option.is_bool() ? "  --[no-]" + option.name
                                          : "  --" + option.name;
    if (!option.positional && !option.placeholder.empty()) line += " " + option.placeholder;
    line += "  ";
    if (line.size() < kHelpColumn) line.resize(kHelpColumn, ' ');
    std::vector<std::string> notes;
    if (option.required || option.min_count > 0) notes.push_back("required");
    if (option.is_list() && !option.positional) notes.push_back("may be repeated");
    if (!option.choices.empty()) notes.push_back("one of " + join(option.choices, ", "));
    if (const std::string range = range_text(option); !range.empty()) notes.push_back(range);
    const std::string& value = option.default_toml;
    if (value != "\"\"" && value != "[]" && !option.required) notes.push_back("default " + value);
    const std::string text = option.help + (notes.empty() ? "" : " [" + join(notes, "; ") + "]");
    const size_t column = line.size();
    append_wrapped(line, text, column, column > kHelpColumn ? column : kHelpColumn);
    return line;
}

}  // namespace

struct Flags::State {
    std::string program, description, examples, name, config;
    std::vector<std::unique_ptr<Option>> options;
    std::vector<std::unique_ptr<Flags>> commands;
    State* chosen = nullptr;              // the command that was given
    std::vector<std::string> after_mark;  // what stands after `--`: never flags

    Option& add(std::string_view option_name, std::string_view help_text, std::string placeholder) {
        CHECK(find(option_name) == nullptr, cat({program, ": --", option_name, " is declared twice"}));
        options.push_back(std::make_unique<Option>());
        options.back()->name = option_name;
        options.back()->help = help_text;
        options.back()->placeholder = std::move(placeholder);
        return *options.back();
    }
    Option* find(std::string_view option_name) const {
        for (const auto& option : options)
            if (option->name == option_name) return option.get();
        return nullptr;
    }
    Option* positional() const {
        for (const auto& option : options)
            if (option->positional) return option.get();
        return nullptr;
    }
    std::string help_command() const { return program + " --help"; }
    // The configuration file belongs to whatever runs: the program, or the chosen command.
    bool takes_config() const { return commands.empty(); }

    std::vector<std::string> flag_names() const {
        std::vector<std::string> names = {"help"};
        for (const auto& option : options) {
            if (option->positional || (option->name == "config" && !takes_config())) continue;
            names.push_back(option->name);
            if (option->is_bool()) names.push_back("no-" + option->name);
        }
        return names;
    }

    std::string help_text() const;
    void declare(CLI::App& app) const;
    void take(CLI::App& app);
    void take_extras(const std::vector<std::string>& extras);
    void take_file();
    void check_required() const;
};

std::string Flags::State::help_text() const {
    std::string text = "usage: " + program;
    text += commands.empty() ? " [FLAGS]" : " COMMAND [FLAGS]";
    if (const Option* option = positional()) text += " " + option->placeholder;
    text += "\n\n" + description + "\n";
    if (!commands.empty()) text += "\ncommands (COMMAND --help tells more):\n";
    for (const auto& command : commands) {
        std::string line = "  " + command->state_->name;
        line.resize(std::max<size_t>(line.size() + 2, 16), ' ');
        const size_t column = line.size();
        append_wrapped(line, command->state_->description, column, column);
        text += line;
    }
    text += "\nflags:\n";
    for (const auto& option : options)
        if (option->name != "config" || takes_config()) text += help_line(*option);
    text += "  --help                    print this and exit\n";
    if (!examples.empty()) text += "\nexamples:\n" + examples + (examples.ends_with('\n') ? "" : "\n");
    return text;
}

void Flags::State::declare(CLI::App& app) const {
    app.set_help_flag();  // CLI11's own help does not know ranges
    app.allow_extras();   // unknown flags and positional arguments are judged in take_extras
    app.add_flag("--help");
    for (const auto& option : options) {
        if (option->positional || (option->name == "config" && !takes_config())) continue;
        const std::string& flag = option->name;
        CLI::Option* added = option->is_bool() ? app.add_flag("--" + flag + ",!--no-" + flag)
                                               : app.add_option("--" + flag)->expected(1);
        added->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);  // assign() refuses repetitions
    }
}

void Flags::State::take_extras(const std::vector<std::string>& extras) {
    std::vector<std::string> plain;
    for (const std::string& extra : extras) {
        if (extra.size() < 2 || extra[0] != '-') {
            plain.push_back(extra);
            continue;
        }
        const std::string flag_name = extra.substr(std::min(extra.find_first_not_of('-'), extra.size()),
                                                   extra.find('=') - extra.find_first_not_of('-'));
        std::string hint = did_you_mean("--", nearest_name(flag_name, flag_names()), help_command());
        for (const auto& command : commands)
            if (command->state_->find(flag_name) != nullptr)
                hint = cat({"--", flag_name, " belongs after `", command->state_->name, "`"});
        fail_input({.what = "unknown flag", .where = extra, .hint = hint});
    }
    plain.insert(plain.end(), after_mark.begin(), after_mark.end());
    if (plain.empty()) return;
    if (!commands.empty()) {
        std::vector<std::string> names;
        for (const auto& command : commands) names.push_back(command->state_->name);
        fail_input({.what = "unknown command",
                    .where = plain[0],
                    .expected = "one of " + join(names, ", "),
                    .hint = did_you_mean("", nearest_name(plain[0], names), help_command())});
    }
    Option* const option = positional();
    if (option == nullptr)
        fail_input({.what = "unexpected argument",
                    .where = plain[0],
                    .expected = "flags only",
                    .hint = did_you_mean("--", nearest_name(plain[0], flag_names()), help_command())});
    assign(*option, plain, option->placeholder, help_command());
}

void Flags::State::take_file() {
    if (config.empty()) return;
    const std::string text = read_file(config);
    std::vector<std::string> names;
    for (const auto& option : options)
        if (option->name != "config") names.push_back(option->name);
    for (const TomlEntry& entry : parse_toml(text, config)) {
        const std::string where = cat({config, ":", entry.line, ": ", entry.name});
        Option* const option = entry.name == "config" ? nullptr : find(entry.name);
        if (option == nullptr)
            fail_input({.what = "unknown name",
                        .where = where,
                        .hint = did_you_mean("", nearest_name(entry.name, names), help_command())});
        if (entry.is_array && !option->is_list())
            fail_input({.what = "bad value",
                        .where = where,
                        .expected = "one value",
                        .actual = "an array",
                        .hint = help_command()});
        std::vector<std::string> texts;
        for (const TomlValue& value : entry.values) {
            if (value.is_string != option->is_text())
                fail_input({.what = "bad value",
                            .where = where,
                            .expected = option->is_text()   ? "a string in quotes"
                                        : option->is_bool() ? "true or false"
                                                            : "a number",
                            .actual = value.is_string ? toml_quote(value.text) : value.text,
                            .hint = help_command()});
            texts.push_back(value.is_string ? value.text : plain_number(value.text));
        }
        assign(*option, texts, where, help_command());
    }
}

void Flags::State::take(CLI::App& app) {
    const std::vector<std::string> names = flag_names();
    const auto texts_of = [&](const Option& option) {
        const std::vector<std::string> texts = app.get_option("--" + option.name)->results();
        for (const std::string& text : texts)
            if (text.starts_with("--") &&
                std::find(names.begin(), names.end(), text.substr(2)) != names.end())
                fail_input(
                    {.what = "missing value",
                     .where = "--" + option.name,
                     .actual = "the flag " + text,
                     .hint = cat({"give --", option.name, " ", option.placeholder, ": ", option.help})});
        return texts;
    };
    take_extras(app.remaining());
    if (takes_config()) {
        Option& file = *find("config");
        if (const auto texts = texts_of(file); !texts.empty())
            assign(file, texts, "--config", help_command());
        take_file();
    }
    for (const auto& option : options) {
        if (option->positional || option->name == "config") continue;
        if (const auto texts = texts_of(*option); !texts.empty())
            assign(*option, texts, "--" + option->name, help_command());
    }
    // Once more: the command line goes before the file.
    if (positional() != nullptr) take_extras(app.remaining());
}

void Flags::State::check_required() const {
    for (const auto& option : options) {
        if (option->required && !option->given)
            fail_input(
                {.what = "missing flag",
                 .where = "--" + option->name,
                 .hint = cat({"give --", option->name, " ", option->placeholder, ": ", option->help})});
        if (!option->positional) continue;
        const auto& values = *std::get<std::vector<std::string>*>(option->target);
        if (static_cast<int64_t>(values.size()) < option->min_count)
            fail_input({.what = "missing argument",
                        .where = option->placeholder,
                        .expected = cat({"at least ", option->min_count}),
                        .actual = cat({values.size()}),
                        .hint = option->help});
    }
}

Flags::Flags(std::string program, std::string description, std::string examples)
    : state_(std::make_unique<State>()) {
    state_->program = std::move(program);
    state_->description = std::move(description);
    state_->examples = std::move(examples);
    add("config", state_->config, "TOML file of `name = value` lines; flags override it");
}
Flags::~Flags() = default;

void Flags::add(std::string_view name, std::string& value, std::string_view help, bool required) {
    Option& option = state_->add(name, help, "TEXT");
    option.target = &value;
    option.required = required;
    option.default_toml = toml_value(option);
}
void Flags::add(std::string_view name, int64_t& value, std::string_view help, int64_t min, int64_t max) {
    Option& option = state_->add(name, help, "N");
    option.target = &value;
    option.integers = {min, max};
    option.default_toml = toml_value(option);
}
void Flags::add(std::string_view name, double& value, std::string_view help, double min, double max) {
    Option& option = state_->add(name, help, "X");
    option.target = &value;
    option.numbers = {min, max};
    option.default_toml = toml_value(option);
}
void Flags::add(std::string_view name, bool& value, std::string_view help) {
    Option& option = state_->add(name, help, "");
    option.target = &value;
    option.default_toml = toml_value(option);
}
void Flags::add_choice(std::string_view name, std::string& value, std::vector<std::string> choices,
                       std::string_view help) {
    Option& option = state_->add(name, help, "NAME");
    option.target = &value;
    option.choices = std::move(choices);
    option.default_toml = toml_value(option);
}
void Flags::add_list(std::string_view name, std::vector<std::string>& values, std::string_view help) {
    Option& option = state_->add(name, help, "TEXT");
    option.target = &values;
    option.default_toml = toml_value(option);
}
void Flags::add_positional(std::string_view name, std::vector<std::string>& values, std::string_view help,
                           int64_t min_count) {
    CHECK(state_->positional() == nullptr, cat({state_->program, ": two positional lists"}));
    std::string placeholder(name);
    std::transform(placeholder.begin(), placeholder.end(), placeholder.begin(),
                   [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    Option& option = state_->add(name, help, placeholder + "...");
    option.target = &values;
    option.positional = true;
    option.min_count = min_count;
    option.default_toml = toml_value(option);
}

Flags& Flags::subcommand(std::string name, std::string description, std::string examples) {
    CHECK(state_->positional() == nullptr, cat({state_->program, ": commands and positional arguments"}));
    state_->commands.push_back(
        std::make_unique<Flags>(state_->program + " " + name, std::move(description), std::move(examples)));
    state_->commands.back()->state_->name = std::move(name);
    return *state_->commands.back();
}

void Flags::parse(int argc, char** argv) {
    CLI::App app;
    state_->declare(app);
    app.require_subcommand(0, 1);
    for (const auto& command : state_->commands)
        command->state_->declare(*app.add_subcommand(command->state_->name));
    const int mark = static_cast<int>(std::find(argv, argv + argc, std::string_view("--")) - argv);
    for (int i = 1; i < mark; ++i)
        if (const std::string_view text = argv[i];
            text.starts_with("--") && text.find('=') + 1 == text.size())
            fail_input({.what = "missing value",
                        .where = std::string(text.substr(0, text.size() - 1)),
                        .expected = "a value after `=`",
                        .hint = state_->help_command()});
    try {
        app.parse(mark, argv);
    } catch (
        const CLI::ArgumentMismatch&) {  // thrown at the end of the line only: every flag takes one value
        fail_input({.what = "missing value",
                    .where = argv[mark - 1],
                    .expected = "a value after the flag",
                    .hint = state_->help_command()});
    } catch (const CLI::Error& error) {
        fail_input({.what = error.what(), .hint = state_->help_command()});
    }
    CLI::App* chosen_app = &app;
    State* leaf = state_.get();
    for (const auto& command : state_->commands) {
        CLI::App* const sub = app.get_subcommand(command->state_->name);
        if (!sub->parsed()) continue;
        chosen_app = sub;
        leaf = state_->chosen = command->state_.get();
    }
    if (mark < argc) leaf->after_mark.assign(argv + mark + 1, argv + argc);
    if (app.count("--help") + chosen_app->count("--help") > 0) {
        print_and_flush(leaf->help_text());
        std::exit(0);
    }
    state_->take(app);
    if (leaf != state_.get()) leaf->take(*chosen_app);
    if (!state_->commands.empty() && state_->chosen == nullptr) {
        std::vector<std::string> names;
        for (const auto& command : state_->commands) names.push_back(command->state_->name);
        fail_input({.what = "missing command",
                    .expected = "one of " + join(names, ", "),
                    .hint = state_->help_command()});
    }
    state_->check_required();
    if (leaf != state_.get()) leaf->check_required();
}

std::string Flags::command() const { return state_->chosen == nullptr ? "" : state_->chosen->name; }

bool Flags::given(std::string_view name) const {
    const Option* option = state_->chosen == nullptr ? nullptr : state_->chosen->find(name);
    if (option == nullptr) option = state_->find(name);
    CHECK(option != nullptr, cat({state_->program, ": --", name, " is not declared"}));
    return option->given;
}

std::string Flags::resolved_toml() const {
    std::string text;
    for (const State* level :
         {static_cast<const State*>(state_.get()), static_cast<const State*>(state_->chosen)}) {
        if (level == nullptr) continue;
        for (const auto& option : level->options)
            if (option->name != "config") text += option->name + " = " + toml_value(*option) + "\n";
    }
    return text;
}

std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates) {
    const auto distance = [](std::string_view a, std::string_view b) {
        // Edit distance with neighbours swapped at cost one (optimal string alignment), three rows at a time.
        std::vector<size_t> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
        for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
        for (size_t i = 1; i <= a.size(); ++i) {
            before = std::exchange(last, row);
            row[0] = i;
            for (size_t j = 1; j <= b.size(); ++j) {
                row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
                if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                    row[j] = std::min(row[j], before[j - 2] + 1);
            }
        }
        return row[b.size()];
    };
    std::string best;
    size_t best_distance = std::numeric_limits<size_t>::max();
    for (const std::string& candidate : candidates) {
        size_t d = distance(name, candidate);
        if (!name.empty() && candidate.starts_with(name)) d = 1;  // an abbreviation
        if (d <= std::max<size_t>(1, name.size() / 3) && d < best_distance) {
            best = candidate;
            best_distance = d;
        }
    }
    return best;
}
