// Rotary position embedding (Su et al. 2021), and rounding for the KV pool. Included after a simd header.

#pragma once

#include "vector_math.h"

namespace pellucid {
namespace {

void rotate_head(const float* x, const float* cos, const float* sin, int64_t half, float* out, int64_t n) {
    for_vectors(half, [&](int64_t i, int count) {
        const Float c = load_up_to(cos + i, count), s = load_up_to(sin + i, count);
        const Float a = load_up_to(x + i, count), b = load_up_to(x + half + i, count);
        store_up_to(out + i, sub(mul(a, c), mul(b, s)), count);
        store_up_to(out + half + i, add(mul(b, c), mul(a, s)), count);
    });
    if (out != x)
        for (int64_t i = 2 * half; i < n; ++i) out[i] = x[i];
}

void to_bfloat16_row(const float* x, uint16_t* out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        uint32_t bits;
        __builtin_memcpy(&bits, x + i, 4);
        const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
        out[i] = static_cast<uint16_t>(is_nan ? bits >> 16 | 0x40 : rounded);
    }
}

void to_float16_row(const float* x, uint16_t* out, int64_t n) {
    const Float largest = spread(65504.0f), lowest = spread(-65504.0f);
    for_vectors(n, [&](int64_t i, int count) {
        // In this order NaN stays NaN: see exp.
        const Float within = min(largest, max(lowest, load_up_to(x + i, count)));
        uint16_t half[kLanes];
        store_half(half, within);
        __builtin_memcpy(out + i, half, static_cast<size_t>(count) * sizeof(uint16_t));
    });
}

// 0 * x is NaN if x is not finite. The floor keeps the scale of a zero head, and what it is divided by, numbers.
void to_int8_row(const float* x, int8_t* out, float* scale, int64_t n) {
    Float largest = spread(1e-30f), poison = spread(0.0f);
    for_vectors(n, [&](int64_t i, int count) {
        const Float v = load_up_to(x + i, count);
        largest = max(largest, abs(v));
        poison = fma(v, spread(0.0f), poison);
    });
    const float absmax = max_of_lanes(largest);
    *scale = absmax / 127.0f + sum_of_lanes(poison);
    const Float inverse = spread(127.0f / absmax);
    for_vectors(n, [&](int64_t i, int count) {
        int8_t bytes[kLanes];
        store_int8(bytes, round_to_int(mul(load_up_to(x + i, count), inverse)));
        __builtin_memcpy(out + i, bytes, static_cast<size_t>(count));
    });
}

}  // namespace
}  // namespace pellucid
