// RMS norm (Zhang and Sennrich 2019) and layer norm (Ba et al. 2016) of one row. Included after a simd header.

#pragma once

#include "vector_math.h"

namespace pellucid {
namespace {

// Sums in a fixed order: each lane along the row, then over the lanes. In two chains, for an addition takes cycles.
template <class F>
inline float sum_over_row(int64_t n, F value_at) {
    Float even = spread(0.0f), odd = spread(0.0f);
    const auto count = [&](int64_t i) { return n - i < kLanes ? static_cast<int>(n - i) : kLanes; };
    for (int64_t i = 0; i < n; i += 2 * kLanes) {
        even = value_at(i, count(i), even);
        if (i + kLanes < n) odd = value_at(i + kLanes, count(i + kLanes), odd);
    }
    return sum_of_lanes(add(even, odd));
}

inline float inverse_root(float v) { return 1.0f / __builtin_sqrtf(v); }

void rms_norm_row(const float* x, const float* weight, float eps, float* out, int64_t n) {
    const float squares = sum_over_row(n, [&](int64_t i, int count, Float sum) {
        const Float v = load_up_to(x + i, count);
        return fma(v, v, sum);
    });
    const Float inverse = spread(inverse_root(squares / static_cast<float>(n) + eps));
    for_vectors(n, [&](int64_t i, int count) {
        const Float v = mul(load_up_to(x + i, count), inverse);
        store_up_to(out + i, mul(v, load_up_to(weight + i, count)), count);
    });
}

void layer_norm_row(const float* x, const float* weight, const float* bias, float eps, float* out, int64_t n) {
    const float total =
        sum_over_row(n, [&](int64_t i, int count, Float sum) { return add(sum, load_up_to(x + i, count)); });
    const Float mean = spread(total / static_cast<float>(n));
    const float squares = sum_over_row(n, [&](int64_t i, int count, Float sum) {
        // Lanes beyond the row are not 0 after the subtraction.
        const Float v = keep_lanes(sub(load_up_to(x + i, count), mean), 0, count, spread(0.0f));
        return fma(v, v, sum);
    });
    const Float inverse = spread(inverse_root(squares / static_cast<float>(n) + eps));
    for_vectors(n, [&](int64_t i, int count) {
        const Float v = mul(sub(load_up_to(x + i, count), mean), inverse);
        store_up_to(out + i, fma(v, load_up_to(weight + i, count), load_up_to(bias + i, count)), count);
    });
}

}  // namespace
}  // namespace pellucid
