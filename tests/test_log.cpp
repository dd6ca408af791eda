// Logs: JSON text, the TensorBoard file taken apart byte by byte with a CRC of our own, the progress line,
// and the short forms of numbers.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>

#include "core/error.h"
#include "core/io.h"
#include "core/log.h"

namespace {

class Logs : public testing::Test {
protected:
    Logs() {
        char pattern[] = "/tmp/ingot_log_XXXXXX";
        directory_ = mkdtemp(pattern);
    }
    ~Logs() override { std::filesystem::remove_all(directory_); }
    std::string events() const {
        std::string content;
        for (const std::string& name : list_directory(directory_))
            if (name.starts_with("events.out.tfevents.")) content += read_file(directory_ + "/" + name);
        return content;
    }
    std::string directory_;
};

// CRC-32C bit by bit: another way than the table of log.cpp.
uint32_t crc32c(std::string_view bytes) {
    uint32_t crc = ~0u;
    for (unsigned char c : bytes) {
        crc ^= c;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (0x82f63b78u & (0u - (crc & 1)));
    }
    return ~crc;
}
uint32_t masked(std::string_view bytes) {
    const uint32_t crc = crc32c(bytes);
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

template <class T>
T take(std::string_view& bytes) {
    T value;
    EXPECT_GE(bytes.size(), sizeof value);
    std::memcpy(&value, bytes.data(), sizeof value);
    bytes.remove_prefix(sizeof value);
    return value;
}
uint64_t take_varint(std::string_view& bytes) {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
        const uint8_t byte = take<uint8_t>(bytes);
        value |= uint64_t{byte & 0x7fu} << shift;
        if (byte < 0x80) return value;
    }
}
std::string_view take_bytes(std::string_view& bytes) {
    const uint64_t n = take_varint(bytes);
    const std::string_view part = bytes.substr(0, n);
    EXPECT_EQ(part.size(), n);
    bytes.remove_prefix(part.size());
    return part;
}

std::vector<std::string> records(std::string_view file) {
    std::vector<std::string> all;
    while (!file.empty() && !testing::Test::HasFailure()) {
        const std::string_view length_bytes = file.substr(0, 8);
        const uint64_t length = take<uint64_t>(file);
        EXPECT_EQ(take<uint32_t>(file), masked(length_bytes));
        all.emplace_back(file.substr(0, length));
        file.remove_prefix(length);
        EXPECT_EQ(take<uint32_t>(file), masked(all.back()));
    }
    return all;
}

}  // namespace

TEST(Json, Values) {
    JsonLine line;
    line.add("step", 3).add("big", int64_t{1} << 60).add("loss", 2.5).add("whole", 4.0).add("third", 1.0 / 3);
    line.add("tiny", 1e-30).add("huge", 1e22).add("zero", -0.0).add("ok", true).add("text", "a\"b");
    line.add("nan", std::nan("")).add("inf", -std::numeric_limits<double>::infinity());
    EXPECT_EQ(line.text(),
              "{\"step\":3,\"big\":1152921504606846976,\"loss\":2.5,\"whole\":4,\"third\":0.333333333,"
              "\"tiny\":1e-30,"
              "\"huge\":1e+22,\"zero\":-0,\"ok\":true,\"text\":\"a\\\"b\",\"nan\":null,\"inf\":null}");
    EXPECT_EQ(JsonLine().text(), "{}");
}

TEST(Json, Quote) {
    EXPECT_EQ(json_quote("a\\b\n\r\t\x01\x7f/"), "\"a\\\\b\\n\\r\\t\\u0001\x7f/\"");
    EXPECT_EQ(json_quote(std::string_view("\0", 1)), "\"\\u0000\"");
    EXPECT_EQ(json_quote("h\xc3\xa9 \xe6\x97\xa5 \xf0\x9f\x98\x80"),
              "\"h\xc3\xa9 \xe6\x97\xa5 \xf0\x9f\x98\x80\"");
    const std::string bad = "\xef\xbf\xbd";
    const auto quoted = [](const std::string& inner) { return "\"" + inner + "\""; };
    EXPECT_EQ(json_quote("\xff"), quoted(bad));
    EXPECT_EQ(json_quote("\x80x"), quoted(bad + "x"));
    EXPECT_EQ(json_quote("\xc0\xaf"), quoted(bad + bad));                      // overlong
    EXPECT_EQ(json_quote("\xe0\x80\x80"), quoted(bad + bad + bad));            // overlong
    EXPECT_EQ(json_quote("\xed\xa0\x80"), quoted(bad + bad + bad));            // a surrogate
    EXPECT_EQ(json_quote("\xf4\x90\x80\x80"), quoted(bad + bad + bad + bad));  // above 10FFFF
    EXPECT_EQ(json_quote("\xe6\x97"), quoted(bad));                            // cut short: one for all of it
    EXPECT_EQ(json_quote("\xf0\x9f\x98!"), quoted(bad + "!"));
    EXPECT_EQ(json_quote("\xe6\"x"), quoted(bad + "\\\"x"));
}

