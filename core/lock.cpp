// Locks on directories.
#include "core/lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"
#include "core/io.h"

namespace {

// Whether `fd` is the file that lies at `path`, and not one that its last holder took away.
bool lies_at(int fd, const std::string& path) {
    struct stat held = {}, named = {};
    return fstat(fd, &held) == 0 && stat(path.c_str(), &named) == 0 && held.st_dev == named.st_dev &&
           held.st_ino == named.st_ino;
}

}  // namespace

DirectoryLock::DirectoryLock(const std::string& directory)
    : directory_(directory), path_(directory + "/.lock") {
    const auto fail = [&](const char* what, const std::string& hint) {
        const std::string reason = std::strerror(errno);
        if (fd_ >= 0) close(fd_);
        fail_input({.what = what, .where = cat({path_, ": ", reason}), .hint = hint});
    };
    do {
        if (fd_ >= 0) close(fd_);
        if (!is_directory(directory)) {
            make_directories(directory);
            made_ = true;
        }
        fd_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (fd_ < 0 && errno == ENOENT) continue;
        if (fd_ < 0) fail("cannot create file", "choose a directory that may be written to");
        while (flock(fd_, LOCK_EX | LOCK_NB) != 0) {
            if (errno == EINTR) continue;
            if (errno != EWOULDBLOCK) fail("cannot lock directory", "choose a directory on a local disk");
            close(fd_);
            fail_input({.what = "another process is writing to this directory",
                        .where = directory,
                        .hint = "wait for it or stop it (fuser DIR/.lock names it), or choose another"});
        }
    } while (fd_ < 0 || !lies_at(fd_, path_));
}

DirectoryLock::~DirectoryLock() {
    if (made_) {
        try {
            if (list_directory(directory_).size() == 1) {
                unlink(path_.c_str());
                rmdir(directory_.c_str());
            }
        } catch (const InputError&) {  // it stays
        }
    }
    close(fd_);
}
