// Streaming lines and whole-file writing over Zstandard or plain bytes.
#include "data/compressed.h"

#include <strings.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/error.h"

namespace {

constexpr int kLevel = 6;  // 17 MB of prose: about 3x smaller in well under a second
constexpr size_t kChunkBytes = 1 << 20;

bool is_zst(const std::string& path) {
    return path.size() >= 4 && strcasecmp(path.c_str() + path.size() - 4, ".zst") == 0;
}

}  // namespace

struct LineReader::State {
    MappedFile file;
    std::string path;
    ZSTD_DCtx* context = nullptr;  // null: plain file
    size_t consumed = 0;           // bytes of the file that were used
    size_t frame_hint = 1;         // ZSTD_decompressStream's last word: 0 at the end of a frame
    std::string_view plain;        // what is left of a plain file
    std::string buffer;            // decompressed bytes from `begin` on
    size_t begin = 0;
    int64_t line_number = 0;
    bool too_long = false;
    std::string problem;

    explicit State(const std::string& p) : file(p), path(p) {
        if (is_zst(p)) {
            context = ZSTD_createDCtx();
        } else {
            plain = file.text();
        }
    }
    ~State() { ZSTD_freeDCtx(context); }

    // Appends up to a chunk of decompressed bytes; false when there are no more.
    bool refill() {
        while (problem.empty()) {
            const size_t available = static_cast<size_t>(file.bytes()) - consumed;
            const size_t old_size = buffer.size();
            buffer.resize(old_size + kChunkBytes);
            ZSTD_inBuffer in{file.data() + consumed, available, 0};
            ZSTD_outBuffer out{buffer.data() + old_size, kChunkBytes, 0};
            const size_t result = ZSTD_decompressStream(context, &out, &in);
            buffer.resize(old_size + (ZSTD_isError(result) ? 0 : out.pos));
            if (ZSTD_isError(result)) {
                problem = cat({"damaged zst at byte ", consumed, " of ", file.bytes(), ": ",
                               ZSTD_getErrorName(result)});
                return false;
            }
            consumed += in.pos;
            if (in.pos > 0 || out.pos > 0) frame_hint = result;
            if (out.pos > 0) return true;
            if (consumed == static_cast<size_t>(file.bytes())) {
                if (frame_hint != 0 && file.bytes() > 0) {
                    problem = cat({"truncated zst: the file ends at byte ", file.bytes(), " inside a frame"});
                }
                if (file.bytes() == 0) problem = "empty file, not a zst stream";
                return false;
            }
        }
        return false;
    }

    // [begin, newline) of the plain file or of the decompressed bytes; `line` lies there without its newline.
    bool next(std::string_view& line) {
        too_long = false;
        if (context == nullptr) {
            if (plain.empty()) return false;
            const size_t newline = plain.find('\n');
            line = plain.substr(0, newline);
            plain.remove_prefix(newline == std::string_view::npos ? plain.size() : newline + 1);
            consumed = static_cast<size_t>(file.bytes()) - plain.size();
            too_long = line.size() > kMaxLineBytes;
        } else {
            size_t scanned = begin;
            size_t newline;
            while ((newline = buffer.find('\n', scanned)) == std::string::npos) {
                if (buffer.size() - begin > kMaxLineBytes) {  // keep nothing of it
                    too_long = true;
                    buffer.resize(begin);
                }
                buffer.erase(0, begin);
                begin = 0;
                scanned = buffer.size();
                if (refill()) continue;
                // The unfinished line before damage is not a line; after a whole stream it is the last one.
                if (!problem.empty() || (buffer.empty() && !too_long)) return false;
                line = buffer;
                begin = buffer.size();
                break;
            }
            if (newline != std::string::npos) {
                line = std::string_view(buffer).substr(begin, newline - begin);
                begin = newline + 1;
                too_long = too_long || line.size() > kMaxLineBytes;
            }
        }
        ++line_number;
        if (too_long) line = {};
        if (line.ends_with('\r')) line.remove_suffix(1);
        if (line_number == 1 && line.starts_with("\xef\xbb\xbf")) line.remove_prefix(3);
        return true;
    }
};

LineReader::LineReader(const std::string& path) : state_(std::make_unique<State>(path)) {}
LineReader::~LineReader() = default;
LineReader::LineReader(LineReader&&) noexcept = default;
bool LineReader::next(std::string_view& line) { return state_->next(line); }
bool LineReader::too_long() const { return state_->too_long; }
int64_t LineReader::line_number() const { return state_->line_number; }
int64_t LineReader::bytes_consumed() const { return static_cast<int64_t>(state_->consumed); }
int64_t LineReader::file_bytes() const { return state_->file.bytes(); }
const std::string& LineReader::problem() const { return state_->problem; }

std::string read_text_file(const std::string& path) {
    if (!is_zst(path)) return read_file(path);
    LineReader reader(path);
    std::string text = {};
    auto& state = *reader.state_;
    while (state.refill()) {
    }
    if (!state.problem.empty()) fail_input({.what = state.problem, .where = path});
    text.swap(state.buffer);
    return text;
}

struct CompressedWriter::State {
    AtomicFile file;
    ZSTD_CCtx* context = nullptr;  // null: plain
    std::vector<char> chunk;

    explicit State(const std::string& path) : file(path) {
        if (!is_zst(path)) return;
        context = ZSTD_createCCtx();
        ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, kLevel);
        ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
        chunk.resize(ZSTD_CStreamOutSize());
    }
    ~State() { ZSTD_freeCCtx(context); }

    void compress(std::string_view bytes, ZSTD_EndDirective directive) {
        ZSTD_inBuffer in{bytes.data(), bytes.size(), 0};
        for (;;) {
            ZSTD_outBuffer out{chunk.data(), chunk.size(), 0};
            const size_t left = ZSTD_compressStream2(context, &out, &in, directive);
            CHECK(!ZSTD_isError(left), ZSTD_getErrorName(left));
            file.write(chunk.data(), static_cast<int64_t>(out.pos));
            if (directive == ZSTD_e_end ? left == 0 : in.pos == in.size) return;
        }
    }
};

CompressedWriter::CompressedWriter(const std::string& path) : state_(std::make_unique<State>(path)) {}
CompressedWriter::~CompressedWriter() = default;
void CompressedWriter::write(std::string_view bytes) {
    if (state_->context == nullptr) {
        state_->file.write(bytes);
    } else {
        state_->compress(bytes, ZSTD_e_continue);
    }
}
void CompressedWriter::commit() {
    if (state_->context != nullptr) state_->compress({}, ZSTD_e_end);
    state_->file.commit();
}
