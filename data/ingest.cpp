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
#include "data/file_kind.h"
#include "data/html.h"

namespace {

namespace fs = std::filesystem;

constexpr int64_t kBatchBytes = 16 << 20;            // read at once: bounds memory, feeds all threads
constexpr int64_t kMaxFileBytes = int64_t{1} << 30;  // of a text file, which is held whole
// The tree of a page takes some 30 times its bytes, on each thread.
constexpr int64_t kMaxHtmlBytes = int64_t{32} << 20;
constexpr size_t kSniffedBytes = 8192;

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
    int64_t html_dropped_bytes = 0;
    void refuse(const std::string& where, const Source& source, const std::string& reason) {
        rejects.push_back(
            {.where = where, .id = {}, .source = source.name, .stage = "read", .reason = reason, .kept = {}});
    }
};

// Why these bytes are not UTF-8 text at all, before they are repaired; "" when they may be.
std::string encoding_problem(std::string_view bytes) {
    if (bytes.starts_with("\xff\xfe") || bytes.starts_with("\xfe\xff")) {
        return "UTF-16 by its byte order mark  hint: iconv -f UTF-16 -t UTF-8";
    }
    const std::string_view head = bytes.substr(0, kSniffedBytes);
    const auto zeros = static_cast<size_t>(std::count(head.begin(), head.end(), '\0'));
    if (zeros * 10 > head.size()) {
        return "binary or UTF-16: more than a tenth of its bytes are zero  hint: if it is text, iconv -f "
               "UTF-16LE -t UTF-8";
    }
    return {};
}

void harvest_file(const InputFile& file, const Source& source, Harvest& out) {
    const bool is_html = kind_of(file.path) == FileKind::html;
    const int64_t limit = is_html ? kMaxHtmlBytes : kMaxFileBytes;
    if (file.bytes > limit) {
        return out.refuse(file.shown, source,
                          cat({"the ", is_html ? "page" : "file", " has ", file.bytes, " bytes, the limit ",
                               is_html ? "for HTML " : "", "is ", limit,
                               "  hint: ", is_html ? "save it as plain text, or in parts" : "split it"}));
    }
    std::string text, title;
    RepairCounts repairs;
    try {
        const MappedFile mapped(file.path);
        const std::string problem = encoding_problem(mapped.text());
        if (!problem.empty()) return out.refuse(file.shown, source, problem);
        text = repair_text(mapped.text(), repairs);
        // Damage is a few bytes; an accented language in Latin-1 has some in every line.
        if (repairs.invalid_utf8 * 100 > mapped.bytes()) {
            return out.refuse(
                file.shown, source,
                cat({"not UTF-8: ", repairs.invalid_utf8, " malformed sequences in ", mapped.bytes(),
                     " bytes  hint: iconv -f ISO-8859-1 -t UTF-8, or whatever "
                     "encoding it has"}));
        }
    } catch (const InputError& e) {
        return out.refuse(file.shown, source, e.what());
    }
    if (is_html) {
        HtmlText page;
        const std::string reason = extract_html(text, page);
        if (!reason.empty()) return out.refuse(file.shown, source, reason);
        text = repair_text(page.text, repairs);  // &#0; and the like
        title = page.title;
        out.html_dropped_bytes += page.dropped_bytes;
    }
    out.repairs += repairs;
    JsonLine metadata;
    metadata.add("path", file.shown);
    if (!source.origin.empty()) metadata.add("origin", source.origin);
    if (!title.empty()) metadata.add("title", title);
    Document document = with_source(source);
    document.id = file.shown;
    document.text = std::move(text);
    document.metadata = metadata.text();
    out.documents.push_back({std::move(document), file.shown, file.source, true});
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
    out.documents.push_back({std::move(document), place, file.source, false});
}

