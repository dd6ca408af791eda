// The matrix product on the CPU. Of the two operands the smaller one is packed once and shared by all
// threads: whoever first needs a part of it packs that part. The other is cut into strips; a thread packs its
// next strip block by block into its own cache, piece by piece between the tiles of the present one, so that
// memory is waited for while the FMA units work. Nothing is packed twice. Every sum runs through the inner
// index from first to last in one chain of FMAs, whatever the blocking: that is why the bits depend neither
// on threads nor on a row's place.
#include "kernels/matmul.h"

#include <algorithm>
#include <atomic>

#include "core/threads.h"
#include "kernels/check.h"
#include "kernels/matmul_pack.h"
#include "kernels/matmul_scratch.h"
#include "kernels/matmul_store.h"
#include "kernels/matmul_tile.h"
#include "kernels/on_demand.h"

#ifdef ISA_PLAIN
void check_matmul_forward(Tensor out, Tensor inp, Tensor weight, const MatmulEpilogue& epilogue) {
    const ArgumentCheck check{"matmul_forward", out.device};
    check.floats("out", out, {-1, -1});
    const int64_t num_rows = out.dims[0], num_outputs = out.dims[1];
    check.floats("inp", inp, {num_rows, -1});
    check.floats("weight", weight, {num_outputs, inp.dims[1]});
    if (!epilogue.bias.absent()) check.floats("bias", epilogue.bias, {num_outputs});
    if (!epilogue.residual.absent()) check.floats("residual", epilogue.residual, {num_rows, num_outputs});
    if (epilogue.gelu) check.floats("pre_activation", epilogue.pre_activation, {num_rows, num_outputs});
}

void check_matmul_backward_input(Tensor dinp, Tensor dout, Tensor weight, Tensor gelu_pre) {
    const ArgumentCheck check{"matmul_backward_input", dinp.device};
    check.floats("dinp", dinp, {-1, -1});
    check.floats("dout", dout, {dinp.dims[0], -1});
    check.floats("weight", weight, {dout.dims[1], dinp.dims[1]});
    if (!gelu_pre.absent()) check.floats("gelu_pre", gelu_pre, {dinp.dims[0], dinp.dims[1]});
}

void check_matmul_backward_weight(Tensor dweight, Tensor dbias, Tensor dout, Tensor inp) {
    const ArgumentCheck check{"matmul_backward_weight", dweight.device};
    check.tensor("dweight", dweight, DType::f32, {-1, -1});
    check.floats("dout", dout, {-1, dweight.dims[0]});
    check.floats("inp", inp, {dout.dims[0], dweight.dims[1]});
    if (!dbias.absent()) check_matmul_backward_bias(dbias, dout);
}

void check_matmul_backward_bias(Tensor dbias, Tensor dout) {
    const ArgumentCheck check{"matmul_backward_bias", dbias.device};
    check.floats("dout", dout, {-1, -1});
    check.tensor("dbias", dbias, DType::f32, {dout.dims[1]});
}

void check_matmul_general(Tensor c, Tensor a, Tensor b, bool b_transposed, float beta, Tensor d) {
    const ArgumentCheck check{"matmul_general", c.device};
    check.floats("c", c, {-1, -1});
    check.floats("a", a, {c.dims[0], -1});
    if (b_transposed) {
        check.floats("b", b, {c.dims[1], a.dims[1]});
    } else {
        check.floats("b", b, {a.dims[1], c.dims[1]});
    }
    if (beta != 0) check.floats("d", d, {c.dims[0], c.dims[1]});
}
#endif

