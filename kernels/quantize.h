// Quantisation to FP8 with one scale for each tensor, from that tensor as it is now ("current scaling":
// Micikevicius et al., "FP8 Formats for Deep Learning", 2022; as in NVIDIA's Transformer Engine):
//   absmax = max |inp|     scale = largest / absmax     out = fp8(inp * scale)     inverse = 1 / scale
// so that inp is about out * inverse. largest is 448 for e4m3 and 57344 for e5m2; rounding is to nearest
// even. A tensor of zeros has scale 1. One that is not finite has inverse NaN and nothing but NaNs in it:
// what is computed with it is seen to be broken, whereas saturation would hide an infinity. Products of FP8
// want both operands by lines of the inner dimension (kernels/matmul_fp8.h), so a tensor can be written
// transposed too. Lines are padded with zeros to a multiple of kFp8Line.
#pragma once
#include <limits>

#include "core/tensor.h"

constexpr int64_t kFp8Line = 16;  // 16 bytes: what the GPU copies at a time, and what cuBLASLt asks for
constexpr int64_t fp8_line(int64_t elements) { return (elements + kFp8Line - 1) / kFp8Line * kFp8Line; }

constexpr float fp8_largest(DType dtype) { return dtype == DType::e5m2 ? kLargestE5m2 : kLargestE4m3; }
// At most 2^120, so that it and its inverse are normal numbers.
constexpr float fp8_scale(float absmax, float largest) {
    if (!(absmax <= std::numeric_limits<float>::max())) return std::numeric_limits<float>::quiet_NaN();
    if (absmax < largest * 0x1p-120f) return absmax == 0 ? 1.0f : 0x1p120f;
    return largest / absmax;
}

//   absmax  inout [1] f32: raised to the largest |inp|, to NaN by a NaN. Zero it before the first of the
//   tensor.                inp  in  f32|bf16, any shape
// Takes no part in the order of anything: the same bits however it is split. Ops that make what is to be
// quantised have an `absmax` of their own: the same number as this of what they have stored, without a pass
// over it.
void raise_absmax(Tensor absmax, Tensor inp, Stream stream = {});

//   out         out [N,fp8_line(C)] e4m3|e5m2, or absent         inverse  out [1] f32
//   transposed  out [C,fp8_line(N)] same dtype, or absent        inp      in  [N,C] f32|bf16
//   absmax      in  [1] f32 of inp: raise_absmax, or the op that made inp. On the CPU it is checked.
void quantize(Tensor out, Tensor transposed, Tensor inverse, Tensor inp, Tensor absmax, Stream stream = {});

// Both backends'; they throw InternalError.
void check_raise_absmax(Tensor absmax, Tensor inp);
void check_quantize(Tensor out, Tensor transposed, Tensor inverse, Tensor inp, Tensor absmax);
