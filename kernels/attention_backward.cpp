// Training's attention, backward. With P = exp(scale S - lse) recomputed block by block, delta = rowsum(dO
// O):
//   dV = P^T dO,   dP = dO V^T,   dS = P (dP - delta),   dQ = scale dS K,   dK = scale dS^T Q
// One task is one document and one query head; it walks query tiles in order and, in each, key blocks in
// order. dK and dV of a document stay in the task's scratch. With grouped queries every query head keeps its
// own dK and dV, and a second pass adds them in the order of the heads: as many tasks as query heads, and the
// same bits for any number of threads.
#include <atomic>

#include "core/threads.h"
#include "kernels/attention_tiles.h"
#include "kernels/check.h"
#include "kernels/quantize.h"

namespace ISA_NAMESPACE {
namespace {

// Query tiles that share each block of keys and of their gradients while it is in cache.
constexpr int64_t kTilesAtOnce = 2;

struct BackwardProblem {
    int64_t num_tokens, num_heads, num_kv_heads, dim, max_length;
    Visibility visibility;
    float scale;
    int64_t group() const { return num_heads / num_kv_heads; }
};

// Everything of one query tile that does not depend on the keys.
struct GradientTile {
    int64_t first, rows;
    float *q_columns, *dout_columns;  // [row][kQueryBlock] words: vectors of queries
    float *q_rows, *dout_rows;        // [kQueryBlock / kPair][column] words: to be summed over queries
    float* dq;                        // [kQueryBlock][column]
    float* lse;                       // [kQueryBlock] in units of ln 2
    float* delta;                     // [kQueryBlock]
};

// One worker's memory.
struct BackwardScratch {
    float *k, *v;               // [max_length][row] words
    float* k_rows;              // [max_length / kPair][column] words: to be summed over keys
    float *dk, *dv;             // [max_length][column]
    float *scores, *gradients;  // [kKeyBlock][kQueryBlock] floats: S and dP; without pairs then P and dS
    float *p_rows, *ds_rows;    // [kKeyBlock][kQueryBlock / kPair] words, neighbours along queries
    float* ds_columns;          // [kKeyBlock / kPair][kQueryBlock] words, neighbours along keys
    float* staging;             // [kQueryBlock][row] words
    GradientTile tiles[kTilesAtOnce];
    int64_t floats;

