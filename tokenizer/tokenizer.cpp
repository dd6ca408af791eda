// Tokenizer: validation of a model, the tables that encoding needs, and the walk
//   text -> added tokens -> NFC -> added tokens that are `normalized` -> pieces -> cache or merges.
#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <unordered_map>

#include "core/error.h"
#include "core/io.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/formats.h"
#include "tokenizer/unicode.h"

namespace {

using TokenIds = std::unordered_map<std::string_view, int32_t>;

// The tokens that BPE may produce: all but those that are only added.
TokenIds vocabulary_of(const TokenizerModel& model) {
    std::vector<bool> only_added(model.tokens.size(), false);
    for (const AddedToken& token : model.added)
        only_added[static_cast<size_t>(token.id)] = !token.in_vocabulary;
    TokenIds ids;
    ids.reserve(model.tokens.size());
    for (size_t id = 0; id < model.tokens.size(); ++id) {
        const std::string& bytes = model.tokens[id];
        if (bytes.empty() || only_added[id]) continue;
        const auto [place, is_new] = ids.emplace(bytes, static_cast<int32_t>(id));
        if (!is_new)
            fail_input({.what = "not a tokenizer",
                        .expected = "each token once",
                        .actual = cat({"ids ", place->second, " and ", id, " for the same bytes"})});
    }
    return ids;
}

std::array<int32_t, 256> byte_ids_of(const TokenIds& vocabulary) {
    std::array<int32_t, 256> ids;
    for (int byte = 0; byte < 256; ++byte) {
        const char text = static_cast<char>(byte);
        const auto found = vocabulary.find(std::string_view(&text, 1));
        if (found == vocabulary.end())
            fail_input({.what = "not a byte-level tokenizer",
                        .expected = "a token for each of the 256 bytes",
                        .actual = cat({"none for byte ", byte})});
        ids[static_cast<size_t>(byte)] = found->second;
    }
    return ids;
}

// Every pair of tokens that joins to a token, by the joined token's id, then left to right ids: the list that
// transformers derives from the same ranks.
std::vector<TokenizerModel::Merge> merges_of_ranks(const TokenizerModel& model, const TokenIds& vocabulary) {
    std::vector<TokenizerModel::Merge> merges;
    for (size_t id = 0; id < model.tokens.size(); ++id) {
        const std::string_view bytes = model.tokens[id];
        const auto self = vocabulary.find(bytes);
        if (self == vocabulary.end() || self->second != static_cast<int32_t>(id)) continue;
        const size_t first = merges.size();
        for (size_t cut = 1; cut < bytes.size(); ++cut) {
            const auto left = vocabulary.find(bytes.substr(0, cut));
            const auto right = vocabulary.find(bytes.substr(cut));
            if (left != vocabulary.end() && right != vocabulary.end())
                merges.push_back({left->second, right->second, static_cast<int32_t>(id)});
        }
        std::sort(merges.begin() + static_cast<int64_t>(first), merges.end(),
                  [](const auto& a, const auto& b) {
                      return a.left != b.left ? a.left < b.left : a.right < b.right;
                  });
    }
    return merges;
}

void check_added_tokens(const TokenizerModel& model) {
    std::vector<std::string> names;
    for (const AddedToken& token : model.added) {
        CHECK(token.id >= 0 && static_cast<size_t>(token.id) < model.tokens.size(), cat({"id ", token.id}));
        CHECK(model.tokens[static_cast<size_t>(token.id)] == token.content, token.content);
        names.push_back(token.content);
    }
    check_added_names(names);
}

// The files hold tokens in the byte alphabet and added tokens as they are: there a name must not mean both.
void check_names_are_free(const TokenizerModel& model, const TokenIds& vocabulary) {
    for (const AddedToken& token : model.added) {
        if (token.in_vocabulary) continue;
        const std::optional<std::string> bytes = from_byte_alphabet(token.content);
        const auto found = bytes ? vocabulary.find(*bytes) : vocabulary.end();
        if (found == vocabulary.end()) continue;
        fail_input({.what = "an added token has the name of an ordinary one",
                    .expected = "a name that is no token",
                    .actual = cat({token.content, ", which is token ", found->second}),
                    .hint = cat({"--special '<|", token.content, "|>'"})});
    }
}

}  // namespace

struct Tokenizer::State {
    TokenizerModel model;
    TokenIds vocabulary;  // views into model.tokens
    MergeTable table;
    // [normalized][specials are text]
    AddedTokenFinder finders[2][2];

