// bfloat16: the upper 16 bits of an IEEE float. Rounding is to nearest even; NaN stays NaN.
#pragma once
#include <bit>
#include <cstdint>

struct bf16 {
    uint16_t bits;
};

constexpr float to_float(bf16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
constexpr float to_float(float x) { return x; }

constexpr bf16 to_bf16(float x) {
    uint32_t u = std::bit_cast<uint32_t>(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};  // keep NaN a NaN
    u += 0x7fffu + ((u >> 16) & 1u);
    return {static_cast<uint16_t>(u >> 16)};
}

// Rounds up with probability equal to the discarded fraction; `random` supplies 16 uniform bits.
constexpr bf16 to_bf16_stochastic(float x, uint32_t random) {
    uint32_t u = std::bit_cast<uint32_t>(x);
    if ((u & 0x7f800000u) == 0x7f800000u) return to_bf16(x);
    u += random & 0xffffu;
    return {static_cast<uint16_t>(u >> 16)};
}
