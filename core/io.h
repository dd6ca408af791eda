// Files: whole-or-nothing writes, memory maps, hashes. Every failure is an InputError naming the path and the
// reason (a full disk is the user's to mend, not a crash).
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

// Read-only map of a whole file. Empty files map to an empty view.
class MappedFile {
public:
    explicit MappedFile(const std::string& path);
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;
    ~MappedFile();
    const uint8_t* data() const { return data_; }
    int64_t bytes() const { return bytes_; }
    std::string_view text() const {
        return {reinterpret_cast<const char*>(data_), static_cast<size_t>(bytes_)};
    }

private:
    const uint8_t* data_ = nullptr;
    int64_t bytes_ = 0;
};

// A file that appears under `path` only at commit(): written to a temporary name beside it, fsynced, renamed,
// its directory fsynced. Destroyed without commit, it leaves nothing behind; the leftovers of killed writers
// of the same path are removed by the next one. Many files that shall appear together are closed one by one
// as they become full, so that they do not hold a descriptor each.
class AtomicFile {
public:
    explicit AtomicFile(const std::string& path);
    ~AtomicFile();
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;
    void write(const void* data, int64_t bytes);
    void write(std::string_view text) { write(text.data(), static_cast<int64_t>(text.size())); }
    void write_at(int64_t offset, const void* data, int64_t bytes);  // for headers known last
    int64_t bytes_written() const { return bytes_; }
    void close();   // fsyncs and gives the descriptor back: nothing can be written any more
    void commit();  // closes it first where that was not done

private:
    std::string path_, temporary_;
    int fd_ = -1;
    bool committed_ = false;
    int64_t bytes_ = 0;
    std::vector<uint8_t> pending_;
    void flush();
};

// The same for a directory: fill temporary(), then commit() fsyncs every file in it and renames it to `path`.
// commit() refuses when `path` exists. Leftovers of killed writers ("PATH.tmp-*") are removed by the
// constructor.
class AtomicDirectory {
public:
    explicit AtomicDirectory(const std::string& path);
    ~AtomicDirectory();
    AtomicDirectory(const AtomicDirectory&) = delete;
    AtomicDirectory& operator=(const AtomicDirectory&) = delete;
    const std::string& temporary() const { return temporary_; }
    void commit();

private:
    std::string path_, temporary_;
    bool committed_ = false;
};

// A file that several processes fill at once, each its own bytes. One of them creates it in its whole length,
// of zeros: a disk without room for it refuses there. The others open what is there.
void create_file_of_size(const std::string& path, int64_t bytes);
class SharedFile {
public:
    explicit SharedFile(const std::string& path);  // to write only
    ~SharedFile();
    SharedFile(const SharedFile&) = delete;
    SharedFile& operator=(const SharedFile&) = delete;
    void write_at(int64_t offset, const void* data, int64_t bytes);
    void sync();  // what has been written is on the disk

private:
    std::string path_;
    int fd_;
};

// Under what name this process writes `path`, in the form that AtomicDirectory uses, and whether a name of
// that form belongs to a writer that is gone for certain: this host's, and no such process.
constexpr const char* kTemporaryMark = ".tmp-";
std::string temporary_name(const std::string& path);
bool is_dead_temporary(std::string_view name);

std::string read_file(const std::string& path);
// Calls use(data, bytes) for one piece of the file after the other and keeps none: for files larger than
// memory.
void read_pieces(const std::string& path, const std::function<void(const void*, int64_t)>& use);
void write_file_atomic(const std::string& path, std::string_view content);
// Appends a line, newline added; `record` whole, in one write(2) where the disk takes it. What a full disk
// took of it is taken back.
void append_line(const std::string& path, std::string_view line);
void append_all(int fd, const std::string& path, std::string_view record);
bool path_exists(const std::string& path);
bool is_directory(const std::string& path);
void make_directories(const std::string& path);
int64_t file_bytes(const std::string& path);
std::vector<std::string> list_directory(const std::string& path);  // names, sorted
// Shell-style glob (* ? [..]), commas separate patterns; sorted, without repeats. What exists as it is
// written stands for itself. A pattern that matches nothing, or needs a directory that cannot be read, is an
// InputError that names it and `flag`.
std::vector<std::string> expand_globs(const std::string& patterns, const std::string& flag);

// SHA-256 (libcrypto): custody of files. Lower-case hex.
std::string sha256_hex(const void* data, int64_t bytes);
std::string sha256_hex(std::string_view text);
std::string sha256_file(const std::string& path);
// XXH3-128 (xxHash): keys and run-equality, not custody.
struct Hash128 {
    uint64_t low = 0, high = 0;
    bool operator==(const Hash128&) const = default;
    auto operator<=>(const Hash128&) const = default;
};
Hash128 hash128(const void* data, int64_t bytes, uint64_t seed = 0);
std::string hex(const Hash128& h);
