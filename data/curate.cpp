// Ingest, stages, duplicates, split, write, account.
#include "data/curate.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "core/error.h"
#include "core/io.h"
#include "core/log.h"
#include "core/threads.h"
#include "data/dedup.h"
#include "data/ingest.h"
#include "data/split.h"
#include "data/stages.h"

namespace {

using Json = nlohmann::ordered_json;

struct Output {
    std::string name;
    int64_t documents = -1;  // -1: not a file of documents
};

Json counts_json(const CurateCounts& c) {
    return {
        {"files", c.files},       {"train_documents", c.train_documents}, {"val_documents", c.val_documents},
        {"rejected", c.rejected}, {"train_bytes", c.train_bytes},         {"val_bytes", c.val_bytes}};
}

// What the stages and the hashes say of one document; computed on any thread.
struct Verdict {
    std::string stage, reason;
    Hash128 hash;                          // of the whole document
    std::vector<std::string_view> pieces;  // of its text; one when it is not cut
    std::vector<Hash128> piece_hashes;     // none when it is not cut
};

// At least four digits, so that the pieces of most documents sort by name.
std::string numbered(size_t piece) {
    const std::string digits = std::to_string(piece);
    return "#" + std::string(digits.size() < 4 ? 4 - digits.size() : 0, '0') + digits;
}

class Curation {
public:
    // What has its split_place() below `threshold` is held out.
    Curation(const CurateOptions& options, double threshold, const std::string& directory,
             const std::vector<Source>& sources)
        : options_(options),
          threshold_(threshold),
          directory_(directory),
          sources_(sources),
          stages_(document_stages({.min_document_bytes = options.min_document_bytes})),
          train_(directory + "/" + train_name()),
          val_(directory + "/" + val_name()),
          val_text_(directory + "/val.txt"),
          rejects_(directory + "/rejects.jsonl") {
        report_.by_stage.emplace_back("read", 0);
        for (const Stage& stage : stages_) report_.by_stage.emplace_back(stage.name, 0);
        report_.by_stage.emplace_back("duplicate", 0);
        for (const Source& source : sources_) report_.by_source.push_back({source.name, source.license, {}});
    }

    void read() {
        Ingest ingest(sources_);
        for (const InputFile& file : ingest.files()) ++source_counts(file.source).files;
        constexpr int64_t kMegabyte = 1'000'000;
        Progress progress("curate", std::max<int64_t>(ingest.bytes_total() / kMegabyte, 1), "MB");
        IngestBatch batch;
        while (ingest.next(batch)) {
            for (const Reject& reject : batch.rejects) refuse(reject);
            report_.repairs += batch.repairs;
            report_.html_dropped_bytes += batch.html_dropped_bytes;
            take(batch.documents);
            progress.update(ingest.bytes_done() / kMegabyte);
        }
        progress.finish();
        files_ = ingest.files();
        for (const CurateRow& row : report_.by_source) report_.total += row.counts;
        for (const auto& [license, counts] : licenses_) report_.by_license.push_back({license, "", counts});
    }

    // With few documents the hashes may leave one side empty. Then the threshold that moves the one nearest
    // to it over; else the threshold as it is.
    double better_threshold() const {
        if (!(smallest_place_ < largest_place_) || options_.val_frac == 0) return threshold_;
        if (report_.total.val_documents == 0) return std::nextafter(smallest_place_, 1.0);
        if (report_.total.train_documents == 0) return largest_place_;
        return threshold_;
    }

