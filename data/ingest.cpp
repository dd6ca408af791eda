// Finds the files of each source and turns them into documents, several at a time.
#include "data/ingest.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "core/flags.h"
#include "core/io.h"
#include "core/log.h"
#include "core/threads.h"
#include "data/compressed.h"
#include "data/html.h"

namespace {

namespace fs = std::filesystem;

constexpr int64_t kBatchBytes = 16 << 20;            // read at once: bounds memory, feeds all threads
constexpr int64_t kMaxFileBytes = int64_t{1} << 30;  // of a text or HTML file, which is held whole
constexpr size_t kSniffedBytes = 8192;

enum class Kind { text, html, jsonl, other };

Kind kind_of(const std::string& path) {
    static constexpr std::pair<std::string_view, Kind> kSuffixes[] = {
        {".txt", Kind::text},        {".text", Kind::text},        {".md", Kind::text},
        {".markdown", Kind::text},   {".html", Kind::html},        {".htm", Kind::html},
        {".xhtml", Kind::html},      {".jsonl", Kind::jsonl},      {".ndjson", Kind::jsonl},
        {".jsonl.zst", Kind::jsonl}, {".ndjson.zst", Kind::jsonl},
    };
    std::string lower = path;
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char c) { return std::tolower(c); });
    for (const auto& [suffix, kind] : kSuffixes) {
        if (lower.ends_with(suffix)) return kind;
    }
    return Kind::other;
}

