// fp16 and bf16 as numbers, one value at a time: for packing and for single rows, where speed does not matter.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace pellucid {

inline float half_to_float(uint16_t half) {
    const int exponent = (half >> 10) & 31;
    const int mantissa = half & 1023;
    float value;
    if (exponent == 31) {
        value = mantissa ? NAN : INFINITY;
    } else if (exponent == 0) {
        value = std::ldexp(static_cast<float>(mantissa), -24);
    } else {
        value = std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
    }
    return half & 0x8000 ? -value : value;
}

// The fp16 that equals `value`. False, and *half unspecified, when there is none (NaN included).
inline bool float_to_exact_half(float value, uint16_t* half) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const float magnitude = std::fabs(value);
    if (!(magnitude <= 65504.0f)) return false;
    int exponent = 0;
    std::frexp(magnitude, &exponent);  // magnitude = m * 2^exponent with m in [0.5, 1)
    // A normal number has its leading bit, worth 2^(exponent - 1), at mantissa bit 10; subnormals share exponent -14.
    const int scale = magnitude == 0.0f || exponent < -13 ? 24 : 11 - exponent;
    const float mantissa = std::ldexp(magnitude, scale);
    if (mantissa != std::floor(mantissa)) return false;
    const int bits = static_cast<int>(mantissa);
    // The leading bit of a normal number carries one into the exponent field.
    *half = static_cast<uint16_t>(sign | (((24 - scale) << 10) + bits));
    return true;
}

inline float bfloat16_to_float(uint16_t value) {
    const uint32_t bits = uint32_t{value} << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

}  // namespace pellucid
