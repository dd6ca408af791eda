// trainer/hashes.json: size and SHA-256 of every file of a checkpoint, written last. It tells whether a
// checkpoint is still what it was when it got its name.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

constexpr const char* kHashesPath = "trainer/hashes.json";

struct FileRecord {
    std::string path;  // inside the checkpoint
    int64_t bytes = 0;
    std::string sha256 = {};
};

void write_hashes(const std::string& directory, const std::vector<FileRecord>& records);
// Whether every listed file is there with its size: what a look costs. False without a list.
bool is_whole(const std::string& directory);
// InputError naming the first file that is not what the list says. `required` must be on the list.
void verify_all_hashes(const std::string& directory, const std::vector<std::string>& required);
// The same for those of `names` that the list has; nothing when the directory has no list, as models from
// elsewhere.
void verify_listed_hashes(const std::string& directory, const std::vector<std::string>& names);
