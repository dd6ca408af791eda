// OUT/report.html: one self-contained file (no network, no script libraries) from a run's own files: loss
// curves, learning rate, tokens/s, held-out bits per byte beside a compressor's when known, samples, the
// configuration, where every file is with its SHA-256 (of a checkpoint's files, as it recorded them).
// Readable on a phone and in print; plots are inline SVG.
#pragma once
#include <string>
#include <vector>

struct ReportFact {
    std::string name, value;
    bool yardstick = false;  // another compressor's bits per byte: drawn across the curve of ours
};
// Reads DIR/log.jsonl and DIR/config.toml; `facts` come first in the report's table (e.g. xz bits per byte,
// corpus). Written atomically. A run directory without a log is an InputError.
void write_run_report(const std::string& run_directory, const std::vector<ReportFact>& facts = {});
