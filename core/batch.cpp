// Where documents begin inside a micro-batch: attention and positions stop there.
#include "core/batch.h"

#include <limits>

#include "core/error.h"

void set_document_bounds(Batch& batch, int32_t eot, bool mask_documents) {
    const int64_t n = batch.num_rows * batch.seq_len;
    CHECK(static_cast<int64_t>(batch.tokens.size()) == n && n <= std::numeric_limits<int32_t>::max(),
          cat({"B=", batch.num_rows, " T=", batch.seq_len, " tokens=", batch.tokens.size()}));
    const bool split = mask_documents && eot >= 0;
    batch.positions.resize(static_cast<size_t>(n));
    batch.cu_seqlens.clear();
    int64_t start = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (i % batch.seq_len == 0 || (split && batch.tokens[i] == eot)) {
            start = i;
            batch.cu_seqlens.push_back(static_cast<int32_t>(i));
        }
        batch.positions[i] = static_cast<int32_t>(i - start);
    }
    batch.cu_seqlens.push_back(static_cast<int32_t>(n));
}
