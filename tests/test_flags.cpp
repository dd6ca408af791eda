// Flags: what is accepted, what each complaint says, what TOML round-trips. The command line is always taken
// apart by the real parser; every rejected line names the flag at fault.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "core/error.h"
#include "core/flags.h"
#include "core/io.h"
#include "core/toml.h"

namespace {

struct Settings {
    std::string data, out = "runs/a";
    int64_t steps = 100, any = -3;
    double lr = 3e-4, tilt = 0;
    bool quiet = false, decay = true;
    std::string optimizer = "adamw";
    std::vector<std::string> include, paths;
};

// Parses `words` into `settings` and returns the resolved TOML.
std::string parse(Settings& s, std::vector<std::string> words, bool with_paths = true) {
    Flags flags("trainer", "Trains a model.", "  trainer --data x\n");
    flags.add("data", s.data, "what to train on", true);
    flags.add("out", s.out, "where to write");
    flags.add("steps", s.steps, "number of steps", 1, 1000);
    flags.add("any", s.any, "any integer", std::numeric_limits<int64_t>::min());
    flags.add("lr", s.lr, "peak learning rate", 0, 1);
    flags.add("tilt", s.tilt, "a number of any sign", -std::numeric_limits<double>::infinity());
    flags.add("quiet", s.quiet, "no progress line");
    flags.add("weight-decay", s.decay, "decay weights");
    flags.add_choice("optimizer", s.optimizer, {"adamw", "muon", "sgd"}, "update rule");
    flags.add_list("include", s.include, "more files");
    if (with_paths) flags.add_positional("path", s.paths, "files to read", 0);
    words.insert(words.begin(), "trainer");
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    flags.parse(static_cast<int>(argv.size()), argv.data());
    return flags.resolved_toml();
}

std::string complaint(std::vector<std::string> words, bool with_paths = true) {
    Settings s;
    try {
        parse(s, std::move(words), with_paths);
    } catch (const InputError& error) {
        return error.what();
    }
    return "(accepted)";
}

class FlagsFile : public testing::Test {
protected:
    FlagsFile() {
        char pattern[] = "/tmp/ingot_flags_XXXXXX";
        directory_ = mkdtemp(pattern);
    }
    ~FlagsFile() override { std::filesystem::remove_all(directory_); }
    std::string file(std::string_view content) {
        write_file_atomic(directory_ + "/run.toml", content);
        return directory_ + "/run.toml";
    }
    std::string directory_;
};

}  // namespace

TEST(Flags, DefaultsStay) {
    Settings s;
    parse(s, {"--data", "d"});
    EXPECT_EQ(s.data, "d");
    EXPECT_EQ(s.steps, 100);
    EXPECT_EQ(s.lr, 3e-4);
    EXPECT_TRUE(s.decay);
    EXPECT_TRUE(s.paths.empty());
}

TEST(Flags, EveryKindOfValue) {
    Settings s;
    parse(s, {"--data=a=b",  "--steps", "7",         "--any",   "-9223372036854775808",
              "--lr=1e-2",   "--tilt",  "-0.5",      "--quiet", "--no-weight-decay",
              "--optimizer", "muon",    "--include", "[x,y]",   "p1",
              "--include",   "z",       "p2",        "--",      "--p3"});
    EXPECT_EQ(s.data, "a=b");
    EXPECT_EQ(s.steps, 7);
    EXPECT_EQ(s.any, std::numeric_limits<int64_t>::min());
    EXPECT_EQ(s.lr, 1e-2);
    EXPECT_EQ(s.tilt, -0.5);
    EXPECT_TRUE(s.quiet);
    EXPECT_FALSE(s.decay);
    EXPECT_EQ(s.optimizer, "muon");
    EXPECT_EQ(s.include, (std::vector<std::string>{"[x,y]", "z"}));
    EXPECT_EQ(s.paths, (std::vector<std::string>{"p1", "p2", "--p3"}));
}

