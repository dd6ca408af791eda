// Documents to and from JSON lines: simdjson reads (and so refuses malformed UTF-8 and JSON), json_quote
// writes.
#include "data/document.h"

#include <simdjson.h>

#include <algorithm>
#include <set>

#include "core/error.h"
#include "core/log.h"
#include "data/compressed.h"

namespace {

struct Field {
    std::string_view key;
    std::string Document::*member;
};
constexpr Field kFields[] = {
    {"id", &Document::id},           {"text", &Document::text},       {"source", &Document::source},
    {"license", &Document::license}, {"consent", &Document::consent}, {"lang", &Document::lang},
    {"added", &Document::added},
};

void append_member(std::string& object, std::string_view key, std::string_view json_value) {
    object += object.empty() ? "{" : ",";
    object += json_quote(key);
    object += ':';
    object += json_value;
}

std::string Document::*field_named(std::string_view key) {
    for (const Field& field : kFields) {
        if (field.key == key) return field.member;
    }
    return nullptr;
}

// simdjson knows no integers beyond 64 bits and refuses the whole line for one in some id or hash: the same
// line with such integers as strings, which lose no digit.
std::string with_long_integers_quoted(std::string_view line) {
    constexpr size_t kAlwaysFit = 18;
    std::string out;
    bool in_string = false;
    for (size_t i = 0; i < line.size();) {
        const char c = line[i];
        if (!in_string && (c == '-' || (c >= '0' && c <= '9'))) {
            const size_t end = std::min(line.find_first_not_of("0123456789+-.eE", i), line.size());
            const std::string_view number = line.substr(i, end - i);
            const bool integer = number.find_first_of("+.eE") == std::string_view::npos;
            const bool quoted = integer && number.size() > kAlwaysFit;
            if (quoted) out += '"';
            out += number;
            if (quoted) out += '"';
            i = end;
            continue;
        }
        if (c == '"') in_string = !in_string;
        if (in_string && c == '\\') out += line[i++];
        if (i < line.size()) out += line[i++];
    }
    return out;
}

// Keys without a field of their own, in order. Of two values for one key the first stays.
class Metadata {
public:
    void add(std::string_view key, simdjson::dom::element value) {
        if (keys_.emplace(key).second) append_member(object_, key, simdjson::minify(value));
    }
    std::string text() const { return object_.empty() ? "{}" : object_ + "}"; }

private:
    std::set<std::string, std::less<>> keys_;
    std::string object_;
};

std::string parse(simdjson::dom::parser& parser, std::string_view line, Document& document) {
    simdjson::dom::element root;
    auto error = parser.parse(line.data(), line.size()).get(root);
    if (error == simdjson::NUMBER_ERROR) {
        const std::string quoted = with_long_integers_quoted(line);
        error = parser.parse(quoted).get(root);
    }
    if (error) return cat({"not JSON: ", simdjson::error_message(error)});
    simdjson::dom::object object;
    if (root.get(object)) return "not a JSON object";
    document = {};
    Metadata metadata;
    bool has_text = false;
    // "metadata" itself first: it is what an earlier curation wrote.
    simdjson::dom::element inner;
    if (!object["metadata"].get(inner) && !inner.is_null()) {
        if (!inner.is_object()) return "\"metadata\" is not an object";
        for (const auto [name, value] : inner.get_object()) metadata.add(name, value);
    }
    for (const auto [key, value] : object) {
        if (key == "metadata") {
            continue;
        } else if (std::string Document::*member = field_named(key)) {
            if (value.is_string()) {
                document.*member = std::string_view(value);
                has_text = has_text || key == "text";
            } else if (key == "id" && value.is_number()) {
                document.id = simdjson::minify(value);
            } else if (!value.is_null() || key == "text") {
                return cat({"\"", key, "\" is not a string"});
            }
        } else {
            metadata.add(key, value);
        }
    }
    if (!has_text) return "no \"text\"";
    document.metadata = metadata.text();
    return {};
}

}  // namespace