TEST(Crc, TheTestsOwnCrcMeetsThePublishedVector) { EXPECT_EQ(crc32c("123456789"), 0xe3069283u); }

TEST_F(Logs, EventFileReadsBack) {
    {
        RunLog log(directory_ + "/");
        log.scalar("train/loss", 0, 10.5);
        log.scalar("lr", 300, 1e-4);
        log.scalar("lr", int64_t{1} << 40, std::nan(""));
    }
    const std::string file = events();
    // What every TensorBoard file begins with: the length 24 and its masked CRC.
    EXPECT_EQ(file.substr(0, 13), std::string("\x18\0\0\0\0\0\0\0\xa3\x7f\x4b\x22\x09", 13));
    const std::vector<std::string> all = records(file);
    ASSERT_EQ(all.size(), 4u);
    std::string_view version = all[0];
    EXPECT_EQ(take<uint8_t>(version), 1 << 3 | 1);
    EXPECT_NEAR(take<double>(version), static_cast<double>(time(nullptr)), 60);
    EXPECT_EQ(take<uint8_t>(version), 3 << 3 | 2);
    EXPECT_EQ(take_bytes(version), "brain.Event:2");
    EXPECT_TRUE(version.empty());

    const struct {
        const char* tag;
        uint64_t step;
        float value;
    } expected[] = {{"train/loss", 0, 10.5f}, {"lr", 300, 1e-4f}, {"lr", uint64_t{1} << 40, std::nanf("")}};
    for (int i = 0; i < 3; ++i) {
        std::string_view event = all[static_cast<size_t>(i) + 1];
        EXPECT_EQ(take<uint8_t>(event), 1 << 3 | 1);
        EXPECT_NEAR(take<double>(event), static_cast<double>(time(nullptr)), 60);
        EXPECT_EQ(take<uint8_t>(event), 2 << 3 | 0);
        EXPECT_EQ(take_varint(event), expected[i].step);
        EXPECT_EQ(take<uint8_t>(event), 5 << 3 | 2);
        std::string_view summary = take_bytes(event);
        EXPECT_TRUE(event.empty());
        EXPECT_EQ(take<uint8_t>(summary), 1 << 3 | 2);
        std::string_view value = take_bytes(summary);
        EXPECT_TRUE(summary.empty());
        EXPECT_EQ(take<uint8_t>(value), 1 << 3 | 2);
        EXPECT_EQ(take_bytes(value), expected[i].tag);
        EXPECT_EQ(take<uint8_t>(value), 2 << 3 | 5);
        EXPECT_EQ(std::bit_cast<uint32_t>(take<float>(value)), std::bit_cast<uint32_t>(expected[i].value));
        EXPECT_TRUE(value.empty());
    }
}

TEST_F(Logs, AnEventThatDoesNotFitLeavesNoPartOfItself) {
    RunLog log(directory_);
    const size_t before = events().size();
    const pid_t child = fork();
    if (child == 0) {
        signal(SIGXFSZ, SIG_IGN);
        const rlimit limit{before + 20, before + 20};
        setrlimit(RLIMIT_FSIZE, &limit);
        try {
            log.scalar("train/loss", 1, 2.5);
        } catch (const InputError& error) {
            std::fprintf(stderr, "%s\n", error.what());
            _exit(std::strstr(error.what(), ": File too large  hint: raise the limit") != nullptr ? 0 : 1);
        }
        _exit(2);
    }
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
    EXPECT_EQ(events().size(), before);
    log.scalar("train/loss", 2, 2.25);
    EXPECT_EQ(records(events()).size(), 2u);
}

