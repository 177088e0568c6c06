// The Walsh-Hadamard transform of a head, times what makes it keep lengths; it is its own inverse. Included after a
// simd header.
//
// A head that an int8 pool holds has one scale, which its largest component sets. Keys have a few components that are
// large in every token; the transform gives each a share of all, so that rounding costs about what it would cost
// normally distributed numbers (QuaRot, Ashkboos et al. 2024). Scores stay what they are if queries are transformed
// too, and a weighted sum of values is transformed back.

#pragma once

#include <cmath>

#include "vector_math.h"

namespace pellucid {
namespace {

// -1 for lanes whose number has the bit kDistance, else 1.
template <int kDistance>
struct LaneSigns {
    alignas(64) float lane[kLanes];

    constexpr LaneSigns() : lane() {
        for (int i = 0; i < kLanes; ++i) lane[i] = i & kDistance ? -1.0f : 1.0f;
    }
};

// Lanes kDistance apart, and all between them, become their sum and their difference.
template <int kDistance>
inline Float add_and_subtract(Float v) {
    static constexpr LaneSigns<kDistance> kSigns;
    return fma(v, load(kSigns.lane), exchange<kDistance>(v));
}

inline Float transform_lanes(Float v) {
    v = add_and_subtract<2>(add_and_subtract<1>(v));
    if constexpr (kLanes > 4) v = add_and_subtract<4>(v);
    if constexpr (kLanes > 8) v = add_and_subtract<8>(v);
    return v;
}

// Of a head of n, a multiple of 16, whose largest power of two that divides it is the length of one transform. `out`
// may be `x`.
void hadamard_head(const float* x, float* out, int64_t n) {
    const int64_t size = n & -n;
    const Float factor = spread(1.0f / std::sqrt(static_cast<float>(size)));
    for (int64_t i = 0; i < n; i += kLanes) store(out + i, transform_lanes(mul(load(x + i), factor)));
    for (int64_t half = kLanes; half < size; half *= 2)
        for (int64_t begin = 0; begin < n; begin += 2 * half)
            for (int64_t i = begin; i < begin + half; i += kLanes) {
                const Float a = load(out + i), b = load(out + i + half);
                store(out + i, add(a, b));
                store(out + i + half, sub(a, b));
            }
}

}  // namespace
}  // namespace pellucid
