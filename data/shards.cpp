// Shards: written whole behind one manifest, read only after header, size and ids are checked.
#include "data/shards.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>

#include "core/error.h"
#include "core/json.h"
#include "core/threads.h"

static_assert(std::endian::native == std::endian::little, "shards are little-endian");

namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kHeaderInts = 256;
constexpr int64_t kHeaderBytes = kHeaderInts * 4;
struct ShardFormat {
    int32_t magic, version;
    int token_bytes;
};
constexpr ShardFormat kFormats[] = {{20240520, 1, 2}, {20240801, 7, 4}};
constexpr int64_t kMaxUint16Vocab = 65536;
constexpr const char* kManifestFormat = "ingot-shards-1";
constexpr const char* kMakeShards = "make shards with build/tokenize encode";

std::string parent_directory(const std::string& path) {
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash);
}
std::string file_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }
std::string manifest_path(const std::string& directory) { return directory + "/manifest.json"; }

// PREFIX_000000.bin: at least six digits.
std::string shard_name(const std::string& prefix, size_t index) {
    const std::string digits = std::to_string(index);
    return prefix + "_" + std::string(digits.size() < 6 ? 6 - digits.size() : 0, '0') + digits + ".bin";
}
bool is_shard_name(std::string_view name, const std::string& prefix) {
    if (!name.starts_with(prefix + "_") || !name.ends_with(".bin")) return false;
    name.remove_prefix(prefix.size() + 1);
    name.remove_suffix(4);
    return name.size() >= 6 && name.find_first_not_of("0123456789") == std::string_view::npos;
}

// Removes what finish() has put in place when it does not come to its end.
struct Unfinished {
    std::vector<std::string> paths;
    ~Unfinished() {
        std::error_code ignored;
        for (const std::string& path : paths) std::filesystem::remove(path, ignored);
    }
};

JsonSource manifest_source(const std::string& directory, const char* what) {
    return {.what = what,
            .where = manifest_path(directory),
            .hint = "make the shards again, or remove it to read them without one"};
}

// `text` as one of our manifests, with the names that every reader needs.
Json parse_manifest(const std::string& directory, const std::string& text) {
    const JsonSource foreign = manifest_source(directory, "not a manifest of token shards");
    Json manifest = parse_json<Json>(text, foreign);
    if (!manifest.is_object() || !manifest.contains("format") || manifest["format"] != kManifestFormat) {
        fail_input({.what = foreign.what,
                    .where = foreign.where,
                    .expected = cat({"a JSON object with \"format\": \"", kManifestFormat, "\""}),
                    .hint = foreign.hint});
    }
    const JsonSource damaged = manifest_source(directory, "damaged manifest");
    read_json(damaged, [&] {
        const Json& tokenizer = manifest.at("tokenizer");
        tokenizer.at("sha256").get<std::string>();
        tokenizer.at("path").get<std::string>();
        manifest.at("vocab_size").get<int64_t>();
        manifest.at("eot").get<int32_t>();
        manifest.at("splits").get_ref<const Json::object_t&>();
    });
    return manifest;
}

}  // namespace

// ---- writing
// -------------------------------------------------------------------------------------------------------

struct ShardWriter::State {
    struct OpenShard {
        std::string path;
        std::unique_ptr<AtomicFile> file;
        int64_t num_tokens = 0;
        bool closed = false;
    };
    std::string directory, prefix;
    int64_t vocab_size, shard_tokens;
    int32_t eot;
    const ShardFormat* format;
    std::vector<OpenShard> shards;
    std::vector<uint64_t> document_offsets;
    std::vector<uint16_t> narrow;  // staging of the uint16 form
    ShardTotals totals;

    void append(const int32_t* ids, int64_t count) {
        while (count > 0) {
            if (shards.empty() || shards.back().num_tokens == shard_tokens) open_shard();
            OpenShard& shard = shards.back();
            const int64_t n = std::min(count, shard_tokens - shard.num_tokens);
            if (format->token_bytes == 2) {
                narrow.resize(static_cast<size_t>(n));
                std::transform(ids, ids + n, narrow.begin(),
                               [](int32_t id) { return static_cast<uint16_t>(id); });
                shard.file->write(narrow.data(), n * 2);
            } else {
                shard.file->write(ids, n * 4);
            }
            shard.num_tokens += n;
            totals.num_tokens += n;
            ids += n;
            count -= n;
            if (shard.num_tokens == shard_tokens) close_shard(shard);
        }
    }
    void open_shard() {
        const std::string path = directory + "/" + shard_name(prefix, shards.size());
        shards.push_back({path, std::make_unique<AtomicFile>(path)});
        const std::vector<int32_t> header(kHeaderInts);  // filled in by close_shard()
        shards.back().file->write(header.data(), kHeaderBytes);
    }
    void close_shard(OpenShard& shard) {
        const int32_t header[3] = {format->magic, format->version, static_cast<int32_t>(shard.num_tokens)};
        shard.file->write_at(0, header, sizeof header);
        shard.file->close();
        shard.closed = true;
    }
    bool made_directory = false;
    ~State() {
        shards.clear();  // removes what was not committed
        std::error_code ignored;
        if (made_directory) std::filesystem::remove(directory, ignored);  // only when it is empty
    }
};