TEST_F(Logs, LinesAreAppendedAndAHalfLineIsClosed) {
    const std::string lines = directory_ + "/log.jsonl";
    {
        RunLog log(directory_);
        log.write(JsonLine().add("step", 1));
        EXPECT_EQ(read_file(lines), "{\"step\":1}\n") << "not flushed at once";
    }
    RunLog(directory_).write(JsonLine().add("step", 2));
    std::filesystem::resize_file(lines, 15);  // a writer died in the middle of the second line
    RunLog(directory_).write(JsonLine().add("step", 3));
    EXPECT_EQ(read_file(lines), "{\"step\":1}\n{\"st\n{\"step\":3}\n");
    EXPECT_GE(records(events()).size(), 1u);
}

TEST_F(Logs, ADirectoryThatCannotBeIsAnInputError) {
    write_file_atomic(directory_ + "/file", "");
    EXPECT_THROW(RunLog(directory_ + "/file/run"), InputError);
}

namespace {

// Runs `body` with stderr replaced by `fd`.
template <class Body>
void with_stderr(int fd, Body body) {
    const int saved = dup(STDERR_FILENO);
    dup2(fd, STDERR_FILENO);
    body();
    dup2(saved, STDERR_FILENO);
    close(saved);
}

// All that was written to a pseudo terminal whose other end is closed.
std::string shown_on(int terminal) {
    std::string text;
    char buffer[4096];
    for (ssize_t n; (n = read(terminal, buffer, sizeof buffer)) > 0;)
        text.append(buffer, static_cast<size_t>(n));
    close(terminal);
    return text;
}

}  // namespace

TEST_F(Logs, ProgressInALogIsAPlainLine) {
    const std::string path = directory_ + "/stderr";
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_APPEND, 0600);
    with_stderr(fd, [] {
        Progress progress("train", 1000, "tok");
        progress.update(0);
        for (int i = 1; i <= 1000; ++i) progress.update(i);  // quicker than a line every five seconds
        progress.finish("loss 2.5");
        progress.finish("once only");
    });
    const std::string text = read_file(path);
    EXPECT_TRUE(text.starts_with("train: 100%  1.0k/1.0k tok  ")) << text;
    EXPECT_TRUE(text.ends_with("  loss 2.5\n")) << text;
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
    EXPECT_EQ(text.find('\033'), std::string::npos) << text;

    ASSERT_EQ(ftruncate(fd, 0), 0);
    with_stderr(fd, [] {
        Progress unknown("read", -1, "docs");
        unknown.update(5);
        unknown.finish();
        set_progress_enabled(false);
        Progress quiet("quiet", 10, "tok");
        quiet.update(5);
        quiet.finish();
        set_progress_enabled(true);
        Progress abandoned("abandoned", 10, "tok");
    });
    const std::string second = read_file(path);
    EXPECT_TRUE(second.starts_with("read: 5 docs  ")) << second;
    EXPECT_EQ(std::count(second.begin(), second.end(), '\n'), 1) << second;
    close(fd);
}