    template <class Math>
    static BackwardScratch layout(float* start, const BackwardProblem& problem) {
        const Widths<Math> widths{problem.dim};
        const int64_t length = round_up(problem.max_length, kKeyBlock), block = kKeyBlock * kQueryBlock;
        Workspace workspace{start};
        BackwardScratch s;
        s.k = workspace.take(length * widths.row());
        s.v = workspace.take(length * widths.row());
        s.k_rows = Math::kPair == 1 ? s.k : workspace.take(length / Math::kPair * widths.column());
        s.dk = workspace.take(length * widths.column());
        s.dv = workspace.take(length * widths.column());
        s.scores = workspace.take(block);
        s.gradients = workspace.take(block);
        s.p_rows = Math::kPair == 1 ? s.scores : workspace.take(block / Math::kPair);
        s.ds_rows = Math::kPair == 1 ? s.gradients : workspace.take(block / Math::kPair);
        s.ds_columns = Math::kPair == 1 ? s.gradients : workspace.take(block / Math::kPair);
        s.staging = workspace.take(kQueryBlock * widths.row());
        for (GradientTile& tile : s.tiles) {
            tile.q_columns = workspace.take(widths.row() * kQueryBlock);
            tile.dout_columns = workspace.take(widths.row() * kQueryBlock);
            tile.q_rows = workspace.take(kQueryBlock / Math::kPair * widths.column());
            tile.dout_rows = workspace.take(kQueryBlock / Math::kPair * widths.column());
            tile.dq = workspace.take(kQueryBlock * widths.column());
            tile.lse = workspace.take(kQueryBlock);
            tile.delta = workspace.take(kQueryBlock);
        }
        s.floats = workspace.next - start;
        return s;
    }
};

// One query head of one document; pointers are to its first token's row of that head.
template <class T>
struct HeadGradient {
    const T *q, *k, *v, *out, *dout;
    const float* lse;
    T* dq;
    int64_t stride, out_stride;  // of q, k, v, dq; of out and dout
    int64_t length;
};

template <class Math, class T>
void load_tile(GradientTile& tile, const HeadGradient<T>& head, int64_t first, int64_t dim, float* staging) {
    const Widths<Math> widths{dim};
    tile.first = first;
    tile.rows = smaller(kQueryBlock, head.length - first);
    const int64_t padded = round_up(tile.rows, kWidth);
    const T* q = head.q + first * head.stride;
    const T* out = head.out + first * head.out_stride;
    const T* dout = head.dout + first * head.out_stride;
    pack_rows<Math>(staging, widths.row(), q, head.stride, tile.rows, padded, dim);
    transpose(tile.q_columns, kQueryBlock, staging, widths.row(), padded, widths.row());
    pack_rows<Math>(staging, widths.row(), dout, head.out_stride, tile.rows, padded, dim);
    transpose(tile.dout_columns, kQueryBlock, staging, widths.row(), padded, widths.row());
    pack_paired<Math>(tile.q_rows, widths.column(), q, head.stride, tile.rows, padded, dim);
    pack_paired<Math>(tile.dout_rows, widths.column(), dout, head.out_stride, tile.rows, padded, dim);
    for (int64_t i = 0; i < kQueryBlock * widths.column(); ++i) tile.dq[i] = 0;
    for (int64_t r = 0; r < kQueryBlock; ++r) {  // rows that pad have dO = 0 and Q = 0: they add nothing
        Vec sum{};
        for (int64_t c = 0; c < dim && r < tile.rows; c += kWidth) {
            const int64_t n = dim - c;
            // dO as the products see it, so that dP - delta of a token that sees only itself is zero.
            const Vec d = Math::operand(load_first(dout + r * head.out_stride + c, n));
            sum = fma(load_first(out + r * head.out_stride + c, n), d, sum);
        }
        tile.delta[r] = reduce_add(sum);
        tile.lse[r] = r < tile.rows ? head.lse[first + r] * kLog2E : 0.0f;
    }
}

// Without pairs P and dS replace S and dP; with pairs they go elsewhere, and one tile of S and dP is enough.
template <class Math>
constexpr int64_t score_row(int64_t r) {
    return Math::kPair == 1 ? r : 0;
}

// S and dP to P and dS, for kTileRows keys and the 16 queries of one column of vectors.
template <class Math, bool kMasked>
SIMD_INLINE void score_gradients(const BackwardScratch& s, int64_t first, int64_t c, const GradientTile& tile,
                                 int64_t first_query, int64_t first_key, const Visibility& visibility,
                                 Vec scale) {
    const Vec lse = load(tile.lse + c), delta = load(tile.delta + c);
    for (int64_t r = first; r < first + kTileRows; r += 2) {
        Vec p[2], ds[2];
        for (int i = 0; i < 2; ++i) {
            const int64_t at = (r + i) * kQueryBlock + c;
            const int64_t from = (score_row<Math>(first) + r + i - first) * kQueryBlock + c;
            p[i] = exp2(load(s.scores + from) * scale - lse);
            ds[i] = p[i] * (load(s.gradients + from) - delta);
            if constexpr (kMasked) {
                const VecI visible = visibility.mask(first_query, first_key + r + i);
                p[i] = select(visible, p[i], Vec{});
                ds[i] = select(visible, ds[i], Vec{});
            }
            if constexpr (Math::kPair == 1) {
                store(s.scores + at, Math::rounded(p[i]));
                store(s.gradients + at, Math::rounded(ds[i]));
            } else {
                store(reinterpret_cast<bf16*>(s.p_rows) + at, p[i]);
                store(reinterpret_cast<bf16*>(s.ds_rows) + at, ds[i]);
            }
        }
        if constexpr (Math::kPair == 2) {
            store(s.ds_columns + r / 2 * kQueryBlock + c, Math::pair_up(ds[0], ds[1]));
        }
    }
}

// Adds one block of kKeyBlock keys and one tile of queries to dq, dk and dv.
template <class Math>
void block_gradients(const BackwardScratch& s, const GradientTile& tile, int64_t first_key,
                     int64_t padded_rows, const BackwardProblem& problem) {
    static constexpr float kOnes[kTileRows] = {1, 1, 1, 1, 1, 1};
    const Widths<Math> widths{problem.dim};
    const int64_t row = widths.row(), column = widths.column();
    const int64_t first_query = tile.first, last_query = first_query + tile.rows - 1;
    const ColumnGroups groups{round_up(tile.rows, kWidth) / kWidth};
    const Vec scale = splat(problem.scale * kLog2E);
    for (int64_t g = 0; g < groups.count(); ++g) {
        const int64_t begin = groups.begin(g) * kWidth, end = begin + groups.size(g) * kWidth;
        const int64_t rows = score_rows(padded_rows, first_key, smaller(last_query, first_query + end - 1));
        for (int64_t r = 0; r < rows; r += kTileRows) {
            const int64_t key_words = (first_key + r) * row;
            const int64_t at = score_row<Math>(r) * kQueryBlock + begin;
            group_product<Math>(groups.size(g), s.scores + at, kQueryBlock, Fresh{},
                                {s.k + key_words, row, 1}, tile.q_columns + begin, kQueryBlock,
                                widths.inner());
            group_product<Math>(groups.size(g), s.gradients + at, kQueryBlock, Fresh{},
                                {s.v + key_words, row, 1}, tile.dout_columns + begin, kQueryBlock,
                                widths.inner());
            const bool masked = problem.visibility.partial(first_query + begin, first_query + end - 1,
                                                           first_key + r, first_key + r + kTileRows - 1);
            for (int64_t c = begin; c < end; c += kWidth) {
                (masked ? score_gradients<Math, true>
                        : score_gradients<Math, false>)(s, r, c, tile, first_query + c, first_key,
                                                        problem.visibility, scale);
            }
        }
    }
    const int64_t vecs = column / kWidth, query_words = kQueryBlock / Math::kPair;
    // dV, then dK: each keeps its own right-hand block in L1.
    const auto add_over_queries = [&](float* sums, const float* left, const float* right) {
        for (int64_t r = 0; r < padded_rows; r += kTileRows) {
            const int64_t start =
                larger(0, first_key + r - first_query) / Math::kPair;  // earlier ones see none
            const int64_t count = round_up(tile.rows, 2) / Math::kPair - start;
            if (count <= 0) break;
            row_product<Math>(vecs, sums + (first_key + r) * column, column, Rescaled{kOnes},
                              {left + r * query_words + start, query_words, 1}, right + start * column,
                              column, count);
        }
    };
    add_over_queries(s.dv, s.p_rows, tile.dout_rows);
    add_over_queries(s.dk, s.ds_rows, tile.q_rows);
    for (int64_t r = 0; r < tile.rows; r += kTileRows) {
        const int64_t seen = smaller(padded_rows, round_up(first_query + r + kTileRows - first_key, 2));
        if (seen <= 0) continue;
        row_product<Math>(vecs, tile.dq + r * column, column, Rescaled{kOnes},
                          {s.ds_columns + r, 1, kQueryBlock}, s.k_rows + first_key / Math::kPair * column,
                          column, seen / Math::kPair);
    }
}

template <class T>
void write_rows(T* to, int64_t to_stride, const float* from, int64_t from_stride, int64_t rows, int64_t dim,
                float scale) {
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < dim; c += kWidth) {
            store_first(to + r * to_stride + c, load(from + r * from_stride + c) * scale, dim - c);
        }
    }
}

