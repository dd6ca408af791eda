// Checkpoints on disk. The order of writing is the promise: all files under a temporary name, their hashes
// last, then one rename. So a directory called step_N was complete when it got its name, and hashes.json
// tells whether it still is.
#include "model/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string_view>
#include <utility>

#include "core/device.h"
#include "core/error.h"
#include "core/io.h"
#include "core/threads.h"
#include "model/file_hashes.h"

namespace {

constexpr std::string_view kStepPrefix = "step_";
constexpr const char* kStatePath = "trainer/state.json";
constexpr const char* kModelPath = "model.safetensors";
constexpr const char* kMasterPath = "trainer/master.safetensors";
constexpr const char* kMoment1Path = "trainer/m.safetensors";
constexpr const char* kMoment2Path = "trainer/v.safetensors";
constexpr const char* kSetAside = ".damaged";

// ---- names
// ---------------------------------------------------------------------------------------------------------

// The step of "step_00001000"; -1 for every other name.
int64_t step_of(std::string_view name) {
    if (!name.starts_with(kStepPrefix)) return -1;
    name.remove_prefix(kStepPrefix.size());
    int64_t step = -1;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), step);
    if (error != std::errc() || end != name.data() + name.size() || step < 0) return -1;
    return checkpoint_name(step).substr(kStepPrefix.size()) == name ? step : -1;
}

// Names of the whole checkpoints in OUT, newest first.
std::vector<std::string> whole_checkpoints(const std::string& out) {
    std::vector<std::string> names;
    if (!is_directory(out)) return names;
    for (const std::string& name : list_directory(out))
        if (step_of(name) >= 0 && is_whole(out + "/" + name)) names.push_back(name);
    std::sort(names.begin(), names.end(),
              [](const std::string& a, const std::string& b) { return step_of(a) > step_of(b); });
    return names;
}

void remove_tree(const std::string& path) {
    std::error_code error;
    std::filesystem::remove_all(path, error);
    if (error) fail_input({.what = "cannot remove directory", .where = path, .actual = error.message()});
}

void remove_leftovers(const std::string& out) {
    for (const std::string& name : list_directory(out))
        if (is_dead_temporary(name) &&
            step_of(std::string_view(name).substr(0, name.find(kTemporaryMark))) >= 0)
            remove_tree(out + "/" + name);
}

void verify(const std::string& directory) {
    verify_all_hashes(directory, {kStatePath, kModelPath, kMoment1Path, kMoment2Path});
}

// Renamed so that no run looks at it again, and said in one line.
void set_aside(const std::string& directory, const std::string& reason) {
    std::string target = directory + kSetAside;
    for (int i = 2; path_exists(target); ++i) target = cat({directory, kSetAside, "-", i});
    std::error_code error;
    std::filesystem::rename(directory, target, error);
    if (error) fail_input({.what = "cannot rename directory", .where = directory, .actual = error.message()});
    std::fprintf(stderr, "checkpoint set aside as %s: %s\n", target.c_str(), reason.c_str());
}

}  // namespace

std::string checkpoint_name(int64_t step) {
    std::string digits = std::to_string(step);
    if (digits.size() < 8) digits.insert(0, 8 - digits.size(), '0');
    return std::string(kStepPrefix) + digits;
}

CheckpointArenas checkpoint_arenas(const Optimizer& optimizer) {
    const ArenaPart params = optimizer.params_part();
    return {.params = params,
            .moment1 = optimizer.moment1_part(),
            .moment2 = optimizer.moment2_part(),
            .master = params.data.dtype == DType::f32 ? ArenaPart() : optimizer.master_part()};
}

std::vector<std::string> arena_files(DType dtype) {
    std::vector<std::string> files = {kModelPath, kMoment1Path, kMoment2Path};
    if (dtype != DType::f32) files.push_back(kMasterPath);
    return files;
}

namespace {
// After leftovers and damaged namesakes have gone.
std::string place_for(const std::string& out, int64_t step) {
    const std::string path = cat({out, "/", checkpoint_name(step)});
    remove_leftovers(out);
    if (path_exists(path) && !is_whole(path)) remove_tree(path);
    return path;
}
FileRecord record_of(const std::string& root, const std::string& path) {
    return {path, file_bytes(root + "/" + path), sha256_file(root + "/" + path)};
}
}  // namespace

NewCheckpoint::NewCheckpoint(const std::string& out, const ParamTable& table, const ModelConfig& config,
                             DType dtype, const TrainerState& state, const std::string& tokenizer_directory)
    : directory_(place_for(out, state.step)), dtype_(dtype) {
    make_directories(temporary() + "/trainer");
    save_hf_config(temporary(), config, dtype, tokenizer_directory);
    write_file_atomic(cat({temporary(), "/", kStatePath}), state_to_json(state, dtype));
    for (const std::string& file : arena_files(dtype))
        create_arena_file(temporary() + "/" + file, table, file == kModelPath ? dtype : DType::f32);
}