std::string numbered(size_t piece) { return "#" + std::to_string(10'000 + piece).substr(1); }

Document with_source(const Source& source) {
    Document document;
    document.source = source.name;
    document.license = source.license;
    document.consent = source.consent;
    document.lang = source.lang;
    document.added = source.added;
    return document;
}

// What one file or one run of lines gave, in order.
struct Harvest {
    std::vector<IngestedDocument> documents;
    std::vector<Reject> rejects;
    RepairCounts repairs;
    void refuse(const std::string& where, const Source& source, const std::string& reason) {
        rejects.push_back(
            {.where = where, .id = {}, .source = source.name, .stage = "read", .reason = reason, .kept = {}});
    }
};

void harvest_file(const InputFile& file, const Source& source, int64_t max_document_bytes, Harvest& out) {
    if (file.bytes > kMaxFileBytes) {
        return out.refuse(file.shown, source,
                          cat({"the file has ", file.bytes, " bytes, the limit is ", kMaxFileBytes}));
    }
    std::string text, title;
    try {
        const MappedFile mapped(file.path);
        const std::string_view head = mapped.text().substr(0, kSniffedBytes);
        if (const auto zeros = std::count(head.begin(), head.end(), '\0');
            static_cast<size_t>(zeros) * 10 > head.size()) {
            return out.refuse(file.shown, source,
                              "binary or UTF-16: more than a tenth of its bytes are zero");
        }
        text = repair_text(mapped.text(), out.repairs);
    } catch (const InputError& e) {
        return out.refuse(file.shown, source, e.what());
    }
    if (kind_of(file.path) == Kind::html) {
        HtmlText page;
        const std::string reason = extract_html(text, page);
        if (!reason.empty()) return out.refuse(file.shown, source, reason);
        RepairCounts from_entities;  // &#0; and the like
        text = repair_text(page.text, from_entities);
        title = page.title;
        out.repairs += from_entities;
    }
    JsonLine metadata;
    metadata.add("path", file.shown);
    if (!source.origin.empty()) metadata.add("origin", source.origin);
    if (!title.empty()) metadata.add("title", title);
    const std::vector<std::string_view> pieces = split_text(text, max_document_bytes);
    for (size_t i = 0; i < pieces.size(); ++i) {
        Document document = with_source(source);
        document.id = pieces.size() == 1 ? file.shown : file.shown + numbered(i);
        document.text = pieces[i];
        document.metadata = metadata.text();
        out.documents.push_back({document, document.id, file.source});
    }
}

void harvest_line(std::string_view line, const std::string& place, const InputFile& file,
                  const Source& source, Harvest& out) {
    Document document;
    const std::string reason = parse_document(line, document);
    if (!reason.empty()) return out.refuse(place, source, reason);
    document.text = repair_text(document.text, out.repairs);
    const Document declared = with_source(source);
    if (document.id.empty()) document.id = place;
    document.source = declared.source;
    if (document.license.empty()) document.license = declared.license;
    if (document.consent.empty()) document.consent = declared.consent;
    if (document.lang.empty()) document.lang = declared.lang;
    if (document.added.empty()) document.added = declared.added;
    out.documents.push_back({std::move(document), place, file.source});
}

void move_into(IngestBatch& batch, std::vector<Harvest>& harvests) {
    for (Harvest& harvest : harvests) {
        std::move(harvest.documents.begin(), harvest.documents.end(), std::back_inserter(batch.documents));
        std::move(harvest.rejects.begin(), harvest.rejects.end(), std::back_inserter(batch.rejects));
        batch.repairs += harvest.repairs;
    }
}

}  // namespace

std::vector<Source> read_sources(const std::string& path) {
    using Json = nlohmann::ordered_json;
    const std::string hint = "see scripts/corpus.sh, which writes one; `--from DIR` does for your own texts";
    const Json root = Json::parse(read_file(path), nullptr, false);
    if (!root.is_array() || root.empty()) {
        fail_input({.what = "not a list of sources",
                    .where = path,
                    .expected = "a JSON array: [{\"name\":..,\"path\":..,\"license\":..}]",
                    .hint = hint});
    }
    struct Key {
        const char* name;
        std::string Source::*member;
    };
    static constexpr Key kKeys[] = {
        {"name", &Source::name},       {"path", &Source::path},     {"license", &Source::license},
        {"consent", &Source::consent}, {"origin", &Source::origin}, {"lang", &Source::lang},
        {"added", &Source::added},
    };
    std::vector<std::string> known;
    for (const Key& key : kKeys) known.push_back(key.name);

    const size_t slash = path.rfind('/');
    const std::string directory = slash == std::string::npos ? "" : path.substr(0, slash + 1);
    std::vector<Source> sources;
    std::set<std::string> names;
    for (size_t i = 0; i < root.size(); ++i) {
        const std::string where = cat({path, ", source ", i});
        if (!root[i].is_object())
            fail_input({.what = "a source is not an object", .where = where, .hint = hint});
        Source source;
        for (const auto& [name, value] : root[i].items()) {
            const auto* key = std::find_if(std::begin(kKeys), std::end(kKeys),
                                           [&](const Key& k) { return k.name == name; });
            if (key == std::end(kKeys)) {
                const std::string near = nearest_name(name, known);
                fail_input({.what = cat({"unknown key \"", name, "\""}),
                            .where = where,
                            .hint = near.empty() ? "keys: name path license consent origin lang added"
                                                 : cat({"did you mean \"", near, "\"?"})});
            }
            if (!value.is_string())
                fail_input({.what = cat({"\"", name, "\" is not a string"}), .where = where});
            source.*key->member = value.get<std::string>();
        }
        if (source.name.empty() || source.path.empty()) {
            fail_input({.what = "a source needs \"name\" and \"path\"", .where = where, .hint = hint});
        }
        if (!names.insert(source.name).second) {
            fail_input({.what = cat({"two sources are called \"", source.name, "\""}), .where = where});
        }
        source.root = source.path.front() == '/' ? source.path : directory + source.path;
        while (source.root.size() > 1 && source.root.back() == '/') source.root.pop_back();
        if (!path_exists(source.root)) {
            fail_input({.what = cat({"source \"", source.name, "\" is not there"}),
                        .where = source.root,
                        .hint = hint});
        }
        sources.push_back(source);
    }
    return sources;
}

struct Ingest::State {
    std::vector<Source> sources;
    int64_t max_document_bytes;
    std::vector<InputFile> files;
    std::vector<Reject> found_unfit;  // told with the first batch
    size_t next_file = 0;
    std::unique_ptr<LineReader> lines;  // of files[next_file], while it is a JSONL in progress
    int64_t bytes_total = 0, bytes_finished = 0;

    void find_files(int64_t index) {
        const Source& source = sources[static_cast<size_t>(index)];
        const auto refuse = [&](const std::string& shown, const std::string& reason) {
            found_unfit.push_back({.where = shown,
                                   .id = {},
                                   .source = source.name,
                                   .stage = "read",
                                   .reason = reason,
                                   .kept = {}});
        };
        std::vector<std::string> paths;
        if (!is_directory(source.root)) {
            paths.push_back(source.root);
        } else {
            std::error_code error;
            fs::recursive_directory_iterator walk(source.root, fs::directory_options::skip_permission_denied,
                                                  error);
            for (; walk != fs::end(walk); walk.increment(error)) {
                if (walk->path().filename().string().starts_with('.')) {
                    if (walk->is_directory(error)) walk.disable_recursion_pending();
                } else if (walk->is_regular_file(error)) {
                    paths.push_back(walk->path().string());
                }
            }
            if (error) refuse(source.name, "listing the directory: " + error.message());
        }
        std::sort(paths.begin(), paths.end());
        for (const std::string& path : paths) {
            const std::string relative = path == source.root ? fs::path(path).filename().string()
                                                             : path.substr(source.root.size() + 1);
            const std::string shown = source.name + "/" + relative;
            if (kind_of(path) == Kind::other) {
                refuse(shown, "not a kind of file that is read (.txt .md .html .jsonl .jsonl.zst)");
                continue;
            }
            files.push_back({path, shown, index, file_bytes(path)});
            bytes_total += files.back().bytes;
        }
        if (paths.empty()) refuse(source.name, "no files");
    }

    void next_files(IngestBatch& batch) {
        const size_t first = next_file;
        for (int64_t bytes = 0; next_file < files.size() && bytes < kBatchBytes; ++next_file) {
            if (kind_of(files[next_file].path) == Kind::jsonl) break;
            bytes += files[next_file].bytes;
            bytes_finished += files[next_file].bytes;
        }
        std::vector<Harvest> harvests(next_file - first);
        parallel_for(static_cast<int64_t>(harvests.size()), [&](int64_t i) {
            const InputFile& file = files[first + static_cast<size_t>(i)];
            harvest_file(file, sources[static_cast<size_t>(file.source)], max_document_bytes,
                         harvests[static_cast<size_t>(i)]);
        });
        move_into(batch, harvests);
    }

    void next_lines(IngestBatch& batch) {
        const InputFile& file = files[next_file];
        const Source& source = sources[static_cast<size_t>(file.source)];
        Harvest whole_file;
        std::vector<std::pair<int64_t, std::string>> taken;  // line number, line
        bool ended = false;
        try {
            if (lines == nullptr) lines = std::make_unique<LineReader>(file.path);
            std::string_view line;
            for (int64_t bytes = 0; bytes < kBatchBytes;) {
                if ((ended = !lines->next(line))) break;
                if (lines->too_long()) {
                    whole_file.refuse(cat({file.shown, ":", lines->line_number()}), source,
                                      cat({"the line has more than ", LineReader::kMaxLineBytes, " bytes"}));
                } else if (line.find_first_not_of(" \t") != std::string_view::npos) {
                    taken.emplace_back(lines->line_number(), line);
                }
                bytes += static_cast<int64_t>(line.size()) + 1;
            }
            if (ended && !lines->problem().empty()) whole_file.refuse(file.shown, source, lines->problem());
        } catch (const InputError& e) {
            whole_file.refuse(file.shown, source, e.what());
            ended = true;
        }
        constexpr int64_t kLinesPerTask = 64;
        const auto num_lines = static_cast<int64_t>(taken.size());
        std::vector<Harvest> harvests(static_cast<size_t>((num_lines + kLinesPerTask - 1) / kLinesPerTask));
        parallel_ranges(num_lines, kLinesPerTask, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const auto& [number, line] = taken[static_cast<size_t>(i)];
                harvest_line(line, cat({file.shown, ":", number}), file, source,
                             harvests[static_cast<size_t>(begin / kLinesPerTask)]);
            }
        });
        move_into(batch, harvests);
        std::move(whole_file.rejects.begin(), whole_file.rejects.end(), std::back_inserter(batch.rejects));
        if (ended) {
            lines.reset();
            bytes_finished += file.bytes;
            ++next_file;
        }
    }
};

Ingest::Ingest(std::vector<Source> sources, int64_t max_document_bytes) : state_(std::make_unique<State>()) {
    state_->sources = std::move(sources);
    state_->max_document_bytes = max_document_bytes;
    for (size_t i = 0; i < state_->sources.size(); ++i) state_->find_files(static_cast<int64_t>(i));
}
Ingest::~Ingest() = default;

bool Ingest::next(IngestBatch& batch) {
    State& state = *state_;
    batch = {};
    batch.rejects = std::exchange(state.found_unfit, {});
    if (state.next_file == state.files.size()) return !batch.rejects.empty();
    if (kind_of(state.files[state.next_file].path) == Kind::jsonl) {
        state.next_lines(batch);
    } else {
        state.next_files(batch);
    }
    return true;
}

const std::vector<InputFile>& Ingest::files() const { return state_->files; }
int64_t Ingest::bytes_total() const { return state_->bytes_total; }
int64_t Ingest::bytes_done() const {
    return state_->bytes_finished + (state_->lines == nullptr ? 0 : state_->lines->bytes_consumed());
}
