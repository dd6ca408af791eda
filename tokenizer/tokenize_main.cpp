// build/tokenize: train a tokenizer; encode documents to token shards (or a text to ids on the terminal);
// decode ids; inspect how a text falls into pieces and tokens. Output never depends on the number of threads.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <iostream>
#include <iterator>

#include "core/error.h"
#include "core/flags.h"
#include "core/io.h"
#include "core/log.h"
#include "core/threads.h"
#include "data/compressed.h"
#include "data/document.h"
#include "data/file_kind.h"
#include "data/shards.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/train.h"
#include "tokenizer/unicode.h"

namespace {

constexpr int64_t kBatchBytes = 16 << 20;  // of text, worked on by all threads at once

struct Settings {
    std::string input, tokenizer, pattern, text, out, eot, prefix = "train", rule = "hf-merges";
    std::vector<std::string> specials, ids;
    int64_t vocab_size = 4096, min_frequency = 2, shard_tokens = 100'000'000, threads = 0;
    bool allow_special = false, text_given = false;
    bool quiet = false;
};

// Calls batch(texts) over all documents of the inputs, in order: each line of a JSONL file
// (data/file_kind.h), each other file whole.
void for_each_batch(const std::string& label, const std::string& patterns,
                    const std::function<void(const std::vector<std::string>&)>& on_batch) {
    const std::vector<std::string> paths = expand_globs(patterns, "input");
    int64_t total = 0, done = 0, batch_bytes = 0;
    for (const std::string& path : paths) total += file_bytes(path);
    Progress progress(label, total, "B");
    std::vector<std::string> batch;
    const auto add = [&](std::string text, int64_t at) {
        batch_bytes += static_cast<int64_t>(text.size());
        batch.push_back(std::move(text));
        if (batch_bytes < kBatchBytes) return;
        on_batch(batch);
        batch.clear();
        batch_bytes = 0;
        progress.update(at);
    };
    for (const std::string& path : paths) {
        if (kind_of(path) == FileKind::jsonl) {
            DocumentReader reader(path);
            Document document;
            while (reader.next(document)) add(std::move(document.text), done + reader.bytes_consumed());
            reader.require_clean();
        } else {
            add(read_text_file(path), done);
        }
        done += file_bytes(path);
    }
    if (!batch.empty()) on_batch(batch);
    progress.update(total);
    progress.finish();
}

Tokenizer load_tokenizer(const Settings& settings) {
    return Tokenizer::load(settings.tokenizer,
                           {.pattern = settings.pattern, .specials = settings.specials, .eot = settings.eot});
}

std::string argument_or_stdin(const std::string& text, bool given) {
    if (given) return text;
    return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

std::string ids_line(const std::vector<int32_t>& ids) {
    std::string line;
    for (size_t i = 0; i < ids.size(); ++i) line += (i ? " " : "") + std::to_string(ids[i]);
    return line + '\n';
}

// The two files of a trained tokenizer follow two rules (TokenizerModel). Says on how many pieces they part.
void report_rules(const Tokenizer& tokenizer, const PieceCounts& counts) {
    TokenizerModel other = tokenizer.model();
    const bool by_rank = !other.ranked_by_id;
    other.ranked_by_id = other.whole_piece_first = by_rank;
    if (!by_rank) return;
    const Tokenizer tiktoken(std::move(other));
    int64_t pieces = 0, occurrences = 0, total = 0;
    for (const auto& [piece, count] : counts.pieces()) {
        total += count;
        if (tokenizer.encode_piece(piece) == tiktoken.encode_piece(piece)) continue;
        ++pieces;
        occurrences += count;
    }
    std::printf(
        "tokenizer.json and tokenizer.tiktoken part on %lld of %zu distinct pieces (%lld of %lld "
        "occurrences)\n",
        static_cast<long long>(pieces), counts.pieces().size(), static_cast<long long>(occurrences),
        static_cast<long long>(total));
}

int train(const Settings& settings) {
    TrainOptions options{.vocab_size = settings.vocab_size,
                         .pattern = split_pattern_from_name(settings.pattern),
                         .specials = settings.specials,
                         .min_frequency = settings.min_frequency,
                         .ranked_by_id = settings.rule == "tiktoken"};
    if (path_exists(settings.out))
        fail_input(
            {.what = "the output exists already", .where = settings.out, .hint = "choose another --out"});
    check_added_names(settings.specials);  // before the work, not after it
    const double begin = seconds_now();
    PieceCounts counts(options.pattern);
    int64_t text_bytes = 0;
    for_each_batch("reading", settings.input, [&](const std::vector<std::string>& batch) {
        counts.add({batch.begin(), batch.end()});
        for (const std::string& text : batch) text_bytes += static_cast<int64_t>(text.size());
    });
    const Tokenizer tokenizer(train_bpe(counts, options));
    tokenizer.save(settings.out);
    std::printf(
        "%s: %lld tokens (%zu merges, pattern %s, Unicode %s) from %s of text, %zu distinct pieces, in %s\n",
        settings.out.c_str(), static_cast<long long>(tokenizer.vocab_size()), tokenizer.model().merges.size(),
        split_pattern_name(options.pattern), unicode_version(),
        human_bytes(static_cast<double>(text_bytes)).c_str(), counts.pieces().size(),
        human_seconds(seconds_now() - begin).c_str());
    if (tokenizer.vocab_size() < options.vocab_size)
        std::printf("fewer than the %lld asked for: no further pair occurs %lld times\n",
                    static_cast<long long>(options.vocab_size),
                    static_cast<long long>(options.min_frequency));
    report_rules(tokenizer, counts);
    return 0;
}

// Encodes batch after batch with one Encoder, and so one cache, per thread.
class BatchEncoder {
public:
    BatchEncoder(const Tokenizer& tokenizer, Specials specials) : specials_(specials) {
        for (int i = 0; i < num_threads(); ++i) encoders_.emplace_back(tokenizer);
    }
    const std::vector<std::vector<int32_t>>& encode(const std::vector<std::string>& batch) {
        ids_.resize(std::max(ids_.size(), batch.size()));
        parallel_for(static_cast<int64_t>(encoders_.size()), [&](int64_t group) {
            const size_t first = static_cast<size_t>(group);
            for (size_t d = first; d < batch.size(); d += encoders_.size()) {
                ids_[d].clear();
                encoders_[first].append(batch[d], ids_[d], specials_);
            }
        });
        return ids_;  // the first batch.size() of them
    }

private:
    Specials specials_;
    std::vector<Encoder> encoders_;
    std::vector<std::vector<int32_t>> ids_;
};

// OUT/tokenizer, so that the shards and what reads them stay together. An earlier prefix may have put it
// there; else it comes with the shards, and goes again when they do not come.
class TokenizerCopy {
public:
    TokenizerCopy(const Tokenizer& tokenizer, const std::string& directory)
        : tokenizer_(tokenizer), path_(directory + "/tokenizer"), was_there_(path_exists(path_)) {
        if (was_there_ && Tokenizer::load(path_).hash() != tokenizer.hash())
            fail_input({.what = "the directory holds shards of another tokenizer",
                        .where = path_,
                        .hint = "choose another --out"});
    }
    ~TokenizerCopy() {
        std::error_code ignored;
        if (!was_there_ && !kept_) std::filesystem::remove_all(path_, ignored);
    }
    TokenizerCopy(const TokenizerCopy&) = delete;
    void save() const {
        if (!was_there_) tokenizer_.save(path_);
    }
    void keep() { kept_ = true; }

private:
    const Tokenizer& tokenizer_;
    std::string path_;
    bool was_there_, kept_ = false;
};

std::string source_manifest_hash(const std::string& patterns) {
    const std::string first = expand_globs(patterns, "input").front();
    const size_t slash = first.rfind('/');
    const std::string manifest =
        (slash == std::string::npos ? "" : first.substr(0, slash + 1)) + "manifest.json";
    return path_exists(manifest) ? sha256_file(manifest) : "";
}

int encode(const Settings& settings) {
    const Tokenizer tokenizer = load_tokenizer(settings);
    const Specials specials = settings.allow_special ? Specials::allowed : Specials::as_text;
    if (settings.input.empty()) {
        std::fputs(ids_line(tokenizer.encode(argument_or_stdin(settings.text, settings.text_given), specials))
                       .c_str(),
                   stdout);
        return 0;
    }
    BatchEncoder encoder(tokenizer, specials);
    if (settings.out.empty()) {
        for_each_batch("encoding", settings.input, [&](const std::vector<std::string>& batch) {
            const auto& ids = encoder.encode(batch);
            for (size_t d = 0; d < batch.size(); ++d) std::fputs(ids_line(ids[d]).c_str(), stdout);
        });
        return 0;
    }
    if (tokenizer.eot() < 0)
        fail_input({.what = "the tokenizer has no end-of-text token",
                    .where = settings.tokenizer,
                    .hint = "--eot NAME of one of its special tokens"});
    const double begin = seconds_now();
    ShardWriter writer(settings.out, settings.prefix, tokenizer.vocab_size(), tokenizer.eot(),
                       settings.shard_tokens);
    TokenizerCopy copy(tokenizer, settings.out);
    for_each_batch("encoding", settings.input, [&](const std::vector<std::string>& batch) {
        const auto& ids = encoder.encode(batch);
        for (size_t d = 0; d < batch.size(); ++d)
            writer.add_document(ids[d], static_cast<int64_t>(batch[d].size()));
    });
    copy.save();
    const ShardTotals totals = writer.finish({.tokenizer_hash = tokenizer.hash(),
                                              .tokenizer_path = "tokenizer",
                                              .source_manifest_hash = source_manifest_hash(settings.input)});
    copy.keep();
    const double seconds = seconds_now() - begin;
    const double bytes = static_cast<double>(totals.text_bytes);
    std::printf("%s: %lld tokens of %lld documents in %lld shards, %.2f bytes a token, %.1f MB/s\n",
                settings.out.c_str(), static_cast<long long>(totals.num_tokens),
                static_cast<long long>(totals.num_documents), static_cast<long long>(totals.num_shards),
                bytes / static_cast<double>(std::max<int64_t>(totals.num_tokens, 1)), bytes / 1e6 / seconds);
    return 0;
}

int decode(const Settings& settings) {
    const Tokenizer tokenizer = load_tokenizer(settings);
    std::string words;
    for (const std::string& id : settings.ids) words += id + ' ';
    words = argument_or_stdin(words, !words.empty());
    std::vector<int32_t> ids;
    for (size_t at = words.find_first_not_of(" ,\t\r\n"); at != std::string::npos;) {
        const size_t end = std::min(words.find_first_of(" ,\t\r\n", at), words.size());
        const std::string word = words.substr(at, end - at);
        const bool number = word.size() <= 9 && word.find_first_not_of("0123456789") == std::string::npos;
        if (!number) fail_input({.what = "not a token id", .expected = "a number", .actual = word});
        ids.push_back(std::stoi(word));
        at = words.find_first_not_of(" ,\t\r\n", end);
    }
    const std::string text = tokenizer.decode(ids);
    std::fwrite(text.data(), 1, text.size(), stdout);
    return 0;
}

// A token as one line of terminal text: control and stray bytes as \xNN.
std::string visible(std::string_view bytes) {
    std::string shown;
    for (size_t at = 0; at < bytes.size();) {
        const Symbol symbol = decode_symbol(bytes, at);
        const std::string_view raw = bytes.substr(at, symbol.bytes);
        at += symbol.bytes;
        if (symbol.code >= 0x20 && symbol.code != 0x7F && symbol.code < kInvalidByte) {
            shown += raw;
        } else if (symbol.code == '\n') {
            shown += "\\n";
        } else {
            char escape[8];
            std::snprintf(escape, sizeof escape, "\\x%02X",
                          static_cast<unsigned>(static_cast<uint8_t>(raw[0])));
            shown += escape;
        }
    }
    return shown;
}

// One line per piece: its tokens (in alternating colours on a terminal, between bars elsewhere) and their
// ids.
int inspect(const Settings& settings) {
    const Tokenizer tokenizer = load_tokenizer(settings);
    const Specials specials = settings.allow_special ? Specials::allowed : Specials::as_text;
    const std::string text = argument_or_stdin(settings.text, settings.text_given);
    const bool colours = isatty(STDOUT_FILENO) != 0;
    constexpr const char* kColours[] = {"\x1b[30;46m", "\x1b[30;43m", "\x1b[30;42m", "\x1b[30;45m"};
    int64_t num_tokens = 0, num_pieces = 0;
    for (const std::string& piece : tokenizer.pieces(text, specials)) {
        std::string tokens, numbers;
        const int32_t special = specials == Specials::allowed ? tokenizer.special_id(piece) : -1;
        for (int32_t id : special >= 0 ? std::vector<int32_t>{special} : tokenizer.encode_piece(piece)) {
            const std::string shown = visible(tokenizer.token_bytes(id));
            tokens += colours ? kColours[num_tokens % 4] + shown + "\x1b[0m" : "|" + shown;
            numbers += ' ' + std::to_string(id);
            ++num_tokens;
        }
        std::printf("%s%s %s\n", tokens.c_str(), colours ? "" : "|", numbers.c_str());
        ++num_pieces;
    }
    std::printf("%lld tokens, %lld pieces, %zu bytes, %.2f bytes a token\n",
                static_cast<long long>(num_tokens), static_cast<long long>(num_pieces), text.size(),
                static_cast<double>(text.size()) / static_cast<double>(std::max<int64_t>(num_tokens, 1)));
    return 0;
}

void add_tokenizer_flags(Flags& flags, Settings& settings) {
    flags.add("tokenizer", settings.tokenizer, "HF directory, tokenizer.json or .tiktoken file", true);
    flags.add("pattern", settings.pattern, "split pattern of a .tiktoken file: gpt2, llama3 or qwen2");
    flags.add_list("special", settings.specials,
                   "special token of a .tiktoken file, NAME or NAME=ID; the first one is end of text");
    flags.add("allow-special", settings.allow_special,
              "names of special tokens in the text become their ids");
}

int body(int argc, char** argv) {
    Settings settings, train_settings;
    Flags flags("tokenize", "Train a byte-level BPE tokenizer, and turn text into tokens and back.");

    Flags& train_flags = flags.subcommand(
        "train", "Train a tokenizer; writes tokenizer.json, tokenizer_config.json and tokenizer.tiktoken.",
        "  tokenize train --input 'docs/*.jsonl' --vocab-size 4096 --out tokenizer");
    train_settings.pattern = "gpt2";
    train_settings.specials = {"<|endoftext|>"};
    train_flags.add("input", train_settings.input, "globs of .jsonl[.zst] documents or text files", true);
    train_flags.add("out", train_settings.out, "directory to write; must not exist", true);
    train_flags.add("vocab-size", train_settings.vocab_size, "tokens: 256 bytes, merges and special tokens",
                    257, 1 << 24);
    train_flags.add_choice("pattern", train_settings.pattern, split_pattern_names(),
                           "how text splits into pieces");
    train_flags.add_list("special", train_settings.specials, "special token; the first one is end of text");
    train_flags.add("min-frequency", train_settings.min_frequency, "least count of a pair that is merged", 1);
    train_flags.add_choice(
        "rule", train_settings.rule, {"hf-merges", "tiktoken"},
        "hf-merges: by the list of merges; tiktoken: whole pieces first, then by joined bytes");
    train_flags.add("threads", train_settings.threads, "threads; 0: all cores", 0, 256);
    train_flags.add("quiet", train_settings.quiet, "no progress");

    Flags& encode_flags = flags.subcommand(
        "encode", "Encode documents to token shards (--input and --out), or a text to ids on stdout.",
        "  tokenize encode --tokenizer tokenizer --input 'docs/*.jsonl' --out tokens\n"
        "  echo hello | tokenize encode --tokenizer tokenizer");
    add_tokenizer_flags(encode_flags, settings);
    encode_flags.add("input", settings.input,
                     "globs of .jsonl[.zst] documents or text files; none: --text or stdin");
    encode_flags.add("out", settings.out,
                     "directory of the shards; none: ids on stdout, a line per document");
    encode_flags.add("prefix", settings.prefix, "name of the shards: PREFIX_000000.bin");
    encode_flags.add("shard-tokens", settings.shard_tokens, "tokens of a shard", 1, (int64_t{1} << 31) - 1);
    encode_flags.add("text", settings.text, "the text itself");
    encode_flags.add("eot", settings.eot, "end-of-text token, where the tokenizer's files do not say");
    encode_flags.add("threads", settings.threads, "threads; 0: all cores", 0, 256);
    encode_flags.add("quiet", settings.quiet, "no progress");

    Flags& decode_flags = flags.subcommand("decode", "Decode ids to bytes on stdout.",
                                           "  tokenize decode --tokenizer tokenizer 72 101 108");
    add_tokenizer_flags(decode_flags, settings);
    decode_flags.add_positional("ids", settings.ids, "token ids; none: from stdin", 0);

    Flags& inspect_flags =
        flags.subcommand("inspect", "Show the pieces, tokens and ids of a text.",
                         "  tokenize inspect --tokenizer tokenizer --text \"It's 12345 a.m.\"");
    add_tokenizer_flags(inspect_flags, settings);
    inspect_flags.add("text", settings.text, "the text; none: from stdin");

    flags.parse(argc, argv);
    const std::string command = flags.command();
    settings.text_given = encode_flags.given("text") || inspect_flags.given("text");
    const Settings& chosen = command == "train" ? train_settings : settings;
    set_num_threads(chosen.threads > 0 ? static_cast<int>(chosen.threads) : hardware_threads());
    set_progress_enabled(!chosen.quiet);
    if (command == "train") return train(chosen);
    if (command == "encode") return encode(chosen);
    if (command == "decode") return decode(chosen);
    return inspect(chosen);
}

}  // namespace

int main(int argc, char** argv) { return run_main(argc, argv, body); }