void NewCheckpoint::commit(const std::vector<std::string>& hashes) {
    const std::vector<std::string> arenas = arena_files(dtype_);
    CHECK(hashes.size() == arenas.size(), cat({hashes.size(), " hashes"}));
    std::vector<FileRecord> records = {record_of(temporary(), kStatePath)};
    for (const std::string& name : list_directory(temporary()))
        if (name != kModelPath && !is_directory(temporary() + "/" + name))
            records.push_back(record_of(temporary(), name));
    for (size_t i = 0; i < arenas.size(); ++i)
        records.push_back({arenas[i], file_bytes(temporary() + "/" + arenas[i]), hashes[i]});
    write_hashes(temporary(), records);
    directory_.commit();
}

void write_checkpoint_part(const std::string& temporary, const ParamTable& table,
                           const CheckpointArenas& arenas) {
    const DType dtype = arenas.params.data.dtype;
    const std::vector<std::string> files = arena_files(dtype);
    const ArenaPart* const parts[] = {&arenas.params, &arenas.moment1, &arenas.moment2, &arenas.master};
    const auto write = [&](int64_t i) {
        write_arena_part(temporary + "/" + files[static_cast<size_t>(i)], table, *parts[i]);
    };
    const int64_t count = static_cast<int64_t>(files.size());
    if (arenas.params.data.on_host()) return parallel_for(count, write);
    for (int64_t i = 0; i < count; ++i) write(i);  // a device is this thread's
}

void save_checkpoint(const std::string& out, const ParamTable& table, const ModelConfig& config,
                     const CheckpointArenas& arenas, const TrainerState& state,
                     const std::string& tokenizer_directory) {
    const DType dtype = arenas.params.data.dtype;
    NewCheckpoint checkpoint(out, table, config, dtype, state, tokenizer_directory);
    write_checkpoint_part(checkpoint.temporary(), table, arenas);
    // SHA-256 is slower than the disk's cache: each file has a thread of its own.
    const std::vector<std::string> files = arena_files(dtype);
    std::vector<std::string> hashes(files.size());
    parallel_for(static_cast<int64_t>(files.size()), [&](int64_t i) {
        hashes[static_cast<size_t>(i)] =
            sha256_file(checkpoint.temporary() + "/" + files[static_cast<size_t>(i)]);
    });
    checkpoint.commit(hashes);
}

TrainerState load_checkpoint(const std::string& directory, const ParamTable& table, const ModelConfig& config,
                             Optimizer& optimizer) {
    verify(directory);
    return load_verified_checkpoint(directory, table, config, optimizer);
}

TrainerState load_verified_checkpoint(const std::string& directory, const ParamTable& table,
                                      const ModelConfig& config, Optimizer& optimizer) {
    // Through config.json's own text, so that what JSON cannot carry is not compared.
    if (load_hf_config(directory) != config_from_json(config_to_json(config, "float32"), "this run's model"))
        fail_input({.what = "checkpoint is of another model",
                    .where = directory + "/config.json",
                    .expected = "the model of this run",
                    .actual = "other numbers",
                    .hint = "use another --out, or start from it with --init"});
    DType saved_dtype = DType::f32;
    const std::string state_path = cat({directory, "/", kStatePath});
    const TrainerState state = state_from_json(read_file(state_path), state_path, saved_dtype);

    const char* master = saved_dtype == DType::f32 ? kModelPath : kMasterPath;
    load_arena(cat({directory, "/", master}), table, optimizer.master_part());
    load_arena(cat({directory, "/", kMoment1Path}), table, optimizer.moment1_part());
    load_arena(cat({directory, "/", kMoment2Path}), table, optimizer.moment2_part(),
               [&](const ParamInfo& row) { return optimizer.has_second_moment(row); });
    const ArenaPart params = optimizer.params_part();
    if (params.data.dtype == DType::bf16) {
        if (saved_dtype == DType::bf16)
            load_arena(cat({directory, "/", kModelPath}), table, params);
        else
            optimizer.publish_master();
    }
    restore_counts(optimizer, state);
    return state;
}

std::string verify_newest_checkpoint(const std::string& out, int64_t every) {
    std::vector<std::pair<std::string, std::string>> damaged;  // directory, reason
    for (const std::string& name : whole_checkpoints(out)) {
        if (every > 0 && step_of(name) % every != 0) continue;
        const std::string directory = out + "/" + name;
        try {
            verify(directory);
        } catch (const InputError& error) {
            damaged.emplace_back(directory, error.what());
            continue;
        }
        for (const auto& [path, reason] : damaged) set_aside(path, reason);
        return directory;
    }
    if (damaged.empty()) return "";
    throw InputError(damaged.front().second);  // none is left that could take its place: a person must look
}

std::string newest_checkpoint(const std::string& out) {
    const std::vector<std::string> names = whole_checkpoints(out);
    return names.empty() ? "" : out + "/" + names[0];
}

void prune_checkpoints(const std::string& out, int64_t keep, int64_t keep_every) {
    CHECK(keep >= 0 && keep_every >= 0, cat({"keep=", keep, " every ", keep_every}));
    if (keep == 0) return;
    const std::vector<std::string> names = whole_checkpoints(out);
    for (size_t i = static_cast<size_t>(keep); i < names.size(); ++i) {
        if (keep_every > 0 && step_of(names[i]) % keep_every == 0) continue;
        // Out of sight first: a reader never finds a half-removed directory under a checkpoint's name.
        const std::string hidden = temporary_name(out + "/" + names[i]);
        remove_tree(hidden);
        std::filesystem::rename(out + "/" + names[i], hidden);
        remove_tree(hidden);
    }
}
