// What shards mean to a model: which tokenizer made them, and where their documents end. Shards that do not
// say it themselves (llm.c's have no manifest) end documents at the id that the user gives, else at the
// model's own end of text.
#pragma once
#include <cstdint>
#include <string>

#include "data/loader.h"
#include "model/config.h"

// The end-of-text id to hand to a loader; given: --eot, -1 when there was none.
int32_t document_end(int64_t given, const ModelConfig& config);
// One line on stderr when documents are told apart by the model's id, or not at all, though `mask` asks for
// it.
void note_documents(const Loader& loader, const std::string& flag, int64_t given, bool mask);

// The directory of the tokenizer: the model's own, if its directory ("": none) has one, else the copy beside
// the shards; "" when there is none. ShardSet::require_tokenizer says whether it is the right one.
std::string tokenizer_of(const ShardSet& shards, const std::string& model_directory);
