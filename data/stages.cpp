// The stages: licence first, for nothing else may be asked of a text that must not be used.
#include "data/stages.h"

#include <algorithm>
#include <cctype>

#include "core/error.h"

namespace {

// Words that stand where a licence should and give no permission. Membership in the SPDX list is not asked:
// it grows.
constexpr std::string_view kNoLicense[] = {
    "noassertion", "none",      "unknown", "other",        "proprietary", "unlicensed",
    "undefined",   "null",      "n-a",     "na",           "nil",         "tbd",
    "todo",        "see",       "license", "licence",      "file",        "commercial",
    "restricted",  "copyright", "custom",  "yes",          "no",          "true",
    "false",       "free",      "open",    "confidential", "copyrighted",
};

// Reads an SPDX expression (specification 2.3, annex D):
//   expression = simple ["WITH" exception] | expression ("AND" | "OR") expression | "(" expression ")"
//   simple     = id ["+"] | ["DocumentRef-" id ":"] "LicenseRef-" id      id = (letter | digit | "-" | ".")+
class LicenseExpression {
public:
    explicit LicenseExpression(std::string_view text) : rest_(text) { advance(); }
    // "" or what is wrong.
    std::string problem() {
        std::string reason = expression();
        if (reason.empty() && !token_.empty())
            reason = cat({"\"", token_, "\" where AND, OR or the end should be"});
        return reason;
    }

private:
    std::string expression() {
        for (;;) {
            if (token_ == "(") {
                if (++depth_ > 100) return "too many parentheses";
                advance();
                if (std::string reason = expression(); !reason.empty()) return reason;
                if (token_ != ")") return "a parenthesis is not closed";
                --depth_;
                advance();
            } else {
                if (std::string reason = simple(); !reason.empty()) return reason;
                if (is_operator("WITH")) {
                    advance();
                    if (!is_id(token_)) return "no exception after WITH";
                    advance();
                }
            }
            if (!is_operator("AND") && !is_operator("OR")) return {};
            advance();
        }
    }
    std::string simple() {
        std::string_view id = token_;
        if (id.ends_with('+')) id.remove_suffix(1);
        if (const size_t colon = id.find(':'); colon != std::string_view::npos) {
            if (!id.starts_with("DocumentRef-") || !is_id(id.substr(0, colon))) return not_an_id();
            id.remove_prefix(colon + 1);
            if (!id.starts_with("LicenseRef-")) return not_an_id();
        }
        if (!is_id(id) || is_operator("AND") || is_operator("OR") || is_operator("WITH")) return not_an_id();
        std::string lower(id);
        std::transform(lower.begin(), lower.end(), lower.begin(),
                       [](unsigned char c) { return std::tolower(c); });
        if (std::find(std::begin(kNoLicense), std::end(kNoLicense), lower) != std::end(kNoLicense)) {
            return cat({"\"", id, "\" gives no permission"});
        }
        if (lower == "licenseref-" || lower == "documentref-") return not_an_id();
        advance();
        return {};
    }
    std::string not_an_id() const {
        return token_.empty() ? "it ends where a licence should be"
                              : cat({"\"", token_, "\" is not a licence's id"});
    }
    static bool is_id(std::string_view text) {
        return !text.empty() && std::isalnum(static_cast<unsigned char>(text.front())) &&
               std::all_of(text.begin(), text.end(),
                           [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '.'; });
    }
    // All small or all capitals, as the specification asks.
    bool is_operator(std::string_view capitals) const {
        if (token_ == capitals) return true;
        return std::equal(token_.begin(), token_.end(), capitals.begin(), capitals.end(),
                          [](char a, char b) { return a == std::tolower(static_cast<unsigned char>(b)); });
    }
    void advance() {
        const size_t begin = std::min(rest_.find_first_not_of(' '), rest_.size());
        rest_.remove_prefix(begin);
        const bool bracket = !rest_.empty() && (rest_.front() == '(' || rest_.front() == ')');
        const size_t length = bracket ? 1 : std::min(rest_.find_first_of(" ()"), rest_.size());
        token_ = rest_.substr(0, length);
        rest_.remove_prefix(length);
    }

    std::string_view rest_, token_;
    int depth_ = 0;
};

std::string license_problem(const std::string& license) {
    if (license.find_first_not_of(' ') == std::string::npos) {
        return "no licence declared, by the document or by its source (\"license\" in sources.json)";
    }
    const std::string problem = LicenseExpression(license).problem();
    if (problem.empty()) return {};
    return cat({"licence \"", license, "\" is not an SPDX expression that permits use: ", problem});
}

}  // namespace

std::vector<Stage> document_stages(const StageOptions& options) {
    const int64_t min_bytes = options.min_document_bytes;
    return {
        {"license", "declares an SPDX licence", [](Document& d) { return license_problem(d.license); }},
        {"length", cat({"has at least ", min_bytes, " bytes that are not white space at either end"}),
         [min_bytes](Document& d) -> std::string {
             const size_t begin = d.text.find_first_not_of(" \t\n");
             const size_t end = d.text.find_last_not_of(" \t\n");
             const int64_t bytes = begin == std::string::npos ? 0 : static_cast<int64_t>(end - begin + 1);
             if (bytes >= min_bytes) return {};
             return cat({"too short: ", bytes, " bytes"});
         }},
    };
}
