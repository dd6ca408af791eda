// FP8: eight bits of floating point, as the OCP's OFP8 1.0 and GPUs have it (F8_E4M3 and F8_E5M2 in
// safetensors).
//   e4m3  4 bits of exponent, 3 of mantissa: up to 448, no infinities, one NaN (0x7f) of each sign
//   e5m2  5 and 2: up to 57344, infinities and NaNs as IEEE has them
// Conversions round to nearest even and saturate: what is larger than the largest number, infinities too,
// becomes that number with its sign. NaN stays NaN.
#pragma once
#include <bit>
#include <cstdint>

struct e4m3 {
    uint8_t bits;
};
struct e5m2 {
    uint8_t bits;
};

constexpr float kLargestE4m3 = 448, kLargestE5m2 = 57344;

// The bits' meaning; what the largest exponent stands for is the callers' matter.
template <int kMantissaBits, int kBias>
constexpr float fp8_magnitude(uint32_t bits) {
    constexpr uint32_t kImplicit = 1u << kMantissaBits;
    constexpr float kSmallest = std::bit_cast<float>(uint32_t{127 + 1 - kBias - kMantissaBits} << 23);
    if (bits < kImplicit) return static_cast<float>(bits) * kSmallest;
    return std::bit_cast<float>((bits << (23 - kMantissaBits)) + (uint32_t{127 - kBias} << 23));
}
constexpr float to_float(e4m3 x) {
    const uint32_t sign = uint32_t{x.bits & 0x80u} << 24, bits = x.bits & 0x7fu;
    const float magnitude = bits == 0x7f ? std::bit_cast<float>(0x7fc00000u) : fp8_magnitude<3, 7>(bits);
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
}
constexpr float to_float(e5m2 x) {  // a bfloat-like cut of half precision: its NaNs are all above infinity
    const uint32_t sign = uint32_t{x.bits & 0x80u} << 24, bits = x.bits & 0x7fu;
    const float magnitude = bits > 0x7c    ? std::bit_cast<float>(0x7fc00000u)
                            : bits == 0x7c ? std::bit_cast<float>(0x7f800000u)
                                           : fp8_magnitude<2, 15>(bits);
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
}

template <int kMantissaBits, int kBias, uint8_t kLargest>
constexpr uint8_t fp8_bits(float x) {
    constexpr int kCut = 23 - kMantissaBits;
    constexpr uint32_t kFirstNormal = uint32_t{127 + 1 - kBias} << 23;
    uint32_t bits = std::bit_cast<uint32_t>(x);
    const uint32_t sign = bits >> 24 & 0x80u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return 0x7f;
    if (bits < kFirstNormal) {
        // Steps of one size: where 2^23 of them are added, f32 itself rounds to whole ones.
        constexpr float kMany = std::bit_cast<float>(uint32_t{127 + 1 - kBias + kCut} << 23);
        bits = std::bit_cast<uint32_t>(std::bit_cast<float>(bits) + kMany) - std::bit_cast<uint32_t>(kMany);
    } else {
        bits += (1u << (kCut - 1)) - 1 + (bits >> kCut & 1u);
        bits = (bits >> kCut) - (uint32_t{127 - kBias} << kMantissaBits);
    }
    return static_cast<uint8_t>(sign | (bits < kLargest ? bits : kLargest));
}
constexpr e4m3 to_e4m3(float x) { return {fp8_bits<3, 7, 0x7e>(x)}; }
constexpr e5m2 to_e5m2(float x) { return {fp8_bits<2, 15, 0x7b>(x)}; }