namespace ISA_NAMESPACE {
namespace {

constexpr int64_t kTileSums = kTileRows * kTileCols;
constexpr int64_t kCacheLineFloats = 16;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// The width of the pieces when `size` is cut into as few as possible of at most `most`, all but equally wide.
int64_t even_width(int64_t size, int64_t most, int64_t multiple) {
    const int64_t pieces = ceil_div(size, most);
    return ceil_div(ceil_div(size, pieces), multiple) * multiple;
}

// RowsShared: the rows' operand is the shared one and strips are columns; otherwise the reverse.
template <class Units, bool RowsShared>
class Product {
public:
    Product(const Operand& rows, const Operand& columns, const Output& output, int64_t inner)
        : shared_(RowsShared ? rows : columns),
          stripped_(RowsShared ? columns : rows),
          output_(output),
          inner_(inner),
          shared_size_(output.out.dims[RowsShared ? 0 : 1]),
          strips_size_(output.out.dims[RowsShared ? 1 : 0]),
          num_blocks_(std::max<int64_t>(1, ceil_div(inner, kBlockElements))),
          in_place_(output.plain() && output.out.dtype == DType::f32) {
        stream_ = output.read_much_later && output.out.bytes() >= kStreamBytes &&
                  output.stride() % kCacheLineFloats == 0 &&
                  reinterpret_cast<uintptr_t>(output.out.data) % 64 == 0;
        const int64_t threads = num_threads();
        shared_width_ = even_width(shared_size_, kSharedWidth, kTileCols);
        phase_blocks_ =
            even_width(num_blocks_, std::max<int64_t>(1, kSharedUnits / (shared_width_ * kBlockUnits)), 1);
        num_phases_ = ceil_div(num_blocks_, phase_blocks_);
        // Sums that outlive a phase must all be kept.
        constexpr int64_t kWidestStrip = kTileCols * kStripTiles;
        const int64_t kept = kPartialSums / shared_width_ / kWidestStrip * kWidestStrip;
        sweep_width_ = even_width(strips_size_, num_phases_ == 1 ? strips_size_ : kept, kTileCols);
        // Narrow strips balance better, wide ones read memory in longer runs.
        constexpr int64_t kTasksPerThread = 8;
        strip_width_ = kTileCols * std::clamp<int64_t>(sweep_width_ / (kTileCols * threads * kTasksPerThread),
                                                       1, kStripTiles);
        // Too few strips for the threads: then several tasks pack the same strip, each for a part of the
        // rest.
        const int64_t strips = ceil_div(sweep_width_, strip_width_);
        part_width_ =
            even_width(shared_width_, ceil_div(shared_width_, ceil_div(threads, strips)), kTileCols);
    }

    void run() {
        packed_ = matmul_scratch(MatmulScratch::shared, shared_width_ * std::min(num_blocks_, phase_blocks_) *
                                                            std::min(kBlockUnits, all_units()));
        if (num_phases_ > 1) {
            kept_sums_ = matmul_scratch(MatmulScratch::partial,
                                        shared_width_ * ceil_div(sweep_width_, strip_width_) * strip_width_);
        }
        const Range all_shared{0, shared_size_}, all_strips{0, strips_size_};
        for (int64_t i = 0; i * shared_width_ < shared_size_; ++i) {
            const Range shared = all_shared.piece(i, shared_width_);
            for (int64_t j = 0; j * sweep_width_ < strips_size_; ++j) {
                const Range sweep = all_strips.piece(j, sweep_width_);
                for (int64_t phase = 0; phase < num_phases_; ++phase) {
                    const Range blocks = Range{0, num_blocks_}.piece(phase, phase_blocks_);
                    if (j == 0 || num_phases_ > 1) groups_.forget(blocks.size * groups_of(shared.size));
                    multiply_strips(shared, sweep, blocks);
                }
            }
        }
    }

private:
    static constexpr int kSharedPanel = RowsShared ? kTileRows : kTileCols;
    static constexpr int kStripPanel = RowsShared ? kTileCols : kTileRows;
    // Shared panels are packed in groups that fill whole vectors.
    static constexpr int kSharedGroup = std::max(kSharedPanel, kWidth);
    static constexpr int64_t kBlockElements = kBlockUnits * Units::kElements;
    using SharedPacking = PieceByPiece<Units, kSharedPanel>;
    using StripPacking = PieceByPiece<Units, kStripPanel>;
    static_assert(kTileCols % kSharedGroup == 0);

    int64_t all_units() const { return ceil_div(inner_, Units::kElements); }
    Range block_inner(int64_t block) const { return Range{0, inner_}.piece(block, kBlockElements); }
    int64_t block_units(int64_t block) const { return ceil_div(block_inner(block).size, Units::kElements); }
    // Packed blocks of one phase follow each other; only the very last one may be short.
    float* packed_block(int64_t block_of_phase) const {
        return packed_ + block_of_phase * kBlockUnits * shared_width_;
    }
    static int64_t groups_of(int64_t shared_size) { return ceil_div(shared_size, kSharedGroup); }
    SharedPacking shared_packing(Range shared, Range blocks, int64_t block, int64_t group) const {
        return {shared_, shared.piece(group, kSharedGroup), block_inner(block),
                packed_block(block - blocks.begin) + group * kSharedGroup * block_units(block)};
    }

