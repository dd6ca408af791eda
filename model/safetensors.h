// safetensors: u64 header length, JSON header {name: {dtype, shape, data_offsets}}, data. Read by memory map,
// written atomically. The header is not trusted: sizes, overlaps, gaps, dtypes and bounds are checked, each
// with its own message.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/io.h"

struct SafetensorsEntry {
    std::string dtype;  // "F32", "BF16", "F16", ...
    std::vector<int64_t> shape;
    const uint8_t* data = nullptr;  // may be unaligned
    int64_t bytes = 0;
};

class SafetensorsFile {
public:
    explicit SafetensorsFile(const std::string& path);
    const std::string& path() const { return path_; }
    const std::map<std::string, SafetensorsEntry>& entries() const { return entries_; }
    // An entry that has been read: its pages leave this process's memory, and come back when they are asked
    // for.
    void drop_pages(const SafetensorsEntry& entry) const;
    const std::map<std::string, std::string>& metadata() const { return metadata_; }

private:
    std::string path_;
    MappedFile map_;
    std::map<std::string, SafetensorsEntry> entries_;
    std::map<std::string, std::string> metadata_;
};

struct SafetensorsOutput {
    std::string name, dtype;
    std::vector<int64_t> shape;
    std::function<void(AtomicFile&)> write = {};  // writes exactly shape x dtype bytes
};
// What a file of these tensors begins with, and where in it each tensor's bytes begin; after the last one's,
// where the file ends.
struct SafetensorsLayout {
    std::string header;
    std::vector<int64_t> begins;
};
SafetensorsLayout layout_safetensors(const std::vector<SafetensorsOutput>& tensors,
                                     const std::map<std::string, std::string>& metadata);
void write_safetensors(const std::string& path, const std::vector<SafetensorsOutput>& tensors,
                       const std::map<std::string, std::string>& metadata);
