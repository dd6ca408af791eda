// Saving Hugging Face directories, and arenas as files that several ranks fill.
#include "core/device.h"
#include "core/error.h"
#include "core/io.h"
#include "core/json.h"
#include "model/hf.h"
#include "model/hf_layout.h"
#include "model/safetensors.h"

namespace {

using nlohmann::json;

std::vector<SafetensorsOutput> tensors_of(const ParamTable& table, DType dtype) {
    CHECK(dtype == DType::f32 || dtype == DType::bf16, dtype_name(dtype));
    std::vector<SafetensorsOutput> tensors;
    for (const ParamInfo& row : table.rows())
        tensors.push_back({row.hf_name, dtype == DType::f32 ? "F32" : "BF16", hf_shape(row)});
    return tensors;
}
SafetensorsLayout layout_of(const ParamTable& table, DType dtype) {
    return layout_safetensors(tensors_of(table, dtype), {{"format", "pt"}});  // transformers refuses others
}

// `count` elements of a row from `first` on, to where the file has them: in one piece, or with Conv1D's
// matrices in one a column of ours.
template <class T>
void write_elements(SharedFile& file, int64_t row_begin, const ParamInfo& row, const T* values, int64_t first,
                    int64_t count) {
    constexpr int64_t kElement = sizeof(T);
    if (!row.hf_transposed) return file.write_at(row_begin + first * kElement, values, count * kElement);
    if (count == row.size()) {
        std::vector<T> as_stored(static_cast<size_t>(count));
        transpose(as_stored.data(), values, row.rows, row.cols);
        return file.write_at(row_begin, as_stored.data(), count * kElement);
    }
    std::vector<T> run;
    for (int64_t c = 0; c < row.cols; ++c) {
        // Rows r of ours whose element c is among them: first <= r cols + c < first + count.
        const int64_t begin = std::max<int64_t>(0, (first - c + row.cols - 1) / row.cols);
        const int64_t end = (first + count - c + row.cols - 1) / row.cols;
        if (begin >= end) continue;
        run.clear();
        for (int64_t r = begin; r < end; ++r) run.push_back(values[r * row.cols + c - first]);
        file.write_at(row_begin + (c * row.rows + begin) * kElement, run.data(), (end - begin) * kElement);
    }
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

void create_arena_file(const std::string& path, const ParamTable& table, DType dtype) {
    const SafetensorsLayout layout = layout_of(table, dtype);
    create_file_of_size(path, layout.begins.back());
    SharedFile(path).write_at(0, layout.header.data(), static_cast<int64_t>(layout.header.size()));
}

void write_arena_part(const std::string& path, const ParamTable& table, const ArenaPart& arena) {
    const SafetensorsLayout layout = layout_of(table, arena.data.dtype);
    SharedFile file(path);
    for (size_t i = 0; i < table.rows().size(); ++i) {
        const ParamInfo& row = table.rows()[i];
        arena.for_each_piece(row.offset, row.offset + row.size(), [&](Tensor piece, int64_t at) {
            const HostCopy copy(piece);
            const auto write = [&](const auto* values) {
                write_elements(file, layout.begins[i], row, values, at - row.offset, piece.size());
            };
            if (piece.dtype == DType::f32) write(copy.tensor().as<float>());
            if (piece.dtype == DType::bf16) write(copy.tensor().as<bf16>());
        });
    }
    file.sync();
}

void save_hf_config(const std::string& directory, const ModelConfig& config, DType dtype,
                    const std::string& tokenizer_directory) {
    const std::string torch_dtype = dtype == DType::bf16 ? "bfloat16" : "float32";
    write_file_atomic(directory + "/config.json", config_to_json(config, torch_dtype));
    json generation = json::object();
    if (config.bos_token >= 0) generation["bos_token_id"] = config.bos_token;
    if (config.eos_token >= 0) generation["eos_token_id"] = config.eos_token;
    if (!config.eos_list.empty()) generation["eos_token_id"] = config.eos_list;
    write_file_atomic(directory + "/generation_config.json", generation.dump() + "\n");
    if (!tokenizer_directory.empty()) copy_tokenizer(tokenizer_directory, directory);
}

void save_hf_model(const std::string& directory, const ParamTable& table, const ModelConfig& config,
                   Tensor arena, const std::string& tokenizer_directory) {
    save_hf_config(directory, config, arena.dtype, tokenizer_directory);
    const std::string path = directory + "/model.safetensors";
    create_arena_file(path, table, arena.dtype);
    write_arena_part(path, table, arena);
}