TEST(Flags, Complaints) {
    struct Case {
        std::vector<std::string> words;
        std::string expected;
    };
    const Case cases[] = {
        {{"--data", "d", "--stpes", "5"}, "unknown flag: --stpes  hint: did you mean --steps?"},
        {{"--data", "d", "--step", "5"}, "unknown flag: --step  hint: did you mean --steps?"},
        {{"--data", "d", "--weight", "5"}, "unknown flag: --weight  hint: did you mean --weight-decay?"},
        {{"--data", "d", "--no-quite"}, "unknown flag: --no-quite  hint: did you mean --no-quiet?"},
        {{"--data", "d", "--zzzzzzzz=1"}, "unknown flag: --zzzzzzzz=1  hint: trainer --help"},
        {{"--data", "d", "-q"}, "unknown flag: -q  hint: did you mean --quiet?"},
        {{"--data", "d", "--lr", "-1"},
         "value out of range: --lr: expected 0 to 1, got -1  hint: trainer --help"},
        {{"--data", "d", "--lr", "nan"},
         "value out of range: --lr: expected 0 to 1, got nan  hint: trainer --help"},
        {{"--data", "d", "--lr", "1e999"},
         "value out of range: --lr: expected 0 to 1, got 1e999  hint: trainer --help"},
        {{"--data", "d", "--lr", "fast"},
         "bad value: --lr: expected a number, got `fast`  hint: trainer --help"},
        {{"--data", "d", "--steps", "0"},
         "value out of range: --steps: expected 1 to 1000, got 0  hint: trainer --help"},
        {{"--data", "d", "--steps", "99999999999999999999"},
         "value out of range: --steps: expected 1 to 1000, got 99999999999999999999  hint: trainer --help"},
        {{"--data", "d", "--any", "99999999999999999999"},
         "value out of range: --any: expected an integer of 64 bits, got 99999999999999999999  hint: trainer "
         "--help"},
        {{"--data", "d", "--steps", "1.5"},
         "bad value: --steps: expected an integer, got `1.5`  hint: trainer --help"},
        {{"--data", "d", "--steps", "5x"},
         "bad value: --steps: expected an integer, got `5x`  hint: trainer --help"},
        {{"--data", "d", "--steps", "5", "--steps", "6"},
         "repeated flag: --steps: expected one value, got 2: 5, 6  hint: give it once"},
        {{"--data", "d", "--quiet", "--no-quiet"},
         "repeated flag: --quiet: expected one value, got 2: true, false  hint: give it once"},
        {{"--data", "d", "--quiet=maybe"},
         "bad value: --quiet: expected true or false, got maybe  hint: trainer --help"},
        {{"--data", "d", "--optimizer", "adam"},
         "bad value: --optimizer: expected one of adamw, muon, sgd, got `adam`  hint: did you mean adamw?"},
        {{}, "missing flag: --data  hint: give --data TEXT: what to train on"},
        {{"--data"}, "missing value: --data: expected a value after the flag  hint: trainer --help"},
        {{"--data", "--steps", "5"},
         "missing value: --data: got the flag --steps  hint: give --data TEXT: what to train on"},
        {{"--data="}, "missing value: --data: expected a value after `=`  hint: trainer --help"},
    };
    for (const Case& c : cases) {
        EXPECT_EQ(complaint(c.words), c.expected);
        EXPECT_NE(c.expected.find("  hint: "), std::string::npos) << c.expected;
    }
    EXPECT_EQ(complaint({"--data", "d", "--optimizer", "lion"}),
              "bad value: --optimizer: expected one of adamw, muon, sgd, got `lion`  hint: trainer --help");
    EXPECT_EQ(complaint({"--data", "d", "--config", "/nowhere/run.toml"}),
              "cannot open file: /nowhere/run.toml: No such file or directory");
    EXPECT_EQ(complaint({"--data", "d", "stray"}, false),
              "unexpected argument: stray: expected flags only  hint: trainer --help");
}

TEST_F(FlagsFile, ReadsEveryKindAndTheCommandLineWins) {
    Settings s;
    parse(s, {"--config",
              file("\xef\xbb\xbf# a run\r\ndata = 'c:\\x' # path\r\nsteps = 1_0\nlr = 1e-3\n"
                   "quiet = true\nweight-decay=false\noptimizer = \"s\\u0067d\"\n"
                   "include = [ \"a\", # first\n  'b', ]\npath = [\"p\"]"),
              "--steps", "20"});
    EXPECT_EQ(s.data, "c:\\x");
    EXPECT_EQ(s.steps, 20);
    EXPECT_EQ(s.lr, 1e-3);
    EXPECT_TRUE(s.quiet);
    EXPECT_FALSE(s.decay);
    EXPECT_EQ(s.optimizer, "sgd");
    EXPECT_EQ(s.include, (std::vector<std::string>{"a", "b"}));
    EXPECT_EQ(s.paths, (std::vector<std::string>{"p"}));
    parse(s, {"--config", file("data='d'\ninclude=['a']\npath=['p']"), "--include", "z", "q"});
    EXPECT_EQ(s.include, (std::vector<std::string>{"z"}));
    EXPECT_EQ(s.paths, (std::vector<std::string>{"q"}));
}