ShardWriter::ShardWriter(const std::string& directory, const std::string& prefix, int64_t vocab_size,
                         int32_t eot, int64_t shard_tokens)
    : state_(std::make_unique<State>()) {
    CHECK(vocab_size > 0 && eot < vocab_size && shard_tokens > 0, cat({"V=", vocab_size, " eot=", eot}));
    CHECK(shard_tokens <= std::numeric_limits<int32_t>::max(), cat({"shard_tokens=", shard_tokens}));
    if (prefix.empty() || prefix.front() == '.' || prefix.find('/') != std::string::npos) {
        fail_input({.what = "not a name for shards",
                    .where = "--prefix",
                    .expected = "a plain file name, as \"train\"",
                    .actual = cat({"\"", prefix, "\""})});
    }
    state_->directory = directory;
    state_->prefix = prefix;
    state_->vocab_size = vocab_size;
    state_->shard_tokens = shard_tokens;
    state_->eot = eot;
    state_->format = &kFormats[vocab_size > kMaxUint16Vocab];
    state_->made_directory = !path_exists(directory);
    make_directories(directory);
    for (const std::string& name : list_directory(directory)) {
        if (is_shard_name(name, prefix)) {
            fail_input({.what = "shards are there already",
                        .where = directory + "/" + name,
                        .hint = "choose another --out, or remove the directory"});
        }
    }
}
ShardWriter::~ShardWriter() = default;

void ShardWriter::add_document(const int32_t* ids, int64_t num_ids, int64_t text_bytes) {
    State& state = *state_;
    for (int64_t i = 0; i < num_ids; ++i) {
        CHECK(ids[i] >= 0 && ids[i] < state.vocab_size,
              cat({"id ", ids[i], " of a vocabulary of ", state.vocab_size}));
    }
    state.document_offsets.push_back(static_cast<uint64_t>(state.totals.num_tokens));
    if (state.eot >= 0) state.append(&state.eot, 1);
    state.append(ids, num_ids);
    ++state.totals.num_documents;
    state.totals.text_bytes += text_bytes;
}

ShardTotals ShardWriter::finish(const ShardOrigin& origin) {
    State& state = *state_;
    if (state.totals.num_tokens == 0) {
        fail_input({.what = cat({"no tokens for ", state.prefix}),
                    .where = state.directory,
                    .hint = "the documents are empty: look at the curated files"});
    }
    // A manifest that is there must be one that this split can join: before any shard gets its name.
    const std::string path = manifest_path(state.directory);
    Json manifest;
    if (path_exists(path)) {
        manifest = parse_manifest(state.directory, read_file(path));
        const std::string other = manifest["tokenizer"]["sha256"];
        if (other != origin.tokenizer_hash) {
            fail_input({.what = "shards of another tokenizer lie in this directory",
                        .where = path,
                        .expected = origin.tokenizer_hash,
                        .actual = other,
                        .hint = "choose another --out"});
        }
    } else {
        manifest = {{"format", kManifestFormat},
                    {"tokenizer", {{"path", origin.tokenizer_path}, {"sha256", origin.tokenizer_hash}}},
                    {"vocab_size", state.vocab_size},
                    {"eot", state.eot},
                    {"splits", Json::object()}};
    }

    Unfinished unfinished;
    Json shards = Json::array();
    for (State::OpenShard& shard : state.shards) {
        if (!shard.closed) state.close_shard(shard);
        shard.file->commit();
        unfinished.paths.push_back(shard.path);
        shards.push_back({{"file", file_name(shard.path)},
                          {"num_tokens", shard.num_tokens},
                          {"sha256", sha256_file(shard.path)},
                          {"xxh3", hex(ShardReader(shard.path).check_ids(state.vocab_size))}});
    }
    state.document_offsets.push_back(static_cast<uint64_t>(state.totals.num_tokens));
    const std::string offsets(reinterpret_cast<const char*>(state.document_offsets.data()),
                              state.document_offsets.size() * sizeof(uint64_t));
    const std::string offsets_name = state.prefix + "_documents.u64";
    write_file_atomic(state.directory + "/" + offsets_name, offsets);
    unfinished.paths.push_back(state.directory + "/" + offsets_name);
    state.totals.num_shards = static_cast<int64_t>(state.shards.size());
    manifest["splits"][state.prefix] = {
        {"num_tokens", state.totals.num_tokens},
        {"num_documents", state.totals.num_documents},
        {"text_bytes", state.totals.text_bytes},
        {"source_manifest", origin.source_manifest_hash},
        {"documents", {{"file", offsets_name}, {"sha256", sha256_hex(offsets)}}},
        {"shards", shards},
    };
    write_file_atomic(path, manifest.dump(1) + "\n");
    unfinished.paths.clear();
    return state.totals;
}

