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

// load_checkpoint behind its hashes.
TrainerState load_verified(const std::string& directory, const ParamTable& table, const ModelConfig& config,
                           Tensor params, Optimizer& optimizer) {
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
    load_arena(cat({directory, "/", master}), table, optimizer.master());
    load_arena(cat({directory, "/", kMoment1Path}), table, optimizer.moment1());
    load_arena(cat({directory, "/", kMoment2Path}), table, optimizer.moment2(),
               [&](const ParamInfo& row) { return optimizer.has_second_moment(row); });
    if (params.dtype == DType::bf16) {
        if (saved_dtype == params.dtype)
            load_arena(cat({directory, "/", kModelPath}), table, params);
        else
            optimizer.publish_master();
    }
    restore_counts(optimizer, state);
    return state;
}

}  // namespace

std::string checkpoint_name(int64_t step) {
    std::string digits = std::to_string(step);
    if (digits.size() < 8) digits.insert(0, 8 - digits.size(), '0');
    return std::string(kStepPrefix) + digits;
}

CheckpointArenas checkpoint_arenas(Tensor params, const Optimizer& optimizer) {
    return {.params = params,
            .moment1 = optimizer.moment1(),
            .moment2 = optimizer.moment2(),
            .master = params.dtype == DType::f32 ? Tensor{} : optimizer.master()};
}

void save_checkpoint(const std::string& out, const ParamTable& table, const ModelConfig& config,
                     const CheckpointArenas& arenas, const TrainerState& state,
                     const std::string& tokenizer_directory) {
    const std::string path = cat({out, "/", checkpoint_name(state.step)});
    remove_leftovers(out);
    if (path_exists(path) && !is_whole(path)) remove_tree(path);

    AtomicDirectory directory(path);
    const std::string& root = directory.temporary();
    make_directories(root + "/trainer");
    struct Arena {
        const char* path;
        Tensor values;
    };
    std::vector<Arena> beside = {{kMoment1Path, arenas.moment1}, {kMoment2Path, arenas.moment2}};
    if (!arenas.master.absent()) beside.push_back({kMasterPath, arenas.master});

    std::vector<FileRecord> records;
    save_hf_model(root, table, config, arenas.params, tokenizer_directory);
    for (const std::string& name : list_directory(root))
        if (!is_directory(root + "/" + name)) records.push_back({name});
    for (const Arena& arena : beside) {
        records.push_back({arena.path});
        // A device is this thread's.
        if (!arena.values.on_host()) save_arena(cat({root, "/", arena.path}), table, arena.values);
    }
    write_file_atomic(cat({root, "/", kStatePath}), state_to_json(state, arenas.params.dtype));
    records.push_back({kStatePath});
    // SHA-256 is slower than the disk's cache: each large file is written and hashed by a thread of its own.
    parallel_for(static_cast<int64_t>(records.size()), [&](int64_t i) {
        FileRecord& record = records[static_cast<size_t>(i)];
        const std::string file = root + "/" + record.path;
        for (const Arena& arena : beside)
            if (record.path == arena.path && arena.values.on_host()) save_arena(file, table, arena.values);
        record.bytes = file_bytes(file);
        record.sha256 = sha256_file(file);
    });
    write_hashes(root, records);
    directory.commit();
}

TrainerState load_checkpoint(const std::string& directory, const ParamTable& table, const ModelConfig& config,
                             Tensor params, Optimizer& optimizer) {
    verify(directory);
    return load_verified(directory, table, config, params, optimizer);
}

TrainerState load_newest_checkpoint(const std::string& out, const ParamTable& table,
                                    const ModelConfig& config, Tensor params, Optimizer& optimizer) {
    std::vector<std::pair<std::string, std::string>> damaged;  // directory, reason
    for (const std::string& name : whole_checkpoints(out)) {
        const std::string directory = out + "/" + name;
        try {
            verify(directory);
        } catch (const InputError& error) {
            damaged.emplace_back(directory, error.what());
            continue;
        }
        for (const auto& [path, reason] : damaged) set_aside(path, reason);
        return load_verified(directory, table, config, params, optimizer);
    }
    CHECK(!damaged.empty(), cat({"no checkpoint in ", out}));
    throw InputError(damaged.front().second);  // none is left that could take its place: a person must look
}

std::string newest_checkpoint(const std::string& out) {
    const std::vector<std::string> names = whole_checkpoints(out);
    return names.empty() ? "" : out + "/" + names[0];
}

void prune_checkpoints(const std::string& out, int64_t keep) {
    CHECK(keep >= 0, cat({"keep=", keep}));
    if (keep == 0) return;
    const std::vector<std::string> names = whole_checkpoints(out);
    for (size_t i = static_cast<size_t>(keep); i < names.size(); ++i) {
        // Out of sight first: a reader never finds a half-removed directory under a checkpoint's name.
        const std::string hidden = temporary_name(out + "/" + names[i]);
        remove_tree(hidden);
        std::filesystem::rename(out + "/" + names[i], hidden);
        remove_tree(hidden);
    }
}

std::string weights_hash(const ParamTable& table, Tensor arena) {
    const HostCopy copy(arena);
    const float* master = copy.tensor().as<float>();
    const std::vector<ParamInfo>& rows = table.rows();
    std::vector<Hash128> hashes(rows.size());
    parallel_for(static_cast<int64_t>(rows.size()), [&](int64_t i) {
        const ParamInfo& row = rows[static_cast<size_t>(i)];
        hashes[static_cast<size_t>(i)] =
            hash128(master + row.offset, row.size() * static_cast<int64_t>(sizeof(float)));
    });
    return hex(hash128(hashes.data(), static_cast<int64_t>(hashes.size() * sizeof(Hash128))));
}
