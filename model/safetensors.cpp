// Reading and writing safetensors. Nothing in a file's header is believed before it has been checked: after
// the constructor returns, every entry's data pointer spans exactly shape x dtype bytes inside the map, and
// the entries together cover the data section once. Values are not looked at.
#include "model/safetensors.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <tuple>
#include <utility>

#include "core/error.h"
#include "core/json.h"
#include "core/log.h"

namespace {

using nlohmann::json;

constexpr int64_t kMaxHeaderBytes = 100'000'000;  // the limit of the format's own library
constexpr int64_t kPrefixBytes = 8;
constexpr const char* kCopyHint =
    "the file is damaged or was not written as safetensors: copy or export it again";

// 0: unknown. Types below one byte (F4, F6) are not supported.
int64_t element_bytes(const std::string& dtype) {
    static const std::map<std::string, int64_t> kBytes = {
        {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1},
        {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},     {"U32", 4},
        {"F32", 4},  {"I64", 8}, {"U64", 8}, {"F64", 8},     {"C64", 8},
    };
    const auto found = kBytes.find(dtype);
    return found == kBytes.end() ? 0 : found->second;
}

std::string shape_list(const std::vector<int64_t>& shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); ++i) text += cat({i ? "," : "", shape[i]});
    return text + "]";
}

json parse_header(std::string_view text, const std::string& path) {
    json header = parse_json<json>(text, {.what = "safetensors header is not valid JSON",
                                          .where = path,
                                          .hint = kCopyHint,
                                          .first_byte = kPrefixBytes});
    if (!header.is_object())
        fail_input(
            {"safetensors header is not a JSON object", path, "an object", header.type_name(), kCopyHint});
    return header;
}

bool to_size(const json& value, int64_t& size) {
    if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t{INT64_MAX}) return false;
    size = value.get<int64_t>();
    return true;
}

// One value of the header. `bytes` of the entry comes from its offsets, checked against dtype and shape.
SafetensorsEntry parse_entry(const json& value, const std::string& where, int64_t& begin) {
    if (!value.is_object() || value.size() != 3 || !value.contains("dtype") || !value.contains("shape") ||
        !value.contains("data_offsets"))
        fail_input({"malformed tensor entry", where, "{dtype, shape, data_offsets}", json_excerpt(value),
                    kCopyHint});
    SafetensorsEntry entry;
    const json& dtype = value["dtype"];
    const int64_t unit = dtype.is_string() ? element_bytes(dtype.get<std::string>()) : 0;
    if (unit == 0)
        fail_input({"unknown tensor dtype", where, "F32, BF16, F16 or another safetensors type",
                    json_excerpt(dtype), "convert the weights to float32 or bfloat16"});
    entry.dtype = dtype.get<std::string>();

    int64_t expected_bytes = unit;
    bool valid = value["shape"].is_array();
    if (valid) {
        for (const json& dim : value["shape"]) {
            int64_t size = 0;
            valid =
                valid && to_size(dim, size) && !__builtin_mul_overflow(expected_bytes, size, &expected_bytes);
            entry.shape.push_back(size);
        }
    }
    if (!valid)
        fail_input(
            {"invalid tensor shape", where, "an array of sizes", json_excerpt(value["shape"]), kCopyHint});

    const json& offsets = value["data_offsets"];
    int64_t end = 0;
    if (!offsets.is_array() || offsets.size() != 2 || !to_size(offsets[0], begin) ||
        !to_size(offsets[1], end) || begin > end)
        fail_input({"invalid data_offsets", where, "[begin, end] with begin <= end", json_excerpt(offsets),
                    kCopyHint});
    entry.bytes = end - begin;
    if (entry.bytes != expected_bytes)
        fail_input({"tensor's offsets do not fit its shape", where,
                    cat({expected_bytes, " bytes for ", entry.dtype, shape_list(entry.shape)}),
                    cat({entry.bytes, " bytes at [", begin, ",", end, ")"}), kCopyHint});
    return entry;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path), map_(path) {
    if (map_.bytes() < kPrefixBytes)
        fail_input({"file is too short for safetensors", path, "an 8-byte header length",
                    cat({map_.bytes(), " bytes"}), kCopyHint});
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, map_.data(), sizeof header_bytes);
    if (header_bytes > uint64_t{kMaxHeaderBytes})
        fail_input({"safetensors header length is absurd", cat({path, ", byte 0"}),
                    cat({"at most ", kMaxHeaderBytes, " bytes"}), cat({header_bytes}), kCopyHint});
    if (header_bytes > uint64_t(map_.bytes() - kPrefixBytes))
        fail_input({"safetensors header is longer than the file", cat({path, ", byte 0"}),
                    cat({"at most ", map_.bytes() - kPrefixBytes, " bytes"}), cat({header_bytes}),
                    kCopyHint});

    const int64_t data_begin = kPrefixBytes + int64_t(header_bytes);
    const int64_t data_bytes = map_.bytes() - data_begin;
    const json header = parse_header(map_.text().substr(kPrefixBytes, header_bytes), path);

    struct Span {
        int64_t begin, end;
        std::string name;
    };
    std::vector<Span> spans;
    for (const auto& [name, value] : header.items()) {
        if (name == "__metadata__") {
            const auto is_text = [](const json& text) { return text.is_string(); };
            if (!value.is_object() || !std::all_of(value.begin(), value.end(), is_text))
                fail_input({"__metadata__ is not a map of strings", path, "strings", json_excerpt(value),
                            kCopyHint});
            metadata_ = value.get<std::map<std::string, std::string>>();
            continue;
        }
        int64_t begin = 0;
        SafetensorsEntry entry = parse_entry(value, cat({path, ", tensor ", name}), begin);
        entry.data = map_.data() + data_begin;  // advanced below, when the offset is known to lie inside
        spans.push_back({begin, begin + entry.bytes, name});
        entries_.emplace(name, std::move(entry));
    }

    // In order of offsets, each tensor must begin where the one before it ended, and the last end with the
    // file.
    std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) {
        return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
    });
    int64_t covered = 0;
    for (const Span& span : spans) {
        const std::string where = cat({path, ", tensor ", span.name, ", byte ", data_begin, "+", span.begin});
        if (span.begin != covered)
            fail_input({span.begin < covered ? "tensors overlap" : "unused bytes between tensors", where,
                        cat({"data_offsets to begin at ", covered}), cat({span.begin}), kCopyHint});
        if (span.end > data_bytes)
            fail_input({"file is truncated", where, cat({"at least ", data_begin, "+", span.end, " bytes"}),
                        cat({data_begin, "+", data_bytes, " bytes"}), "copy or download the file again"});
        covered = span.end;
        entries_.at(span.name).data += span.begin;
    }
    if (covered != data_bytes)
        fail_input({"bytes after the last tensor", cat({path, ", byte ", data_begin, "+", covered}),
                    cat({"the file to end there"}), cat({data_bytes - covered, " more bytes"}), kCopyHint});
}

