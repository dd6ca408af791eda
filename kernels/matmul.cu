// The matrix products of training on the GPU: what each op asks of the product (matmul_gpu.h), products whose
// inner dimension is split, and the sums of columns. The products themselves are in matmul_mma.cu (tensor
// cores), matmul_fp8.cu, matmul_hopper.cu and matmul_hopper_fp8.cu (those of Hopper), matmul_ffma.cu (f32)
// and matmul_cublaslt.cu (the library, where there is one).
#include "kernels/matmul.h"

#include "kernels/gpu.h"
#include "kernels/matmul_gpu.h"
#include "kernels/matmul_gpu_store.h"
#include "kernels/workspace.h"

namespace GPU_NAMESPACE {
namespace {

// ---- split products: every split's sums are written and read once, 8 bytes a sum and split; bound by memory
// --------

constexpr int kSplitThreads = 256;

// Sums [splits, rows, columns] of f32 are added in order and stored. One thread has one chunk of a row.
__global__ void add_splits_kernel(Output output, Matrix sums, int splits, bool packed) {
    wait_for_previous();
    const int chunks = (output.columns + kChunk - 1) / kChunk;
    const int64_t index = int64_t{blockIdx.x} * kSplitThreads + threadIdx.x;
    const int row = static_cast<int>(index / chunks), column = static_cast<int>(index % chunks) * kChunk;
    // Behind the last row there is nothing, but its lanes help the others of their warp with the largest.
    const int left = row < output.rows ? output.columns - column : 0, width = left < kChunk ? left : kChunk;
    float total[1][kChunk] = {};
    constexpr int kBatch = 4;
    for (int first = 0; first < splits; first += kBatch) {
        Chunk x[kBatch];
        int64_t at[kBatch];
        int count[kBatch];
        UNROLL
        for (int i = 0; i < kBatch; ++i) {
            at[i] = (int64_t{first + i} * output.rows + row) * sums.stride + column;
            count[i] = first + i < splits ? width : 0;
        }
        load_chunks(x, sums, packed, at, count);
        UNROLL
        for (int i = 0; i < kBatch; ++i) {
            UNROLL
            for (int k = 0; k < kChunk; ++k) total[0][k] += x[i].value(k, DType::f32);
        }
    }
    LargestMagnitude largest(output.absmax);
    store_sums(output, {row}, column, total, largest);
    largest.raise_by_warp();
}

template <class Kernels>
void multiply_split(const Product& product, int splits, Stream stream, const Kernels& kernels) {
    const int64_t rows = product.output.rows, columns = product.output.columns;
    const int64_t needed = splits * rows * columns * kFloatBytes;  // more than planned for forced plans only
    void* const memory = device_workspace(kThisDevice, Workspace::split_sums,
                                          needed > kMatmulSplitSumsBytes ? needed : kMatmulSplitSumsBytes);
    const Matrix sums{memory, columns, DType::f32};
    Product parts = product;
    parts.output = {
        .out = sums, .rows = product.output.rows, .columns = product.output.columns, .packed = sums.packed()};
    kernels(parts);
    launch(add_splits_kernel, ceil_div(rows * ceil_div(columns, kChunk), kSplitThreads), kSplitThreads, 0,
           stream, product.output, sums, splits, sums.packed());
}

// ---- sums of columns: N OC elements read once, bound by memory; not measured yet on a GPU
// --------------------------

constexpr int kSumWarps = 8, kSumThreads = kSumWarps * kWarp;
static_assert(kSumColumns == kWarp * kChunk && kLeastSumRows % kSumWarps == 0);

// Block (x, y): the sums of its kSumColumns columns over rows [y, y + 1) * rows_per_block, to part[y]. A warp
// takes every kSumWarps-th row; the warps' sums are added in order.
__global__ void __launch_bounds__(kSumThreads)
    column_sums_kernel(Matrix parts, Matrix inp, int rows, int columns, int rows_per_block, bool packed,
                       bool accumulate) {
    wait_for_previous();
    SHARED(float, sums, [kSumWarps][kSumColumns]);
    const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
    const int first = static_cast<int>(blockIdx.x * kSumColumns), column = first + lane * kChunk;
    const int left = columns - column, width = left < kChunk ? left : kChunk;
    const int row_begin = static_cast<int>(blockIdx.y) * rows_per_block;
    const int row_end = rows - row_begin < rows_per_block ? rows : row_begin + rows_per_block;
    float sum[kChunk] = {};
    constexpr int kBatch = 4;
    for (int first_row = row_begin + warp; first_row < row_end; first_row += kBatch * kSumWarps) {
        Chunk x[kBatch];
        int64_t at[kBatch];
        int count[kBatch];
        UNROLL
        for (int i = 0; i < kBatch; ++i) {
            const int row = first_row + i * kSumWarps;
            at[i] = row * inp.stride + column;
            count[i] = row < row_end ? width : 0;
        }
        load_chunks(x, inp, packed, at, count);
        UNROLL
        for (int i = 0; i < kBatch; ++i) {
            UNROLL
            for (int k = 0; k < kChunk; ++k) sum[k] += x[i].value(k, inp.dtype);
        }
    }
    UNROLL
    for (int i = 0; i < kChunk; ++i) sums[warp][lane + i * kWarp] = sum[i];  // lanes in different banks
    __syncthreads();
    // Threads are columns now.
    const int mine = static_cast<int>(threadIdx.x);
    if (first + mine >= columns) return;
    float total = 0;
    for (int w = 0; w < kSumWarps; ++w) total += sums[w][mine / kChunk + mine % kChunk * kWarp];
    float* const out = static_cast<float*>(parts.data) + blockIdx.y * parts.stride + first + mine;
    *out = accumulate ? *out + total : total;
}

// out[column] (+)= the sum over all rows of `inp`: in one stage, or in parts of rows whose sums are added.
void column_sums(float* out, const Matrix& inp, int64_t rows, int64_t columns, bool accumulate,
                 Stream stream) {
    const int64_t across = ceil_div(columns, kSumColumns);
    const int64_t parts = column_sum_parts(rows, columns);
    const auto add = [&](const Matrix& to, const Matrix& from, int64_t num_rows, int64_t num_parts,
                         bool onto) {
        launch(column_sums_kernel, dim3(static_cast<unsigned>(across), static_cast<unsigned>(num_parts)),
               kSumThreads, 0, stream, to, from, static_cast<int>(num_rows), static_cast<int>(columns),
               static_cast<int>(ceil_div(num_rows, num_parts)), from.packed(), onto);
    };
    const Matrix result{out, columns, DType::f32};
    if (parts == 1) return add(result, inp, rows, 1, accumulate);
    const Matrix partial{
        device_workspace(kThisDevice, Workspace::column_sums, column_sums_bytes(rows, columns)), columns,
        DType::f32};
    add(partial, inp, rows, parts, false);
    add(result, partial, parts, 1, accumulate);
}

// Checks sizes and notes what the kernels ask of the memory.
void prepare(Product& product) {
    Output& output = product.output;
    constexpr int kLargest = INT32_MAX / 2;
    CHECK(output.rows <= kLargest && output.columns <= kLargest && product.inner <= kLargest,
          cat({"M=", output.rows, " N=", output.columns, " K=", product.inner}));
    product.a.packed = product.a.lines.packed();
    product.b.packed = product.b.lines.packed();
    output.packed = output.out.packed() && output.bias.packed() && output.pre_activation.packed() &&
                    output.gelu_pre.packed() && output.addend.packed();
}

}  // namespace

Matrix matrix_of(const Tensor& t) {
    if (t.absent()) return {};
    return {t.data, t.rank == 2 ? t.dims[1] : 0, t.dtype};
}
Operand by_row(const Tensor& t) { return {.lines = matrix_of(t), .by_row = true}; }
Operand by_column(const Tensor& t) { return {.lines = matrix_of(t), .by_row = false}; }

bool uses_bf16(DType a, DType b, MatmulMath math) {
    return math == MatmulMath::bf16 || (a == DType::bf16 && b == DType::bf16);
}

void multiply_own(const Product& product, const MatmulPlan& plan, Stream stream) {
    const int64_t multiple = shape_of(plan.tile).inner * (product.of_fp8() ? 2 : 1);
    const int inner_per_split =
        static_cast<int>(ceil_div(ceil_div(product.inner, plan.splits), multiple) * multiple);
    const int splits = product.inner > 0 ? static_cast<int>(ceil_div(product.inner, inner_per_split)) : 1;
    const auto kernels = [&](const Product& parts) {
        const bool hopper = is_hopper(plan.tile);
        const auto multiply_parts = product.of_fp8()    ? (hopper ? multiply_hopper_fp8 : multiply_fp8)
                                    : hopper            ? multiply_hopper
                                    : product.bf16_math ? multiply_bf16
                                                        : multiply_f32;
        multiply_parts(parts, plan.tile, splits, inner_per_split, stream);
    };
    if (splits == 1) return kernels(product);
    multiply_split(product, splits, stream, kernels);
}

void multiply(Product product, Stream stream) {
    const Output& output = product.output;
    if (output.rows == 0 || output.columns == 0) return;
    prepare(product);
    const int64_t rows = output.rows, columns = output.columns, inner = product.inner;
    const bool hopper = can_multiply_hopper(product);
    if (!matmul_plan_is_forced()) {
        const auto own =
            hopper ? hopper_plans(rows, columns, inner, product.may_split) : std::vector<MatmulPlan>();
        if (library_matmul(product, own, stream)) return;
    }
    multiply_own(product, plan_matmul(rows, columns, inner, product.may_split, hopper), stream);
}

void multiply_batch(Product product, Stream stream) {
    const Output& output = product.output;
    if (output.rows == 0 || output.columns == 0) return;
    CHECK(!output.symmetric || output.rows == output.columns,
          cat({"M=", output.rows, " N=", output.columns}));
    const MatmulTileShape large = shape_of(MatmulTile::large);
    const auto tiles = num_tiles(output, static_cast<int>(large.rows), static_cast<int>(large.columns));
    if (!output.symmetric && tiles >= large.blocks) {
        for (int i = 0; i < product.batch; ++i) {
            Product one = product;
            one.batch = 1;
            enter_batch(one.a, one.b, one.output, i);
            multiply(one, stream);
        }
        return;
    }
    prepare(product);
    // By as many rows of tiles as there are in all.
    const int64_t rows = int64_t{output.rows} * product.batch / (output.symmetric ? 2 : 1);
    multiply_own(product, plan_matmul(rows, output.columns, product.inner, false, false), stream);
}

void matmul_forward(Tensor out, Tensor inp, Tensor weight, const MatmulEpilogue& epilogue, MatmulMath math,
                    Stream stream) {
    check_matmul_forward(out, inp, weight, epilogue);
    multiply({.a = by_row(inp),
              .b = by_row(weight),
              .output = {.out = matrix_of(out),
                         .bias = matrix_of(epilogue.bias),
                         .pre_activation = epilogue.gelu ? matrix_of(epilogue.pre_activation) : Matrix{},
                         .addend = matrix_of(epilogue.residual),
                         .rows = static_cast<int>(out.dims[0]),
                         .columns = static_cast<int>(out.dims[1])},
              .inner = static_cast<int>(inp.dims[1]),
              .bf16_math = uses_bf16(inp.dtype, weight.dtype, math)},
             stream);
}

void matmul_backward_input(Tensor dinp, Tensor dout, Tensor weight, bool accumulate, Tensor gelu_pre,
                           MatmulMath math, Stream stream) {
    check_matmul_backward_input(dinp, dout, weight, gelu_pre);
    multiply({.a = by_row(dout),
              .b = by_column(weight),
              .output = {.out = matrix_of(dinp),
                         .gelu_pre = matrix_of(gelu_pre),
                         .addend = accumulate ? matrix_of(dinp) : Matrix{},
                         .rows = static_cast<int>(dinp.dims[0]),
                         .columns = static_cast<int>(dinp.dims[1])},
              .inner = static_cast<int>(dout.dims[1]),
              .bf16_math = uses_bf16(dout.dtype, weight.dtype, math)},
             stream);
}

void matmul_backward_weight(Tensor dweight, Tensor dbias, Tensor dout, Tensor inp, bool accumulate,
                            MatmulMath math, Stream stream) {
    check_matmul_backward_weight(dweight, dbias, dout, inp);
    multiply({.a = by_column(dout),
              .b = by_column(inp),
              .output = {.out = matrix_of(dweight),
                         .addend = accumulate ? matrix_of(dweight) : Matrix{},
                         .rows = static_cast<int>(dweight.dims[0]),
                         .columns = static_cast<int>(dweight.dims[1])},
              .inner = static_cast<int>(dout.dims[0]),
              .bf16_math = uses_bf16(dout.dtype, inp.dtype, math),
              .may_split = true},
             stream);
    if (!dbias.absent()) matmul_backward_bias(dbias, dout, accumulate, stream);
}

void matmul_backward_bias(Tensor dbias, Tensor dout, bool accumulate, Stream stream) {
    check_matmul_backward_bias(dbias, dout);
    column_sums(dbias.as<float>(), matrix_of(dout), dout.dims[0], dout.dims[1], accumulate, stream);
}

void matmul_general(Tensor c, Tensor a, Tensor b, bool b_transposed, float alpha, float beta, Tensor d,
                    MatmulMath math, Stream stream) {
    check_matmul_general(c, a, b, b_transposed, beta, d);
    multiply({.a = by_row(a),
              .b = b_transposed ? by_row(b) : by_column(b),
              .output = {.out = matrix_of(c),
                         .addend = beta != 0 ? matrix_of(d) : Matrix{},
                         .scale = alpha,
                         .addend_scale = beta,
                         .rows = static_cast<int>(c.dims[0]),
                         .columns = static_cast<int>(c.dims[1])},
              .inner = static_cast<int>(a.dims[1]),
              .bf16_math = uses_bf16(a.dtype, b.dtype, math)},
             stream);
}

}  // namespace GPU_NAMESPACE