    explicit State(TokenizerModel source) : model(std::move(source)) {
        check_added_tokens(model);
        vocabulary = vocabulary_of(model);
        table.byte_ids = byte_ids_of(vocabulary);
        check_names_are_free(model, vocabulary);
        if (model.ranked_by_id) model.merges = merges_of_ranks(model, vocabulary);
        const int64_t size = static_cast<int64_t>(model.tokens.size());
        for (size_t rank = 0; rank < model.merges.size(); ++rank) {
            const auto [left, right, merged] = model.merges[rank];
            CHECK(left >= 0 && right >= 0 && merged >= 0 && left < size && right < size && merged < size,
                  cat({"merge ", rank, ": ", left, " ", right, " ", merged}));
            const int32_t priority = model.ranked_by_id ? merged : static_cast<int32_t>(rank);
            table.rules(left, right) = {priority, merged};
        }
        for (const AddedToken& token : model.added) {
            finders[token.normalized][false].add(token);
            if (!token.special) finders[token.normalized][true].add(token);
        }
    }

    // Calls text(section) and id(token) in order over `section` cut at its added tokens.
    template <class OnText, class OnId>
    static void cut(const AddedTokenFinder& finder, std::string_view section, OnText on_text, OnId on_id) {
        for (size_t at = 0; at < section.size();) {
            const AddedTokenFinder::Match match = finder.find(section, at);
            const size_t end = std::min(match.begin, section.size());
            if (end > at) on_text(section.substr(at, end - at));
            if (match.id < 0) return;
            on_id(match.id);
            at = match.end;
        }
    }

    // Calls piece(bytes) and id(token) in order. A piece's view lives until the next call.
    template <class OnPiece, class OnId>
    void walk(std::string_view text, Specials specials, OnPiece on_piece, OnId on_id) const {
        const bool plain = specials == Specials::as_text;
        const auto split = [&](std::string_view section) {
            for (size_t at = 0; at < section.size();) {
                const size_t end = next_piece(model.pattern, section, at);
                on_piece(section.substr(at, end - at));
                at = end;
            }
        };
        const auto normalize = [&](std::string_view section) {
            if (!model.nfc || !may_change_under_nfc(section))
                return cut(finders[1][plain], section, split, on_id);
            const std::string normalized = to_nfc(section);
            cut(finders[1][plain], normalized, split, on_id);
        };
        cut(finders[0][plain], text, normalize, on_id);
    }

    void merge(std::string_view piece, std::vector<int32_t>& ids) const {
        if (model.whole_piece_first) {
            const auto whole = vocabulary.find(piece);
            if (whole != vocabulary.end()) {
                ids.push_back(whole->second);
                return;
            }
        }
        merge_piece(table, piece, ids);
    }
};

Tokenizer::Tokenizer(TokenizerModel model) : state_(std::make_unique<State>(std::move(model))) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, Specials specials) const {
    std::vector<int32_t> ids;
    state_->walk(
        text, specials, [&](std::string_view piece) { state_->merge(piece, ids); },
        [&](int32_t id) { ids.push_back(id); });
    return ids;
}

std::vector<std::string> Tokenizer::pieces(std::string_view text, Specials specials) const {
    std::vector<std::string> pieces;
    state_->walk(
        text, specials, [&](std::string_view piece) { pieces.emplace_back(piece); },
        [&](int32_t id) { pieces.emplace_back(token_bytes(id)); });
    return pieces;
}

std::vector<int32_t> Tokenizer::encode_piece(std::string_view piece) const {
    std::vector<int32_t> ids;
    if (!piece.empty()) state_->merge(piece, ids);
    return ids;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids) const {
    std::string text;
    for (int32_t id : ids) text += token_bytes(id);
    return text;
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
    if (id < 0 || id >= vocab_size())
        fail_input({.what = "token id out of range",
                    .expected = cat({"0 to ", vocab_size() - 1}),
                    .actual = cat({id})});
    return state_->model.tokens[static_cast<size_t>(id)];
}

int64_t Tokenizer::vocab_size() const { return static_cast<int64_t>(state_->model.tokens.size()); }
int32_t Tokenizer::eot() const { return state_->model.eot; }
const std::vector<AddedToken>& Tokenizer::added_tokens() const { return state_->model.added; }
const TokenizerModel& Tokenizer::model() const { return state_->model; }

int32_t Tokenizer::special_id(std::string_view name) const {
    for (const AddedToken& token : state_->model.added)
        if (token.content == name) return token.id;
    return -1;
}

std::string Tokenizer::tokenizer_json() const { return write_tokenizer_json(state_->model); }
std::string Tokenizer::hash() const { return sha256_hex(tokenizer_json()); }

void Tokenizer::write_into(const std::string& directory) const {
    write_file_atomic(directory + "/tokenizer.json", tokenizer_json());
    write_file_atomic(directory + "/tokenizer_config.json", write_tokenizer_config(state_->model));
    const std::string tiktoken = write_tiktoken(state_->model);
    if (!tiktoken.empty()) write_file_atomic(directory + "/tokenizer.tiktoken", tiktoken);
}