TEST_F(FlagsFile, Complaints) {
    const auto from = [&](std::string_view content) {
        const std::string path = file(content);
        std::string text = complaint({"--config", path});
        for (size_t at; (at = text.find(path)) != std::string::npos;) text.replace(at, path.size(), "FILE");
        return text;
    };
    EXPECT_EQ(from("data='d'\n\nstpes = 5"), "unknown name: FILE:3: stpes  hint: did you mean steps?");
    EXPECT_EQ(from("data='d'\nsteps=5\nsteps=6"),
              "repeated name: FILE:3: steps: expected each name once, got it again after line 2");
    EXPECT_EQ(from("data='d'\nsteps=5000"),
              "value out of range: FILE:2: steps: expected 1 to 1000, got 5000  hint: trainer --help");
    EXPECT_EQ(from("data=d"),
              "bad value: FILE:1: data: expected a string in quotes, got d  hint: trainer --help");
    EXPECT_EQ(from("steps='5'"),
              "bad value: FILE:1: steps: expected a number, got \"5\"  hint: trainer --help");
    EXPECT_EQ(from("steps=[5]"),
              "bad value: FILE:1: steps: expected one value, got an array  hint: trainer --help");
    EXPECT_EQ(from("[model]"),
              "malformed TOML: FILE:1: expected `name = value` (tables are not used), got `[model]`");
    EXPECT_EQ(from("data 'd'"), "malformed TOML: FILE:1: expected `name = value`, got `'d'`");
    EXPECT_EQ(from("data = "), "malformed TOML: FILE:1: expected a value, got the end of the line");
    EXPECT_EQ(from("data = 'd"), "malformed TOML: FILE:1: expected a closing ', got the end of the line");
    EXPECT_EQ(
        from("data = \"d\\q\""),
        "malformed TOML: FILE:1: expected an escape: \\b \\t \\n \\f \\r \\\" \\\\ \\uXXXX \\UXXXXXXXX, got "
        "`q\"`");
    EXPECT_EQ(from("lr = 1 2"), "malformed TOML: FILE:1: expected the end of the line, got `2`");
    EXPECT_EQ(from("include = ['a' 'b']"), "malformed TOML: FILE:1: expected `,` or `]`, got `'b']`");
    EXPECT_EQ(from("steps = 5"), "missing flag: --data  hint: give --data TEXT: what to train on");
}

TEST_F(FlagsFile, MarksInNumbers) {
    Settings s;
    parse(s, {"--config", file("data='d'\nsteps=1_0_0\nany=-2_5\nlr=+1_0e-2_0\ntilt=+1.2_5e+1")});
    EXPECT_EQ(s.steps, 100);
    EXPECT_EQ(s.any, -25);
    EXPECT_EQ(s.lr, 1e-19);
    EXPECT_EQ(s.tilt, 12.5);
    for (const char* bad :
         {"_1_0__", "1_", "_1", "1__0", "+-5", "-+5", "++5", "+_5", "+", "_", "1_.5", "1._5"}) {
        const std::string text = complaint({"--config", file(std::string("data='d'\nany=") + bad)});
        EXPECT_NE(text.find(cat({"any: expected an integer, got `", bad, "`  hint: "})), std::string::npos)
            << bad << ": " << text;
    }
}

TEST_F(FlagsFile, ResolvedTomlReadsBack) {
    Settings first, second;
    const std::string toml =
        parse(first, {"--data", "quote \" slash \\ line\nend\x7f \xc3\xa9", "--lr", "0.1", "--tilt",
                      "-1e-300", "--no-weight-decay", "--include", "a,b", "--include", "]", "p"});
    EXPECT_EQ(
        toml,
        "data = \"quote \\\" slash \\\\ line\\nend\\u007F \xc3\xa9\"\nout = \"runs/a\"\nsteps = 100\n"
        "any = -3\nlr = 0.1\ntilt = -1e-300\nquiet = false\nweight-decay = false\noptimizer = \"adamw\"\n"
        "include = [\"a,b\", \"]\"]\npath = [\"p\"]\n");
    EXPECT_EQ(parse(second, {"--config", file(toml)}), toml);
    EXPECT_EQ(second.data, first.data);
    EXPECT_EQ(second.tilt, first.tilt);
    EXPECT_EQ(second.include, first.include);
}

