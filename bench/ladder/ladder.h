// Two ladders from the obvious kernel to the production one, an idea a rung (README.md here is the way
// through). All rungs of a ladder compute the same from the same operands.
//   gemm        out[n,o] = sum_c inp[n,c] weight[o,c]: matmul_forward's product. bf16 in and out, f32 sums
//   attention   causal softmax attention of `num_rows` sequences of `seq_len` tokens, heads of 64, grouped
//   queries:
//               attention_forward's, without documents and windows
// Unlike production kernels, rungs take sizes that suit their tiles only: multiples of kGemmTile and
// kGemmStep, and sequences of whole kQueryTiles.
#pragma once
#include <vector>

#include "core/device.h"

constexpr int64_t kGemmTile = 128, kGemmStep = 32;
constexpr int64_t kQueryTile = 64, kHeadDim = 64;

struct GemmOperands {
    Tensor out, inp, weight;  // [N,O], [N,C], [O,C] bf16
    int64_t rows() const { return inp.dims[0]; }
    int64_t outputs() const { return weight.dims[0]; }
    int64_t inputs() const { return inp.dims[1]; }
};

struct AttentionOperands {
    Tensor out, qkv;         // [N, H*64], [N, (H+2K)*64] bf16; N = num_rows * seq_len
    Tensor lse, cu_seqlens;  // what the production kernel has besides
    Tensor scores;           // [num_rows * H * T, T] f32, the first rung's alone
    int64_t num_rows, seq_len, num_heads, num_kv_heads;
};

template <class Operands>
struct Rung {
    const char* name;
    const char* idea;
    void (*on_simt)(const Operands&);
    void (*on_cuda)(const Operands&);  // null in a build without CUDA

    void run(const Operands& operands) const {
        (operands.out.device == Device::simt ? on_simt : on_cuda)(operands);
    }
};
const std::vector<Rung<GemmOperands>>& gemm_ladder();
const std::vector<Rung<AttentionOperands>>& attention_ladder();

// Each rung is defined in its own .cu file, once for each compiler.
#define LADDER_RUNG(Operands, name) \
    namespace on_simt {             \
    void name(const Operands&);     \
    }                               \
    namespace on_cuda {             \
    void name(const Operands&);     \
    }
LADDER_RUNG(GemmOperands, gemm_1_naive)
LADDER_RUNG(GemmOperands, gemm_2_shared)
LADDER_RUNG(GemmOperands, gemm_3_registers)
LADDER_RUNG(GemmOperands, gemm_4_packs)
LADDER_RUNG(GemmOperands, gemm_5_tensor_cores)
LADDER_RUNG(GemmOperands, gemm_6_pipeline)
LADDER_RUNG(GemmOperands, gemm_7_large_tiles)
LADDER_RUNG(GemmOperands, gemm_8_production)
LADDER_RUNG(AttentionOperands, attention_1_naive)
LADDER_RUNG(AttentionOperands, attention_2_online)
LADDER_RUNG(AttentionOperands, attention_3_tiles)
LADDER_RUNG(AttentionOperands, attention_4_tensor_cores)
LADDER_RUNG(AttentionOperands, attention_5_pipeline)
LADDER_RUNG(AttentionOperands, attention_6_production)
#undef LADDER_RUNG