    // What one thread multiplies at a time: a strip with a part of the shared operand, over one block of the
    // inner dimension.
    struct Item {
        int64_t index = 0;  // of the strip
        Range strip{}, part{};
        int64_t block = -1;  // none
        bool exists() const { return block >= 0; }
    };

    void multiply_strips(Range shared, Range sweep, Range blocks) {
        const int64_t parts = ceil_div(shared.size, part_width_);
        const int64_t num_tasks = ceil_div(sweep.size, strip_width_) * parts;
        const int64_t num_workers = std::min<int64_t>(num_threads(), num_tasks);
        std::atomic<int64_t> next_task{0};
        const auto claim = [&]() -> Item {
            const int64_t task = next_task.fetch_add(1, std::memory_order_relaxed);
            if (task >= num_tasks) return {};
            return {task / parts, sweep.piece(task / parts, strip_width_),
                    shared.piece(task % parts, part_width_), blocks.begin};
        };
        const auto after = [&](Item item) -> Item {
            if (++item.block < blocks.begin + blocks.size) return item;
            return claim();
        };
        // A thread claims its next item early and packs it while it multiplies this one.
        parallel_for(num_workers, [&](int64_t worker) {
            float* const scratch = matmul_scratch(
                MatmulScratch::strip, (2 * kBlockUnits + (num_blocks_ > 1 ? part_width_ : 0)) * strip_width_);
            float* packed[2] = {scratch, scratch + kBlockUnits * strip_width_};
            const auto packing_of = [&](const Item& item, float* to) -> StripPacking {
                if (!item.exists()) return {};
                return {stripped_, item.strip, block_inner(item.block), to};
            };
            Item item = claim();
            packing_of(item, packed[0]).pack_all();
            while (item.exists()) {
                const Item next = after(item);
                StripPacking packing = packing_of(next, packed[1]);
                // Layout of the sums: tiles of [kTileRows][kTileCols], by shared panel, then by strip panel.
                float* sums = scratch + 2 * kBlockUnits * strip_width_;
                if (num_phases_ > 1) {
                    const int64_t at = item.index * shared_width_ + item.part.begin - shared.begin;
                    sums = kept_sums_ + at * strip_width_;
                }
                // Each thread begins elsewhere, so that they do not wait for each other's packing.
                const int64_t first_group = groups_of(item.part.size) * worker / num_workers;
                multiply_block(shared, blocks, item, first_group, packed[0], sums, packing);
                std::swap(packed[0], packed[1]);
                item = next;
            }
            if (stream_) end_stores();
        });
    }

    // All tiles of part x strip for one block. The shared panel is the outer loop: a row panel then stays in
    // the first-level cache, a column panel in the second.
    void multiply_block(Range shared, Range blocks, const Item& item, int64_t first_group,
                        const float* packed_strip, float* sums, StripPacking& packing) {
        const Range part = item.part, strip = item.strip;
        const int64_t units = block_units(item.block), steps = std::max<int64_t>(1, units / kReadAheadUnits);
        const int64_t strip_panels = ceil_div(strip.size, kStripPanel);
        const int64_t num_groups = groups_of(part.size),
                      groups_before = (part.begin - shared.begin) / kSharedGroup;
        // Every tile is followed by its share of the pieces, and fetches their lines.
        const int64_t num_tiles = ceil_div(part.size, kSharedPanel) * strip_panels;
        const int64_t tiles_per_group = kSharedGroup / kSharedPanel * strip_panels;
        const int64_t pieces = packing.num_pieces();
        const int64_t strip_lines = ceil_div(ceil_div(pieces, num_tiles) * packing.lines_per_piece(), steps);
        int64_t tiles_done = 0;
        ReadAheads ahead;
        for (int64_t i = 0; i < num_groups; ++i) {
            const int64_t group = (first_group + i) % num_groups, next = (group + 1) % num_groups;
            const int64_t number = groups_before + (item.block - blocks.begin) * groups_of(shared.size);
            groups_.ensure(number + group, [&] {
                shared_packing(shared, blocks, item.block, groups_before + group).pack_all();
            });
            ahead.shared = {};
            if (!groups_.begun(number + next)) {
                const SharedPacking next_packing =
                    shared_packing(shared, blocks, item.block, groups_before + next);
                const int64_t lines = next_packing.num_pieces() * next_packing.lines_per_piece();
                ahead.shared = next_packing.read_ahead(
                    next_packing.num_pieces(), static_cast<int>(ceil_div(lines, steps * tiles_per_group)));
            }
            const float* packed_group =
                packed_block(item.block - blocks.begin) + (groups_before + group) * kSharedGroup * units;
            const int64_t end = std::min<int64_t>(part.size, (group + 1) * kSharedGroup);
            for (int64_t s = group * kSharedGroup; s < end;
                 s += kSharedPanel, packed_group += kSharedPanel * units) {
                for (int64_t t = 0; t < strip_panels; ++t) {
                    const int64_t due = ceil_div(++tiles_done * pieces, num_tiles);
                    if (due > packing.num_packed())
                        ahead.strip = packing.read_ahead(due, static_cast<int>(strip_lines));
                    multiply_one(item, s, t * kStripPanel, units, packed_group,
                                 packed_strip + t * kStripPanel * units,
                                 sums + (s / kSharedPanel * strip_panels + t) * kTileSums, ahead);
                    packing.pack_until(due);
                }
            }
        }
    }