    CurateReport finish() {
        if (report_.total.train_documents == 0 && report_.total.val_documents == 0) {
            fail_input({.what = cat({"no document was taken, ", report_.total.rejected, " were refused"}),
                        .where = options_.sources,
                        .actual = first_reason_.empty() ? "" : "first: " + first_reason_,
                        .hint = "declare a licence for each source, and look at the files"});
        }
        if ((report_.total.val_documents == 0 && options_.val_frac > 0) ||
            report_.total.train_documents == 0) {
            fail_input(
                {.what = "one document cannot be trained on and held out",
                 .where = cat({"--val-frac ", options_.val_frac}),
                 .expected = "two documents, or one of more than 16 pieces",
                 .actual = cat({report_.total.train_documents + report_.total.val_documents, " pieces"}),
                 .hint = "lower --max-document-bytes; --val-frac 0 holds out nothing"});
        }
        train_.commit();
        val_.commit();
        val_text_.commit();
        rejects_.commit();
        write_manifest();
        return report_;
    }

private:
    std::string suffix() const { return options_.compress ? ".jsonl.zst" : ".jsonl"; }
    std::string train_name() const { return "train" + suffix(); }
    std::string val_name() const { return "val" + suffix(); }
    CurateCounts& source_counts(int64_t source) {
        return report_.by_source[static_cast<size_t>(source)].counts;
    }

    void refuse(const Reject& reject) {
        rejects_.write(reject_json(reject) + "\n");
        for (auto& [stage, count] : report_.by_stage) count += stage == reject.stage;
        for (CurateRow& row : report_.by_source) row.counts.rejected += row.name == reject.source;
        if (first_reason_.empty()) first_reason_ = reject.where + ": " + reject.reason;
    }

