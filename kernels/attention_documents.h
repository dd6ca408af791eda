// What all of the GPU's attention kernels share: the problem, who sees whom, and which tiles of which
// documents a block owns.
//
// Tiles are cut from each document's own first token, so a tile holds rows of one document only; what of it
// lies beyond the document's end is loaded as zeros. Neighbours in the batch can therefore neither change
// bits nor let a NaN through, as 0 * NaN in a masked product would. The grid knows nothing of documents (it
// may be replayed with others): it has a block for each kTile tokens of the batch, and that block owns the
// tiles that start among them, at most one of each document. It finds them in cu_seqlens on the device.
#pragma once
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/attention.h"
#include "kernels/gpu_absmax.h"

namespace GPU_NAMESPACE {

constexpr float kLog2E = 1.44269504088896341f;

// Positions count from the document's first token.
struct Visibility {
    int window;  // 0: unlimited
    __device__ bool sees(int query, int key) const {
        return key <= query && (window == 0 || query - key < window);
    }
    __device__ int first_key(int query) const { return window > 0 ? max(query - window + 1, 0) : 0; }
    // One behind the last query, of `length`, that sees the key.
    __device__ int end_query(int key, int length) const {
        return window > 0 ? min(key + window, length) : length;
    }
    // Of all pairs of these ranges (both ends included): is any seen; is any not?
    __device__ bool any(int first_query, int last_query, int first_key, int last_key) const {
        return first_key <= last_query && (window == 0 || first_query - last_key < window);
    }
    __device__ bool partial(int first_query, int last_query, int first_key, int last_key) const {
        return last_key > first_query || (window > 0 && last_query - first_key >= window);
    }
};

// Tensors and shape of one call.
template <class T>
struct AttentionProblem {
    const T *q, *k, *v;             // head 0 of the first token
    int64_t q_stride, kv_stride;    // between tokens
    const int32_t* bounds;          // cu_seqlens; null: one document
    int num_documents, num_tokens;  // tokens that have queries
    int past;                       // keys before the first query's own: query i stands at position past + i
    int num_heads, group;           // of queries; query heads per kv head
    int dim;                        // D
    Visibility visibility;
    float scale;
    bool aligned;      // all rows of all tensors allow 128-bit access
    uint32_t* absmax;  // null, or raised to the largest magnitude of what the pass stores; bf16 only

    __device__ int bound(int document) const {
        return bounds != nullptr ? bounds[document] : document * num_tokens;
    }
    // A row of out, dout: the heads of one token.
    __device__ int64_t out_stride() const { return int64_t{num_heads} * dim; }
    // What turns a score into a power of 2.
    __device__ float scale_log2() const { return scale * kLog2E; }
};

struct DocumentTile {
    int begin;   // the document's first token
    int length;  // its tokens
    int first;   // the tile's first row, counted from the document's first
};

// The tiles of kTile rows that start among tokens [range * kTile, (range + 1) * kTile):
//   OwnedTiles<64, T> tiles(problem, range);
//   for (DocumentTile tile; tiles.next(tile);) ...
// Every thread of a block goes through the same tiles.
template <int kTile, class T>
class OwnedTiles {
public:
    __device__ OwnedTiles(const AttentionProblem<T>& problem, unsigned range)
        : problem_(problem),
          begin_(static_cast<int>(range) * kTile),
          end_(begin_ < problem.num_tokens - kTile ? begin_ + kTile : problem.num_tokens),
          document_(document_of(begin_)) {}

