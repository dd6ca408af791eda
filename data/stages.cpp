// The stages: licence first, for nothing else may be asked of a text that must not be used.
#include "data/stages.h"

#include <algorithm>

#include "core/error.h"

namespace {

// Shape of an SPDX expression, not its membership in the SPDX list, which grows; the words that mean
// "unknown" are none.
std::string license_problem(const std::string& license) {
    if (license.empty()) {
        return "no licence declared, by the document or by its source (\"license\" in sources.json)";
    }
    std::string lower = license;
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char c) { return std::tolower(c); });
    for (const char* word : {"noassertion", "none", "unknown", "other", "proprietary"}) {
        if (lower == word) return cat({"licence \"", license, "\" gives no permission"});
    }
    const bool shaped = std::all_of(license.begin(), license.end(), [](unsigned char c) {
        return std::isalnum(c) ||
               std::string_view("-.+:() ").find(static_cast<char>(c)) != std::string_view::npos;
    });
    return shaped ? std::string() : cat({"licence \"", license, "\" is not an SPDX expression"});
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
