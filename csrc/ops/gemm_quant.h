// Int8 activations times Int4 or Int8 weights. Included by one unit per instruction set, after its simd header
// and its tile sizes.
//
// One element of y is, over the groups g of k in ascending order,
//     sum = fma(scale_g * a_g, float(dot_g), sum)        dot_g = sum of q * x over the group, minus zero * sum of x
//     sum = fma(minimum_g, a_g * sum of x, sum)          with minima only
// then, over the outliers in ascending order, sum = fma(w, x, sum), and y = sum + bias. dot_g is exact, so only the
// order of the groups matters for the bits, and it is the same in every tile shape.

#pragma once

#include "../kernel_table.h"
#include "ahead.h"
#include "store.h"

namespace pellucid {
namespace {

// A weight format as far as the inner loop is concerned.
template <int kBits_, int kGroup_, bool kMinima_>
struct Format {
    static constexpr int kBits = kBits_;
    static constexpr int kGroup = kGroup_;
    static constexpr bool kMinima = kMinima_;
    static constexpr int kDepth = kBits == 4 ? 8 : 4;  // of k in one line
    static constexpr int kScaleFloats = (kMinima ? 2 : 1) * static_cast<int>(kStripColumns);
};

// The strips of one tile: where their quants are, their scales as fp32, [group][scale, minimum][16 columns], and the
// weights of the outliers, [outlier][16 columns].
template <int kStrips>
struct Strips {
    const std::byte* quants[kStrips];
    const float* scales[kStrips];
    const float* outliers[kStrips];
};

// The same block of each row of a tile.
template <int kRows>
struct Rows {
    const QuantBlock* block[kRows];