    __device__ bool next(DocumentTile& tile) {
        while (document_ < problem_.num_documents) {
            tile.begin = problem_.bound(document_);
            if (tile.begin >= end_)
                return false;  // so are all that come behind, the empty ones at the end too
            ++document_;
            tile.length = problem_.bound(document_) - tile.begin;
            tile.first = tile.begin < begin_ ? (begin_ - tile.begin + kTile - 1) / kTile * kTile : 0;
            if (tile.first < end_ - tile.begin && tile.first < tile.length) return true;
        }
        return false;
    }

private:
    // The last document that starts at or before `token`. A warp looks at 32 places at a time: two dependent
    // loads for up to 1,024 documents.
    __device__ int document_of(int token) const {
        int low = 0, count = problem_.num_documents;  // it is one of [low, low + count)
        while (count > 1) {
            const int step = (count + kWarp - 1) / kWarp;
            const int place = static_cast<int>(threadIdx.x) % kWarp * step;
            const bool starts = place < count && problem_.bound(low + place) <= token;
            const int passed = (__popc(__ballot_sync(kAllLanes, starts)) - 1) * step;
            low += passed;
            count = min(step, count - passed);
        }
        return low;
    }

    const AttentionProblem<T>& problem_;
    const int begin_, end_;
    int document_;
};

// Blocks of a grid whose blocks own tiles of kTile rows.
inline unsigned num_ranges(int64_t num_tokens, int64_t tile) {
    return static_cast<unsigned>(ceil_div(num_tokens, tile));
}

// What depends on the shape alone; `dim` is D. No document has more keys than num_keys.
template <class T>
AttentionProblem<T> problem_of(const AttentionShape& shape, int64_t dim, int64_t num_tokens,
                               int64_t num_keys) {
    AttentionProblem<T> problem = {};
    problem.num_documents = 1;
    problem.num_tokens = static_cast<int>(num_tokens);
    problem.past = static_cast<int>(num_keys - num_tokens);
    problem.num_heads = static_cast<int>(shape.num_heads);
    problem.group = static_cast<int>(shape.num_heads / shape.num_kv_heads);
    problem.dim = static_cast<int>(dim);
    problem.visibility.window = static_cast<int>(shape.window < num_keys ? shape.window : 0);
    problem.scale = shape.scale != 0 ? shape.scale : 1.0f / std::sqrt(static_cast<float>(dim));
    return problem;
}

// The problem of a training pass; `others`: its tensors beside qkv.
template <class T, class... Tensors>
AttentionProblem<T> training_problem(const Tensor& qkv, const Tensor& cu_seqlens, const AttentionShape& shape,
                                     const Tensor& absmax, const Tensors&... others) {
    const int64_t h = shape.num_heads, k = shape.num_kv_heads, dim = qkv.dims[1] / (h + 2 * k);
    AttentionProblem<T> problem = problem_of<T>(shape, dim, qkv.dims[0], qkv.dims[0]);
    problem.q = qkv.as<T>();
    problem.k = problem.q + h * dim;
    problem.v = problem.k + k * dim;
    problem.q_stride = problem.kv_stride = qkv.dims[1];
    problem.bounds = cu_seqlens.as<int32_t>();
    problem.num_documents = static_cast<int>(cu_seqlens.dims[0] - 1);
    problem.aligned = is_aligned128(qkv.data, others.data...);
    if (sizeof(T) == 2) problem.absmax = absmax_bits(absmax);
    return problem;
}

// The forward pass (attention.cu, attention_f32.cu), of a batch of documents or of queries behind a cache.
// out [num_tokens, H*D]; lse [H, num_tokens] or null.
template <class T>
void forward_on_tensor_cores(const AttentionProblem<T>& problem, T* out, float* lse, Stream stream);
void forward_in_f32(const AttentionProblem<float>& problem, float* out, float* lse, Stream stream);

// Gradients and what they come from. Rows of dq, dk and dv lie as those of q, k and v.
template <class T>
struct BackwardTensors {
    T *dq, *dk, *dv;
    const T* dout;
    const float *lse, *delta;  // [H, num_tokens]; delta = rowsum(dout * out)
};
void backward_in_f32(const AttentionProblem<float>& problem, const BackwardTensors<float>& tensors,
                     Stream stream);  // attention_f32.cu

}  // namespace GPU_NAMESPACE
