// Lines in, bytes out, plain or Zstandard by the file's name (.zst). Reading streams: memory is one line and
// a window. A damaged or truncated .zst never throws: the lines before the damage are returned, then
// problem() tells.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "core/io.h"

class LineReader {
public:
    static constexpr int64_t kMaxLineBytes = 64 << 20;  // a longer line is passed over (memory is bounded)

    explicit LineReader(const std::string& path);  // InputError when it cannot be opened
    ~LineReader();
    LineReader(LineReader&&) noexcept;

    // The next line without its "\n" or "\r\n", the first one without a byte order mark; valid until the next
    // call. A line over kMaxLineBytes is returned empty with too_long() true. False at the end.
    bool next(std::string_view& line);
    bool too_long() const;
    int64_t line_number() const;     // of the line last returned, from 1
    int64_t bytes_consumed() const;  // of the file as it lies on disk
    int64_t file_bytes() const;
    const std::string& problem() const;  // "" or what stopped the reading, with the byte of the file

private:
    friend std::string read_text_file(const std::string& path);
    struct State;
    std::unique_ptr<State> state_;
};

// The whole content, decompressed. Damage is an InputError.
std::string read_text_file(const std::string& path);

// Appears under `path` only at commit(). Same input, same bytes: one thread, fixed level, checksummed frames.
class CompressedWriter {
public:
    explicit CompressedWriter(const std::string& path);
    ~CompressedWriter();
    CompressedWriter(const CompressedWriter&) = delete;
    void write(std::string_view bytes);
    void commit();

private:
    struct State;
    std::unique_ptr<State> state_;
};