    // The tile at shared index s of the part and strip index t.
    void multiply_one(const Item& item, int64_t s, int64_t t, int64_t units, const float* shared_panel,
                      const float* strip_panel, float* sums, ReadAheads& ahead) const {
        alignas(64) float finished[kTileSums];
        const bool first = item.block == 0, last = item.block + 1 == num_blocks_;
        const int64_t row = RowsShared ? item.part.begin + s : item.strip.begin + t;
        const int64_t column = RowsShared ? item.strip.begin + t : item.part.begin + s;
        const int64_t rows = std::min<int64_t>(kTileRows, output_.out.dims[0] - row);
        const int64_t columns = std::min<int64_t>(kTileCols, output_.out.dims[1] - column);
        const bool direct = last && in_place_ && rows == kTileRows && columns == kTileCols;
        float* to = last ? finished : sums;
        int64_t to_stride = kTileCols;
        if (direct) {
            to = static_cast<float*>(output_.out.data) + row * output_.stride() + column;
            to_stride = output_.stride();
        }
        if (last && !(direct && stream_)) fetch_tile(output_, row, rows, column, columns);
        const float* row_panel = RowsShared ? shared_panel : strip_panel;
        const float* column_panel = RowsShared ? strip_panel : shared_panel;
        multiply_tile_rows<Units>(rows, reinterpret_cast<const uint32_t*>(row_panel),
                                  reinterpret_cast<const uint32_t*>(column_panel), units,
                                  first ? nullptr : sums, to, to_stride, direct && stream_, ahead);
        if (last && !direct) store_tile(output_, finished, row, rows, column, columns);
    }

