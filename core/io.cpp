// Files, whole or not at all. Durability is the point of the fsyncs: data first, then the rename, then the
// directory, so that after a power cut a name stands for complete content or does not exist.
#include "core/io.h"

#include <fcntl.h>
#include <glob.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/error.h"

namespace {

constexpr int64_t kPendingBytes = int64_t{1} << 20;

[[noreturn]] void fail_file(const char* action, const std::string& path, int error, std::string hint = {}) {
    fail_input({.what = cat({"cannot ", action}),
                .where = cat({path.empty() ? "(empty path)" : path, ": ", std::strerror(error)}),
                .hint = std::move(hint)});
}

[[noreturn]] void fail_write(const std::string& path, int64_t bytes, int error) {
    if (error == EFBIG)
        fail_file("write file", path, error,
                  "raise the limit (`ulimit -f unlimited`), or write to another disk");
    if (error != ENOSPC && error != EDQUOT) fail_file("write file", path, error);
    struct statvfs disk;
    const bool known = statvfs(std::filesystem::path(path).parent_path().c_str(), &disk) == 0;
    fail_input({.what = "cannot write file",
                .where = cat({path, ": ", std::strerror(error)}),
                .expected = cat({"room for ", bytes, " more bytes"}),
                .actual = known ? cat({disk.f_bavail * disk.f_frsize, " free"}) : "",
                .hint = "free some space, or write to another disk"});
}

struct Descriptor {
    int fd = -1;
    ~Descriptor() {
        if (fd >= 0) close(fd);
    }
};

int open_for_reading(const std::string& path) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail_file("open file", path, errno);
    return fd;
}

// Writes all bytes at `offset`, or returns errno. Short writes and signals are not failures.
int write_all(int fd, int64_t offset, const void* data, int64_t bytes) {
    const char* from = static_cast<const char*>(data);
    while (bytes > 0) {
        const ssize_t n = pwrite(fd, from, static_cast<size_t>(bytes), offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno;
        if (n == 0) return EIO;
        from += n;
        offset += n;
        bytes -= n;
    }
    return 0;
}

std::string parent_of(const std::string& path) {
    const std::string parent = std::filesystem::path(path).parent_path();
    return parent.empty() ? "." : parent;
}

void sync_path(const std::string& path) {
    const Descriptor file{open_for_reading(path)};
    // Some file systems have no fsync for directories; that is theirs to answer for.
    if (fsync(file.fd) != 0 && errno != EINVAL && errno != ENOTSUP) fail_write(path, 0, errno);
}

std::string host_name() {
    char name[256] = {};
    if (gethostname(name, sizeof name - 1) != 0) return "unknown";
    return name;
}

std::string temporary_suffix() { return cat({".tmp-", getpid(), "-", host_name()}); }

// Whether a name that ends in `suffix` ("PID-HOST") belongs to a writer that is gone for certain: this
// host's, and no such process.
bool writer_is_dead(std::string_view suffix) {
    pid_t pid = 0;
    const auto parsed = std::from_chars(suffix.data(), suffix.data() + suffix.size(), pid);
    if (parsed.ec != std::errc{} || pid <= 0) return false;
    const std::string_view host(parsed.ptr, static_cast<size_t>(suffix.data() + suffix.size() - parsed.ptr));
    if (!host.empty() && host != "-" + host_name()) return false;
    return kill(pid, 0) != 0 && errno == ESRCH;
}

void remove_tree(const std::string& path) {
    std::error_code ignored;  // cleaning up must not hide the error that led here
    std::filesystem::remove_all(path, ignored);
}

// Removes what killed writers of one target left beside it: `name`.tmp-PID-HOST. A directory that may be
// written but not read keeps them.
void remove_leftovers(const std::string& parent, const std::string& name) {
    const std::string prefix = name + ".tmp-";
    std::vector<std::string> dead;
    std::error_code ignored;
    for (std::filesystem::directory_iterator entry(parent, ignored), end; !ignored && entry != end;
         entry.increment(ignored)) {
        const std::string found = entry->path().filename();
        if (found.starts_with(prefix) && writer_is_dead(std::string_view(found).substr(prefix.size())))
            dead.push_back(entry->path());
    }
    for (const std::string& path : dead) remove_tree(path);
}

}  // namespace

