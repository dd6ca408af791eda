// A document and its JSONL form, the one currency between the data tools:
//   {"id":..,"text":..,"source":..,"license":..,"consent":..,"lang":..,"added":..,"metadata":{..}}
// one object a line, UTF-8, optionally .zst. Reading never aborts on a line: what is not such an object is
// refused, counted and kept aside with its place and reason.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

struct Document {
    std::string id;  // unique in a corpus; FILE:LINE when the input has none
    std::string text;
    std::string source;           // name of the source it came from
    std::string license;          // SPDX expression; "": unknown
    std::string consent;          // on what ground it may be used: "license", "contributor", ...
    std::string lang;             // BCP 47; "": unknown
    std::string added;            // date it entered, YYYY-MM-DD; "": unknown
    std::string metadata = "{}";  // a JSON object, verbatim
};

// What was not taken, and why.
struct Reject {
    std::string where;  // FILE:LINE, or FILE
    std::string id;     // "" when it was refused before it had one
    std::string source;
    std::string stage;  // "read", "license", "empty", "duplicate", ...
    std::string reason;
    std::string kept;  // duplicates: the id of the document that stays
};

std::string document_json(const Document& document);  // one line, keys in the order above, no newline
std::string reject_json(const Reject& reject);

// Parses one line. On failure returns the reason and leaves `document` unspecified; "" on success. Only
// "text" must be there; keys that Document has no field for go into metadata, unless it has them already.
// Integers beyond 64 bits become strings.
std::string parse_document(std::string_view line, Document& document);

class DocumentReader {
public:
    explicit DocumentReader(
        const std::string& path);  // .jsonl or .jsonl.zst; InputError when it cannot be opened
    ~DocumentReader();
    DocumentReader(DocumentReader&&) noexcept;

    bool next(Document& document);  // the next good document; false at the end
    int64_t line_number() const;    // where it stood
    const std::vector<Reject>& rejects() const;
    int64_t bytes_consumed() const;  // of the file on disk, for progress
    int64_t file_bytes() const;
    // For readers of curated documents, where a bad line means a damaged file: InputError naming the first
    // reject.
    void require_clean() const;

private:
    struct State;
    std::unique_ptr<State> state_;
};

class DocumentWriter {
public:
    explicit DocumentWriter(const std::string& path);  // .zst in the name compresses
    ~DocumentWriter();
    void write(const Document& document);
    void commit();  // nothing appears under `path` before
    int64_t num_documents() const;
    int64_t text_bytes() const;

private:
    struct State;
    std::unique_ptr<State> state_;
};
