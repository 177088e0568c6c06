// Products of every weight format over odd shapes against a plain double evaluation.

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "strip_layout.h"
#include "tools/check.h"

namespace pellucid::check {

namespace {

// The weight in memory of its own with nothing behind it, so that reads past its end are seen.
PackedWeight isolate(PackedWeight w) {
    auto* copy = static_cast<std::byte*>(std::aligned_alloc(64, w.bytes()));
    std::memcpy(copy, w.data.get(), w.bytes());
    w.data = std::shared_ptr<const std::byte>(copy, [](const std::byte* p) { std::free(const_cast<std::byte*>(p)); });
    return w;
}

}  // namespace

PackedWeight random_weight(int64_t n, int64_t k, const WeightFormat& f) {
    if (f.kind == WeightKind::Float32) return isolate(pack_float(n, k, random_floats(n * k).data()));
    if (f.kind == WeightKind::BFloat16) {
        // Sign and exponents around one.
        auto w = random_ints<uint16_t>(n * k, 0x3e80, 0x4000);
        return isolate(pack_bfloat16(n, k, w.data(), f.round_activations));
    }
    const auto q = random_ints<uint8_t>(n * k, 0, f.kind == WeightKind::Int4 ? 15 : 255);
    const int64_t groups = k / f.group;
    if (f.scale_kind == ScaleKind::Super) {
        const auto subs = random_ints<int8_t>(n * groups, -128, 127),
                   minima = random_ints<int8_t>(n * groups, -128, 127);
        const std::vector<float> supers(static_cast<size_t>(n * k / kSuperGroup), 0.0078125f);
        return isolate(pack_quantised(n, k, f,
                                      {.q = q.data(),
                                       .sub_scales = subs.data(),
                                       .sub_minima = minima.data(),
                                       .super_scales = supers.data(),
                                       .super_minima = supers.data()}));
    }
    auto scales = random_floats(n * groups), minima = random_floats(n * groups);
    if (f.scale_kind == ScaleKind::Half)
        for (auto* v : {&scales, &minima})
            for (float& x : *v) x = std::round(x * 64) / 64;
    return isolate(pack_quantised(n, k, f, {.q = q.data(), .scales = scales.data(), .minima = minima.data()}));
}

namespace {

void compare(const char* what, const PackedWeight& w, const std::vector<float>& x, const std::vector<float>& y,
             const std::vector<float>& bias, int64_t rows, double tolerance) {
    std::vector<float> row(static_cast<size_t>(w.k));
    for (int64_t c = 0; c < w.n; ++c) {
        dequantize_row(w, c, row.data());
        for (int64_t r = 0; r < rows; ++r) {
            double sum = bias[c], magnitude = std::fabs(bias[c]);
            for (int64_t i = 0; i < w.k; ++i) {
                const double term = double{row[i]} * double{x[r * w.k + i]};
                sum += term;
                magnitude += std::fabs(term);
            }
            if (std::fabs(y[r * w.n + c] - sum) <= tolerance * magnitude) continue;
            return expect(false, "%s [%ld, %ld] x %ld: y[%ld, %ld] is %g, expected %g", what, long(w.n), long(w.k),
                          long(rows), long(r), long(c), y[r * w.n + c], sum);
        }
    }
}

void check_product(const char* what, const WeightFormat& f, int64_t n, int64_t k, int64_t rows) {
    const PackedWeight w = random_weight(n, k, f);
    std::vector<float> x = random_floats(rows * k), bias = random_floats(n);
    std::vector<float> y(static_cast<size_t>(rows * n), NAN);
    if (!f.quantised()) {
        gemm_float(w, x.data(), k, rows, y.data(), n, bias.data(), 0, n);
        compare(what, w, x, y, bias, rows, f.round_activations ? 1e-2 : 1e-5);
        return;
    }
    const Outliers outliers{.count = 2, .columns = {1, static_cast<int32_t>(k) - 1}};
    std::vector<std::byte> memory(static_cast<size_t>(rows * QuantRows::row_bytes(k)));
    const QuantRows quantised{memory.data(), k, &outliers};
    for (int64_t r = 0; r < rows; ++r) {
        quantize(x.data() + r * k, 0, k, quantised, r);
        for (int64_t i = 0; i < k; ++i) {
            const QuantBlock& block = quantised.blocks(r)[i / 32];
            if (i != 1 && i != k - 1) x[r * k + i] = block.scale * static_cast<float>(block.q[i % 32]);
        }
    }
    const int64_t middle = strip_count(n) / 2 * kStripColumns;
    gemm(w, quantised, rows, y.data(), n, bias.data(), 0, middle);
    gemm(w, quantised, rows, y.data(), n, bias.data(), middle, n);
    compare(what, w, x, y, bias, rows, 1e-4);
}

void check_format(const char* what, const WeightFormat& f) {
    const int64_t depths_super[] = {256, 512}, depths[] = {32, 64, 96, 288};
    const bool super = f.quantised() && f.scale_kind == ScaleKind::Super;
    for (int64_t n : {1, 15, 16, 17, 33, 80, 100})
        for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 13, 32})
            for (int64_t k : super ? std::vector<int64_t>(depths_super, depths_super + 2)
                                   : std::vector<int64_t>(depths, depths + 4))
                check_product(what, f, n, f.quantised() ? k : k - 30, rows);
}

}  // namespace

void check_products() {
    for (ScaleKind scale : {ScaleKind::Half, ScaleKind::Float, ScaleKind::Super}) {
        const WeightFormat base{.scale_kind = scale};
        auto make = [&](WeightKind kind, int group, int zero) {
            WeightFormat f = base;
            f.kind = kind;
            f.group = group;
            f.zero = zero;
            f.has_minima = zero == 0;
            return f;
        };
        check_format("int4 zero", make(WeightKind::Int4, 32, 8));
        check_format("int4 minima", make(WeightKind::Int4, 32, 0));
        for (int group : {16, 32}) {
            check_format("int8 zero", make(WeightKind::Int8, group, 128));
            check_format("int8 minima", make(WeightKind::Int8, group, 0));
        }
    }
    check_format("float32", {.kind = WeightKind::Float32});
    check_format("bfloat16", {.kind = WeightKind::BFloat16});
    check_format("bfloat16 rounded", {.kind = WeightKind::BFloat16, .round_activations = true});
}

}  // namespace pellucid::check
