// Shards, their tokenizer and their documents.
#include "eval/documents.h"

#include <cstdio>

#include "core/io.h"

int32_t document_end(int64_t given, const ModelConfig& config) {
    return static_cast<int32_t>(given >= 0 ? given : config.eos_token);
}

void note_documents(const Loader& loader, const std::string& flag, int64_t given, bool mask) {
    if (!mask || given >= 0 || loader.shards().has_manifest()) return;
    if (loader.eot() >= 0) {
        std::fprintf(stderr, "%s: no manifest; documents end at token %d, the model's end of text (--eot)\n",
                     flag.c_str(), loader.eot());
    } else {
        std::fprintf(stderr, "%s: no manifest; documents are not masked from each other  hint: --eot ID\n",
                     flag.c_str());
    }
}

std::string tokenizer_of(const ShardSet& shards, const std::string& model_directory) {
    const bool own = !model_directory.empty() && path_exists(model_directory + "/tokenizer.json");
    return own ? model_directory : shards.tokenizer_path();
}