std::string temporary_name(const std::string& path) { return path + temporary_suffix(); }

bool is_dead_temporary(std::string_view name) {
    const std::string_view mark = kTemporaryMark;
    const size_t at = name.find(mark);
    return at != std::string_view::npos && writer_is_dead(name.substr(at + mark.size()));
}

MappedFile::MappedFile(const std::string& path) {
    const Descriptor file{open_for_reading(path)};
    struct stat status;
    if (fstat(file.fd, &status) != 0) fail_file("read file", path, errno);
    if (S_ISDIR(status.st_mode)) fail_file("read file", path, EISDIR);
    if (!S_ISREG(status.st_mode))
        fail_input({.what = "cannot map file",
                    .where = path,
                    .expected = "a regular file",
                    .actual = "a pipe or a device"});
    bytes_ = status.st_size;
    if (bytes_ == 0) return;
    void* mapped = mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ, MAP_PRIVATE, file.fd, 0);
    if (mapped == MAP_FAILED) fail_file("map file", path, errno);
    data_ = static_cast<const uint8_t*>(mapped);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(bytes_));
}

AtomicFile::AtomicFile(const std::string& path) : path_(path) {
    struct stat status;
    if (stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode))
        fail_input({.what = "cannot write file",
                    .where = path,
                    .expected = "a new or a regular file",
                    .actual = S_ISDIR(status.st_mode) ? "a directory" : "a pipe or a device"});
    const std::filesystem::path target(path);
    if (target.filename().empty()) fail_file("write file", path, EISDIR);
    const std::string hidden = "." + target.filename().string();
    remove_leftovers(parent_of(path), hidden);
    temporary_ = target.parent_path() / (hidden + temporary_suffix());
    fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd_ < 0)
        fail_file("create file", path, errno,
                  errno == ENOENT ? "create the directory " + parent_of(path) : "");
    pending_.reserve(kPendingBytes);
}

AtomicFile::~AtomicFile() {
    if (committed_) return;
    if (fd_ >= 0) ::close(fd_);
    unlink(temporary_.c_str());
}

void AtomicFile::flush() {
    const int64_t count = static_cast<int64_t>(pending_.size());
    const int error = write_all(fd_, bytes_ - count, pending_.data(), count);
    if (error != 0) fail_write(path_, count, error);
    pending_.clear();
}

void AtomicFile::write(const void* data, int64_t bytes) {
    CHECK(fd_ >= 0 && bytes >= 0, cat({path_, " fd=", fd_, " bytes=", bytes}));
    if (static_cast<int64_t>(pending_.size()) + bytes > kPendingBytes) flush();
    if (bytes >= kPendingBytes) {
        const int error = write_all(fd_, bytes_, data, bytes);
        if (error != 0) fail_write(path_, bytes, error);
    } else {
        const uint8_t* from = static_cast<const uint8_t*>(data);
        pending_.insert(pending_.end(), from, from + bytes);
    }
    bytes_ += bytes;
}

void AtomicFile::write_at(int64_t offset, const void* data, int64_t bytes) {
    CHECK(fd_ >= 0 && offset >= 0 && bytes >= 0 && offset + bytes <= bytes_,
          cat({path_, " fd=", fd_, " offset=", offset, " bytes=", bytes, " written=", bytes_}));
    flush();
    const int error = write_all(fd_, offset, data, bytes);
    if (error != 0) fail_write(path_, bytes, error);
}

void AtomicFile::close() {
    CHECK(fd_ >= 0, cat({path_, " closed twice"}));
    flush();
    if (fsync(fd_) != 0) fail_write(path_, bytes_, errno);
    ::close(std::exchange(fd_, -1));
    pending_ = {};  // its memory too
}