// Leaves the sums of dk (without scale) and dv in the scratch, and dq in its place.
template <class Math, class T>
void head_gradient(BackwardScratch& s, const HeadGradient<T>& head, const BackwardProblem& problem) {
    const Widths<Math> widths{problem.dim};
    const int64_t padded_length = round_up(head.length, kTileRows);
    pack_rows<Math>(s.k, widths.row(), head.k, head.stride, head.length, padded_length, problem.dim);
    pack_rows<Math>(s.v, widths.row(), head.v, head.stride, head.length, padded_length, problem.dim);
    if constexpr (Math::kPair == 2) {
        pack_paired<Math>(s.k_rows, widths.column(), head.k, head.stride, head.length, padded_length,
                          problem.dim);
    }
    for (int64_t i = 0; i < padded_length * widths.column(); ++i) s.dk[i] = s.dv[i] = 0;
    for (int64_t chunk = 0; chunk < head.length; chunk += kTilesAtOnce * kQueryBlock) {
        int64_t count = 0;
        for (int64_t first = chunk; first < head.length && count < kTilesAtOnce; first += kQueryBlock) {
            load_tile<Math>(s.tiles[count++], head, first, problem.dim, s.staging);
        }
        const int64_t end_key = s.tiles[count - 1].first + s.tiles[count - 1].rows;
        int64_t key = problem.visibility.first_key(chunk) / kKeyBlock * kKeyBlock;
        for (; key < end_key; key += kKeyBlock) {
            const int64_t rows = smaller(kKeyBlock, head.length - key);
            for (int64_t i = 0; i < count; ++i) {
                const GradientTile& tile = s.tiles[i];
                if (key >= tile.first + tile.rows) continue;
                if (key + rows <= problem.visibility.first_key(tile.first)) continue;
                block_gradients<Math>(s, tile, key, round_up(rows, kTileRows), problem);
            }
        }
        for (int64_t i = 0; i < count; ++i) {
            const GradientTile& tile = s.tiles[i];
            write_rows(head.dq + tile.first * head.stride, head.stride, tile.dq, widths.column(), tile.rows,
                       problem.dim, problem.scale);
        }
    }
}

