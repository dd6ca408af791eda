// From declared sources to documents. A source is a file or a directory with a declared licence, consent and
// origin (sources.json). Files become documents by their kind:
//   .txt .text .md .markdown  one document
//   .html .htm .xhtml         one document: the readable text (data/html.h)
//   .jsonl .ndjson, .zst too  one document a line (data/document.h), never cut
// Hidden files are passed over; everything else that is not taken is refused with its reason: another name, a
// file or directory that cannot be read, a link to a directory (it could lead in circles) or to nothing,
// binary, UTF-16, or so much malformed UTF-8 that it must be another encoding. Documents come in one order,
// by source and then by path, for any number of threads.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/document.h"
#include "data/plain_text.h"

struct Source {
    std::string name;     // unique; begins the ids of its documents
    std::string path;     // as declared; relative to the directory of sources.json
    std::string license;  // SPDX expression; may be absent only where every JSONL document brings its own
    std::string consent;
    std::string origin;  // where it was got: URL, package and version
    std::string lang;
    std::string added;
    std::string root;  // path as opened
};

// Reads a JSON array of objects with the keys above (but root). Malformed files, unknown keys and paths that
// do not exist are InputErrors.
std::vector<Source> read_sources(const std::string& path);

struct InputFile {
    std::string path;   // as opened
    std::string shown;  // NAME/relative path, in UTF-8 whatever the name is: the same on every machine
    int64_t source = 0;
    int64_t bytes = 0;
};

struct IngestedDocument {
    Document document;
    std::string place;  // NAME/relative path, and :LINE of a JSONL file
    int64_t source = 0;
    bool may_be_cut = false;  // text and HTML
};

struct IngestBatch {
    std::vector<IngestedDocument> documents;
    std::vector<Reject> rejects;
    RepairCounts repairs;
    int64_t html_dropped_bytes = 0;  // HtmlText
};

class Ingest {
public:
    explicit Ingest(std::vector<Source> sources);
    ~Ingest();
    bool next(IngestBatch& batch);  // some more documents; false at the end
    const std::vector<InputFile>& files() const;
    int64_t bytes_total() const;
    int64_t bytes_done() const;

private:
    struct State;
    std::unique_ptr<State> state_;
};
