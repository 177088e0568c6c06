// fp32 activations times BFloat16 or Float32 weights. Included by one unit per instruction set, after its simd header
// and its tile sizes.
//
// One element of y is sum = fma(w_k, x_k, sum) over k in ascending order, then + bias, in every tile shape.

#pragma once

#include "../kernel_table.h"
#include "store.h"

namespace pellucid {
namespace {

// How a line of weights becomes floats: kDepth values of k in one line.
struct Float32Line {
    static constexpr int kDepth = 1;
    static Float read(const std::byte* p, int) { return load(reinterpret_cast<const float*>(p)); }
};

struct BFloat16Line {
    static constexpr int kDepth = 2;
    static Float read(const std::byte* p, int index) {
        return index == 0 ? first_bfloat16(load_bytes(p)) : second_bfloat16(load_bytes(p));
    }
};

template <class W, int kRows, int kStrips>
void float_tile(const FloatGemm& call, const std::byte* strips, int64_t row, int64_t strip) {
    constexpr int kVectors = kStrips * kVectorsPerStrip;
    Float sum[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) sum[r][v] = spread(0.0f);

    const float* x = call.x + row * call.x_stride;
    const int64_t lines = call.k / W::kDepth;
    for (int64_t line = 0; line < lines; ++line)
        for (int i = 0; i < W::kDepth; ++i) {
            Float w[kVectors];
            for (int v = 0; v < kVectors; ++v) {
                const std::byte* strip_data = strips + v / kVectorsPerStrip * call.layout.bytes;
                w[v] = W::read(strip_data + line * kLine + v % kVectorsPerStrip * kLanes * 4, i);
            }
            for (int r = 0; r < kRows; ++r) {
                const Float xr = spread(x[r * call.x_stride + line * W::kDepth + i]);
                for (int v = 0; v < kVectors; ++v) sum[r][v] = fma(w[v], xr, sum[r][v]);
            }
        }
    store_tile<kRows, kStrips>(sum, call, row, strip);
}

template <class W, int kRows, int kStrips>
void dispatch_float_tile(int64_t rows, const FloatGemm& call, const std::byte* strips, int64_t row, int64_t strip) {
    if (rows == kRows) {
        float_tile<W, kRows, kStrips>(call, strips, row, strip);
    } else if constexpr (kRows > 1) {
        dispatch_float_tile<W, kRows - 1, kStrips>(rows, call, strips, row, strip);
    }
}

template <class W, int kStrips>
void float_strips_times_rows(const FloatGemm& call, int64_t strip) {
    const std::byte* strips = call.strips + strip * call.layout.bytes;
    const RowTiles tiles(call.rows, kFloatTileRows);
    for (int64_t t = 0, row = 0; t < tiles.count; row += tiles.size(t), ++t)
        dispatch_float_tile<W, kFloatTileRows, kStrips>(tiles.size(t), call, strips, row, strip);
}

template <class W>
void gemm_float_format(const FloatGemm& call) {
    int64_t strip = call.strip_begin;
    for (; strip + kFloatTileStrips <= call.strip_end; strip += kFloatTileStrips)
        float_strips_times_rows<W, kFloatTileStrips>(call, strip);
    for (; strip < call.strip_end; ++strip) float_strips_times_rows<W, 1>(call, strip);
}

void gemm_float_impl(const FloatGemm& call) {
    if (call.format.kind == WeightKind::BFloat16) return gemm_float_format<BFloat16Line>(call);
    gemm_float_format<Float32Line>(call);
}

}  // namespace
}  // namespace pellucid