// The second pass of grouped queries: partial [2][H][N][D] holds every query head's dk and dv.
template <class T>
void add_groups(T* dqkv, const float* partial, const BackwardProblem& problem) {
    const int64_t dim = problem.dim, n = problem.num_tokens, h = problem.num_heads, k = problem.num_kv_heads;
    parallel_ranges(n, 64, [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token) {
            T* row = dqkv + token * (h + 2 * k) * dim + h * dim;
            for (int64_t i = 0; i < 2 * k; ++i) {  // K heads of dk, then K of dv
                const float* first = partial + (i * problem.group() * n + token) * dim;
                for (int64_t c = 0; c < dim; c += kWidth) {
                    Vec sum{};
                    for (int64_t j = 0; j < problem.group(); ++j) {
                        sum += load_first(first + j * n * dim + c, dim - c);
                    }
                    store_first(row + i * dim + c, i < k ? sum * problem.scale : sum, dim - c);
                }
            }
        }
    });
}

template <class Math, class T>
void backward(const Tensor& dqkv, const Tensor& dout, const Tensor& out, const Tensor& lse, const Tensor& qkv,
              const Tensor& cu_seqlens, const BackwardProblem& problem, const Tensor& scratch) {
    const int64_t n = problem.num_tokens, h = problem.num_heads, k = problem.num_kv_heads, dim = problem.dim;
    const int64_t stride = (h + 2 * k) * dim, num_documents = cu_seqlens.dims[0] - 1;
    const int32_t* bounds = cu_seqlens.as<int32_t>();
    float* partial = static_cast<float*>(scratch.data);
    float* workers = partial + (problem.group() > 1 ? round_up(2 * h * n * dim, 16) : 0);
    const int64_t floats_each = BackwardScratch::layout<Math>(nullptr, problem).floats;
    const int64_t column = Widths<Math>{dim}.column();
    std::atomic<int64_t> next_task{0};
    parallel_for(num_threads(), [&](int64_t worker) {
        BackwardScratch s = BackwardScratch::layout<Math>(workers + worker * floats_each, problem);
        for (int64_t task; (task = next_task.fetch_add(1, std::memory_order_relaxed)) < num_documents * h;) {
            const int64_t document = task / h, head = task % h, kv_head = head / problem.group();
            const int64_t first = bounds[document], length = bounds[document + 1] - first;
            if (length == 0) continue;
            const T* rows = qkv.as<T>() + first * stride;
            T* drows = dqkv.as<T>() + first * stride;
            const int64_t k_at = (h + kv_head) * dim, v_at = (h + k + kv_head) * dim;
            const int64_t out_at = (first * h + head) * dim;
            head_gradient<Math>(
                s,
                HeadGradient<T>{rows + head * dim, rows + k_at, rows + v_at, out.as<T>() + out_at,
                                dout.as<T>() + out_at, lse.as<float>() + head * n + first, drows + head * dim,
                                stride, h * dim, length},
                problem);
            if (problem.group() == 1) {
                write_rows(drows + k_at, stride, s.dk, column, length, dim, problem.scale);
                write_rows(drows + v_at, stride, s.dv, column, length, dim, 1.0f);
            } else {
                write_rows(partial + (head * n + first) * dim, dim, s.dk, column, length, dim, 1.0f);
                write_rows(partial + ((h + head) * n + first) * dim, dim, s.dv, column, length, dim, 1.0f);
            }
        }
    });
    if (problem.group() > 1) add_groups(dqkv.as<T>(), partial, problem);
}

