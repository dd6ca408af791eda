// Sources in, a curated corpus out: OUT/train.jsonl.zst, val.jsonl.zst (held-out documents), val.txt (their
// bare texts one after another, for compressors to be measured on), rejects.jsonl (what was not taken and
// why) and manifest.json (SHA-256 of every input and output, counts, parameters). OUT appears whole or not at
// all, with the same bytes for any number of threads.
//
// Stages and duplicates judge whole documents; one that stays and is longer than max_document_bytes is then
// cut (data/plain_text.h), and pieces equal to an earlier piece or document go too. A document is held out
// with all its pieces, or not at all; only of one with more than 16 pieces runs of neighbours are
// (data/split.h). Where few documents leave nothing held out, or nothing to train on, the one nearest to the
// threshold changes sides.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "data/plain_text.h"

struct CurateOptions {
    std::string sources;  // path of sources.json
    std::string out;
    double val_frac = 0.02;
    bool compress = true;  // .jsonl.zst, else .jsonl
    int64_t max_document_bytes = 64 << 10;
    int64_t min_document_bytes = 32;
};

struct CurateCounts {
    int64_t files = 0, train_documents = 0, val_documents = 0, rejected = 0;
    int64_t train_bytes = 0, val_bytes = 0;
    void operator+=(const CurateCounts& other);
};

struct CurateRow {
    std::string name;     // of a source, or a licence
    std::string license;  // of a source; "" in the table of licences
    CurateCounts counts;
};

struct CurateReport {
    std::vector<CurateRow> by_source, by_license;
    std::vector<std::pair<std::string, int64_t>> by_stage;  // rejected, in the order of the stages
    CurateCounts total;
    RepairCounts repairs;
    int64_t html_dropped_bytes = 0;  // text left out as navigation and the like
    std::string table() const;       // for people
};

CurateReport curate(const CurateOptions& options);
