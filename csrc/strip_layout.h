// Where things are inside a packed weight.
//
// A matrix is a row of strips, each 16 columns wide and contiguous, so that a kernel which walks along k reads memory
// in order. One strip of a quantised weight:
//
//   [super scales]  ScaleKind::Super only. Per 256 of k: 16 fp16 (, then 16 fp16 for the minima).
//   [scales]        Per group: 16 values (, then 16 minima): fp16, fp32 or int8 after the ScaleKind.
//   [quants]        Int8: one 64-byte line per 4 of k. Byte 4 * column + t is q[column][k0 + t].
//                   Int4: one line per 8 of k. The low nibble of byte 4 * column + t is q[column][k0 + t], the high
//                   nibble q[column][k0 + 4 + t].
//
// So four bytes of a line times four bytes of x, spread to all columns, is one step of an int8 dot product.
// A strip of a float weight: Float32 one line of 16 values per k, BFloat16 one line per 2 of k, value 2 * column + t.
// Sections are padded to whole lines; columns past n are zero.

#pragma once

#include "kernels.h"

namespace pellucid {

constexpr int64_t kLine = 64;

struct StripLayout {
    int64_t scales_offset = 0;
    int64_t quants_offset = 0;  // of the values, for float weights
    int64_t bytes = 0;
};

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

constexpr int64_t scale_bytes(ScaleKind kind) { return kind == ScaleKind::Float ? 4 : kind == ScaleKind::Half ? 2 : 1; }

constexpr int64_t value_bits(WeightKind kind) {
    switch (kind) {
        case WeightKind::Int4: return 4;
        case WeightKind::Int8: return 8;
        case WeightKind::BFloat16: return 16;
        case WeightKind::Float32: break;
    }
    return 32;
}

constexpr StripLayout strip_layout(int64_t k, const WeightFormat& f) {
    StripLayout layout;
    const int64_t value_bytes = k * kStripColumns * value_bits(f.kind) / 8;
    if (f.quantised()) {
        const int64_t values_per_scale = f.has_minima ? 2 * kStripColumns : kStripColumns;
        const int64_t super_bytes = f.scale_kind == ScaleKind::Super ? k / kSuperGroup * values_per_scale * 2 : 0;
        layout.scales_offset = round_up(super_bytes, kLine);
        const int64_t scales = k / f.group * values_per_scale * scale_bytes(f.scale_kind);
        layout.quants_offset = layout.scales_offset + round_up(scales, kLine);
    }
    layout.bytes = layout.quants_offset + round_up(value_bytes, kLine);
    return layout;
}

constexpr int64_t strip_count(int64_t n) { return (n + kStripColumns - 1) / kStripColumns; }

}  // namespace pellucid