BackwardProblem problem_of(int64_t num_tokens, int64_t max_length, int64_t dim, const AttentionShape& shape) {
    return {num_tokens, shape.num_heads, shape.num_kv_heads,       dim,
            max_length, {shape.window},  softmax_scale(shape, dim)};
}

}  // namespace

int64_t attention_backward_scratch_bytes(int64_t num_tokens, int64_t max_seqlen, int64_t head_dim,
                                         const AttentionShape& shape, Device) {
    const BackwardProblem problem = problem_of(num_tokens, max_seqlen, head_dim, shape);
    const int64_t each = larger(BackwardScratch::layout<Float32>(nullptr, problem).floats,
                                BackwardScratch::layout<Bfloat16>(nullptr, problem).floats);
    const int64_t partial =
        problem.group() > 1 ? round_up(2 * num_tokens * shape.num_heads * head_dim, 16) : 0;
    return (partial + each * num_threads()) * static_cast<int64_t>(sizeof(float));
}

void attention_backward(Tensor dqkv, Tensor dout, Tensor out, Tensor lse, Tensor qkv, Tensor cu_seqlens,
                        const AttentionShape& shape, MatmulMath math, Tensor scratch, Tensor absmax, Stream) {
    check_attention_backward(dqkv, dout, out, lse, qkv, cu_seqlens, shape, absmax);
    if (qkv.dims[0] == 0) return;
    int64_t max_length = 0;
    const int32_t* bounds = cu_seqlens.as<int32_t>();
    for (int64_t d = 0; d + 1 < cu_seqlens.dims[0]; ++d) {
        max_length = larger(max_length, bounds[d + 1] - bounds[d]);
    }
    const int64_t dim = out.dims[1] / shape.num_heads;
    const ArgumentCheck check{"attention_backward", Device::cpu};
    check.scratch(scratch, ISA_NAMESPACE::attention_backward_scratch_bytes(qkv.dims[0], max_length, dim,
                                                                           shape, Device::cpu));
    const BackwardProblem problem = problem_of(qkv.dims[0], max_length, dim, shape);
    const auto chosen = qkv.dtype == DType::bf16   ? backward<Bfloat16, bf16>
                        : math == MatmulMath::bf16 ? backward<Bfloat16, float>
                                                   : backward<Float32, float>;
    chosen(dqkv, dout, out, lse, qkv, cu_seqlens, problem, scratch);
    if (!absmax.absent()) raise_absmax(absmax, dqkv);
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(device, int64_t, attention_backward_scratch_bytes,
             (int64_t num_tokens, int64_t max_seqlen, int64_t head_dim, const AttentionShape& shape,
              Device device),
             (num_tokens, max_seqlen, head_dim, shape, device))
DEVICE_ENTRY(qkv.device, void, attention_backward,
             (Tensor dqkv, Tensor dout, Tensor out, Tensor lse, Tensor qkv, Tensor cu_seqlens,
              const AttentionShape& shape, MatmulMath math, Tensor scratch, Tensor absmax, Stream stream),
             (dqkv, dout, out, lse, qkv, cu_seqlens, shape, math, scratch, absmax, stream))
