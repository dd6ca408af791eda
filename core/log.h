// What a run tells: a progress bar on a terminal (plain lines in a log), log.jsonl, TensorBoard event files.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Progress of long work. On a terminal one line redrawn at most ten times a second; otherwise a plain line
// every ~5 s.
class Progress {
public:
    // total < 0: unknown. unit: "tok", "MB", "docs".
    Progress(std::string label, int64_t total, std::string unit);
    ~Progress();
    void update(int64_t done, std::string_view note = {});
    void finish(std::string_view note = {});
    // Prints a line on stderr that stays, above the progress line where one is shown.
    void say(std::string_view line);

private:
    struct State;
    std::unique_ptr<State> state_;
};
void set_progress_enabled(bool enabled);  // --quiet, and tests

// A flat JSON object in insertion order; doubles print with 9 significant digits, non-finite ones as null.
class JsonLine {
public:
    JsonLine& add(std::string_view key, double value);
    JsonLine& add(std::string_view key, int64_t value);
    JsonLine& add(std::string_view key, int value) { return add(key, static_cast<int64_t>(value)); }
    JsonLine& add(std::string_view key, bool value);
    JsonLine& add(std::string_view key, std::string_view value);
    JsonLine& add(std::string_view key, const char* value) { return add(key, std::string_view(value)); }
    std::string text() const;  // "{...}"

private:
    std::string body_;
};
std::string json_quote(std::string_view text);  // escapes; invalid UTF-8 becomes U+FFFD

// With "" for a directory nothing is written: on ranks that leave it to rank 0.
// DIR/log.jsonl (appended) and DIR/events.out.tfevents.* (TFRecord framing with masked CRC-32C, scalar
// summaries).
class RunLog {
public:
    explicit RunLog(const std::string& directory);
    ~RunLog();
    bool anywhere() const;
    void write(const JsonLine& line);  // flushed at once
    void scalar(std::string_view tag, int64_t step, double value);

private:
    struct State;
    std::unique_ptr<State> state_;
};

double seconds_now();                       // monotonic
std::string human_bytes(double bytes);      // "1.5 GiB"
std::string human_count(double count);      // "12.4M"
std::string human_seconds(double seconds);  // "3m12s"
