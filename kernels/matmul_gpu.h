// The matrix product on the GPU, as the ops of matmul.h and the fused head (cross_entropy.cu) ask for it:
//   x = scale * sum_k a(m,k) b(n,k) + bias[n];   pre[m,n] = x, x = gelu(x);   x *= gelu'(gelu_pre[m,n]);
//   out[m,n] = x + addend_scale * addend[m,n]
// All but the sum are left out when absent. Operands lie in memory by rows or by columns, and their lines may
// be farther apart than they are long.
#pragma once
#include <vector>

#include "kernels/gpu.h"
#include "kernels/matmul.h"
#include "kernels/matmul_plan.h"

namespace GPU_NAMESPACE {

constexpr int kChunk = 8;  // elements that travel together: 128 bits of bf16

// A matrix that is read or written line by line; data is null when absent.
struct Matrix {
    void* data = nullptr;
    int64_t stride = 0;  // elements from one line to the next
    DType dtype = DType::f32;
    int64_t step = 0;  // elements from one matrix of a batch to the next

    // Chunks at multiples of kChunk can be accessed by 128 bits.
    bool packed() const {
        const int64_t pack = 16 / dtype_bytes(dtype);
        return is_aligned128(data) && stride % pack == 0 && step % pack == 0;
    }
    __host__ __device__ Matrix of_batch(int64_t index) const {
        Matrix result = *this;
        result.data = static_cast<char*>(data) + index * step * dtype_bytes(dtype);
        return result;
    }
};

// a(outer, inner). by_row: a line holds all inner elements of one outer index; otherwise all outer elements
// of one inner index.
struct Operand {
    Matrix lines;
    bool by_row = true;
    // A line goes on to the next multiple of kChunk, with zeros where it was to end.
    bool padded = false;
    bool packed = false;  // lines.packed(), for the kernel
};

struct Output {
    Matrix out;
    Matrix bias = {}, pre_activation = {}, gelu_pre = {}, addend = {};  // bias: stride 0
    float scale = 1, addend_scale = 1;
    // Factors of scale that lie on the device (inverse scales of FP8 operands); both or neither.
    const float *scale_a = nullptr, *scale_b = nullptr;
    // Raised to the largest magnitude of `out` (kernels/gpu_absmax.h), which no library does.
    uint32_t* absmax = nullptr;
    int rows = 0, columns = 0;
    bool packed = false;  // all of the matrices are, for the kernel
    // The result is a symmetric matrix, and so is the addend (there is nothing else then): tensor cores
    // compute what lies on and below the diagonal, and what lies above is a copy. In f32 both sides are
    // computed, with the same bits.
    bool symmetric = false;
};

struct Product {
    Operand a, b;
    Output output;
    int inner = 0;
    bool bf16_math = false;  // products of bf16 numbers on tensor cores; otherwise f32 FMAs
    bool may_split = false;  // the inner dimension, where the result is small
    int batch = 1;           // for multiply_batch(): as many products, of matrices that lie `step` apart

    // Both operands are by rows then, and their lines end at multiples of 16 numbers.
    bool of_fp8() const { return is_fp8(a.lines.dtype); }
};

// A whole tensor; absent gives null.
Matrix matrix_of(const Tensor& t);
Operand by_row(const Tensor& t);
Operand by_column(const Tensor& t);
// Whether products of these use bf16 math.
bool uses_bf16(DType a, DType b, MatmulMath math);

void multiply(Product product, Stream stream);
// Many products at once, or symmetric ones: operands, result and addend only, nothing is split. By
// multiply_bf16 or multiply_f32, whose sums have the same bits in all tiles; by multiply() where one product
// fills a GPU. So the bits of one do not depend on how many there are.
void multiply_batch(Product product, Stream stream);

// ---- what multiply() chooses from

// cuBLASLt, or that one of our own plans `own` that was faster; false where the library is not there or
// cannot do this product (kernels/matmul_cublaslt.cu).
bool library_matmul(const Product& product, const std::vector<MatmulPlan>& own, Stream stream);
// Our kernels, cut as the plan says.
void multiply_own(const Product& product, const MatmulPlan& plan, Stream stream);
// The kernels: every tile for every split, where split s sums the inner indices [s, s + 1) * inner_per_split.
// With several splits `output` must be a plain f32 matrix with room for splits * rows.
void multiply_bf16(const Product& product, MatmulTile tile, int splits, int inner_per_split, Stream stream);
void multiply_f32(const Product& product, MatmulTile tile, int splits, int inner_per_split, Stream stream);
void multiply_fp8(const Product& product, MatmulTile tile, int splits, int inner_per_split, Stream stream);
// Hopper's own instructions, for operands that TMA can copy: bf16 or FP8, aligned to 16 bytes, lines too.
bool can_multiply_hopper(const Product& product);
void multiply_hopper(const Product& product, MatmulTile tile, int splits, int inner_per_split, Stream stream);
void multiply_hopper_fp8(const Product& product, MatmulTile tile, int splits, int inner_per_split,
                         Stream stream);

}  // namespace GPU_NAMESPACE
