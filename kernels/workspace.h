// Device memory that GPU kernels keep for themselves where their contracts have no argument for it: sums over
// parts, sorted indices. Each use has a block of its own. How large it must be is said here by pure functions
// of the shape, for the kernels and for the memory plan alike; a model reserves its blocks when it is made,
// so nothing grows while it trains. Split products: kernels/matmul_plan.h.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>

#include "core/tensor.h"

enum class Workspace : uint8_t {
    sorted_ids,   // of the embedding's backward pass
    norm_sums,    // of dw and db over chunks of rows: LayerNorm, RMSNorm
    qknorm_sums,  // likewise
    column_sums,  // of biases' gradients over parts of rows
    split_sums,   // of products over parts of the inner dimension
    square_sums,  // of gradients, by blocks
    scalar,       // a result on its way to the host
    library,      // cuBLASLt's
};
constexpr int kNumWorkspaces = static_cast<int>(Workspace::library) + 1;

// Bytes of each; 0: not used.
class WorkspaceSizes {
public:
    int64_t& operator[](Workspace use) { return bytes_[static_cast<size_t>(use)]; }
    int64_t operator[](Workspace use) const { return bytes_[static_cast<size_t>(use)]; }
    // As large as the largest asked for.
    void need(Workspace use, int64_t bytes) {
        if ((*this)[use] < bytes) (*this)[use] = bytes;
    }
    int64_t total() const {
        int64_t sum = 0;
        for (const int64_t bytes : bytes_) sum += bytes;
        return sum;
    }

private:
    std::array<int64_t, kNumWorkspaces> bytes_{};
};

// At least `bytes` of the device's memory, 256-byte aligned, contents undefined. What was not reserved grows
// to the largest size asked for; the old blocks stay, since kernels under way and captured graphs may still
// use them. Ops of one use must run on one stream.
void* device_workspace(Device device, Workspace use, int64_t bytes);
// InputError when there is no room.
void reserve_workspaces(Device device, const WorkspaceSizes& sizes);
WorkspaceSizes allocated_workspaces(Device device);
// For tests: waits for the device and gives all of it back. No graph may be launched again.
void release_workspaces(Device device);

// ---- how large ----

constexpr int64_t kFloatBytes = 4;
constexpr int64_t pieces_of(int64_t count, int64_t piece) { return (count + piece - 1) / piece; }

constexpr int64_t kSortDigits = 512;                      // of a pass
constexpr int64_t kSortBlockTokens = 2048;                // of a block
constexpr int64_t sorted_ids_bytes(int64_t num_tokens) {  // ids and indices twice, and the blocks' counts
    return (4 * num_tokens + pieces_of(num_tokens, kSortBlockTokens) * kSortDigits) * dtype_bytes(DType::i32);
}

// Rows cut into chunks whose sums are rows again: of at least four rows, lest their sums be more than they.
struct RowCut {
    int64_t rows_per_chunk, num_chunks;
};
constexpr RowCut cut_rows(int64_t num_rows, int64_t max_chunks) {
    constexpr int64_t kLeastRows = 4;
    const int64_t rows_per_chunk =
        num_rows > max_chunks * kLeastRows ? pieces_of(num_rows, max_chunks) : kLeastRows;
    return {rows_per_chunk, pieces_of(num_rows, rows_per_chunk)};
}

constexpr int64_t kNormThreads = 512;  // of a block, at most
constexpr int64_t norm_backward_threads(int64_t packs_per_row) {
    return packs_per_row < kNormThreads ? pieces_of(packs_per_row, 32) * 32 : kNormThreads;
}
// All blocks run at once: 512 threads fit a multiprocessor's registers, and Hoppers have 132 of those.
constexpr RowCut norm_backward_cut(int64_t num_rows, int64_t packs_per_row) {
    return cut_rows(num_rows, 128 * (kNormThreads / norm_backward_threads(packs_per_row)));
}
// num_sums: 2 for LayerNorm (dw and db), 1 for RMSNorm. For 128-bit packs: smaller ones make fewer chunks.
constexpr int64_t norm_sums_bytes(int64_t num_rows, int64_t channels, DType dtype, int64_t num_sums) {
    const int64_t packs = pieces_of(channels * dtype_bytes(dtype), 16);
    return norm_backward_cut(num_rows, packs).num_chunks * num_sums * channels * kFloatBytes;
}

// As many blocks as run at once on 132 multiprocessors, four each.
constexpr RowCut qknorm_backward_cut(int64_t num_tokens) { return cut_rows(num_tokens, 512); }
constexpr int64_t qknorm_sums_bytes(int64_t num_tokens, int64_t head_dim) {
    return qknorm_backward_cut(num_tokens).num_chunks * 2 * head_dim * kFloatBytes;
}

// A block sums kSumColumns columns; as many blocks as fill the largest GPUs (132 multiprocessors of 2048
// threads), each of at least kLeastSumRows rows.
constexpr int64_t kSumColumns = 256, kSumBlocks = 1056, kLeastSumRows = 32;
constexpr int64_t column_sum_parts(int64_t rows, int64_t columns) {
    const int64_t across = pieces_of(columns, kSumColumns);
    const int64_t most = std::max<int64_t>(1, rows / kLeastSumRows);
    return std::clamp<int64_t>(across > 0 ? kSumBlocks / across : 1, 1, most);
}
constexpr int64_t column_sums_bytes(int64_t rows, int64_t columns) {
    const int64_t parts = column_sum_parts(rows, columns);
    return parts > 1 ? parts * columns * kFloatBytes : 0;
}

constexpr int64_t kSquareSumBlocks = 1024;
constexpr int64_t square_sums_bytes() { return kSquareSumBlocks * dtype_bytes(DType::f64); }
constexpr int64_t kScalarBytes = 8;
constexpr int64_t kLibraryBytes = int64_t{32} << 20;  // what NVIDIA recommends for Hopper
