// The end of every product: a tile of sums, plus bias, into y. Included after a simd header.

#pragma once

#include "../kernel_table.h"

namespace pellucid {
namespace {

constexpr int kVectorsPerStrip = kStripColumns / kLanes;

inline void store_vector(float* y, Float value, const float* bias, int64_t columns) {
    if (columns >= kLanes) {
        store(y, bias ? add(value, load(bias)) : value);
    } else if (columns > 0) {
        const int count = static_cast<int>(columns);
        store_first(y, bias ? add(value, load_first(bias, count)) : value, count);
    }
}

// `call` is a QuantGemm or a FloatGemm. Columns past n, which only the last strip has, are not written.
template <int kRows, int kStrips, class Call>
void store_rows(const Float (&sum)[kRows][kStrips * kVectorsPerStrip], const Call& call, int64_t row, int64_t strip) {
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kStrips * kVectorsPerStrip; ++v) {
            const int64_t column = strip * kStripColumns + v * kLanes;
            float* y = call.y + (row + r) * call.y_stride + column;
            store_vector(y, sum[r][v], call.bias ? call.bias + column : nullptr, call.n - column);
        }
}

template <int kRows, int kStrips, class Call>
__attribute__((always_inline)) inline void store_tile(const Float (&sum)[kRows][kStrips * kVectorsPerStrip],
                                                      const Call& call, int64_t row, int64_t strip) {
#if defined(__aarch64__)
    // To GCC a fused multiply-add is a function there that may look at memory. Were the sums themselves shown to another
    // function, it would store them in every round of their loop.
    Float copy[kRows][kStrips * kVectorsPerStrip];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < kStrips * kVectorsPerStrip; ++v) copy[r][v] = sum[r][v];
    store_rows<kRows, kStrips>(copy, call, row, strip);
#else
    store_rows<kRows, kStrips>(sum, call, row, strip);
#endif
}

}  // namespace
}  // namespace pellucid