void AtomicFile::commit() {
    CHECK(!committed_, cat({path_, " committed twice"}));
    if (fd_ >= 0) close();
    if (rename(temporary_.c_str(), path_.c_str()) != 0) fail_file("rename into place", path_, errno);
    committed_ = true;
    sync_path(parent_of(path_));
}

AtomicDirectory::AtomicDirectory(const std::string& path) : path_(path) {
    while (path_.size() > 1 && path_.back() == '/') path_.pop_back();
    const std::filesystem::path target(path_);
    if (target.filename().empty()) fail_file("create directory", path, EINVAL);
    const std::string parent = parent_of(path_);
    if (!is_directory(parent)) fail_file("create directory", path_, ENOENT, "create the directory " + parent);
    remove_leftovers(parent, target.filename().string());
    temporary_ = path_ + temporary_suffix();
    remove_tree(temporary_);  // of an earlier process that had our number
    if (mkdir(temporary_.c_str(), 0777) != 0) fail_file("create directory", temporary_, errno);
}

AtomicDirectory::~AtomicDirectory() {
    if (!committed_) remove_tree(temporary_);
}

void AtomicDirectory::commit() {
    CHECK(!committed_, cat({path_, " committed twice"}));
    if (path_exists(path_))
        fail_input({.what = "cannot create directory",
                    .where = path_,
                    .expected = "a new path",
                    .actual = "an existing one",
                    .hint = "choose another path, or remove it"});
    std::error_code error;
    for (std::filesystem::recursive_directory_iterator entry(temporary_, error), end; !error && entry != end;
         entry.increment(error))
        if (!entry->is_symlink()) sync_path(entry->path());
    if (error) fail_file("list directory", temporary_, error.value());
    sync_path(temporary_);
    if (rename(temporary_.c_str(), path_.c_str()) != 0) fail_file("rename into place", path_, errno);
    committed_ = true;
    sync_path(parent_of(path_));
}

void create_file_of_size(const std::string& path, int64_t bytes) {
    const Descriptor file{open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)};
    if (file.fd < 0) fail_file("create file", path, errno);
    int error = bytes > 0 && fallocate(file.fd, 0, 0, bytes) != 0 ? errno : 0;
    // Not every file system can promise room.
    if (error == EOPNOTSUPP || error == ENOSYS) error = ftruncate(file.fd, bytes) != 0 ? errno : 0;
    if (error != 0) fail_write(path, bytes, error);
}

SharedFile::SharedFile(const std::string& path) : path_(path), fd_(open(path.c_str(), O_WRONLY | O_CLOEXEC)) {
    if (fd_ < 0)
        fail_file("open file", path, errno,
                  errno == ENOENT ? "all ranks must see one and the same directory" : "");
}
SharedFile::~SharedFile() { ::close(fd_); }

void SharedFile::write_at(int64_t offset, const void* data, int64_t bytes) {
    const int error = write_all(fd_, offset, data, bytes);
    if (error != 0) fail_write(path_, bytes, error);
}

void SharedFile::sync() {
    if (fsync(fd_) != 0) fail_write(path_, 0, errno);
}

std::string read_file(const std::string& path) {
    const Descriptor file{open_for_reading(path)};
    struct stat status;
    std::string content;
    // One byte more than the file, so that its end is met without growing; a pipe's end is met by growing.
    if (fstat(file.fd, &status) == 0) content.resize(static_cast<size_t>(status.st_size) + 1);
    size_t used = 0;
    for (;;) {
        if (used == content.size()) content.resize(used + std::max<size_t>(used / 2, 4096));
        const ssize_t n = read(file.fd, content.data() + used, content.size() - used);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) fail_file("read file", path, errno);
        if (n == 0) break;
        used += static_cast<size_t>(n);
    }
    content.resize(used);
    return content;
}

void read_pieces(const std::string& path, const std::function<void(const void*, int64_t)>& use) {
    const Descriptor file{open_for_reading(path)};
    std::vector<uint8_t> piece(kPendingBytes);
    for (;;) {
        const ssize_t n = read(file.fd, piece.data(), piece.size());
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) fail_file("read file", path, errno);
        if (n == 0) return;
        use(piece.data(), n);
    }
}