TEST_F(Logs, ProgressOnATerminalIsRedrawn) {
    int terminal = -1, user = -1;
    winsize size{};
    size.ws_col = 70;
    if (openpty(&terminal, &user, nullptr, nullptr, &size) != 0) GTEST_SKIP() << "no pseudo terminals here";
    with_stderr(user, [] {
        Progress progress("train", 100, "tok");
        const double start = seconds_now();
        for (int i = 0; seconds_now() - start < 0.35; i = (i + 1) % 50)
            progress.update(i, "a note much too long for the terminal that it is shown on, with an \xc3\xa9");
        progress.update(100);
        progress.finish("end");
        Progress failing("failing", 100, "tok");
        usleep(110'000);
        failing.update(1);
    });
    close(user);
    const std::string text = shown_on(terminal);
    size_t draws = 0, longest = 0;
    for (size_t at = 0; (at = text.find("\r\033[2K", at)) != std::string::npos; ++draws) {
        at += 5;
        const size_t end = std::min(text.find_first_of("\r\n", at), text.size());
        size_t columns = 0;
        bool escape = false;
        for (const char c : text.substr(at, end - at)) {
            if (c == '\033') escape = true;
            if (!escape && (static_cast<unsigned char>(c) & 0xc0) != 0x80) ++columns;
            if (escape && c == 'm') escape = false;
        }
        longest = std::max(longest, columns);
    }
    // Three tenths of a second, the end, and the one that failed.
    EXPECT_GE(draws, 3u) << text;
    EXPECT_LE(draws, 5u) << text;
    EXPECT_LT(longest, 70u) << text;
    EXPECT_NE(text.find("100%"), std::string::npos) << text;
    EXPECT_NE(text.find("\r\n"), std::string::npos) << text;
    EXPECT_TRUE(text.ends_with("\n")) << "a failure's message deserves its own line: " << text;
}

TEST_F(Logs, WhatProgressSaysIsALineOfItsOwn) {
    int terminal = -1, user = -1;
    winsize size{};
    size.ws_col = 70;
    if (openpty(&terminal, &user, nullptr, nullptr, &size) != 0) GTEST_SKIP() << "no pseudo terminals here";
    const auto talk = [] {
        Progress progress("train", 100, "tok");
        progress.say("before the first update");
        usleep(110'000);
        progress.update(50, "loss 2.5");
        progress.say("step 7 skipped");
        progress.update(100);
        progress.finish("end");
        progress.say("after the end");
    };
    with_stderr(user, talk);
    close(user);
    std::string text = shown_on(terminal);
    EXPECT_TRUE(text.starts_with("before the first update\r\n\r\033[2K")) << text;
    EXPECT_TRUE(text.ends_with("\r\nafter the end\r\n")) << text;
    // The line that is shown is cleared, the message follows, the progress line comes again.
    const size_t said = text.find("loss 2.5\r\033[2Kstep 7 skipped\r\n\r\033[2K");
    ASSERT_NE(said, std::string::npos) << text;
    const std::string after = text.substr(said + 10);
    EXPECT_NE(after.find("loss 2.5"), std::string::npos) << "not drawn again: " << text;

    const std::string path = directory_ + "/stderr";
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_APPEND, 0600);
    with_stderr(fd, [&] {
        talk();
        set_progress_enabled(false);
        Progress quiet("quiet", 10, "tok");
        quiet.update(5);
        quiet.say("said though quiet");
        set_progress_enabled(true);
    });
    close(fd);
    text = read_file(path);
    EXPECT_TRUE(text.starts_with("before the first update\nstep 7 skipped\ntrain: 100%")) << text;
    EXPECT_TRUE(text.ends_with("\nafter the end\nsaid though quiet\n")) << text;
    EXPECT_EQ(text.find('\033'), std::string::npos) << text;
}

TEST(Human, Numbers) {
    EXPECT_EQ(human_bytes(0), "0 B");
    EXPECT_EQ(human_bytes(1023), "1023 B");
    EXPECT_EQ(human_bytes(1.5 * (1 << 30)), "1.5 GiB");
    EXPECT_EQ(human_bytes(0x1p70), "1048576.0 PiB");
    EXPECT_EQ(human_count(0), "0");
    EXPECT_EQ(human_count(0.1234), "0.123");
    EXPECT_EQ(human_count(999), "999");
    EXPECT_EQ(human_count(999.7), "1.0k");
    EXPECT_EQ(human_count(12.4e6), "12.4M");
    EXPECT_EQ(human_count(999'960), "1.0M");
    EXPECT_EQ(human_count(3e12), "3.0T");
    EXPECT_EQ(human_seconds(0.0123), "12ms");
    EXPECT_EQ(human_seconds(4.24), "4.2s");
    EXPECT_EQ(human_seconds(59.96), "1m00s");
    EXPECT_EQ(human_seconds(192), "3m12s");
    EXPECT_EQ(human_seconds(3599.7), "1h00m");
    EXPECT_EQ(human_seconds(3 * 86400 + 5 * 3600), "3d05h");
}

TEST(Human, ClockRuns) {
    const double start = seconds_now();
    usleep(2000);
    EXPECT_GE(seconds_now() - start, 0.002);
    EXPECT_LT(seconds_now() - start, 5.0);
}
