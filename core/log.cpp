// JSON lines, TensorBoard event files and numbers for people. Nothing is buffered: after a crash the log
// holds everything up to the last step.
#include "core/log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "core/error.h"
#include "core/io.h"

namespace {

// The length of the UTF-8 sequence at text[i], or 0 when it is invalid (`bad` then says how many bytes to
// skip: the longest prefix of a valid sequence, as the Unicode standard recommends).
size_t utf8_length(std::string_view text, size_t i, size_t& bad) {
    const auto byte = [&](size_t at) {
        return at < text.size() ? static_cast<unsigned char>(text[at]) : 0u;  // 0 continues nothing
    };
    const unsigned lead = byte(i);
    bad = 1;
    if (lead < 0x80) return 1;
    const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4) return 0;
    // The second byte's range excludes overlong forms, surrogates and code points above 10FFFF.
    const unsigned low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const unsigned high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (byte(i + 1) < low || byte(i + 1) > high) return 0;
    for (bad = 2; bad < length; ++bad)
        if ((byte(i + bad) & 0xc0) != 0x80) return 0;
    return length;
}

// CRC-32C (Castagnoli), reflected; TFRecord masks it because a CRC of data that holds its own CRC is weak.
constexpr std::array<uint32_t, 256> make_crc_table() {
    std::array<uint32_t, 256> table{};
    for (uint32_t i = 0; i < 256; ++i) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0u);
        table[i] = crc;
    }
    return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = make_crc_table();

uint32_t masked_crc(std::string_view bytes) {
    uint32_t crc = ~0u;
    for (const char c : bytes) crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<unsigned char>(c)) & 0xff];
    crc = ~crc;
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

template <class T>
void put_little_endian(std::string& out, T value) {
    for (size_t i = 0; i < sizeof value; ++i) out += static_cast<char>(value >> (8 * i));
}

// Protocol buffers by hand: tags are field << 3 | wire type (0 varint, 1 eight bytes, 2 bytes, 5 four bytes).
void put_varint(std::string& out, uint64_t value) {
    for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
    out += static_cast<char>(value);
}
void put_double(std::string& out, int field, double value) {
    put_varint(out, static_cast<uint64_t>(field) << 3 | 1);
    put_little_endian(out, std::bit_cast<uint64_t>(value));
}
void put_float(std::string& out, int field, float value) {
    put_varint(out, static_cast<uint64_t>(field) << 3 | 5);
    put_little_endian(out, std::bit_cast<uint32_t>(value));
}
void put_integer(std::string& out, int field, int64_t value) {
    put_varint(out, static_cast<uint64_t>(field) << 3);
    put_varint(out, static_cast<uint64_t>(value));
}
void put_bytes(std::string& out, int field, std::string_view bytes) {
    put_varint(out, static_cast<uint64_t>(field) << 3 | 2);
    put_varint(out, bytes.size());
    out += bytes;
}

double wall_time() {
    timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// TFRecord: length, its CRC, the bytes, their CRC.
std::string tf_record(std::string_view event) {
    std::string record;
    put_little_endian(record, uint64_t{event.size()});
    put_little_endian(record, masked_crc(record));
    record += event;
    put_little_endian(record, masked_crc(event));
    return record;
}

}  // namespace

std::string json_quote(std::string_view text) {
    std::string quoted = "\"";
    for (size_t i = 0; i < text.size();) {
        size_t bad = 0;
        const size_t length = utf8_length(text, i, bad);
        if (length == 0) {
            quoted += "\xef\xbf\xbd";
            i += bad;
            continue;
        }
        const char c = text[i];
        switch (c) {
            case '"': quoted += "\\\""; break;
            case '\\': quoted += "\\\\"; break;
            case '\n': quoted += "\\n"; break;
            case '\r': quoted += "\\r"; break;
            case '\t': quoted += "\\t"; break;
            default:
                if (length == 1 && static_cast<unsigned char>(c) < 0x20) {
                    char escape[8];
                    std::snprintf(escape, sizeof escape, "\\u%04x", c);
                    quoted += escape;
                } else {
                    quoted += text.substr(i, length);
                }
        }
        i += length;
    }
    return quoted + '"';
}

namespace {

void add_member(std::string& body, std::string_view key, std::string_view value) {
    if (!body.empty()) body += ',';
    body += json_quote(key);
    body += ':';
    body += value;
}

}  // namespace

JsonLine& JsonLine::add(std::string_view key, double value) {
    char digits[32] = "null";  // JSON has no word for what is not finite
    char* end = digits + 4;
    if (std::isfinite(value))
        end = std::to_chars(digits, digits + sizeof digits, value, std::chars_format::general, 9).ptr;
    add_member(body_, key, std::string_view(digits, static_cast<size_t>(end - digits)));
    return *this;
}
JsonLine& JsonLine::add(std::string_view key, int64_t value) {
    add_member(body_, key, std::to_string(value));
    return *this;
}
JsonLine& JsonLine::add(std::string_view key, bool value) {
    add_member(body_, key, value ? "true" : "false");
    return *this;
}
JsonLine& JsonLine::add(std::string_view key, std::string_view value) {
    add_member(body_, key, json_quote(value));
    return *this;
}
std::string JsonLine::text() const { return "{" + body_ + "}"; }

struct RunLog::State {
    std::string lines_path, events_path;
    int events_fd = -1;

    void append_event(const std::string& event) { append_all(events_fd, events_path, tf_record(event)); }
    ~State() {
        if (events_fd >= 0) close(events_fd);
    }
};

RunLog::RunLog(const std::string& directory) : state_(std::make_unique<State>()) {
    if (directory.empty()) return;
    make_directories(directory);
    state_->lines_path = directory + "/log.jsonl";
    // A writer that died in the middle of a line must not spoil the next one.
    if (path_exists(state_->lines_path)) {
        const MappedFile lines(state_->lines_path);
        if (lines.bytes() > 0 && lines.text().back() != '\n') append_line(state_->lines_path, "");
    }

    char host[256] = {};
    if (gethostname(host, sizeof host - 1) != 0) std::strcpy(host, "unknown");
    char name[400];
    std::snprintf(name, sizeof name, "/events.out.tfevents.%010lld.%s.%d",
                  static_cast<long long>(wall_time()), host, static_cast<int>(getpid()));
    state_->events_path = directory + name;
    state_->events_fd = open(state_->events_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (state_->events_fd < 0)
        fail_input(
            {.what = "cannot create file", .where = cat({state_->events_path, ": ", std::strerror(errno)})});
    if (file_bytes(state_->events_path) > 0) return;  // the same process, within the same second
    std::string version;
    put_double(version, 1, wall_time());
    put_bytes(version, 3, "brain.Event:2");
    state_->append_event(version);
}

RunLog::~RunLog() = default;

bool RunLog::anywhere() const { return !state_->lines_path.empty(); }

void RunLog::write(const JsonLine& line) {
    if (anywhere()) append_line(state_->lines_path, line.text());
}

void RunLog::scalar(std::string_view tag, int64_t step, double value) {
    if (!anywhere()) return;
    // Event{wall_time = 1, step = 2, summary = 5{value = 1{tag = 1, simple_value = 2}}}
    std::string entry, summary, event;
    put_bytes(entry, 1, tag);
    put_float(entry, 2, static_cast<float>(value));
    put_bytes(summary, 1, entry);
    put_double(event, 1, wall_time());
    put_integer(event, 2, step);
    put_bytes(event, 5, summary);
    state_->append_event(event);
}
