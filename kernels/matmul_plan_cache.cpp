// Reading and writing the file of plans.
#include "kernels/matmul_plan_cache.h"

#include <cstdlib>
#include <optional>
#include <sstream>

#include "core/error.h"
#include "core/io.h"
#include "kernels/isa.h"

#ifdef ISA_PLAIN
namespace {

std::string hex_of(const std::vector<uint8_t>& bytes) {
    constexpr char kDigits[] = "0123456789abcdef";
    std::string text;
    for (uint8_t byte : bytes) text += {kDigits[byte >> 4], kDigits[byte & 15]};
    return text;
}

std::optional<std::vector<uint8_t>> bytes_of(const std::string& hex) {
    const auto digit = [](char c) {
        return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    };
    std::vector<uint8_t> bytes;
    for (size_t i = 0; i + 1 < hex.size(); i += 2) {
        const int high = digit(hex[i]), low = digit(hex[i + 1]);
        if (high < 0 || low < 0) return std::nullopt;
        bytes.push_back(static_cast<uint8_t>(high * 16 + low));
    }
    if (hex.empty() || hex.size() % 2 != 0) return std::nullopt;
    return bytes;
}

}  // namespace

MatmulPlanCache::MatmulPlanCache(const std::string& path, const std::string& versions)
    : path_(path), versions_(versions) {
    if (path.empty() || !path_exists(path)) return;
    std::string content;
    try {
        content = read_file(path);
    } catch (const InputError&) {
        return;
    }
    std::istringstream lines(content);
    std::string line;
    if (!std::getline(lines, line) || line != versions) return;
    while (std::getline(lines, line)) {
        const size_t space = line.find(' ');
        if (space == std::string::npos) continue;
        if (const auto bytes = bytes_of(line.substr(space + 1))) plans_[line.substr(0, space)] = *bytes;
    }
}

const std::vector<uint8_t>* MatmulPlanCache::find(const std::string& key) const {
    const auto found = plans_.find(key);
    return found == plans_.end() ? nullptr : &found->second;
}

void MatmulPlanCache::add(const std::string& key, const std::vector<uint8_t>& algorithm) {
    CHECK(key.find_first_of(" \n") == std::string::npos && !algorithm.empty(), key);
    plans_[key] = algorithm;
    if (path_.empty()) return;
    std::string content = versions_ + "\n";
    for (const auto& [name, bytes] : plans_) content += name + " " + hex_of(bytes) + "\n";
    try {
        const size_t slash = path_.rfind('/');
        if (slash != std::string::npos && slash > 0) make_directories(path_.substr(0, slash));
        write_file_atomic(path_, content);
    } catch (const InputError&) {
        path_.clear();  // no home, no room: timed again next time
    }
}

std::string matmul_plan_path() {
    if (const char* path = std::getenv("INGOT_PLAN_CACHE")) return path;
    const char* home = std::getenv("HOME");
    return home != nullptr && *home != 0 ? cat({home, "/.cache/ingot/matmul_plans"}) : "";
}
#endif