void SafetensorsFile::drop_pages(const SafetensorsEntry& entry) const {
    // Whole pages only: the others hold the neighbours' values too.
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(entry.data) + page - 1) / page * page;
    const uintptr_t end =
        (reinterpret_cast<uintptr_t>(entry.data) + static_cast<uintptr_t>(entry.bytes)) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

SafetensorsLayout layout_safetensors(const std::vector<SafetensorsOutput>& tensors,
                                     const std::map<std::string, std::string>& metadata) {
    std::string header = "{";
    if (!metadata.empty()) {
        std::string pairs;
        for (const auto& [key, value] : metadata)
            pairs += cat({pairs.empty() ? "" : ",", json_quote(key), ":", json_quote(value)});
        header += cat({"\"__metadata__\":{", pairs, "}"});
    }
    std::set<std::string> names;
    std::vector<int64_t> begins = {0};
    for (const SafetensorsOutput& tensor : tensors) {
        CHECK(names.insert(tensor.name).second, cat({"tensor ", tensor.name, " given twice"}));
        int64_t bytes = element_bytes(tensor.dtype);
        CHECK(bytes > 0, cat({"tensor ", tensor.name, ": dtype ", tensor.dtype}));
        for (const int64_t dim : tensor.shape) bytes *= dim;
        const int64_t begin = begins.back();
        header += cat({header.size() > 1 ? "," : "", json_quote(tensor.name), ":{\"dtype\":\"", tensor.dtype,
                       "\",\"shape\":", shape_list(tensor.shape), ",\"data_offsets\":[", begin, ",",
                       begin + bytes, "]}"});
        begins.push_back(begin + bytes);
    }
    header += "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');  // data begins aligned to 8 bytes
    const uint64_t header_bytes = header.size();
    header.insert(0, reinterpret_cast<const char*>(&header_bytes), sizeof header_bytes);
    for (int64_t& begin : begins) begin += static_cast<int64_t>(header.size());
    return {std::move(header), std::move(begins)};
}

void write_safetensors(const std::string& path, const std::vector<SafetensorsOutput>& tensors,
                       const std::map<std::string, std::string>& metadata) {
    const SafetensorsLayout layout = layout_safetensors(tensors, metadata);
    AtomicFile file(path);
    file.write(layout.header);
    for (size_t i = 0; i < tensors.size(); ++i) {
        tensors[i].write(file);
        CHECK(file.bytes_written() == layout.begins[i + 1],
              cat({"tensor ", tensors[i].name, " ended at ", file.bytes_written(), ", not ",
                   layout.begins[i + 1]}));
    }
    file.commit();
}
