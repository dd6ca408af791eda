// Hugging Face directories. Loading goes row by row of the parameter table: find the tensor under one of its
// accepted names, check its shape, convert, transpose if Conv1D's. What is left over in the files must be
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
#include "model/safetensors.h"

namespace {

using nlohmann::json;

constexpr const char* kCopyHint = "copy the model from its source again";
constexpr int64_t kConvertGrain = 1 << 16;  // elements of one task
constexpr int64_t kTransposeTile = 32;  // a 32 x 32 tile of f32 is 4 KiB: both sides stay in the first cache

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

// Calls use(i, value) for every element and returns whether all calls returned true. Files do not promise
// alignment, hence the memcpy.
template <class Bits, class Convert, class Use>
bool all_elements_of(const SafetensorsEntry& entry, Convert convert, Use use) {
    const int64_t size = entry.bytes / static_cast<int64_t>(sizeof(Bits));
    std::atomic<bool> all = true;
    parallel_ranges(size, kConvertGrain, [&](int64_t begin, int64_t end) {
        bool here = true;
        for (int64_t i = begin; i < end; ++i) {
            Bits bits;
            std::memcpy(&bits, entry.data + i * static_cast<int64_t>(sizeof bits), sizeof bits);
            here &= use(i, convert(bits));
        }
        if (!here) all = false;
    });
    return all;
}

bool loadable(const std::string& dtype) { return dtype == "F32" || dtype == "BF16" || dtype == "F16"; }

template <class Use>
bool all_elements(const SafetensorsEntry& entry, Use use) {
    if (entry.dtype == "F32")
        return all_elements_of<float>(
            entry, [](float x) { return x; }, use);
    if (entry.dtype == "BF16")
        return all_elements_of<uint16_t>(
            entry, [](uint16_t x) { return to_float(bf16{x}); }, use);
    return all_elements_of<uint16_t>(entry, half_to_float, use);
}

// out[c, r] = inp[r, c]
template <class T>
void transpose(T* out, const T* inp, int64_t rows, int64_t cols) {
    parallel_ranges(cols, kTransposeTile, [&](int64_t begin, int64_t end) {
        for (int64_t top = 0; top < rows; top += kTransposeTile)
            for (int64_t c = begin; c < end; ++c)
                for (int64_t r = top; r < std::min(top + kTransposeTile, rows); ++r)
                    out[c * rows + r] = inp[r * cols + c];
    });
}

// ---- names and shapes
// ----------------------------------------------------------------------------------------------

std::vector<int64_t> hf_shape(const ParamInfo& row) {
    if (row.rank == 1) return {row.rows};
    if (row.hf_transposed) return {row.cols, row.rows};
    return {row.rows, row.cols};
}

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

// Returns whether all values are finite.
template <class Out>
bool load_row(Out* out, const SafetensorsEntry& entry, const ParamInfo& row) {
    std::vector<Out> as_stored(row.hf_transposed ? static_cast<size_t>(row.size()) : 0);
    Out* to = row.hf_transposed ? as_stored.data() : out;
    const bool finite = all_elements(entry, [&](int64_t i, float value) {
        store(to[i], value);
        return std::isfinite(value);
    });
    if (row.hf_transposed) transpose(out, as_stored.data(), row.cols, row.rows);
    return finite;
}

struct LoadOptions {
    bool bare_names = false;  // a name without its prefix will do
    bool finite = false;      // InputError for a value that is not
    std::function<bool(const ParamInfo&)> wanted = {};
};

// Fills every wanted row of the table.
void load_rows(TensorSet& tensors, const ParamTable& table, Tensor arena, const LoadOptions& options) {
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
        const Tensor place = arena.rows(row.offset, row.size());
        Buffer staging(place.on_host() ? 0 : place.bytes());
        const Tensor out = place.on_host() ? place : staging.tensor(arena.dtype);
        const bool finite = out.dtype == DType::f32 ? load_row(out.as<float>(), *entry, row)
                                                    : load_row(out.as<bf16>(), *entry, row);
        if (!place.on_host()) copy_tensor(place, out);
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
void check_tied_head(TensorSet& tensors, const ParamTable& table, Tensor arena) {
    const std::string name = "lm_head.weight";
    const SafetensorsEntry* head = tensors.take(name);
    if (!head) return;
    for (const ParamInfo& row : table.rows()) {
        if (row.slot != Slot::wte) continue;
        check_entry(*head, row, tensors.place(name));
        const HostCopy wte(table.tensor(arena, row));
        const T* embedding = wte.tensor().as<T>();
        const bool same = all_elements(*head, [&](int64_t i, float value) {
            T stored;
            store(stored, value);
            return std::memcmp(&stored, embedding + i, sizeof stored) == 0;
        });
        if (!same)
            fail_input({"the head differs from the embedding", tensors.place(name),
                        cat({"the values of ", row.hf_name}), "other values",
                        "set tie_word_embeddings to false in config.json"});
        tensors.release(name);
    }
}

// ---- saving
// --------------------------------------------------------------------------------------------------------

template <class T>
void write_row(AtomicFile& file, const ParamInfo& row, Tensor arena) {
    const HostCopy copy(arena.rows(row.offset, row.size()));
    const T* values = copy.tensor().as<T>();
    std::vector<T> as_stored;
    if (row.hf_transposed) {
        as_stored.resize(static_cast<size_t>(row.size()));
        transpose(as_stored.data(), values, row.rows, row.cols);
        values = as_stored.data();
    }
    file.write(values, row.size() * static_cast<int64_t>(sizeof(T)));
}

void copy_tokenizer(const std::string& from, const std::string& to) {
    if (!path_exists(from + "/tokenizer.json"))
        fail_input(
            {.what = "no tokenizer", .where = from, .expected = "tokenizer.json", .actual = "no such file"});
    for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                             "chat_template.jinja", "vocab.json", "merges.txt"})
        if (path_exists(cat({from, "/", name})))
            write_file_atomic(cat({to, "/", name}), read_file(cat({from, "/", name})));
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
                     Tensor arena) {
    CHECK(arena.dtype == DType::f32 || arena.dtype == DType::bf16, dtype_name(arena.dtype));
    TensorSet tensors = open_weights(directory);
    verify_listed_hashes(directory, tensors.file_names());
    load_rows(tensors, table, arena, {.bare_names = true, .finite = true});
    if (config.tied_head && arena.dtype == DType::f32) check_tied_head<float>(tensors, table, arena);
    if (config.tied_head && arena.dtype == DType::bf16) check_tied_head<bf16>(tensors, table, arena);
    std::vector<std::string> surplus = tensors.untaken();
    std::erase_if(surplus, is_known_buffer);
    fail_if_surplus(surplus, tensors.where());
}