    void take(std::vector<IngestedDocument>& documents) {
        std::vector<Verdict> verdicts(documents.size());
        parallel_ranges(static_cast<int64_t>(documents.size()), 16, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                judge(documents[static_cast<size_t>(i)], verdicts[static_cast<size_t>(i)]);
            }
        });
        for (size_t i = 0; i < documents.size(); ++i) take(documents[i], verdicts[i]);
    }

    // Stages and duplicates ask the whole document; only then is it cut.
    void judge(IngestedDocument& ingested, Verdict& verdict) const {
        for (const Stage& stage : stages_) {
            verdict.reason = stage.apply(ingested.document);
            verdict.stage = stage.name;
            if (!verdict.reason.empty()) return;
        }
        const std::string& text = ingested.document.text;
        verdict.hash = normalized_text_hash(text);
        verdict.pieces = {text};
        if (!ingested.may_be_cut) return;
        verdict.pieces = split_text(text, options_.max_document_bytes);
        if (verdict.pieces.size() == 1) return;
        for (const std::string_view piece : verdict.pieces)
            verdict.piece_hashes.push_back(normalized_text_hash(piece));
    }

    void take(IngestedDocument& ingested, const Verdict& verdict) {
        Document& whole = ingested.document;
        Reject reject{.where = ingested.place,
                      .id = whole.id,
                      .source = whole.source,
                      .stage = verdict.stage,
                      .reason = verdict.reason,
                      .kept = {}};
        if (!reject.reason.empty()) return refuse(reject);
        const auto is_duplicate = [&](const Hash128& hash) {
            reject.stage = "duplicate";
            reject.reason = "equal to the kept document but for white space";
            reject.kept = dedup_.id_of(hash);
            return !reject.kept.empty();
        };
        if (is_duplicate(verdict.hash)) return refuse(reject);
        whole.id = unique_id(whole.id, ingested.place);
        dedup_.remember(verdict.hash, whole.id);
        if (verdict.pieces.size() == 1) {
            return write(whole, split_place(whole.id), ingested.source);
        }
        const std::string text = std::move(whole.text);  // the pieces still point into it
        Document piece = whole;
        for (size_t p = 0; p < verdict.pieces.size(); ++p) {
            reject.where = ingested.place + numbered(p);
            reject.id = whole.id + numbered(p);
            if (is_duplicate(verdict.piece_hashes[p])) {
                refuse(reject);
                continue;
            }
            piece.id = unique_id(reject.id, reject.where);
            piece.text = verdict.pieces[p];
            dedup_.remember(verdict.piece_hashes[p], piece.id);
            write(piece, split_place(whole.id, run_of_piece(p, verdict.pieces.size())), ingested.source);
        }
    }

    // Ids of foreign JSONL files may collide: then the place in the input, and that may be somebody's id too.
    std::string unique_id(const std::string& wanted, const std::string& place) {
        if (ids_.insert(id_key(wanted)).second) return wanted;
        std::string id = place;
        for (int64_t i = 2; !ids_.insert(id_key(id)).second; ++i) id = cat({place, "~", i});
        return id;
    }
    static uint64_t id_key(const std::string& id) {
        return hash128(id.data(), static_cast<int64_t>(id.size())).low;
    }

    void write(const Document& document, double place, int64_t source) {
        CurateCounts counts;
        const auto bytes = static_cast<int64_t>(document.text.size());
        smallest_place_ = std::min(smallest_place_, place);
        largest_place_ = std::max(largest_place_, place);
        if (place < threshold_) {
            val_.write(document);
            val_text_.write(document.text);
            counts.val_documents = 1;
            counts.val_bytes = bytes;
        } else {
            train_.write(document);
            counts.train_documents = 1;
            counts.train_bytes = bytes;
        }
        source_counts(source) += counts;
        licenses_[document.license] += counts;
    }

    void write_manifest() {
        std::vector<Json> hashes(files_.size());
        parallel_for(static_cast<int64_t>(files_.size()), [&](int64_t i) {
            try {
                hashes[static_cast<size_t>(i)] = sha256_file(files_[static_cast<size_t>(i)].path);
            } catch (const InputError&) {
                // It could not be read, and stands among the rejects: null.
            }
        });
        Json inputs = Json::array();
        for (size_t i = 0; i < files_.size(); ++i) {
            inputs.push_back({{"file", files_[i].shown}, {"bytes", files_[i].bytes}, {"sha256", hashes[i]}});
        }
        Json outputs = Json::array();
        const Output written[] = {{train_name(), train_.num_documents()},
                                  {val_name(), val_.num_documents()},
                                  {"val.txt"},
                                  {"rejects.jsonl", report_.total.rejected}};
        for (const Output& output : written) {
            const std::string path = directory_ + "/" + output.name;
            Json entry = {{"file", output.name}, {"bytes", file_bytes(path)}, {"sha256", sha256_file(path)}};
            if (output.documents >= 0) entry["documents"] = output.documents;
            outputs.push_back(entry);
        }
        Json sources = Json::array(), licenses = Json::array(), stages = Json::array();
        for (size_t i = 0; i < sources_.size(); ++i) {
            const Source& s = sources_[i];
            sources.push_back({{"name", s.name},
                               {"path", s.path},
                               {"license", s.license},
                               {"consent", s.consent},
                               {"origin", s.origin},
                               {"counts", counts_json(report_.by_source[i].counts)}});
        }
        for (const CurateRow& row : report_.by_license) {
            licenses.push_back({{"license", row.name}, {"counts", counts_json(row.counts)}});
        }
        const auto promise = [&](const std::string& name) -> std::string {
            for (const Stage& stage : stages_) {
                if (stage.name == name) return stage.promise;
            }
            return name == "duplicate" ? "differs from every earlier document by more than white space"
                                       : "can be read";
        };
        for (const auto& [name, count] : report_.by_stage) {
            stages.push_back({{"stage", name}, {"promise", promise(name)}, {"rejected", count}});
        }
        const Json manifest = {
            {"format", "ingot-documents-1"},
            {"parameters",
             {{"val_frac", options_.val_frac},
              {"held_out_below", threshold_},
              {"max_document_bytes", options_.max_document_bytes},
              {"min_document_bytes", options_.min_document_bytes}}},
            {"total", counts_json(report_.total)},
            {"repairs",
             {{"invalid_utf8", report_.repairs.invalid_utf8},
              {"controls", report_.repairs.controls},
              {"crlf", report_.repairs.crlf}}},
            {"html_dropped_bytes", report_.html_dropped_bytes},
            {"stages", stages},
            {"sources", sources},
            {"licenses", licenses},
            {"outputs", outputs},
            {"inputs", inputs},
        };
        write_file_atomic(directory_ + "/manifest.json", manifest.dump(1) + "\n");
    }

    const CurateOptions& options_;
    double threshold_;
    std::string directory_;
    std::vector<Source> sources_;
    std::vector<Stage> stages_;
    DocumentWriter train_, val_;
    AtomicFile val_text_, rejects_;
    ExactDedup dedup_;
    std::unordered_set<uint64_t> ids_;
    std::map<std::string, CurateCounts> licenses_;
    std::string first_reason_;
    std::vector<InputFile> files_;
    double smallest_place_ = 2, largest_place_ = -1;  // of what was written
    CurateReport report_;
};

