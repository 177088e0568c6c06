// fp32 to int8 with a scale per 32 columns. Included by one unit per instruction set, after its simd header.

#pragma once

#include "../kernel_table.h"

namespace pellucid {
namespace {

// Below this 127 / absmax overflows. Such a group is zero for every purpose.
constexpr float kSmallestAbsmax = 1e-36f;

// Columns whose bit in `kept` is not set count as 0.
inline void quantize_block(const float* x, uint32_t kept, QuantBlock& out) {
    constexpr int kVectors = kActivationGroup / kLanes;
    Float values[kVectors];
    for (int i = 0; i < kVectors; ++i) values[i] = where(kept >> i * kLanes, load(x + i * kLanes));

    Float largest = abs(values[0]);
    for (int i = 1; i < kVectors; ++i) largest = max(largest, abs(values[i]));
    const float absmax = max_of_lanes(largest);

    const bool is_zero = absmax < kSmallestAbsmax;
    out.scale = is_zero ? 0.0f : absmax / 127.0f;
    const Float inverse = spread(is_zero ? 0.0f : 127.0f / absmax);

    for (int i = 0; i < kVectors; ++i) store_int8(out.q + i * kLanes, round_to_int(mul(values[i], inverse)));
    for (int half = 0; half < 2; ++half) out.sum16[half] = static_cast<int16_t>(sum_of_16(out.q + 16 * half));
    out.scaled_sum = out.scale * static_cast<float>(out.sum16[0] + out.sum16[1]);
}

void quantize_blocks_impl(const float* x, int64_t begin, int64_t count, const Outliers& outliers, QuantBlock* blocks,
                          float* values) {
    int64_t next = 0;
    while (next < outliers.count && outliers.columns[next] < begin) ++next;
    for (int64_t first = begin; first < begin + count; first += kActivationGroup, x += kActivationGroup) {
        uint32_t kept = ~0u;
        for (; next < outliers.count && outliers.columns[next] < first + kActivationGroup; ++next) {
            const int64_t place = outliers.columns[next] - first;
            values[next] = x[place];
            kept &= ~(1u << place);
        }
        quantize_block(x, kept, blocks[first / kActivationGroup]);
    }
}

}  // namespace
}  // namespace pellucid