// ---- reading
// -------------------------------------------------------------------------------------------------------

ShardReader::ShardReader(const std::string& path) : path_(path), file_(path) {
    if (file_.bytes() < kHeaderBytes) {
        fail_input({.what = file_.bytes() == 0 ? "empty shard" : "truncated shard",
                    .where = path,
                    .expected = cat({"a header of ", kHeaderBytes, " bytes"}),
                    .actual = cat({file_.bytes(), " bytes"}),
                    .hint = kMakeShards});
    }
    int32_t header[3];
    std::memcpy(header, file_.data(), sizeof header);
    const auto* format = std::find_if(std::begin(kFormats), std::end(kFormats),
                                      [&](const ShardFormat& f) { return f.magic == header[0]; });
    if (format == std::end(kFormats)) {
        fail_input({.what = "not a token shard",
                    .where = path + ", byte 0",
                    .expected = "magic 20240520 or 20240801",
                    .actual = std::to_string(header[0]),
                    .hint = kMakeShards});
    }
    if (format->version != header[1]) {
        fail_input({.what = "a shard of another version",
                    .where = path + ", byte 4",
                    .expected = cat({"version ", format->version, " for magic ", format->magic}),
                    .actual = std::to_string(header[1]),
                    .hint = kMakeShards});
    }
    token_bytes_ = format->token_bytes;
    num_tokens_ = header[2];
    const int64_t expected = kHeaderBytes + num_tokens_ * token_bytes_;
    if (num_tokens_ < 0 || expected != file_.bytes()) {
        fail_input(
            {.what = file_.bytes() < expected ? "truncated shard" : "shard and header disagree",
             .where = path,
             .expected = cat({expected, " bytes for ", num_tokens_, " tokens of ", token_bytes_, " bytes"}),
             .actual = cat({file_.bytes(), " bytes"}),
             .hint = "copy or make it again"});
    }
}

void ShardReader::copy(int64_t begin, int64_t count, int32_t* out) const {
    CHECK(begin >= 0 && count >= 0 && begin + count <= num_tokens_,
          cat({path_, ": tokens ", begin, "..", begin + count, " of ", num_tokens_}));
    const uint8_t* tokens = file_.data() + kHeaderBytes + begin * token_bytes_;
    if (token_bytes_ == 4) {
        std::memcpy(out, tokens, static_cast<size_t>(count) * 4);
    } else {
        const auto* narrow = reinterpret_cast<const uint16_t*>(tokens);  // the header keeps them aligned
        std::copy(narrow, narrow + count, out);
    }
}

Hash128 ShardReader::check_ids(int64_t vocab_size) const {
    std::vector<Hash128> hashes = {hash128(file_.data(), kHeaderBytes)};
    // The maximum of a block is a vector loop; only a block that fails is searched.
    constexpr int64_t kBlock = 1 << 16;
    const auto scan = [&](const auto* tokens) {
        using Token = std::remove_cvref_t<decltype(tokens[0])>;
        for (int64_t begin = 0; begin < num_tokens_; begin += kBlock) {
            const int64_t end = std::min(begin + kBlock, num_tokens_);
            Token largest = 0;
            for (int64_t i = begin; i < end; ++i) largest = tokens[i] > largest ? tokens[i] : largest;
            hashes.push_back(hash128(tokens + begin, (end - begin) * token_bytes_));  // while in the cache
            if (static_cast<int64_t>(largest) < vocab_size) continue;
            const int64_t at = std::find_if(tokens + begin, tokens + end,
                                            [&](Token t) { return static_cast<int64_t>(t) >= vocab_size; }) -
                               tokens;
            fail_input(
                {.what = "token id outside the vocabulary",
                 .where = cat({path_, ", token ", at, " (byte ", kHeaderBytes + at * token_bytes_, ")"}),
                 .expected = cat({"ids below ", vocab_size}),
                 .actual = std::to_string(tokens[at]),
                 .hint = "these shards were made by another tokenizer than the model's"});
        }
    };
    const uint8_t* tokens = file_.data() + kHeaderBytes;
    if (token_bytes_ == 4) {
        scan(reinterpret_cast<const uint32_t*>(tokens));
    } else {
        scan(reinterpret_cast<const uint16_t*>(tokens));
    }
    return hash128(hashes.data(), static_cast<int64_t>(hashes.size() * sizeof(Hash128)));
}

