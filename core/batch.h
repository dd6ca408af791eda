// A micro-batch: the only thing that data/ and model/ share.
#pragma once
#include <cstdint>
#include <vector>

struct Batch {
    int64_t num_rows = 0;            // B, rows of the micro-batch
    int64_t seq_len = 0;             // T, tokens per row; N = B * T
    std::vector<int32_t> tokens;     // [N] input ids
    std::vector<int32_t> targets;    // [N] next ids; -1: no loss here
    std::vector<int32_t> positions;  // [N] position inside the document, starting at 0
    std::vector<int32_t>
        cu_seqlens;  // [S+1] first token of each document piece, and N at the end; rows are boundaries too
    int64_t num_targets() const {
        int64_t n = 0;
        for (int32_t t : targets) n += t >= 0;
        return n;
    }
};

// Fills positions and cu_seqlens from tokens: a new document starts at each row and, when eot >= 0 and
// `mask_documents`, at each end-of-text token (which stands before its document).
void set_document_bounds(Batch& batch, int32_t eot, bool mask_documents = true);
