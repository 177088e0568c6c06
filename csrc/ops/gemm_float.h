// fp32 activations times BFloat16 or Float32 weights. Included by one unit per instruction set, after its simd header
// and its tile sizes.
//
// One element of y is sum = fma(w_k, x_k, sum) over k in ascending order, then + bias, in every tile shape.
// kernels_avx512_bf16.cpp brings a line of its own, with its own multiply_add.

#pragma once

#include "../kernel_table.h"
#include "ahead.h"
#include "store.h"

namespace pellucid {
namespace {

// What differs between formats. A line of weights holds kDepth values of k and is used in kSteps steps; in each, one
// vector of weights meets the x that belongs to it.
struct Float32Line {
    static constexpr int kDepth = 1, kSteps = 1;
    static Float weights(const std::byte* line, int) { return load(reinterpret_cast<const float*>(line)); }
    static Float activations(const FloatGemm& call, int64_t row, int64_t line, int) {
        return spread(call.x[row * call.x_stride + line]);
    }
    static Float multiply_add(Float w, Float x, Float sum) { return fma(w, x, sum); }
};

struct BFloat16Line {
    static constexpr int kDepth = 2, kSteps = 2;
    static Float weights(const std::byte* line, int step) {
        return step == 0 ? first_bfloat16(load_bytes(line)) : second_bfloat16(load_bytes(line));
    }
    static Float activations(const FloatGemm& call, int64_t row, int64_t line, int step) {
        return spread(call.x[row * call.x_stride + line * 2 + step]);
    }
    static Float multiply_add(Float w, Float x, Float sum) { return fma(w, x, sum); }
};

// Lines between two fetches of weights ahead.
constexpr int64_t kLinesPerStep = 4;

template <class W, int kRows, int kStrips>
void float_tile(const FloatGemm& call, const std::byte* strips, Ahead ahead, int64_t row, int64_t strip) {
    constexpr int kVectors = kStrips * kVectorsPerStrip;
    Float sum[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) sum[r][v] = spread(0.0f);

    const int64_t lines = call.k / W::kDepth;
    for (int64_t line = 0; line < lines; ++line) {
        if (line % kLinesPerStep == 0) ahead.fetch();
        for (int step = 0; step < W::kSteps; ++step) {
            decltype(W::weights(strips, 0)) w[kVectors];
            for (int v = 0; v < kVectors; ++v) {
                const std::byte* strip_data = strips + v / kVectorsPerStrip * call.layout.bytes;
                w[v] = W::weights(strip_data + line * kLine + v % kVectorsPerStrip * kLanes * 4, step);
            }
            for (int r = 0; r < kRows; ++r) {
                const auto x = W::activations(call, row + r, line, step);
                for (int v = 0; v < kVectors; ++v) sum[r][v] = W::multiply_add(w[v], x, sum[r][v]);
            }
        }
    }
    store_tile<kRows, kStrips>(sum, call, row, strip);
}

template <class W, int kRows, int kStrips>
void dispatch_float_tile(int64_t rows, const FloatGemm& call, const std::byte* strips, Ahead ahead, int64_t row,
                         int64_t strip) {
    if (rows == kRows) {
        float_tile<W, kRows, kStrips>(call, strips, ahead, row, strip);
    } else if constexpr (kRows > 1) {
        dispatch_float_tile<W, kRows - 1, kStrips>(rows, call, strips, ahead, row, strip);
    }
}

template <class W, int kMaxRows, int kStrips>
void float_strips_times_rows(const FloatGemm& call, int64_t strip) {
    const std::byte* strips = call.strips + strip * call.layout.bytes;
    const RowTiles tiles(call.rows, kMaxRows);
    const int64_t steps = (call.k / W::kDepth + kLinesPerStep - 1) / kLinesPerStep;
    Ahead ahead(strips + kStrips * call.layout.bytes, kStrips * call.layout.bytes, tiles.count * steps);
    int64_t row = 0;
    for (int64_t t = 0; t < tiles.count; ++t) {
        dispatch_float_tile<W, kMaxRows, kStrips>(tiles.size(t), call, strips, ahead, row, strip);
        ahead.skip(steps);
        row += tiles.size(t);
    }
}

// The order of additions within an element is a chain, so a single row needs several strips at once for the processor
// to have independent work.
template <class W>
void gemm_float_format(const FloatGemm& call) {
    int64_t strip = call.strip_begin;
    if (call.rows == 1)
        for (; strip + 4 <= call.strip_end; strip += 4) float_strips_times_rows<W, 1, 4>(call, strip);
    for (; strip + kFloatTileStrips <= call.strip_end; strip += kFloatTileStrips)
        float_strips_times_rows<W, kFloatTileRows, kFloatTileStrips>(call, strip);
    if constexpr (kFloatTileStrips > 1)
        for (; strip < call.strip_end; ++strip) float_strips_times_rows<W, kFloatTileRows, 1>(call, strip);
}

[[maybe_unused]] void gemm_float_impl(const FloatGemm& call) {
    if (call.format.kind == WeightKind::BFloat16) return gemm_float_format<BFloat16Line>(call);
    gemm_float_format<Float32Line>(call);
}

}  // namespace
}  // namespace pellucid
