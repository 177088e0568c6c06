// One row of a packed weight as floats: an embedding lookup. A row is a column of its strip, so its bytes lie a line
// apart; that is slow per byte and does not matter for one row per token.

#include "half.h"
#include "strip_layout.h"

namespace pellucid {
namespace {

template <class T>
T get(const std::byte* base, int64_t index) {
    T value;
    std::memcpy(&value, base + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
    return value;
}

struct Strip {
    const PackedWeight& weight;
    StripLayout layout;
    const std::byte* data;
    int64_t column;

    float scale(int64_t group, bool minimum) const {
        const WeightFormat& f = weight.format;
        const int64_t per_group = f.has_minima ? 2 * kStripColumns : kStripColumns;
        const int64_t place = column + (minimum ? kStripColumns : 0);
        const int64_t index = group * per_group + place;
        const std::byte* scales = data + layout.scales_offset;
        if (f.scale_kind == ScaleKind::Float) return get<float>(scales, index);
        if (f.scale_kind == ScaleKind::Half) return half_to_float(get<uint16_t>(scales, index));
        const int64_t super_group = group * f.group / kSuperGroup;
        const float super_scale = half_to_float(get<uint16_t>(data, super_group * per_group + place));
        return super_scale * static_cast<float>(get<int8_t>(scales, index));
    }

    int32_t quant(int64_t i) const {
        const std::byte* quants = data + layout.quants_offset + column * 4 + i % 4;
        if (weight.format.kind == WeightKind::Int8) return get<uint8_t>(quants, i / 4 * kLine);
        return (get<uint8_t>(quants, i / 8 * kLine) >> (i % 8 < 4 ? 0 : 4)) & 15;
    }
};

void dequantize_quantised(const Strip& strip, float* out) {
    const WeightFormat& f = strip.weight.format;
    for (int64_t g = 0; g < strip.weight.k / f.group; ++g) {
        const float scale = strip.scale(g, false);
        const float minimum = f.has_minima ? strip.scale(g, true) : 0.0f;
        for (int64_t i = g * f.group; i < (g + 1) * f.group; ++i)
            out[i] = scale * static_cast<float>(strip.quant(i) - f.zero) + minimum;
    }
}

}  // namespace

void dequantize_row(const PackedWeight& w, int64_t row, float* out) {
    const StripLayout layout = strip_layout(w.k, w.format);
    const std::byte* data = w.data.get() + row / kStripColumns * layout.bytes;
    const int64_t column = row % kStripColumns;
    switch (w.format.kind) {
        case WeightKind::Int4:
        case WeightKind::Int8: return dequantize_quantised({w, layout, data, column}, out);
        case WeightKind::BFloat16:
            for (int64_t i = 0; i < w.k; ++i)
                out[i] = bfloat16_to_float(get<uint16_t>(data, i / 2 * 32 + column * 2 + i % 2));
            return;
        case WeightKind::Float32:
            for (int64_t i = 0; i < w.k; ++i) out[i] = get<float>(data, i * kStripColumns + column);
            return;
    }
}

}  // namespace pellucid
