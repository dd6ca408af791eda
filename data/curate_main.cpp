// build/curate: declared sources -> curated documents with their manifest.
#include <cstdio>

#include "core/error.h"
#include "core/flags.h"
#include "core/log.h"
#include "core/threads.h"
#include "data/curate.h"

namespace {

int body(int argc, char** argv) {
    CurateOptions options;
    std::string format = "zst";
    int64_t threads = 0;
    bool quiet = false;
    Flags flags("curate", "Turns declared sources of text, HTML and JSONL into curated documents.",
                "  scripts/corpus.sh corpus && build/curate --sources corpus/sources.json --out curated\n"
                "  scripts/corpus.sh --from my-texts corpus && build/curate --sources corpus/sources.json "
                "--out mine\n");
    flags.add("sources", options.sources, "sources.json: what to read, and under which licence", true);
    flags.add("out", options.out, "directory to make", true);
    flags.add("val-frac", options.val_frac,
              "fraction of the documents to hold out, whole, by hash of their ids", 0, 0.5);
    flags.add("max-document-bytes", options.max_document_bytes, "longer text and HTML files are cut", 256,
              1 << 30);
    flags.add("min-document-bytes", options.min_document_bytes, "shorter documents are refused", 1);
    flags.add_choice("format", format, {"zst", "plain"}, ".jsonl.zst or .jsonl");
    flags.add("threads", threads, "threads; 0: all cores", 0, 256);
    flags.add("quiet", quiet, "no progress bar");
    flags.parse(argc, argv);
    options.compress = format == "zst";
    if (threads > 0) set_num_threads(static_cast<int>(threads));
    if (quiet) set_progress_enabled(false);

    const CurateReport report = curate(options);
    std::printf("%s%s: %lld documents to train on, %lld held out\n", report.table().c_str(),
                options.out.c_str(), static_cast<long long>(report.total.train_documents),
                static_cast<long long>(report.total.val_documents));
    return 0;
}

}  // namespace

int main(int argc, char** argv) { return run_main(argc, argv, body); }