    const Operand shared_, stripped_;
    const Output& output_;
    const int64_t inner_, shared_size_, strips_size_, num_blocks_;
    int64_t shared_width_, sweep_width_, strip_width_, part_width_;
    int64_t phase_blocks_, num_phases_;
    const bool in_place_;  // tiles can go straight to out
    bool stream_;          // ... and past the caches
    OnDemand groups_;      // of shared panels, of the blocks of one phase
    float* packed_ = nullptr;
    float* kept_sums_ = nullptr;
};

template <class Units>
void multiply_units(const Operand& rows, const Operand& columns, const Output& output, int64_t inner) {
    if (output.out.size() == 0) return;
    if (output.out.dims[0] <= output.out.dims[1]) {
        Product<Units, true>(rows, columns, output, inner).run();
    } else {
        Product<Units, false>(rows, columns, output, inner).run();
    }
}
void multiply(const Operand& rows, const Operand& columns, const Output& output, int64_t inner,
              MatmulMath math) {
    const bool both_bf16 = rows.dtype == DType::bf16 && columns.dtype == DType::bf16;
    if (math == MatmulMath::bf16 || both_bf16) {
        multiply_units<Bf16Units>(rows, columns, output, inner);
    } else {
        multiply_units<FloatUnits<false>>(rows, columns, output, inner);
    }
}

Operand by_row(const Tensor& t) { return {t.data, t.dtype, t.dims[1], true}; }
Operand by_column(const Tensor& t) { return {t.data, t.dtype, t.dims[1], false}; }

// sums[o] (+)= sum_n dout[n,o], n ascending.
template <class T>
void column_sums(float* sums, const T* dout, int64_t num_rows, int64_t num_columns, bool accumulate) {
    constexpr int kVectors = 4;  // independent chains, and whole cache lines of bf16
    constexpr int64_t kRowsAhead = 16, kLine = 64 / sizeof(T);  // rows lie too far apart for the hardware
    parallel_ranges(num_columns, kVectors * kWidth, [&](int64_t begin, int64_t end) {
        Vec sum[kVectors] = {};
        for (int64_t row = 0; row < num_rows; ++row) {
            for (int64_t column = begin; column < end; column += kLine) {
                __builtin_prefetch(dout + (row + kRowsAhead) * num_columns + column);
            }
            for (int v = 0; v < kVectors; ++v) {
                const int64_t column = begin + v * kWidth;
                if (column < end) sum[v] += load_first(dout + row * num_columns + column, end - column);
            }
        }
        for (int v = 0; v < kVectors; ++v) {
            const int64_t column = begin + v * kWidth;
            if (column >= end) break;
            if (accumulate) sum[v] += load_first(sums + column, end - column);
            store_first(sums + column, sum[v], end - column);
        }
    });
}

}  // namespace

void matmul_forward(Tensor out, Tensor inp, Tensor weight, const MatmulEpilogue& epilogue, MatmulMath math,
                    Stream) {
    check_matmul_forward(out, inp, weight, epilogue);
    Output output{.out = out, .bias = epilogue.bias, .addend = epilogue.residual};
    if (epilogue.gelu) output.pre_activation = epilogue.pre_activation;
    multiply(by_row(inp), by_row(weight), output, inp.dims[1], math);
}

void matmul_backward_input(Tensor dinp, Tensor dout, Tensor weight, bool accumulate, Tensor gelu_pre,
                           MatmulMath math, Stream) {
    check_matmul_backward_input(dinp, dout, weight, gelu_pre);
    Output output{.out = dinp, .gelu_pre = gelu_pre};
    if (accumulate) output.addend = dinp;
    multiply(by_row(dout), by_column(weight), output, dout.dims[1], math);
}

void matmul_backward_weight(Tensor dweight, Tensor dbias, Tensor dout, Tensor inp, bool accumulate,
                            MatmulMath math, Stream) {
    check_matmul_backward_weight(dweight, dbias, dout, inp);
    Output output{.out = dweight, .read_much_later = true};
    if (accumulate) output.addend = dweight;
    multiply(by_column(dout), by_column(inp), output, dout.dims[0], math);
    if (!dbias.absent()) matmul_backward_bias(dbias, dout, accumulate, {});
}

void matmul_backward_bias(Tensor dbias, Tensor dout, bool accumulate, Stream) {
    check_matmul_backward_bias(dbias, dout);
    if (dout.dtype == DType::f32) {
        column_sums(dbias.as<float>(), dout.as<float>(), dout.dims[0], dout.dims[1], accumulate);
    } else {
        column_sums(dbias.as<float>(), dout.as<bf16>(), dout.dims[0], dout.dims[1], accumulate);
    }
}

void matmul_general(Tensor c, Tensor a, Tensor b, bool b_transposed, float alpha, float beta, Tensor d,
                    MatmulMath math, Stream) {
    check_matmul_general(c, a, b, b_transposed, beta, d);
    Output output{.out = c, .scale = alpha, .addend_scale = beta};
    if (beta != 0) output.addend = d;
    multiply(by_row(a), b_transposed ? by_row(b) : by_column(b), output, a.dims[1], math);
}

}  // namespace ISA_NAMESPACE

DEVICE_ENTRY(out.device, void, matmul_forward,
             (Tensor out, Tensor inp, Tensor weight, const MatmulEpilogue& epilogue, MatmulMath math,
              Stream stream),
             (out, inp, weight, epilogue, math, stream))
DEVICE_ENTRY(dinp.device, void, matmul_backward_input,
             (Tensor dinp, Tensor dout, Tensor weight, bool accumulate, Tensor gelu_pre, MatmulMath math,
              Stream stream),
             (dinp, dout, weight, accumulate, gelu_pre, math, stream))
DEVICE_ENTRY(dweight.device, void, matmul_backward_weight,
             (Tensor dweight, Tensor dbias, Tensor dout, Tensor inp, bool accumulate, MatmulMath math,
              Stream stream),
             (dweight, dbias, dout, inp, accumulate, math, stream))
DEVICE_ENTRY(dbias.device, void, matmul_backward_bias,
             (Tensor dbias, Tensor dout, bool accumulate, Stream stream), (dbias, dout, accumulate, stream))
DEVICE_ENTRY(c.device, void, matmul_general,
             (Tensor c, Tensor a, Tensor b, bool b_transposed, float alpha, float beta, Tensor d,
              MatmulMath math, Stream stream),
             (c, a, b, b_transposed, alpha, beta, d, math, stream))
