// The library's algorithm for each kind of product, chosen once by timing and kept in a file, so that a later
// run neither times again nor rounds otherwise. Text: the versions in the first line, then a key and the
// algorithm's bytes in hexadecimal on each. A file of other versions, or one that is damaged, counts as none.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

class MatmulPlanCache {
public:
    // `versions`: whatever an algorithm depends on (library, GPU). An empty path keeps the plans in memory
    // only.
    MatmulPlanCache(const std::string& path, const std::string& versions);
    // Null when there is none.
    const std::vector<uint8_t>* find(const std::string& key) const;
    // Remembers, and writes the file; a failure to write it is no failure.
    void add(const std::string& key, const std::vector<uint8_t>& algorithm);

private:
    std::string path_, versions_;
    std::map<std::string, std::vector<uint8_t>> plans_;
};

// $INGOT_PLAN_CACHE, else ~/.cache/ingot/matmul_plans; empty where there is no home.
std::string matmul_plan_path();
