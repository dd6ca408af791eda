// What a document must pass, in order. A stage looks at one document at a time (so stages run on all threads)
// and may mend it; what needs to know the other documents (duplicates) comes after the list, in
// data/curate.cpp.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/document.h"

struct Stage {
    std::string name;
    std::string promise;                          // one sentence for the manifest
    std::function<std::string(Document&)> apply;  // "" to keep, or the reason to refuse
};

struct StageOptions {
    int64_t min_document_bytes = 32;
};

std::vector<Stage> document_stages(const StageOptions& options);