void save_arena(const std::string& path, const ParamTable& table, Tensor arena) {
    const DType dtype = arena.dtype;
    CHECK(dtype == DType::f32 || dtype == DType::bf16, dtype_name(dtype));
    std::vector<SafetensorsOutput> tensors;
    for (const ParamInfo& row : table.rows())
        tensors.push_back(
            {row.hf_name, dtype == DType::f32 ? "F32" : "BF16", hf_shape(row), [&, dtype](AtomicFile& file) {
                 if (dtype == DType::f32)
                     write_row<float>(file, row, arena);
                 else
                     write_row<bf16>(file, row, arena);
             }});
    write_safetensors(path, tensors, {{"format", "pt"}});  // transformers refuses files without it
}

void load_arena(const std::string& path, const ParamTable& table, Tensor arena,
                const std::function<bool(const ParamInfo&)>& wanted) {
    TensorSet tensors(path);
    tensors.add_file(path);
    load_rows(tensors, table, arena, {.wanted = wanted});
    fail_if_surplus(tensors.untaken(), path);
}

void save_hf_model(const std::string& directory, const ParamTable& table, const ModelConfig& config,
                   Tensor arena, const std::string& tokenizer_directory) {
    const std::string torch_dtype = arena.dtype == DType::bf16 ? "bfloat16" : "float32";
    write_file_atomic(directory + "/config.json", config_to_json(config, torch_dtype));
    json generation = json::object();
    if (config.bos_token >= 0) generation["bos_token_id"] = config.bos_token;
    if (config.eos_token >= 0) generation["eos_token_id"] = config.eos_token;
    if (!config.eos_list.empty()) generation["eos_token_id"] = config.eos_list;
    write_file_atomic(directory + "/generation_config.json", generation.dump() + "\n");
    if (!tokenizer_directory.empty()) copy_tokenizer(tokenizer_directory, directory);
    save_arena(directory + "/model.safetensors", table, arena);
}
