// Loading Hugging Face directories. It goes row by row of the parameter table: find the tensor under one of
// its accepted names, check its shape, convert, transpose if Conv1D's. What is left over in the files must be
// known to be harmless.
#include "model/hf.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "core/bf16.h"
#include "core/device.h"
#include "core/error.h"
#include "core/io.h"
#include "core/json.h"
#include "core/threads.h"
#include "model/file_hashes.h"
#include "model/hf_layout.h"
#include "model/safetensors.h"

namespace {

using nlohmann::json;

constexpr const char* kCopyHint = "copy the model from its source again";
constexpr int64_t kConvertGrain = 1 << 16;  // elements of one task

// ---- elements
// ------------------------------------------------------------------------------------------------------

float half_to_float(uint16_t bits) {
    const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
    const uint32_t exponent = (bits >> 10) & 0x1fu, fraction = bits & 0x3ffu;
    if (exponent == 0) {  // zero or subnormal: fraction x 2^-24, exact in f32
        const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    const uint32_t wide = exponent == 31 ? 255 : exponent + 112;  // infinities and NaN keep their fraction
    return std::bit_cast<float>(sign | wide << 23 | fraction << 13);
}

void store(float& out, float value) { out = value; }
void store(bf16& out, float value) { out = to_bf16(value); }

// Calls use(i, value) for elements first + i, i in [0, count), and returns whether all calls returned true.
// Files do not promise alignment, hence the memcpy.
template <class Bits, class Convert, class Use>
bool all_elements_of(const SafetensorsEntry& entry, int64_t first, int64_t count, Convert convert, Use use) {
    std::atomic<bool> all = true;
    parallel_ranges(count, kConvertGrain, [&](int64_t begin, int64_t end) {
        bool here = true;
        for (int64_t i = begin; i < end; ++i) {
            Bits bits;
            std::memcpy(&bits, entry.data + (first + i) * static_cast<int64_t>(sizeof bits), sizeof bits);
            here &= use(i, convert(bits));
        }
        if (!here) all = false;
    });
    return all;
}

bool loadable(const std::string& dtype) { return dtype == "F32" || dtype == "BF16" || dtype == "F16"; }

template <class Use>
bool all_elements(const SafetensorsEntry& entry, int64_t first, int64_t count, Use use) {
    if (entry.dtype == "F32")
        return all_elements_of<float>(
            entry, first, count, [](float x) { return x; }, use);
    if (entry.dtype == "BF16")
        return all_elements_of<uint16_t>(
            entry, first, count, [](uint16_t x) { return to_float(bf16{x}); }, use);
    return all_elements_of<uint16_t>(entry, first, count, half_to_float, use);
}

// ---- names and shapes
// ----------------------------------------------------------------------------------------------

std::string typed_shape(const std::string& dtype, const std::vector<int64_t>& shape) {
    std::string text = dtype + "[";
    for (size_t i = 0; i < shape.size(); ++i) text += cat({i ? "," : "", shape[i]});
    return text + "]";
}

// "transformer.h.0.ln_1.weight" -> "h.0.ln_1.weight": how a bare model without its head writes it.
std::string without_prefix(const std::string& name) {
    for (const std::string_view prefix : {"transformer.", "model."})
        if (name.starts_with(prefix)) return name.substr(prefix.size());
    return name;
}

// Takes digits followed by `rest`, to the end of the text.
bool is_layer_tensor(std::string_view name, std::string_view before, std::string_view after) {
    if (!name.starts_with(before)) return false;
    name.remove_prefix(before.size());
    const size_t digits = std::min(name.find_first_not_of("0123456789"), name.size());
    return digits > 0 && name.substr(digits) == after;
}

// Constants that older versions of transformers saved as if they were weights: the causal mask, RoPE's
// frequencies.
bool is_known_buffer(const std::string& full_name) {
    const std::string name = without_prefix(full_name);
    return is_layer_tensor(name, "h.", ".attn.bias") || is_layer_tensor(name, "h.", ".attn.masked_bias") ||
           is_layer_tensor(name, "layers.", ".self_attn.rotary_emb.inv_freq") ||
           name == "rotary_emb.inv_freq";
}

// ---- loading
// -------------------------------------------------------------------------------------------------------

// All tensors of one file, or of all shards.
class TensorSet {
public:
    explicit TensorSet(std::string where) : where_(std::move(where)) {}

    const SafetensorsFile& add_file(const std::string& path) {
        const SafetensorsFile& file = *files_.emplace_back(std::make_unique<SafetensorsFile>(path));
        for (const auto& [name, entry] : file.entries()) {
            const auto [other, inserted] = tensors_.try_emplace(name, Source{&file, &entry});
            if (!inserted)
                fail_input({.what = "tensor stands in two shards",
                            .where = cat({path, ", tensor ", name}),
                            .expected = "one place for each tensor",
                            .actual = cat({"also in ", other->second.file->path()})});
        }
        return file;
    }

    const std::string& where() const { return where_; }

    // The entry called `name` (which is then taken), or null.
    const SafetensorsEntry* take(const std::string& name) {
        const auto found = tensors_.find(name);
        if (found == tensors_.end()) return nullptr;
        taken_.insert(name);
        return found->second.entry;
    }
    // The values are not needed any more: their pages need not count as this process's memory.
    void release(const std::string& name) const {
        const Source& source = tensors_.at(name);
        source.file->drop_pages(*source.entry);
    }
    std::vector<std::string> file_names() const {
        std::vector<std::string> names;
        for (const auto& file : files_) names.push_back(file->path().substr(file->path().rfind('/') + 1));
        return names;
    }
    std::string place(const std::string& name) const {
        return cat({tensors_.at(name).file->path(), ", tensor ", name});
    }
    std::vector<std::string> untaken() const {
        std::vector<std::string> names;
        for (const auto& tensor : tensors_)
            if (!taken_.count(tensor.first)) names.push_back(tensor.first);
        return names;
    }

private:
    struct Source {
        const SafetensorsFile* file;
        const SafetensorsEntry* entry;
    };
    std::string where_;
    std::vector<std::unique_ptr<SafetensorsFile>> files_;
    std::map<std::string, Source> tensors_;
    std::set<std::string> taken_;
};

void add_shards(TensorSet& tensors, const std::string& directory, const std::string& index_path) {
    const json index = parse_json<json>(
        read_file(index_path), {.what = "malformed shard index", .where = index_path, .hint = kCopyHint});
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
        fail_input({.what = "malformed shard index",
                    .where = index_path,
                    .expected = "{\"weight_map\": {...}}",
                    .hint = kCopyHint});
    std::map<std::string, const SafetensorsFile*> shards;
    for (const auto& [name, file] : index["weight_map"].items()) {
        const std::string shard = file.is_string() ? file.get<std::string>() : "";
        if (shard.empty() || shard.find('/') != std::string::npos || shard[0] == '.')
            fail_input({.what = "shard index names no file beside it",
                        .where = cat({index_path, ", tensor ", name}),
                        .expected = "a file name",
                        .actual = json_excerpt(file),
                        .hint = kCopyHint});
        const SafetensorsFile*& opened = shards[shard];
        if (!opened) opened = &tensors.add_file(directory + "/" + shard);
        if (!opened->entries().count(name))
            fail_input({.what = "missing tensor",
                        .where = cat({opened->path(), ", tensor ", name}),
                        .expected = cat({"the shard that ", index_path, " says holds it"}),
                        .actual = "no such tensor in it"});
    }
}

TensorSet open_weights(const std::string& directory) {
    const std::string single = directory + "/model.safetensors", index = single + ".index.json";
    TensorSet tensors(path_exists(single) ? single : index);
    if (path_exists(single)) {
        tensors.add_file(single);
    } else if (path_exists(index)) {
        add_shards(tensors, directory, index);
    } else {
        const bool pickled = path_exists(directory + "/pytorch_model.bin") ||
                             path_exists(directory + "/pytorch_model.bin.index.json");
        fail_input(
            {.what = "no weights",
             .where = directory,
             .expected = "model.safetensors or model.safetensors.index.json",
             .actual = pickled ? "pytorch_model.bin only" : "neither",
             .hint = pickled ? "load it with transformers and save_pretrained(DIR), which writes safetensors"
                             : "give the directory of a Hugging Face model"});
    }
    return tensors;
}

void check_entry(const SafetensorsEntry& entry, const ParamInfo& row, const std::string& place) {
    if (!loadable(entry.dtype))
        fail_input({"tensor has the wrong dtype", place, "F32, BF16 or F16", entry.dtype,
                    "convert the weights to float32 or bfloat16"});
    if (entry.shape != hf_shape(row))
        fail_input({"tensor has the wrong shape", place, typed_shape(entry.dtype, hf_shape(row)),
                    typed_shape(entry.dtype, entry.shape),
                    "do config.json and the weights belong together?"});
}

// Elements [first, first + out's) of a row. Returns whether all of them are finite.
template <class Out>
bool load_row(Out* out, int64_t count, const SafetensorsEntry& entry, const ParamInfo& row, int64_t first) {
    const auto set = [](Out* to) {
        return [to](int64_t i, float value) {
            store(to[i], value);
            return std::isfinite(value);
        };
    };
    if (!row.hf_transposed) return all_elements(entry, first, count, set(out));
    std::vector<Out> as_stored(static_cast<size_t>(row.size()));
    const bool finite = all_elements(entry, 0, row.size(), set(as_stored.data()));
    if (count == row.size()) {
        transpose(out, as_stored.data(), row.cols, row.rows);
    } else {
        for (int64_t i = 0; i < count; ++i) {
            const int64_t r = (first + i) / row.cols, c = (first + i) % row.cols;
            out[i] = as_stored[static_cast<size_t>(c * row.rows + r)];
        }
    }
    return finite;
}

struct LoadOptions {
    bool bare_names = false;  // a name without its prefix will do
    bool finite = false;      // InputError for a value that is not
    std::function<bool(const ParamInfo&)> wanted = {};
};

// Fills every wanted row of the table, as far as it lies in the arena.
void load_rows(TensorSet& tensors, const ParamTable& table, const ArenaPart& arena,
               const LoadOptions& options) {
    std::vector<std::string> missing;
    for (const ParamInfo& row : table.rows()) {
        std::string name = row.hf_name;
        const SafetensorsEntry* entry = tensors.take(name);
        if (!entry && options.bare_names) entry = tensors.take(name = without_prefix(row.hf_name));
        if (!entry) {
            missing.push_back(cat({row.hf_name, " ", typed_shape("", hf_shape(row))}));
            continue;
        }
        check_entry(*entry, row, tensors.place(name));
        if (options.wanted && !options.wanted(row)) continue;
        bool finite = true;
        arena.for_each_piece(row.offset, row.offset + row.size(), [&](Tensor place, int64_t at) {
            Buffer staging(place.on_host() ? 0 : place.bytes());
            const Tensor out = place.on_host() ? place : staging.tensor(place.dtype);
            const auto load = [&](auto* to) {
                finite &= load_row(to, out.size(), *entry, row, at - row.offset);
            };
            if (out.dtype == DType::f32) load(out.as<float>());
            if (out.dtype == DType::bf16) load(out.as<bf16>());
            if (!place.on_host()) copy_tensor(place, out);
        });
        if (options.finite && !finite)
            fail_input({"tensor holds a value that is not finite", tensors.place(name), "numbers",
                        "NaN or infinity", "its model has diverged: use an earlier checkpoint"});
        tensors.release(name);
    }
    if (!missing.empty())
        fail_input({"missing tensor", tensors.where(), missing[0],
                    cat({missing.size(), " of ", table.rows().size(), " tensors are not in the file"}),
                    "do config.json and the weights belong together?"});
}

void fail_if_surplus(const std::vector<std::string>& names, const std::string& where) {
    if (names.empty()) return;
    fail_input({"surplus tensor", where, "only the tensors that config.json calls for",
                cat({names[0], " and ", names.size() - 1, " others"}),
                "do config.json and the weights belong together?"});
}

// A tied model may carry its head all the same; then it must be the embedding, or the two would part in
// training.
template <class T>
void check_tied_head(TensorSet& tensors, const ParamTable& table, const ArenaPart& arena) {
    const std::string name = "lm_head.weight";
    const SafetensorsEntry* head = tensors.take(name);
    if (!head) return;
    for (const ParamInfo& row : table.rows()) {
        if (row.slot != Slot::wte) continue;
        check_entry(*head, row, tensors.place(name));
        bool same = true;
        arena.for_each_piece(row.offset, row.offset + row.size(), [&](Tensor piece, int64_t at) {
            const HostCopy wte(piece);
            const T* embedding = wte.tensor().as<T>();
            same &= all_elements(*head, at - row.offset, piece.size(), [&](int64_t i, float value) {
                T stored;
                store(stored, value);
                return std::memcmp(&stored, embedding + i, sizeof stored) == 0;
            });
        });
        if (!same)
            fail_input({"the head differs from the embedding", tensors.place(name),
                        cat({"the values of ", row.hf_name}), "other values",
                        "set tie_word_embeddings to false in config.json"});
        tensors.release(name);
    }
}

}  // namespace

ModelConfig load_hf_config(const std::string& directory) {
    const std::string path = directory + "/config.json";
    if (!path_exists(path))
        fail_input({.what = "not a model directory",
                    .where = directory,
                    .expected = "config.json",
                    .actual = is_directory(directory) ? "no such file in it" : "no such directory",
                    .hint = "give a model's directory, such as RUN/step_N, or the name of a preset"});
    return config_from_json(read_file(path), path);
}

ModelSource find_model(const std::string& init) {
    const std::vector<std::string> presets = config_preset_names();
    if (std::find(presets.begin(), presets.end(), init) != presets.end()) return {config_preset(init), ""};
    if (is_directory(init) || init.find('/') != std::string::npos) return {load_hf_config(init), init};
    return {config_preset(init), ""};  // which lists the names
}

void load_hf_weights(const std::string& directory, const ParamTable& table, const ModelConfig& config,
                     const ArenaPart& arena) {
    const DType dtype = arena.data.dtype;
    CHECK(dtype == DType::f32 || dtype == DType::bf16, dtype_name(dtype));
    TensorSet tensors = open_weights(directory);
    verify_listed_hashes(directory, tensors.file_names());
    load_rows(tensors, table, arena, {.bare_names = true, .finite = true});
    if (config.tied_head && dtype == DType::f32) check_tied_head<float>(tensors, table, arena);
    if (config.tied_head && dtype == DType::bf16) check_tied_head<bf16>(tensors, table, arena);
    std::vector<std::string> surplus = tensors.untaken();
    std::erase_if(surplus, is_known_buffer);
    fail_if_surplus(surplus, tensors.where());
}

void load_arena(const std::string& path, const ParamTable& table, const ArenaPart& arena,
                const std::function<bool(const ParamInfo&)>& wanted) {
    TensorSet tensors(path);
    tensors.add_file(path);
    load_rows(tensors, table, arena, {.wanted = wanted});
    fail_if_surplus(tensors.untaken(), path);
}