std::string padded(const std::string& text, size_t width, bool right) {
    const std::string blanks(width > text.size() ? width - text.size() : 0, ' ');
    return right ? blanks + text : text + blanks;
}
std::string megabytes(int64_t bytes) {
    char text[32];
    std::snprintf(text, sizeof text, "%.2f", static_cast<double>(bytes) / 1e6);
    return text;
}

}  // namespace

void CurateCounts::operator+=(const CurateCounts& o) {
    files += o.files;
    train_documents += o.train_documents;
    val_documents += o.val_documents;
    rejected += o.rejected;
    train_bytes += o.train_bytes;
    val_bytes += o.val_bytes;
}

std::string CurateReport::table() const {
    std::vector<std::vector<std::string>> rows;
    const auto add = [&](const std::string& name, const CurateCounts& c, bool of_source,
                         const std::string& license) {
        rows.push_back({name, of_source ? std::to_string(c.files) : "", std::to_string(c.train_documents),
                        std::to_string(c.val_documents), of_source ? std::to_string(c.rejected) : "",
                        megabytes(c.train_bytes), megabytes(c.val_bytes), license});
    };
    rows.push_back({"source", "files", "train docs", "val docs", "refused", "train MB", "val MB", "license"});
    for (const CurateRow& row : by_source)
        add(row.name, row.counts, true, row.license.empty() ? "(none)" : row.license);
    add("total", total, true, "");
    rows.push_back({"license", "", "train docs", "val docs", "", "train MB", "val MB", ""});
    for (const CurateRow& row : by_license) add(row.name, row.counts, false, "");
    std::vector<size_t> widths(rows[0].size());
    for (const auto& row : rows) {
        for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
    }
    std::string text;
    for (const auto& row : rows) {
        if (row[0] == "license") text += '\n';
        std::string line;
        for (size_t i = 0; i < row.size(); ++i) {
            line += i == 0 || i + 1 == row.size() ? padded(row[i], widths[i] + 2, false)
                                                  : padded(row[i], widths[i], true) + "  ";
        }
        while (line.ends_with(' ')) line.pop_back();
        text += line + "\n";
    }
    text += "\nrefused:";
    for (const auto& [stage, count] : by_stage) text += cat({" ", stage, " ", count});
    text +=
        cat({"\nmended: ", repairs.invalid_utf8, " malformed UTF-8 sequences, ", repairs.controls,
             " control characters, ", repairs.crlf, " CR line ends\nleft out of HTML: ", html_dropped_bytes,
             " bytes of navigation, headers, footers and hidden text\n"});
    return text;
}

CurateReport curate(const CurateOptions& options) {
    if (path_exists(options.out)) {
        fail_input({.what = "the output is there already",
                    .where = options.out,
                    .hint = "choose another --out, or remove it"});
    }
    const std::vector<Source> sources = read_sources(options.sources);
    AtomicDirectory directory(options.out);
    const auto read = [&](double threshold) {
        auto curation = std::make_unique<Curation>(options, threshold, directory.temporary(), sources);
        curation->read();
        return curation;
    };
    std::unique_ptr<Curation> curation = read(options.val_frac);
    if (const double better = curation->better_threshold(); better != options.val_frac) {
        curation.reset();  // its files go first
        curation = read(better);
    }
    const CurateReport report = curation->finish();
    directory.commit();
    return report;
}