ShardSet::ShardSet(const std::string& patterns, const std::string& flag, int64_t vocab_size, int32_t eot)
    : eot_(eot) {
    std::vector<std::string> directories;
    for (const std::string& path : expand_globs(patterns, flag)) {
        shards_.emplace_back(path);
        num_tokens_ += shards_.back().num_tokens();
        directories.push_back(parent_directory(path));
    }
    std::sort(directories.begin(), directories.end());
    directories.erase(std::unique(directories.begin(), directories.end()), directories.end());
    for (const std::string& directory : directories) {
        if (path_exists(manifest_path(directory))) read_manifest(directory, flag);
    }
    if (vocab_size > 0 && vocab_size_ > vocab_size) {
        fail_input({.what = "the shards' vocabulary does not match the model",
                    .where = cat({flag, " ", patterns}),
                    .expected = cat({"at most ", vocab_size, " tokens"}),
                    .actual = cat({vocab_size_}),
                    .hint = "encode with the model's tokenizer, or choose another model"});
    }
    if (vocab_size > 0) vocab_size_ = vocab_size;
    if (eot_ >= 0 && vocab_size_ > 0 && eot_ >= vocab_size_) {
        fail_input({.what = "the end-of-text id is outside the vocabulary",
                    .where = flag,
                    .expected = cat({"an id below ", vocab_size_}),
                    .actual = std::to_string(eot_)});
    }
    // Without a vocabulary at least every uint32 must be an int32.
    const int64_t bound = vocab_size_ > 0 ? vocab_size_ : int64_t{1} << 31;
    hashes_.resize(shards_.size());
    parallel_for(static_cast<int64_t>(shards_.size()), [&](int64_t i) {
        hashes_[static_cast<size_t>(i)] = shards_[static_cast<size_t>(i)].check_ids(bound);
    });
    bool all_have_xxh3 = true;
    for (const Listed& listed : listed_) {
        all_have_xxh3 = all_have_xxh3 && !listed.xxh3.empty();
        if (!listed.xxh3.empty())
            check_listed(listed, "xxh3 " + hex(hashes_[listed.shard]), "xxh3 " + listed.xxh3);
    }
    if (!all_have_xxh3) verify_hashes();
}