    Rows(const std::byte* first, int64_t stride) {
        for (int r = 0; r < kRows; ++r) block[r] = reinterpret_cast<const QuantBlock*>(first + r * stride);
    }
    void next() {
        for (const QuantBlock*& b : block) ++b;
    }
    // Once the last block is behind us: the value of an outlier.
    float outlier(int row, int64_t index) const { return reinterpret_cast<const float*>(block[row])[index]; }
};

// What dot8bit counts weights less than they are.
#if defined(PELLUCID_DOT8BIT_OF_SIGNED)
constexpr int32_t kMissingOf8Bits = 128;
#else
constexpr int32_t kMissingOf8Bits = 0;
#endif

// Where the dot products of unsigned q start so that those of q - zero come out.
template <class F>
inline int32_t start_of_dot(const QuantBlock& x, int group, int32_t zero) {
    constexpr int32_t kMissing = F::kBits == 8 ? kMissingOf8Bits : 0;
    if (F::kMinima && kMissing == 0) return 0;
    return (kMissing - zero) * (F::kGroup == 16 ? x.sum16[group] : x.sum16[0] + x.sum16[1]);
}

// What the minimum of a group is multiplied with.
template <class F>
inline float scaled_sum(const QuantBlock& x, int group) {
    return F::kGroup == 16 ? x.scale * static_cast<float>(x.sum16[group]) : x.scaled_sum;
}

// Registers of a tile: a few dozen named by constant indices. Everything that touches them has to be inlined.
template <int kRows, int kStrips>
using Dots = Int[kRows][kStrips * kVectorsPerStrip];
template <int kRows, int kStrips>
using Sums = Float[kRows][kStrips * kVectorsPerStrip];
#define PELLUCID_INLINE __attribute__((always_inline)) inline

// One line of each strip into the dot products.
template <class F, int kRows, int kStrips>
PELLUCID_INLINE void dot_line(const Strips<kStrips>& strips, int64_t offset, const Rows<kRows>& x, int x_offset,
                              Dots<kRows, kStrips>& dot) {
    constexpr int kVectors = kStrips * kVectorsPerStrip;
    Int w[kVectors];
    for (int v = 0; v < kVectors; ++v)
        w[v] = load_bytes(strips.quants[v / kVectorsPerStrip] + offset + v % kVectorsPerStrip * kLanes * 4);
    if constexpr (F::kBits == 8) {
        for (int r = 0; r < kRows; ++r)
            for (int v = 0; v < kVectors; ++v) dot[r][v] = dot8bit(dot[r][v], w[v], spread4(x.block[r]->q + x_offset));
    } else {
        for (int r = 0; r < kRows; ++r)
            for (int v = 0; v < kVectors; ++v)
                dot[r][v] = dot4bit(dot[r][v], low_nibbles(w[v]), spread4(x.block[r]->q + x_offset));
        for (int r = 0; r < kRows; ++r)
            for (int v = 0; v < kVectors; ++v)
                dot[r][v] = dot4bit(dot[r][v], high_nibbles(w[v]), spread4(x.block[r]->q + x_offset + 4));
    }
}

// The dot products of group `g` of a block, scaled, into the sums.
template <class F, int kRows, int kStrips>
PELLUCID_INLINE void add_group(const Strips<kStrips>& strips, int64_t scale_offset, const Rows<kRows>& x, int g,
                               const Dots<kRows, kStrips>& dot, Sums<kRows, kStrips>& sum) {
    for (int v = 0; v < kStrips * kVectorsPerStrip; ++v) {
        const float* scales = strips.scales[v / kVectorsPerStrip] + scale_offset + v % kVectorsPerStrip * kLanes;
        const Float scale = load(scales);
        for (int r = 0; r < kRows; ++r)
            sum[r][v] = fma(mul(scale, spread(x.block[r]->scale)), to_float(dot[r][v]), sum[r][v]);
        if constexpr (F::kMinima) {
            const Float minimum = load(scales + kStripColumns);
            for (int r = 0; r < kRows; ++r)
                sum[r][v] = fma(minimum, spread(scaled_sum<F>(*x.block[r], g)), sum[r][v]);
        }
    }
}

template <class F, int kRows, int kStrips>
PELLUCID_INLINE void quant_tile(const QuantGemm& call, const Strips<kStrips>& strips, Rows<kRows> x, Ahead ahead,
                                Sums<kRows, kStrips>& sum) {
    constexpr int kGroups = kActivationGroup / F::kGroup;  // per block of 32
    constexpr int kLines = F::kGroup / F::kDepth;          // per group
    const int64_t blocks = call.k / kActivationGroup;
    for (int64_t block = 0; block < blocks; ++block, x.next()) {
        ahead.fetch();
        if (call.meanwhile) fetch(*call.meanwhile);
        for (int g = 0; g < kGroups; ++g) {
            const int64_t group = block * kGroups + g;
            Dots<kRows, kStrips> dot;
            for (int r = 0; r < kRows; ++r)
                for (Int& d : dot[r]) d = spread(start_of_dot<F>(*x.block[r], g, call.format.zero));
            for (int line = 0; line < kLines; ++line)
                dot_line<F>(strips, (group * kLines + line) * kLine, x, g * F::kGroup + line * F::kDepth, dot);
            add_group<F>(strips, group * F::kScaleFloats, x, g, dot, sum);
        }
    }
    for (int64_t i = 0; i < call.outliers.count; ++i)
        for (int v = 0; v < kStrips * kVectorsPerStrip; ++v) {
            const Float w = load(strips.outliers[v / kVectorsPerStrip] + i * kStripColumns +
                                 v % kVectorsPerStrip * kLanes);
            for (int r = 0; r < kRows; ++r) sum[r][v] = fma(w, spread(x.outlier(r, i)), sum[r][v]);
        }
}

template <class F, int kRows, int kStrips>
void tile_and_store(const QuantGemm& call, const Strips<kStrips>& strips, Ahead ahead, int64_t row, int64_t strip) {
    Sums<kRows, kStrips> sum;
    for (auto& row_sums : sum)
        for (Float& v : row_sums) v = spread(0.0f);
    const Rows<kRows> x(call.x + row * call.x_stride, call.x_stride);
    quant_tile<F, kRows, kStrips>(call, strips, x, ahead, sum);
    store_tile<kRows, kStrips>(sum, call, row, strip);
}

// The scales (and minima) of one strip as fp32, once for all rows.
template <class F>
void widen_scales(const QuantGemm& call, const std::byte* strip, float* out) {
    const int64_t groups = call.k / F::kGroup;
    const std::byte* scales = strip + call.layout.scales_offset;
    const int64_t count = groups * F::kScaleFloats;
    switch (call.format.scale_kind) {
        case ScaleKind::Half:
            for (int64_t i = 0; i < count; i += kLanes)
                store(out + i, load_half(reinterpret_cast<const uint16_t*>(scales) + i));
            break;
        case ScaleKind::Float:
            for (int64_t i = 0; i < count; i += kLanes)
                store(out + i, load(reinterpret_cast<const float*>(scales) + i));
            break;
        case ScaleKind::Super: {
            const auto* super_scales = reinterpret_cast<const uint16_t*>(strip);
            for (int64_t i = 0; i < count; i += kLanes) {
                const int64_t super_group = i / F::kScaleFloats / (kSuperGroup / F::kGroup);
                const Float super_scale = load_half(super_scales + super_group * F::kScaleFloats + i % F::kScaleFloats);
                store(out + i, mul(super_scale, load_int8(reinterpret_cast<const int8_t*>(scales) + i)));
            }
            break;
        }
    }
}

// Where the outliers of a product are in every strip: bytes from the first quant, bits from the right of a lane, and
// floats from the first scale.
template <class F>
struct OutlierPlaces {
    int64_t line[Outliers::kMax], scale[Outliers::kMax];
    int shift[Outliers::kMax];

