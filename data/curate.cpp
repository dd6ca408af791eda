// Ingest, stages, duplicates, split, write, account.
#include "data/curate.h"

#include <algorithm>
#include <map>
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

// What the stages and the hash say of one document; computed on any thread.
struct Verdict {
    std::string stage, reason;
    Hash128 hash;
};

class Curation {
public:
    Curation(const CurateOptions& options, const std::string& directory, const std::vector<Source>& sources)
        : options_(options),
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

    CurateReport run() {
        Ingest ingest(sources_, options_.max_document_bytes);
        for (const InputFile& file : ingest.files()) ++source_counts(file.source).files;
        constexpr int64_t kMegabyte = 1'000'000;
        Progress progress("curate", std::max<int64_t>(ingest.bytes_total() / kMegabyte, 1), "MB");
        IngestBatch batch;
        while (ingest.next(batch)) {
            for (const Reject& reject : batch.rejects) refuse(reject);
            report_.repairs += batch.repairs;
            take(batch.documents);
            progress.update(ingest.bytes_done() / kMegabyte);
        }
        progress.finish();
        finish(ingest.files());
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
                Document& document = documents[static_cast<size_t>(i)].document;
                Verdict& verdict = verdicts[static_cast<size_t>(i)];
                for (const Stage& stage : stages_) {
                    verdict.reason = stage.apply(document);
                    verdict.stage = stage.name;
                    if (!verdict.reason.empty()) break;
                }
                if (verdict.reason.empty()) verdict.hash = normalized_text_hash(document.text);
            }
        });
        for (size_t i = 0; i < documents.size(); ++i) {
            auto& [document, place, source] = documents[i];
            Reject reject{.where = place,
                          .id = document.id,
                          .source = document.source,
                          .stage = verdicts[i].stage,
                          .reason = verdicts[i].reason,
                          .kept = {}};
            if (reject.reason.empty()) {
                reject.kept = dedup_.seen_before(verdicts[i].hash, document.id);
                if (!reject.kept.empty()) {
                    reject.stage = "duplicate";
                    reject.reason = "equal to the kept document but for white space";
                }
            }
            if (!reject.reason.empty()) {
                refuse(reject);
                continue;
            }
            // Ids of foreign JSONL files may collide; the place in the input is unique.
            if (!ids_.insert(id_key(document.id)).second) {
                document.id = place;
                ids_.insert(id_key(place));
            }
            write(document, source);
        }
    }
    static uint64_t id_key(const std::string& id) {
        return hash128(id.data(), static_cast<int64_t>(id.size())).low;
    }

    void write(const Document& document, int64_t source) {
        CurateCounts counts;
        const auto bytes = static_cast<int64_t>(document.text.size());
        if (held_out(document.id, options_.val_frac)) {
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

    void finish(const std::vector<InputFile>& files) {
        for (const CurateRow& row : report_.by_source) report_.total += row.counts;
        for (const auto& [license, counts] : licenses_) report_.by_license.push_back({license, "", counts});
        if (report_.total.train_documents == 0) {
            fail_input({.what = cat({"no document was taken, ", report_.total.rejected, " were refused"}),
                        .where = options_.sources,
                        .actual = first_reason_.empty() ? "" : "first: " + first_reason_,
                        .hint = "declare a licence for each source, and look at the files"});
        }
        if (report_.total.val_documents == 0 && options_.val_frac > 0) {
            fail_input(
                {.what = cat({"none of ", report_.total.train_documents, " documents was held out"}),
                 .where = cat({"--val-frac ", options_.val_frac}),
                 .hint = "raise --val-frac, or lower --max-document-bytes; --val-frac 0 holds out nothing"});
        }
        train_.commit();
        val_.commit();
        val_text_.commit();
        rejects_.commit();
        write_manifest(files);
    }

    void write_manifest(const std::vector<InputFile>& files) {
        std::vector<std::string> hashes(files.size());
        parallel_for(static_cast<int64_t>(files.size()), [&](int64_t i) {
            hashes[static_cast<size_t>(i)] = sha256_file(files[static_cast<size_t>(i)].path);
        });
        Json inputs = Json::array();
        for (size_t i = 0; i < files.size(); ++i) {
            inputs.push_back({{"file", files[i].shown}, {"bytes", files[i].bytes}, {"sha256", hashes[i]}});
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
              {"max_document_bytes", options_.max_document_bytes},
              {"min_document_bytes", options_.min_document_bytes}}},
            {"total", counts_json(report_.total)},
            {"repairs",
             {{"invalid_utf8", report_.repairs.invalid_utf8},
              {"controls", report_.repairs.controls},
              {"crlf", report_.repairs.crlf}}},
            {"stages", stages},
            {"sources", sources},
            {"licenses", licenses},
            {"outputs", outputs},
            {"inputs", inputs},
        };
        write_file_atomic(directory_ + "/manifest.json", manifest.dump(1) + "\n");
    }

    const CurateOptions& options_;
    std::string directory_;
    std::vector<Source> sources_;
    std::vector<Stage> stages_;
    DocumentWriter train_, val_;
    AtomicFile val_text_, rejects_;
    ExactDedup dedup_;
    std::unordered_set<uint64_t> ids_;
    std::map<std::string, CurateCounts> licenses_;
    std::string first_reason_;
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
    text += cat({"\nmended: ", repairs.invalid_utf8, " malformed UTF-8 sequences, ", repairs.controls,
                 " control characters, ", repairs.crlf, " CR line ends\n"});
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
    CurateReport report = Curation(options, directory.temporary(), sources).run();
    directory.commit();
    return report;
}
