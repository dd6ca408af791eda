// Trains a byte-level BPE tokenizer. The merges are those of HF's BpeTrainer on the same texts with the byte
// alphabet as initial_alphabet: the pair with the highest count first, of equals the one with the smaller
// ids. Counts are int64. The result depends on the texts only, not on their order or the number of threads.
// Ids: 0..255 the bytes in gpt2's order (byte_alphabet.h), then the merges, then the special tokens.
// The distinct pieces of all texts are held in memory (English: about 1 % of the text).
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer/tokenizer.h"

struct TrainOptions {
    int64_t vocab_size =
        4096;  // bytes, merges and special tokens together; fewer when the texts have no more pairs
    SplitPattern pattern = SplitPattern::gpt2;              // qwen2 also normalizes to NFC
    std::vector<std::string> specials = {"<|endoftext|>"};  // the first one is end of text
    int64_t min_frequency = 2;                              // of a pair that is merged
    bool ranked_by_id = false;  // tiktoken's rules instead of HF's (TokenizerModel)
};

// How often each piece occurs. Special tokens have no meaning here: their names are text.
class PieceCounts {
public:
    explicit PieceCounts(SplitPattern pattern);
    void add(const std::vector<std::string_view>& documents);  // on all threads
    void add_piece(std::string_view piece, int64_t count);

    struct Hash {
        using is_transparent = void;
        size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
    };
    using Map = std::unordered_map<std::string, int64_t, Hash, std::equal_to<>>;
    const Map& pieces() const { return pieces_; }

private:
    SplitPattern pattern_;
    Map pieces_;
};

TokenizerModel train_bpe(const PieceCounts& counts, const TrainOptions& options);