void Tokenizer::save(const std::string& directory) const {
    AtomicDirectory target(directory);
    write_into(target.temporary());
    const Tokenizer again = load(target.temporary());
    CHECK(again.hash() == hash(), cat({directory, " would not read back as it is"}));
    target.commit();
}

Tokenizer Tokenizer::load(const std::string& path, const LoadOptions& options) {
    TokenizerModel model;
    if (path.ends_with(".tiktoken")) {
        model = read_tiktoken(path, MappedFile(path).text(), options);
    } else {
        const std::string json = is_directory(path) ? path + "/tokenizer.json" : path;
        if (!path_exists(json))
            fail_input({.what = "no tokenizer here",
                        .where = path,
                        .expected = "an HF directory, a tokenizer.json or a .tiktoken file",
                        .actual = is_directory(path) ? "a directory without tokenizer.json" : "nothing"});
        model = read_tokenizer_json(json, MappedFile(json).text());
        const size_t slash = json.rfind('/');
        const std::string config = (slash == std::string::npos ? std::string() : json.substr(0, slash + 1)) +
                                   "tokenizer_config.json";
        std::string eot;
        if (path_exists(config)) eot = read_eos_token(config, MappedFile(config).text());
        for (const AddedToken& token : model.added) {
            const bool published = token.content == "<|endoftext|>" || token.content == "<|end_of_text|>";
            if (eot.empty() ? published && model.eot < 0 : token.content == eot) model.eot = token.id;
        }
    }
    if (!options.eot.empty()) {
        model.eot = -1;
        for (const AddedToken& token : model.added)
            if (token.content == options.eot) model.eot = token.id;
        if (model.eot < 0)
            fail_input({.what = "no such end-of-text token", .where = path, .actual = options.eot});
    }
    try {
        return Tokenizer(std::move(model));
    } catch (const InputError& error) {  // the model's own faults, named after their file
        fail_input({.what = cat({path, ": ", error.what()})});
    }
}

// ---- Encoder
// -------------------------------------------------------------------------------------------------------

namespace {

// One cache line: a short piece, padded with zeros and closed by its length, and its ids. A full slot is
// simply replaced, so the cache is bounded and needs no bookkeeping.
struct alignas(64) CachedPiece {
    static constexpr size_t kMostBytes = 23;
    static constexpr size_t kMostIds = 9;
    std::array<uint64_t, 3> key{};  // no piece is empty, so a zero key is a free slot
    int32_t count = 0;
    std::array<int32_t, kMostIds> ids{};
};
static_assert(sizeof(CachedPiece) == 64);
constexpr size_t kCacheSlots = size_t{1} << 15;  // 2 MiB: about a core's L2, and most of a language's words

std::array<uint64_t, 3> key_of(std::string_view piece) {
    std::array<char, 24> bytes{};
    std::memcpy(bytes.data(), piece.data(), piece.size());
    bytes[23] = static_cast<char>(piece.size());
    std::array<uint64_t, 3> key;
    std::memcpy(key.data(), bytes.data(), sizeof key);
    return key;
}

size_t slot_of(const std::array<uint64_t, 3>& key) {
    uint64_t mixed =
        key[0] * 0x9E3779B97F4A7C15u ^ key[1] * 0xC2B2AE3D27D4EB4Fu ^ key[2] * 0x165667B19E3779F9u;
    mixed ^= mixed >> 32;
    mixed *= 0x9FB21C651E98DF25u;
    return static_cast<size_t>(mixed >> 40) & (kCacheSlots - 1);
}

}  // namespace

struct Encoder::State {
    const Tokenizer::State* tokenizer;
    std::vector<CachedPiece> cache = std::vector<CachedPiece>(kCacheSlots);

    void append(std::string_view piece, std::vector<int32_t>& ids) {
        if (piece.size() > CachedPiece::kMostBytes) return tokenizer->merge(piece, ids);
        const std::array<uint64_t, 3> key = key_of(piece);
        CachedPiece& slot = cache[slot_of(key)];
        if (slot.key == key) {
            ids.insert(ids.end(), slot.ids.begin(), slot.ids.begin() + slot.count);
            return;
        }
        const size_t first = ids.size();
        tokenizer->merge(piece, ids);
        const size_t count = ids.size() - first;
        if (count > CachedPiece::kMostIds) return;
        slot.key = key;
        slot.count = static_cast<int32_t>(count);
        std::copy(ids.begin() + static_cast<int64_t>(first), ids.end(), slot.ids.begin());
    }
};

Encoder::Encoder(const Tokenizer& tokenizer) : state_(new State{tokenizer.state_.get()}) {}
Encoder::Encoder(Encoder&&) noexcept = default;
Encoder::~Encoder() = default;

void Encoder::append(std::string_view text, std::vector<int32_t>& ids, Specials specials) {
    state_->tokenizer->walk(
        text, specials, [&](std::string_view piece) { state_->append(piece, ids); },
        [&](int32_t id) { ids.push_back(id); });
}
