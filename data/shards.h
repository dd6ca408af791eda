// Token shards: what `tokenize encode` writes and the loader reads. A shard is llm.c's format, little-endian:
//   256 int32 header: [0] magic, [1] version, [2] number of tokens, the rest 0; then the tokens
//   magic 20240520 version 1: uint16 tokens        magic 20240801 version 7: uint32 tokens (V > 65,536)
// so FineWeb shards made for llm.c are read as they are. Beside Ingot's own lies manifest.json: the
// tokenizer's and every file's hashes, counts, the end-of-text id. Readers check header, size and every id
// before they hand a token out, and in the same pass over the bytes an XXH3 of the content against the
// manifest's: a shard that is missing, altered or not listed is an InputError when the set is opened.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/io.h"

// What made the shards; goes into the manifest.
struct ShardOrigin {
    std::string tokenizer_hash;  // Tokenizer::hash()
    std::string tokenizer_path;  // relative to the shards' directory (a copy inside it is best); "": none
    std::string source_manifest_hash;  // SHA-256 of the documents' manifest.json; "": unknown
};

struct ShardTotals {
    int64_t num_tokens = 0;  // end-of-text tokens included
    int64_t num_documents = 0;
    int64_t text_bytes = 0;
    int64_t num_shards = 0;
};

// Writes DIR/PREFIX_000000.bin, ...: each document preceded by `eot` (when >= 0), every shard but the last
// with exactly shard_tokens tokens, so a document may run on into the next shard. Nothing is visible under
// its name before finish(); the manifest comes last. Several prefixes ("train", "val") share a directory and
// its manifest. A full shard is closed at once, so that any number of them needs one descriptor.
class ShardWriter {
public:
    // InputError when the directory already holds shards of this prefix.
    ShardWriter(const std::string& directory, const std::string& prefix, int64_t vocab_size, int32_t eot,
                int64_t shard_tokens = 100'000'000);
    ~ShardWriter();
    ShardWriter(const ShardWriter&) = delete;

    void add_document(const int32_t* ids, int64_t num_ids, int64_t text_bytes);
    void add_document(const std::vector<int32_t>& ids, int64_t text_bytes) {
        add_document(ids.data(), static_cast<int64_t>(ids.size()), text_bytes);
    }
    ShardTotals finish(const ShardOrigin& origin);

private:
    struct State;
    std::unique_ptr<State> state_;
};

// One shard, mapped.
class ShardReader {
public:
    explicit ShardReader(
        const std::string& path);  // InputError: missing, empty, foreign, truncated, too long
    const std::string& path() const { return path_; }
    int64_t num_tokens() const { return num_tokens_; }
    int token_bytes() const { return token_bytes_; }
    int64_t file_bytes() const { return file_.bytes(); }
    void copy(int64_t begin, int64_t count, int32_t* out) const;
    // InputError naming shard, offset and id of the first id that is not in [0, vocab_size). Returns the
    // content's hash, taken in the same pass: XXH3-128 over the XXH3-128s of the header and of each block of
    // 65,536 tokens.
    Hash128 check_ids(int64_t vocab_size) const;

private:
    std::string path_;
    MappedFile file_;
    int64_t num_tokens_ = 0;
    int token_bytes_ = 2;
};

// Every shard that `patterns` match (core/io.h's globs), in name order, with what their manifests say. All
// ids are checked against the vocabulary: `vocab_size` when > 0, else the manifest's, else not at all.
class ShardSet {
public:
    // eot: for shards without a manifest, -1: none. `flag` is named in messages.
    ShardSet(const std::string& patterns, const std::string& flag, int64_t vocab_size = 0, int32_t eot = -1);
    const std::vector<ShardReader>& shards() const { return shards_; }
    int64_t num_tokens() const { return num_tokens_; }
    int64_t file_bytes() const;                         // of all shards: they are mapped
    int64_t vocab_size() const { return vocab_size_; }  // 0: unknown
    int32_t eot() const { return eot_; }                // -1: none
    bool has_manifest() const { return has_manifest_; }
    const std::string& tokenizer_hash() const { return tokenizer_hash_; }  // "": no manifest
    const std::string& tokenizer_path() const {
        return tokenizer_path_;
    }  // joined to the directory; "": unknown

    // What the data is, for the checkpoint: SHA-256 over the manifests and each shard's name and content
    // hash.
    std::string data_hash() const;
    // InputError when a shard is not the one its manifest lists, by SHA-256: custody, ten times the cost of
    // the check that opening makes. Opening falls back on it for manifests without XXH3s.
    void verify_hashes() const;
    // InputError when these shards were not made with the tokenizer of this Tokenizer::hash(), which was read
    // from `where`. Without a manifest nothing is known, and nothing refused.
    void require_tokenizer(const std::string& hash, const std::string& where) const;
    // InputError when a shard of `held_out` is also one of these, under whatever name. Flags are for the
    // message.
    void require_disjoint(const ShardSet& held_out, const std::string& flag) const;

private:
    struct Listed {
        size_t shard;
        std::string sha256, xxh3;  // xxh3 is "" in manifests of before it was written
    };
    void check_listed(const Listed& listed, const std::string& actual, const std::string& expected) const;
    void read_manifest(const std::string& directory, const std::string& flag);

    std::vector<ShardReader> shards_;
    std::vector<Hash128> hashes_;  // of the shards' contents
    std::vector<Listed> listed_;
    std::vector<std::string> manifests_;  // their texts, by directory
    int64_t num_tokens_ = 0, vocab_size_ = 0;
    int32_t eot_ = -1;
    bool has_manifest_ = false;
    std::string tokenizer_hash_, tokenizer_path_;
};

// For each document of PREFIX in DIR, the token where it begins (its end-of-text token) in the concatenated
// shards, and the number of tokens at the end: D + 1 entries.
std::vector<uint64_t> read_document_offsets(const std::string& directory, const std::string& prefix);
