// The tokenizer: byte-level BPE, read from and written to Hugging Face tokenizer.json and tiktoken's
// .tiktoken. Ids equal those of HF tokenizers for a tokenizer.json and of tiktoken for a .tiktoken; what is
// not implemented is refused by name, never approximated. decode(encode(x)) == x for every byte string x,
// well-formed UTF-8 or not; under a normalizer (qwen2's NFC) it equals the normalized text instead.
// post_processor (the BOS that a family prepends) is kept in the file but never applied: encode adds no
// token. Const methods may run on many threads at once; an Encoder belongs to one thread.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/split.h"

struct AddedToken {
    std::string content;
    int32_t id = -1;
    bool special = true;         // plain text unless allowed; never part of what a model says
    bool normalized = false;     // HF: looked for after normalization, and after those that are not
    bool in_vocabulary = false;  // HF: also an entry of model.vocab (gpt2's <|endoftext|>)
};

// Everything that defines a tokenizer; train() makes one, load() reads one.
struct TokenizerModel {
    struct Merge {
        int32_t left, right, merged;
    };
    SplitPattern pattern = SplitPattern::gpt2;
    bool nfc = false;
    std::vector<std::string> tokens;  // [V] bytes of each id, added tokens too; "" where no token has the id
    std::vector<Merge> merges;        // in rank order; a Tokenizer fills them in when ranked_by_id
    // A piece that is a token is that token, whatever the merges say (HF: ignore_merges).
    bool whole_piece_first = false;
    // tiktoken's rule: two tokens merge when their joined bytes are a token, and its id is the rank. In a
    // tokenizer.json the same merges have one rank each; a tie between two ways to one token may fall
    // otherwise.
    bool ranked_by_id = false;
    std::vector<AddedToken> added;
    int32_t eot = -1;            // end of text: stands before each document; -1: none
    std::string post_processor;  // JSON as read; "" : none
};

struct LoadOptions {
    // A .tiktoken does not say these. A special is NAME, which takes the next id after the last one, or
    // NAME=ID, an id without a token; the first one is end of text.
    std::string pattern;  // gpt2, llama3, qwen2
    std::vector<std::string> specials;
    std::string eot;  // name of the end-of-text token; needed where the files do not say
};

enum class Specials : uint8_t { as_text, allowed };

class Tokenizer {
public:
    // path: an HF directory, a tokenizer.json, or a *.tiktoken.
    static Tokenizer load(const std::string& path, const LoadOptions& options = {});
    explicit Tokenizer(TokenizerModel model);
    Tokenizer(Tokenizer&&) noexcept;
    Tokenizer& operator=(Tokenizer&&) noexcept;
    ~Tokenizer();

    // as_text: the names of special tokens are ordinary text. allowed: they become their ids (trusted text
    // only). Many texts: use an Encoder, which is several times faster.
    std::vector<int32_t> encode(std::string_view text, Specials specials = Specials::as_text) const;
    // The pieces that merges never cross, normalized; their concatenation decodes as encode's ids do.
    std::vector<std::string> pieces(std::string_view text, Specials specials = Specials::as_text) const;
    std::vector<int32_t> encode_piece(std::string_view piece) const;  // one of pieces(), no special token
    std::string decode(const std::vector<int32_t>& ids) const;        // InputError for an id out of range
    std::string_view token_bytes(int32_t id) const;                   // "" for an id without a token

    int64_t vocab_size() const;                           // largest id + 1: rows of an embedding
    int32_t eot() const;                                  // -1: none
    int32_t special_id(std::string_view name) const;      // -1: no such token
    const std::vector<AddedToken>& added_tokens() const;  // by id
    const TokenizerModel& model() const;

    std::string tokenizer_json() const;  // canonical text: equal tokenizers, equal bytes
    std::string hash() const;            // sha256 of tokenizer_json()
    // A new directory with tokenizer.json, tokenizer_config.json and tokenizer.tiktoken, whole or not at all,
    // and read back before it appears.
    void save(const std::string& directory) const;
    // The same three files into a directory that exists (a checkpoint being written).
    void write_into(const std::string& directory) const;

private:
    friend class Encoder;
    struct State;
    std::unique_ptr<const State> state_;
};

// Encodes text after text on one thread with a bounded cache of pieces. Ids never depend on what it saw
// before.
class Encoder {
public:
    explicit Encoder(const Tokenizer& tokenizer);  // keeps a reference
    Encoder(Encoder&&) noexcept;
    ~Encoder();
    void append(std::string_view text, std::vector<int32_t>& ids, Specials specials = Specials::as_text);

private:
    struct State;
    std::unique_ptr<State> state_;
};
