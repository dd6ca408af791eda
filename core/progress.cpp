// The progress line on stderr (declared in core/log.h), and the short forms of numbers that it prints.
// Safe to call from several threads; the clock is read at every update, the terminal written ten times a
// second.
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <mutex>

#include "core/log.h"

namespace {

constexpr double kTerminalInterval = 0.1;  // seconds; faster than the eye only costs time
constexpr double kPlainInterval = 5.0;

std::atomic<bool> progress_enabled{true};

std::string format(const char* pattern, double value) {
    char text[64];
    std::snprintf(text, sizeof text, pattern, value);
    return text;
}

int terminal_columns() {
    winsize size{};
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

// The first `columns` characters of UTF-8 text, never half a character.
std::string_view clip(std::string_view text, int columns) {
    size_t end = 0;
    for (; end < text.size(); ++end)
        if ((static_cast<unsigned char>(text[end]) & 0xc0) != 0x80 && columns-- == 0) break;
    return text.substr(0, end);
}

}  // namespace

void set_progress_enabled(bool enabled) { progress_enabled = enabled; }

struct Progress::State {
    std::string label, unit, note;
    int64_t total = -1, done = 0;
    bool enabled = false, terminal = false, finished = false, drawn = false;
    double start = 0, last_draw = 0;
    // The rate counts from the first update, so that a resumed run does not boast of what it skipped.
    double first_time = -1;
    int64_t first_done = 0;
    std::mutex mutex;

    std::string numbers(double now) const {
        std::string text;
        if (total > 0)
            text += format("%3.0f%%", std::floor(100.0 * static_cast<double>(done) / total)) + "  ";
        text += human_count(static_cast<double>(done));
        if (total >= 0) text += "/" + human_count(static_cast<double>(total));
        text += " " + unit;
        const double seconds = now - first_time;
        const double rate = seconds > 0 ? static_cast<double>(done - first_done) / seconds : 0;
        if (rate > 0) text += "  " + human_count(rate) + " " + unit + "/s";
        if (finished)
            text += "  " + human_seconds(now - start);
        else if (rate > 0 && total >= done)
            text += "  eta " + human_seconds(static_cast<double>(total - done) / rate);
        if (!note.empty()) text += "  " + note;
        return text;
    }

    // Draws the progress line; `above` goes before it, over what is shown now.
    void draw(double now, std::string_view above = {}) {
        last_draw = now;
        std::string line;
        if (terminal) {
            constexpr int kBarColumns = 24;
            const double part = total > 0 ? std::clamp(static_cast<double>(done) / total, 0.0, 1.0) : 0.0;
            const int filled = static_cast<int>(part * kBarColumns);
            line = "\r\033[2K\033[1m" + label + "\033[0m ";
            if (total > 0) {
                line += "\033[32m";
                for (int i = 0; i < kBarColumns; ++i) line += i == filled ? "\033[90m━" : "━";
                line += "\033[0m ";
            }
            const int used = static_cast<int>(label.size()) + 1 + (total > 0 ? kBarColumns + 1 : 0);
            line += clip(numbers(now), std::max(0, terminal_columns() - 1 - used));
            if (finished) line += '\n';
            if (!above.empty()) line.insert(0, "\r\033[2K" + std::string(above));
        } else {
            line = label + ": " + numbers(now) + '\n';
        }
        drawn = true;
        std::fwrite(line.data(), 1, line.size(), stderr);  // stderr is not buffered: one write
    }
};

Progress::Progress(std::string label, int64_t total, std::string unit) : state_(std::make_unique<State>()) {
    state_->label = std::move(label);
    state_->unit = std::move(unit);
    state_->total = total;
    state_->enabled = progress_enabled;
    state_->terminal = isatty(STDERR_FILENO) != 0;
    state_->start = state_->last_draw = seconds_now();
}

// Without finish() something failed: its message deserves a line of its own.
Progress::~Progress() {
    if (state_->terminal && state_->drawn && !state_->finished) std::fputc('\n', stderr);
}

void Progress::update(int64_t done, std::string_view note) {
    if (!state_->enabled) return;
    std::lock_guard lock(state_->mutex);
    const double now = seconds_now();
    state_->done = done;
    if (state_->first_time < 0) {
        state_->first_time = now;
        state_->first_done = done;
    }
    if (now - state_->last_draw < (state_->terminal ? kTerminalInterval : kPlainInterval)) return;
    state_->note = note;
    state_->draw(now);
}

void Progress::finish(std::string_view note) {
    if (!state_->enabled || state_->finished) return;
    std::lock_guard lock(state_->mutex);
    const double now = seconds_now();
    state_->finished = true;
    state_->note = note;
    if (state_->first_time < 0) state_->first_time = now;
    state_->draw(now);
}

void Progress::say(std::string_view line) {
    std::lock_guard lock(state_->mutex);
    const std::string whole = std::string(line) + '\n';
    if (state_->terminal && state_->drawn && !state_->finished)
        state_->draw(seconds_now(), whole);
    else
        std::fwrite(whole.data(), 1, whole.size(), stderr);
}

double seconds_now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

std::string human_bytes(double bytes) {
    constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    int unit = 0;
    for (; std::fabs(bytes) >= 1024 && unit < 5; ++unit) bytes /= 1024;
    return format(unit == 0 ? "%.0f " : "%.1f ", bytes) + kUnits[unit];
}

std::string human_count(double count) {
    constexpr const char* kUnits[] = {"", "k", "M", "B", "T"};
    int unit = 0;
    // 999.95 would print as 1000.0 of its unit.
    for (; std::fabs(count) >= (unit == 0 ? 999.5 : 999.95) && unit < 4; ++unit) count /= 1000;
    if (unit == 0) return format(count == std::floor(count) || count >= 100 ? "%.0f" : "%.3g", count);
    return format("%.1f", count) + kUnits[unit];
}

std::string human_seconds(double seconds) {
    if (seconds < 0.9995) return format("%.0fms", seconds * 1e3);
    if (seconds < 59.95) return format("%.1fs", seconds);
    const int64_t whole = static_cast<int64_t>(std::llround(std::min(seconds, 1e15)));
    const auto pair = [](int64_t large, const char* large_unit, int64_t small, const char* small_unit) {
        return std::to_string(large) + large_unit + (small < 10 ? "0" : "") + std::to_string(small) +
               small_unit;
    };
    if (whole < 3600) return pair(whole / 60, "m", whole % 60, "s");
    if (whole < 86400) return pair(whole / 3600, "h", whole % 3600 / 60, "m");
    return pair(whole / 86400, "d", whole % 86400 / 3600, "h");
}
