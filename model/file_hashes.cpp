// Reading, writing and comparing the list of a checkpoint's files.
#include "model/file_hashes.h"

#include <algorithm>

#include "core/error.h"
#include "core/io.h"
#include "core/json.h"
#include "core/threads.h"

namespace {

using nlohmann::json;

constexpr const char* kDamageHint =
    "remove or repair this checkpoint; the one before it will be resumed from";
constexpr const char* kEditedHint =
    "use another checkpoint, or remove trainer/hashes.json when the file was changed on purpose";

std::string list_path(const std::string& directory) { return cat({directory, "/", kHashesPath}); }

// Empty when there is no such file or it is not what write_hashes writes.
std::vector<FileRecord> read_hashes(const std::string& directory) {
    if (!path_exists(list_path(directory))) return {};
    std::vector<FileRecord> records;
    try {
        const JsonSource source{.where = list_path(directory)};
        const json list = parse_json<json>(read_file(source.where), source);
        read_json(source, [&] {
            for (const auto& [name, record] : list.get_ref<const json::object_t&>())
                records.push_back(
                    {name, record.at("bytes").get<int64_t>(), record.at("sha256").get<std::string>()});
        });
    } catch (const InputError&) {
        return {};
    }
    return records;
}

void verify(const std::string& directory, const std::vector<FileRecord>& records, const char* hint) {
    parallel_for(static_cast<int64_t>(records.size()), [&](int64_t i) {
        const FileRecord& record = records[static_cast<size_t>(i)];
        const std::string path = directory + "/" + record.path;
        if (!path_exists(path)) fail_input({.what = "checkpoint lacks a file", .where = path, .hint = hint});
        if (file_bytes(path) != record.bytes)
            fail_input({"checkpoint file has the wrong size", path, cat({record.bytes, " bytes"}),
                        cat({file_bytes(path), " bytes"}), hint});
        const std::string actual = sha256_file(path);
        if (actual != record.sha256)
            fail_input({"checkpoint file is damaged", path, cat({"sha256 ", record.sha256}), actual, hint});
    });
}

}  // namespace

void write_hashes(const std::string& directory, const std::vector<FileRecord>& records) {
    json list = json::object();
    for (const FileRecord& record : records)
        list[record.path] = {{"bytes", record.bytes}, {"sha256", record.sha256}};
    write_file_atomic(list_path(directory), list.dump(2) + "\n");
}

bool is_whole(const std::string& directory) {
    const std::vector<FileRecord> records = read_hashes(directory);
    return !records.empty() && std::all_of(records.begin(), records.end(), [&](const FileRecord& record) {
        const std::string path = directory + "/" + record.path;
        return path_exists(path) && !is_directory(path) && file_bytes(path) == record.bytes;
    });
}

void verify_all_hashes(const std::string& directory, const std::vector<std::string>& required) {
    const std::vector<FileRecord> records = read_hashes(directory);
    if (records.empty())
        fail_input({.what = "checkpoint has no hashes",
                    .where = directory,
                    .expected = kHashesPath,
                    .hint = kDamageHint});
    for (const std::string& name : required)
        if (std::none_of(records.begin(), records.end(),
                         [&](const FileRecord& record) { return record.path == name; }))
            fail_input({.what = "checkpoint's hashes miss a file",
                        .where = list_path(directory),
                        .expected = name,
                        .hint = kDamageHint});
    verify(directory, records, kDamageHint);
}

void verify_listed_hashes(const std::string& directory, const std::vector<std::string>& names) {
    std::vector<FileRecord> records = read_hashes(directory);
    std::erase_if(records, [&](const FileRecord& record) {
        return std::find(names.begin(), names.end(), record.path) == names.end();
    });
    verify(directory, records, kEditedHint);
}