std::string document_json(const Document& document) {
    std::string line;
    line.reserve(document.text.size() + document.text.size() / 16 + 256);
    for (const Field& field : kFields) append_member(line, field.key, json_quote(document.*field.member));
    append_member(line, "metadata", document.metadata);
    line += '}';
    return line;
}

std::string reject_json(const Reject& reject) {
    JsonLine line;
    line.add("where", reject.where).add("id", reject.id).add("source", reject.source);
    line.add("stage", reject.stage).add("reason", reject.reason);
    if (!reject.kept.empty()) line.add("kept", reject.kept);
    return line.text();
}

std::string parse_document(std::string_view line, Document& document) {
    thread_local simdjson::dom::parser parser;
    return parse(parser, line, document);
}

struct DocumentReader::State {
    LineReader lines;
    std::string path;
    simdjson::dom::parser parser;
    std::vector<Reject> rejects;
    bool ended = false;

    explicit State(const std::string& p) : lines(p), path(p) {}
    void refuse(std::string where, std::string reason) {
        rejects.push_back({.where = std::move(where),
                           .id = {},
                           .source = {},
                           .stage = "read",
                           .reason = std::move(reason),
                           .kept = {}});
    }
};

DocumentReader::DocumentReader(const std::string& path) : state_(std::make_unique<State>(path)) {}
DocumentReader::~DocumentReader() = default;
DocumentReader::DocumentReader(DocumentReader&&) noexcept = default;

bool DocumentReader::next(Document& document) {
    State& state = *state_;
    std::string_view line;
    while (state.lines.next(line)) {
        const std::string where = cat({state.path, ":", state.lines.line_number()});
        if (state.lines.too_long()) {
            state.refuse(where, cat({"the line has more than ", LineReader::kMaxLineBytes, " bytes"}));
            continue;
        }
        if (line.find_first_not_of(" \t") == std::string_view::npos) continue;
        const std::string reason = parse(state.parser, line, document);
        if (!reason.empty()) {
            state.refuse(where, reason);
            continue;
        }
        if (document.id.empty()) document.id = where;
        return true;
    }
    if (!state.ended && !state.lines.problem().empty()) state.refuse(state.path, state.lines.problem());
    state.ended = true;
    return false;
}

int64_t DocumentReader::line_number() const { return state_->lines.line_number(); }
const std::vector<Reject>& DocumentReader::rejects() const { return state_->rejects; }
int64_t DocumentReader::bytes_consumed() const { return state_->lines.bytes_consumed(); }
int64_t DocumentReader::file_bytes() const { return state_->lines.file_bytes(); }
void DocumentReader::require_clean() const {
    if (state_->rejects.empty()) return;
    const Reject& first = state_->rejects.front();
    fail_input({.what = cat({"unreadable documents (", state_->rejects.size(), " places)"}),
                .where = first.where,
                .expected = "one JSON object with \"text\" a line",
                .actual = first.reason,
                .hint = "make the documents with build/curate, which keeps bad lines aside"});
}

struct DocumentWriter::State {
    CompressedWriter file;
    int64_t num_documents = 0, text_bytes = 0;
    explicit State(const std::string& path) : file(path) {}
};

DocumentWriter::DocumentWriter(const std::string& path) : state_(std::make_unique<State>(path)) {}
DocumentWriter::~DocumentWriter() = default;
void DocumentWriter::write(const Document& document) {
    std::string line = document_json(document);
    line += '\n';
    state_->file.write(line);
    ++state_->num_documents;
    state_->text_bytes += static_cast<int64_t>(document.text.size());
}
void DocumentWriter::commit() { state_->file.commit(); }
int64_t DocumentWriter::num_documents() const { return state_->num_documents; }
int64_t DocumentWriter::text_bytes() const { return state_->text_bytes; }