void write_file_atomic(const std::string& path, std::string_view content) {
    AtomicFile file(path);
    file.write(content);
    file.commit();
}

void append_line(const std::string& path, std::string_view line) {
    const Descriptor file{open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666)};
    if (file.fd < 0) fail_file("open file", path, errno);
    append_all(file.fd, path, std::string(line) + '\n');
}

void append_all(int fd, const std::string& path, std::string_view record) {
    const off_t bytes_before = lseek(fd, 0, SEEK_END);
    for (std::string_view rest = record; !rest.empty();) {
        const ssize_t n = ::write(fd, rest.data(), rest.size());
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            const int error = n < 0 ? errno : EIO;
            // The part that a full disk took must not stay as half a record.
            if (rest.size() < record.size() && ftruncate(fd, bytes_before) != 0) fail_write(path, 0, errno);
            fail_write(path, static_cast<int64_t>(record.size()), error);
        }
        rest.remove_prefix(static_cast<size_t>(n));  // what is left tells why it was not all
    }
}

bool path_exists(const std::string& path) {
    struct stat status;
    return lstat(path.c_str(), &status) == 0;
}

bool is_directory(const std::string& path) {
    struct stat status;
    return stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

void make_directories(const std::string& path) {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    if (error) fail_file("create directory", path, error.value());
    if (!is_directory(path)) fail_file("create directory", path, ENOTDIR);
}

int64_t file_bytes(const std::string& path) {
    struct stat status;
    if (stat(path.c_str(), &status) != 0) fail_file("read file", path, errno);
    if (S_ISDIR(status.st_mode)) fail_file("read file", path, EISDIR);
    return status.st_size;
}

std::vector<std::string> list_directory(const std::string& path) {
    std::vector<std::string> names;
    std::error_code error;
    for (std::filesystem::directory_iterator entry(path, error), end; !error && entry != end;
         entry.increment(error))
        names.push_back(entry->path().filename());
    if (error) fail_file("list directory", path, error.value());
    std::sort(names.begin(), names.end());
    return names;
}

std::vector<std::string> expand_globs(const std::string& patterns, const std::string& flag) {
    if (path_exists(patterns)) return {patterns};  // a comma may be part of a name
    std::vector<std::string> paths;
    for (size_t begin = 0; begin <= patterns.size();) {
        const size_t end = std::min(patterns.find(',', begin), patterns.size());
        const std::string pattern = patterns.substr(begin, end - begin);
        begin = end + 1;
        if (path_exists(pattern)) {  // a name that happens to hold [ or ? stands for itself
            paths.push_back(pattern);
            continue;
        }
        glob_t found = {};
        struct stat status;
        // A directory that cannot be read may hold files that would match: not the same as none.
        static thread_local std::string unreadable;
        static thread_local int reason;
        unreadable.clear();
        const int result = glob(
            pattern.c_str(), 0,
            [](const char* path, int error) {
                if (error == ENOENT || error == ENOTDIR) return 0;
                unreadable = path;
                reason = error;
                return 1;
            },
            &found);
        if (result == GLOB_NOMATCH && lstat(pattern.c_str(), &status) != 0 && errno == EACCES)
            unreadable = pattern, reason = EACCES;
        if (result == 0) paths.insert(paths.end(), found.gl_pathv, found.gl_pathv + found.gl_pathc);
        globfree(&found);
        if (!unreadable.empty())
            fail_file("look for files", unreadable, reason,
                      cat({"make it readable, or give ", flag, " a narrower pattern"}));
        if (result != 0)
            fail_input({.what = "no file matches",
                        .where = pattern.empty() ? "(empty pattern)" : pattern,
                        .hint = cat({"give ", flag, " the path of an existing file, or quote a pattern"})});
    }
    std::sort(paths.begin(), paths.end());
    paths.erase(std::unique(paths.begin(), paths.end()), paths.end());
    return paths;
}
