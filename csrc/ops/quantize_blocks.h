// fp32 to int8 with a scale per 32 columns. Included by one unit per instruction set, after its simd header.

#pragma once

#include "../kernel_table.h"

namespace pellucid {
namespace {

// Below this 127 / absmax overflows. Such a group is zero for every purpose.
constexpr float kSmallestAbsmax = 1e-36f;

inline void quantize_block(const float* x, QuantBlock& out) {
    constexpr int kVectors = kActivationGroup / kLanes;
    Float values[kVectors];
    for (int i = 0; i < kVectors; ++i) values[i] = load(x + i * kLanes);

    Float largest = abs(values[0]);
    for (int i = 1; i < kVectors; ++i) largest = max(largest, abs(values[i]));
    const float absmax = max_of_lanes(largest);

    const bool is_zero = absmax < kSmallestAbsmax;
    out.scale = is_zero ? 0.0f : absmax / 127.0f;
    const Float inverse = spread(is_zero ? 0.0f : 127.0f / absmax);

    Int sum[2] = {spread(0), spread(0)};
    for (int i = 0; i < kVectors; ++i) {
        const Int rounded = round_to_int(mul(values[i], inverse));
        store_int8(out.q + i * kLanes, rounded);
        sum[i * kLanes / 16] = add(sum[i * kLanes / 16], rounded);
    }
    for (int half = 0; half < 2; ++half) out.sum16[half] = static_cast<int16_t>(sum_of_lanes(sum[half]));
    out.scaled_sum = out.scale * static_cast<float>(out.sum16[0] + out.sum16[1]);
}

void quantize_blocks_impl(const float* x, int64_t count, QuantBlock* out) {
    for (int64_t i = 0; i < count; ++i) quantize_block(x + i * kActivationGroup, out[i]);
}

}  // namespace
}  // namespace pellucid