void ShardSet::read_manifest(const std::string& directory, const std::string& flag) {
    const std::string text = read_file(manifest_path(directory));
    const Json manifest = parse_manifest(directory, text);
    read_json(manifest_source(directory, "damaged manifest"), [&] {
        const Json& tokenizer = manifest.at("tokenizer");
        const std::string hash = tokenizer.at("sha256");
        if (has_manifest_ && hash != tokenizer_hash_) {
            fail_input({.what = "shards of two tokenizers",
                        .where = cat({flag, ": ", directory}),
                        .expected = tokenizer_hash_,
                        .actual = hash,
                        .hint = "give shards that one tokenizer made"});
        }
        const std::string path = tokenizer.at("path");
        tokenizer_hash_ = hash;
        tokenizer_path_ = path.empty() || path.front() == '/' ? path : directory + "/" + path;
        vocab_size_ = manifest.at("vocab_size");
        eot_ = manifest.at("eot");
        has_manifest_ = true;
        std::map<std::string, size_t> here;  // the opened shards of this directory that are not yet listed
        for (size_t i = 0; i < shards_.size(); ++i) {
            if (parent_directory(shards_[i].path()) == directory) here[file_name(shards_[i].path())] = i;
        }
        for (const auto& [prefix, split] : manifest.at("splits").items()) {
            bool wanted = false;
            std::string missing;
            for (const Json& shard : split.at("shards")) {
                const std::string name = shard.at("file");
                const std::string shard_path = directory + "/" + name;
                if (missing.empty() && !path_exists(shard_path)) missing = shard_path;
                const auto found_here = here.find(name);
                if (found_here == here.end()) continue;
                const size_t index = found_here->second;
                here.erase(found_here);
                wanted = true;
                const ShardReader* found = &shards_[index];
                const int64_t num_tokens = shard.at("num_tokens");
                if (num_tokens != found->num_tokens()) {
                    fail_input({.what = "shard and manifest disagree",
                                .where = shard_path,
                                .expected = cat({num_tokens, " tokens"}),
                                .actual = cat({found->num_tokens(), " tokens"}),
                                .hint = kMakeShards});
                }
                listed_.push_back({index, shard.at("sha256"), shard.value("xxh3", "")});
            }
            // A pattern may choose some of a split's shards; one that is gone was chosen by nobody.
            if (wanted && !missing.empty()) {
                fail_input({.what = "a shard is missing",
                            .where = missing,
                            .expected = cat({"the ", split.at("shards").size(), " shards of \"", prefix,
                                             "\" that ", manifest_path(directory), " lists"}),
                            .hint = "copy it again, or encode again"});
            }
        }
        if (!here.empty()) {
            fail_input({.what = "the manifest beside the shard does not list it",
                        .where = directory + "/" + here.begin()->first,
                        .hint = "name the listed shards only, or move this one to a directory of its own"});
        }
    });
    manifests_.push_back(text);
}

int64_t ShardSet::file_bytes() const {
    int64_t bytes = 0;
    for (const ShardReader& shard : shards_) bytes += shard.file_bytes();
    return bytes;
}

std::string ShardSet::data_hash() const {
    std::string all;
    for (const std::string& text : manifests_) all += text;
    for (size_t i = 0; i < shards_.size(); ++i) {
        all += file_name(shards_[i].path()) + ' ' + hex(hashes_[i]) + '\n';
    }
    return sha256_hex(all);
}

void ShardSet::check_listed(const Listed& listed, const std::string& actual,
                            const std::string& expected) const {
    if (actual == expected) return;
    fail_input({.what = "the shard is not the one its manifest lists",
                .where = shards_[listed.shard].path(),
                .expected = expected,
                .actual = actual,
                .hint = "copy or make it again"});
}

void ShardSet::verify_hashes() const {
    parallel_for(static_cast<int64_t>(listed_.size()), [&](int64_t i) {
        const Listed& listed = listed_[static_cast<size_t>(i)];
        check_listed(listed, "sha256 " + sha256_file(shards_[listed.shard].path()),
                     "sha256 " + listed.sha256);
    });
}

void ShardSet::require_tokenizer(const std::string& hash, const std::string& where) const {
    if (!has_manifest_ || hash == tokenizer_hash_) return;
    fail_input({.what = "the shards were made with another tokenizer",
                .where = where,
                .expected = tokenizer_hash_,
                .actual = hash,
                .hint = cat({"build/tokenize encode --tokenizer ", where, ", or bring the old one back"})});
}

void ShardSet::require_disjoint(const ShardSet& held_out, const std::string& flag) const {
    // By content: a link or a copy would be as bad as the same name.
    std::map<Hash128, const ShardReader*> mine;
    for (size_t i = 0; i < shards_.size(); ++i) mine[hashes_[i]] = &shards_[i];
    for (size_t i = 0; i < held_out.shards_.size(); ++i) {
        const auto found = mine.find(held_out.hashes_[i]);
        if (found == mine.end()) continue;
        fail_input({.what = "a held-out shard is also trained on",
                    .where = cat({flag, ": ", held_out.shards_[i].path()}),
                    .expected = "shards that the training data does not have",
                    .actual = found->second->path(),
                    .hint = "name different shards, or hold documents out: build/curate --val-frac"});
    }
}

std::vector<uint64_t> read_document_offsets(const std::string& directory, const std::string& prefix) {
    const std::string path = directory + "/" + prefix + "_documents.u64";
    const std::string bytes = read_file(path);
    if (bytes.size() < 8 || bytes.size() % 8 != 0) {
        fail_input({.what = "damaged document offsets",
                    .where = path,
                    .expected = "a multiple of 8 bytes",
                    .actual = cat({bytes.size(), " bytes"})});
    }
    std::vector<uint64_t> offsets(bytes.size() / 8);
    std::memcpy(offsets.data(), bytes.data(), bytes.size());
    return offsets;
}
