// From plain matrices to strips (strip_layout.h).

#include <algorithm>
#include <stdexcept>
#include <string>

#include "half.h"
#include "packed_memory.h"
#include "strip_layout.h"

namespace pellucid {
namespace {

// Far beyond any model, and small enough that no product of sizes overflows.
constexpr int64_t kMaxDimension = int64_t{1} << 26;

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

template <class T>
void put(std::byte* base, int64_t index, T value) {
    std::memcpy(base + index * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}

uint16_t exact_half(float value) {
    uint16_t half;
    if (!float_to_exact_half(value, &half)) fail("a scale or minimum is not representable in fp16");
    return half;
}

struct Packer {
    int64_t n, k;
    WeightFormat format;
    StripLayout layout;
    std::byte* data;

    std::byte* strip_of(int64_t row) const { return data + row / kStripColumns * layout.bytes; }
    int64_t values_per_scale() const { return format.has_minima ? 2 * kStripColumns : kStripColumns; }

    void quants(int64_t row, const uint8_t* q) const {
        auto* out = reinterpret_cast<uint8_t*>(strip_of(row) + layout.quants_offset) + row % kStripColumns * 4;
        if (format.kind == WeightKind::Int8) {
            for (int64_t i = 0; i < k; ++i) out[i / 4 * kLine + i % 4] = q[i];
            return;
        }
        uint8_t all_bits = 0;
        for (int64_t i = 0; i < k; ++i) {
            all_bits |= q[i];
            out[i / 8 * kLine + i % 4] |= static_cast<uint8_t>((q[i] & 15) << (i % 8 < 4 ? 0 : 4));
        }
        if (all_bits > 15) fail("a quant of a 4-bit weight is above 15");
    }

    // Writes values[0..count) of `row` to `section`; `minima` says which half of each entry.
    template <class T, class Convert>
    void spread_scales(int64_t row, int64_t offset, bool minima, int64_t count, Convert value_at) const {
        std::byte* section = strip_of(row) + offset;
        const int64_t first = row % kStripColumns + (minima ? kStripColumns : 0);
        for (int64_t g = 0; g < count; ++g) put<T>(section, g * values_per_scale() + first, value_at(g));
    }

    void scales(int64_t row, const QuantSource& source, bool minima) const {
        const int64_t groups = k / format.group;
        const float* values = minima ? source.minima : source.scales;
        if (format.scale_kind == ScaleKind::Float) {
            values += row * groups;
            spread_scales<float>(row, layout.scales_offset, minima, groups, [=](int64_t g) { return values[g]; });
        } else if (format.scale_kind == ScaleKind::Half) {
            values += row * groups;
            spread_scales<uint16_t>(row, layout.scales_offset, minima, groups,
                                    [=](int64_t g) { return exact_half(values[g]); });
        } else {
            const int64_t supers = k / kSuperGroup;
            const int8_t* subs = (minima ? source.sub_minima : source.sub_scales) + row * groups;
            const float* super_values = (minima ? source.super_minima : source.super_scales) + row * supers;
            spread_scales<int8_t>(row, layout.scales_offset, minima, groups, [=](int64_t g) { return subs[g]; });
            spread_scales<uint16_t>(row, 0, minima, supers, [=](int64_t g) { return exact_half(super_values[g]); });
        }
    }
};

Packer start(int64_t n, int64_t k, const WeightFormat& format, PackedWeight& weight) {
    check_shape(n, k, format);
    weight.n = n;
    weight.k = k;
    weight.format = format;
    const std::shared_ptr<std::byte> data = allocate_packed(weight.bytes());
    weight.data = data;
    return {n, k, format, strip_layout(k, format), data.get()};
}

}  // namespace

void check_shape(int64_t n, int64_t k, const WeightFormat& f) {
    if (n < 1 || k < 1 || n > kMaxDimension || k > kMaxDimension || n > (int64_t{1} << 40) / k)
        fail("weight shape [" + std::to_string(n) + ", " + std::to_string(k) + "] is empty or too large");
    if (f.kind == WeightKind::BFloat16 && k % 2 != 0) fail("k of a bfloat16 weight must be even");
    if (!f.quantised()) return;
    const int64_t multiple = f.scale_kind == ScaleKind::Super ? kSuperGroup : kActivationGroup;
    if (k % multiple != 0)
        fail("k is " + std::to_string(k) + ", this format needs a multiple of " + std::to_string(multiple));
    if (f.group != 32 && !(f.group == 16 && f.kind == WeightKind::Int8))
        fail("group is " + std::to_string(f.group) + ", expected 32, or 16 with 8-bit weights");
    if (f.zero < 0 || f.zero > 255) fail("zero is " + std::to_string(f.zero) + ", expected 0 to 255");
    if (f.zero != 0 && f.has_minima) fail("a format has a zero or minima, not both");
}

bool fits_half(const float* values, int64_t count) {
    uint16_t half;
    return std::all_of(values, values + count, [&](float v) { return float_to_exact_half(v, &half); });
}

PackedWeight pack_quantised(int64_t n, int64_t k, const WeightFormat& format, const QuantSource& source) {
    PackedWeight weight;
    const Packer packer = start(n, k, format, weight);
    for (int64_t row = 0; row < n; ++row) {
        packer.quants(row, source.q + row * k);
        packer.scales(row, source, false);
        if (format.has_minima) packer.scales(row, source, true);
    }
    return weight;
}

PackedWeight pack_float(int64_t n, int64_t k, const float* w) {
    PackedWeight weight;
    const Packer packer = start(n, k, {.kind = WeightKind::Float32}, weight);
    for (int64_t row = 0; row < n; ++row)
        for (int64_t i = 0; i < k; ++i)
            put<float>(packer.strip_of(row), i * kStripColumns + row % kStripColumns, w[row * k + i]);
    return weight;
}

PackedWeight pack_bfloat16(int64_t n, int64_t k, const uint16_t* w, bool round_activations) {
    PackedWeight weight;
    const Packer packer = start(n, k, {.kind = WeightKind::BFloat16, .round_activations = round_activations}, weight);
    for (int64_t row = 0; row < n; ++row)
        for (int64_t i = 0; i < k; ++i)
            put<uint16_t>(packer.strip_of(row), i / 2 * 32 + row % kStripColumns * 2 + i % 2, w[row * k + i]);
    return weight;
}

}  // namespace pellucid