    explicit OutlierPlaces(const Outliers& outliers) {
        for (int64_t i = 0; i < outliers.count; ++i) {
            const int column = outliers.columns[i], place = column % F::kDepth;
            line[i] = column / F::kDepth * kLine;
            scale[i] = column / F::kGroup * F::kScaleFloats;
            // A value is 8 bits of four bytes; of 4-bit ones the second four are in the high nibbles.
            shift[i] = place % 4 * 8 + place / 4 * 4;
        }
    }
};

// The columns of one strip that outliers are multiplied with, once for all rows.
template <class F>
void take_out(const QuantGemm& call, const OutlierPlaces<F>& places, const std::byte* quants, const float* scales,
              float* out) {
    for (int64_t i = 0; i < call.outliers.count; ++i) {
        const std::byte* line = quants + places.line[i];
        const float* scale = scales + places.scale[i];
        for (int v = 0; v < kVectorsPerStrip; ++v, out += kLanes) {
            Int q = low_bits<F::kBits>(shift_right(load_bytes(line + v * kLanes * 4), places.shift[i]));
            if constexpr (!F::kMinima) q = add(q, spread(-call.format.zero));
            const Float w = mul(load(scale + v * kLanes), to_float(q));
            store(out, F::kMinima ? add(w, load(scale + kStripColumns + v * kLanes)) : w);
        }
    }
}

// Calls the tile that has exactly `rows` rows.
template <class F, int kRows, int kStrips>
void dispatch_tile(int64_t rows, const QuantGemm& call, const Strips<kStrips>& strips, Ahead ahead, int64_t row,
                   int64_t strip) {
    if (rows == kRows) {
        tile_and_store<F, kRows, kStrips>(call, strips, ahead, row, strip);
    } else if constexpr (kRows > 1) {
        dispatch_tile<F, kRows - 1, kStrips>(rows, call, strips, ahead, row, strip);
    }
}

// All rows times `kStrips` strips, starting at `strip`.
template <class F, int kStrips>
void strips_times_rows(const QuantGemm& call, const OutlierPlaces<F>& places, int64_t strip) {
    Strips<kStrips> strips;
    for (int s = 0; s < kStrips; ++s) {
        const std::byte* p = call.strips + (strip + s) * call.layout.bytes;
        const int64_t scale_floats = call.k / F::kGroup * F::kScaleFloats;
        float* const scales = call.scratch + s * (scale_floats + Outliers::kMax * kStripColumns);
        float* const outliers = scales + scale_floats;
        strips.quants[s] = p + call.layout.quants_offset;
        strips.scales[s] = scales;
        strips.outliers[s] = outliers;
        widen_scales<F>(call, p, scales);
        take_out<F>(call, places, strips.quants[s], scales, outliers);
    }

    const int64_t blocks = call.k / kActivationGroup;
    const RowTiles tiles(call.rows, kQuantTileRows);
    Ahead ahead(call.strips + (strip + kStrips) * call.layout.bytes, kStrips * call.layout.bytes, tiles.count * blocks);
    int64_t row = 0;
    for (int64_t t = 0; t < tiles.count; ++t) {
        const int64_t rows = tiles.size(t);
        dispatch_tile<F, kQuantTileRows, kStrips>(rows, call, strips, ahead, row, strip);
        ahead.skip(blocks);
        row += rows;
    }
}

// A single row is bound by memory, and one strip at a time is one stream of memory.
template <class F>
void gemm_quant_format(const QuantGemm& call) {
    const OutlierPlaces<F> places(call.outliers);
    int64_t strip = call.strip_begin;
    if (call.rows > 1)
        for (; strip + kQuantTileStrips <= call.strip_end; strip += kQuantTileStrips)
            strips_times_rows<F, kQuantTileStrips>(call, places, strip);
    for (; strip < call.strip_end; ++strip) strips_times_rows<F, 1>(call, places, strip);
}

void gemm_quant_impl(const QuantGemm& call) {
    const bool minima = call.format.has_minima;
    if (call.format.kind == WeightKind::Int4)
        return minima ? gemm_quant_format<Format<4, 32, true>>(call) : gemm_quant_format<Format<4, 32, false>>(call);
    if (call.format.group == 32)
        return minima ? gemm_quant_format<Format<8, 32, true>>(call) : gemm_quant_format<Format<8, 32, false>>(call);
    return minima ? gemm_quant_format<Format<8, 16, true>>(call) : gemm_quant_format<Format<8, 16, false>>(call);
}

}  // namespace
}  // namespace pellucid