void move_into(IngestBatch& batch, std::vector<Harvest>& harvests) {
    for (Harvest& harvest : harvests) {
        std::move(harvest.documents.begin(), harvest.documents.end(), std::back_inserter(batch.documents));
        std::move(harvest.rejects.begin(), harvest.rejects.end(), std::back_inserter(batch.rejects));
        batch.repairs += harvest.repairs;
        batch.html_dropped_bytes += harvest.html_dropped_bytes;
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
        for (const auto& item : root[i].items()) {
            const std::string& name = item.key();
            const auto* key = std::find_if(std::begin(kKeys), std::end(kKeys),
                                           [&](const Key& k) { return k.name == name; });
            if (key == std::end(kKeys)) {
                const std::string near = nearest_name(name, known);
                fail_input({.what = cat({"unknown key \"", name, "\""}),
                            .where = where,
                            .hint = near.empty() ? "keys: name path license consent origin lang added"
                                                 : cat({"did you mean \"", near, "\"?"})});
            }
            if (!item.value().is_string())
                fail_input({.what = cat({"\"", name, "\" is not a string"}), .where = where});
            source.*key->member = item.value().get<std::string>();
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
    std::vector<InputFile> files;
    std::vector<Reject> found_unfit;  // told with the first batch
    size_t next_file = 0;
    std::unique_ptr<LineReader> lines;  // of files[next_file], while it is a JSONL in progress
    int64_t bytes_total = 0, bytes_finished = 0;

    // Everything under `directory` that is not hidden: files to read, and what cannot be read with its
    // reason.
    static void walk(const fs::path& directory, std::vector<std::string>& paths,
                     std::vector<std::pair<std::string, std::string>>& unfit) {
        std::error_code error;
        for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
             entry.increment(error)) {
            const std::string path = entry->path().string();
            if (entry->path().filename().string().starts_with('.')) continue;
            std::error_code of_status;
            const fs::file_status status = entry->status(of_status);
            const bool is_link = entry->is_symlink(of_status);
            if (fs::is_regular_file(status)) {
                paths.push_back(path);
            } else if (!fs::is_directory(status)) {
                unfit.emplace_back(path, fs::exists(status) ? "neither a file nor a directory"
                                         : is_link          ? "a link that leads to nothing"
                                                            : "cannot be looked at");
            } else if (is_link) {
                unfit.emplace_back(path,
                                   "a link to a directory is not followed  hint: declare the directory as a "
                                   "source");
            } else {
                walk(entry->path(), paths, unfit);
            }
        }
        if (error) unfit.emplace_back(directory.string(), "listing the directory: " + error.message());
    }

    void find_files(int64_t index) {
        const Source& source = sources[static_cast<size_t>(index)];
        const auto shown = [&](const std::string& path) {
            if (path == source.root && is_directory(path)) return source.name;
            const std::string relative = path == source.root ? fs::path(path).filename().string()
                                                             : path.substr(source.root.size() + 1);
            return source.name + "/" + escape_invalid_utf8(relative);
        };
        std::vector<std::string> paths;
        std::vector<std::pair<std::string, std::string>> unfit;  // path, reason
        if (is_directory(source.root)) {
            walk(source.root, paths, unfit);
        } else {
            paths.push_back(source.root);
        }
        std::sort(paths.begin(), paths.end());
        for (const std::string& path : paths) {
            if (kind_of(path) == FileKind::other) {
                unfit.emplace_back(path,
                                   "not a kind of file that is read (.txt .md .html .jsonl .jsonl.zst)");
                continue;
            }
            files.push_back({path, shown(path), index, file_bytes(path)});
            bytes_total += files.back().bytes;
        }
        if (paths.empty() && unfit.empty()) unfit.emplace_back(source.root, "no files");
        std::sort(unfit.begin(), unfit.end());
        for (const auto& [path, reason] : unfit) {
            found_unfit.push_back({.where = shown(path),
                                   .id = {},
                                   .source = source.name,
                                   .stage = "read",
                                   .reason = reason,
                                   .kept = {}});
        }
    }

    void next_files(IngestBatch& batch) {
        const size_t first = next_file;
        for (int64_t bytes = 0; next_file < files.size() && bytes < kBatchBytes; ++next_file) {
            if (kind_of(files[next_file].path) == FileKind::jsonl) break;
            bytes += files[next_file].bytes;
            bytes_finished += files[next_file].bytes;
        }
        std::vector<Harvest> harvests(next_file - first);
        parallel_for(static_cast<int64_t>(harvests.size()), [&](int64_t i) {
            const InputFile& file = files[first + static_cast<size_t>(i)];
            harvest_file(file, sources[static_cast<size_t>(file.source)], harvests[static_cast<size_t>(i)]);
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

Ingest::Ingest(std::vector<Source> sources) : state_(std::make_unique<State>()) {
    state_->sources = std::move(sources);
    for (size_t i = 0; i < state_->sources.size(); ++i) state_->find_files(static_cast<int64_t>(i));
}
Ingest::~Ingest() = default;

bool Ingest::next(IngestBatch& batch) {
    State& state = *state_;
    batch = {};
    batch.rejects = std::exchange(state.found_unfit, {});
    if (state.next_file == state.files.size()) return !batch.rejects.empty();
    if (kind_of(state.files[state.next_file].path) == FileKind::jsonl) {
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