TEST(Flags, DefaultOutsideTheRangeMayBeRepeated) {
    int64_t limit = -1;
    Flags flags("p", "P.");
    flags.add("limit", limit, "-1: none", 1, 10);
    std::string words[] = {"p", "--limit", "-1"};
    char* argv[] = {words[0].data(), words[1].data(), words[2].data()};
    flags.parse(3, argv);
    EXPECT_EQ(limit, -1);
    EXPECT_TRUE(flags.given("limit"));
}

namespace {

// A program with two commands; returns "COMMAND vocab paths" or the complaint.
std::string run_commands(std::vector<std::string> words) {
    Flags flags("tokenize", "Tokenizers.");
    int64_t vocab = 256;
    bool verbose = false;
    std::vector<std::string> paths;
    std::string text;
    flags.add("verbose", verbose, "say more");
    Flags& train = flags.subcommand("train", "Learns a vocabulary.");
    train.add("vocab", vocab, "entries", 256, 1 << 20);
    train.add_positional("path", paths, "text files", 1);
    Flags& encode = flags.subcommand("encode", "Encodes text.");
    encode.add("text", text, "what to encode");
    words.insert(words.begin(), "tokenize");
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    try {
        flags.parse(static_cast<int>(argv.size()), argv.data());
    } catch (const InputError& error) {
        return error.what();
    }
    std::string result = flags.command() + " " + std::to_string(vocab) + (verbose ? " verbose" : "");
    if (flags.command() == "train") result += flags.given("vocab") ? " given" : " default";
    for (const std::string& path : paths) result += " " + path;
    return result;
}

}  // namespace

TEST(Flags, Commands) {
    EXPECT_EQ(run_commands({"train", "--vocab", "300", "a", "b"}), "train 300 given a b");
    EXPECT_EQ(run_commands({"--verbose", "train", "train", "encode"}),
              "train 256 verbose default train encode");
    EXPECT_EQ(run_commands({"encode", "--text", "train"}), "encode 256");
    EXPECT_EQ(run_commands({}), "missing command: expected one of train, encode  hint: tokenize --help");
    EXPECT_EQ(run_commands({"trian"}),
              "unknown command: trian: expected one of train, encode  hint: did you mean train?");
    EXPECT_EQ(run_commands({"--vocab", "300", "train", "a"}),
              "unknown flag: --vocab  hint: --vocab belongs after `train`");
    EXPECT_EQ(run_commands({"train", "--text", "x"}), "unknown flag: --text  hint: tokenize train --help");
    EXPECT_EQ(run_commands({"train"}),
              "missing argument: PATH...: expected at least 1, got 0  hint: text files");
}

TEST(FlagsDeathTest, HelpPrintsEverythingAndExitsZero) {
    testing::internal::CaptureStdout();
    const auto ask = [] {
        std::fflush(stdout);
        dup2(STDOUT_FILENO, STDERR_FILENO);  // EXPECT_EXIT reads stderr only
        Settings s;
        parse(s, {"--unknown", "--help"});
    };
    EXPECT_EXIT(ask(), testing::ExitedWithCode(0), "");
    const std::string help = testing::internal::GetCapturedStdout();
    size_t at = 0;
    for (const char* line : {"usage: trainer [FLAGS] PATH...\n\nTrains a model.\n", "  --config TEXT ",
                             "  --data TEXT               what to train on [required]\n",
                             "  --steps N                 number of steps [1 to 1000; default 100]\n",
                             "  --lr X                    peak learning rate [0 to 1; default 0.0003]\n",
                             "  --[no-]quiet              no progress line [default false]\n",
                             "[one of adamw, muon, sgd; default \"adamw\"]", "  --include TEXT ",
                             "  PATH... ", "  --help ", "examples:\n  trainer --data x\n"}) {
        const size_t found = help.find(line, at);
        EXPECT_NE(found, std::string::npos) << line << "\nin\n" << help;
        if (found != std::string::npos) at = found;
    }
}

TEST(NearestName, Distances) {
    EXPECT_EQ(nearest_name("lr", {"lr-min", "steps"}), "lr-min");
    EXPECT_EQ(nearest_name("wamrup", {"steps", "warmup"}), "warmup");
    EXPECT_EQ(nearest_name("xy", {"lr", "steps"}), "");
    EXPECT_EQ(nearest_name("steps", {}), "");
}
