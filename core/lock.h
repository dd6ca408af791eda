// One writer a directory: DIR/.lock, held by flock(2) as long as the object lives, and by the kernel no
// longer than the process does.
#pragma once
#include <string>

class DirectoryLock {
public:
    // Makes the directory when there is none. InputError when another process holds it; nothing is written
    // then.
    explicit DirectoryLock(const std::string& directory);
    // Takes the directory away again when this object made it and nothing else was put into it.
    ~DirectoryLock();
    DirectoryLock(const DirectoryLock&) = delete;
    DirectoryLock& operator=(const DirectoryLock&) = delete;

private:
    std::string directory_, path_;
    bool made_ = false;
    int fd_ = -1;
};
