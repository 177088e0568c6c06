#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>

#include "bindings.h"
#include "cpu_features.h"
#include "packed_memory.h"
#include "strip_layout.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pellucid {
namespace {

template <class T, int kDimensions>
using Optional = std::optional<Input<T, kDimensions>>;

int64_t size(const auto& array, size_t axis) { return static_cast<int64_t>(array.shape(axis)); }

template <class Array>
void require_shape(const Array& array, const char* name, int64_t rows, int64_t columns) {
    require(size(array, 0) == rows && size(array, 1) == columns,
            std::string(name) + " has shape [" + std::to_string(size(array, 0)) + ", " +
                std::to_string(size(array, 1)) + "], expected [" + std::to_string(rows) + ", " +
                std::to_string(columns) + "]");
}

template <class T>
T* dense_output(const Output<T, 2>& array, const char* name, int64_t rows, int64_t columns) {
    require_shape(array, name, rows, columns);
    const bool dense = array.stride(1) == 1 && (array.stride(0) == columns || rows == 1);
    require(dense || array.size() == 0, std::string(name) + " must be contiguous");
    return array.data();
}

template <class Enum, size_t kCount>
Enum parse(const std::string& name, const char* what, const char* const (&names)[kCount]) {
    std::string known;
    for (size_t i = 0; i < kCount; ++i) {
        if (name == names[i]) return static_cast<Enum>(i);
        known += (i ? ", " : "") + std::string(names[i]);
    }
    throw nb::value_error((std::string(what) + " is '" + name + "', expected one of " + known).c_str());
}

constexpr const char* kKindNames[] = {"int4", "int8", "bfloat16", "float32"};
constexpr const char* kScaleNames[] = {"half", "float", "super"};

nb::dict features() {
    const CpuFeatures& f = cpu_features();
    nb::dict d;
    d["avx2"] = f.avx2;
    d["avx_vnni"] = f.avx_vnni;
    d["avx512"] = f.avx512;
    d["avx512_bf16"] = f.avx512_bf16;
    d["neon_dot"] = f.neon_dot;
    return d;
}

// ---- weights ----

PackedWeight pack_scaled(Input<uint8_t, 2> q, Input<float, 2> scales, Optional<float, 2> minima, int bits, int group,
                         int zero) {
    require(bits == 4 || bits == 8, "bits is " + std::to_string(bits) + ", expected 4 or 8");
    require(group == 16 || group == 32, "group is " + std::to_string(group) + ", expected 16 or 32");
    const int64_t n = size(q, 0), k = size(q, 1), groups = k / group;
    require_shape(scales, "scales", n, groups);
    if (minima) require_shape(*minima, "minima", n, groups);
    const float* const minima_data = minima ? minima->data() : nullptr;
    const nb::gil_scoped_release release;
    const bool half = fits_half(scales.data(), n * groups) && (!minima_data || fits_half(minima_data, n * groups));
    const WeightFormat format{.kind = bits == 4 ? WeightKind::Int4 : WeightKind::Int8,
                              .scale_kind = half ? ScaleKind::Half : ScaleKind::Float,
                              .group = group,
                              .zero = zero,
                              .has_minima = minima_data != nullptr};
    return pack_quantised(n, k, format, {.q = q.data(), .scales = scales.data(), .minima = minima_data});
}

PackedWeight pack_super(Input<uint8_t, 2> q, Input<int8_t, 2> sub_scales, Input<float, 2> super_scales,
                        Optional<int8_t, 2> sub_minima, Optional<float, 2> super_minima, int bits, int group,
                        int zero) {
    require(bits == 4 || bits == 8, "bits is " + std::to_string(bits) + ", expected 4 or 8");
    require(group == 16 || group == 32, "group is " + std::to_string(group) + ", expected 16 or 32");
    const int64_t n = size(q, 0), k = size(q, 1);
    require_shape(sub_scales, "sub_scales", n, k / group);
    require_shape(super_scales, "super_scales", n, k / kSuperGroup);
    require(sub_minima.has_value() == super_minima.has_value(), "sub_minima and super_minima go together");
    if (sub_minima) {
        require_shape(*sub_minima, "sub_minima", n, k / group);
        require_shape(*super_minima, "super_minima", n, k / kSuperGroup);
    }
    const WeightFormat format{.kind = bits == 4 ? WeightKind::Int4 : WeightKind::Int8,
                              .scale_kind = ScaleKind::Super,
                              .group = group,
                              .zero = zero,
                              .has_minima = sub_minima.has_value()};
    const QuantSource source{.q = q.data(),
                             .sub_scales = sub_scales.data(),
                             .sub_minima = sub_minima ? sub_minima->data() : nullptr,
                             .super_scales = super_scales.data(),
                             .super_minima = super_minima ? super_minima->data() : nullptr};
    const nb::gil_scoped_release release;
    return pack_quantised(n, k, format, source);
}

PackedWeight pack_float_array(Input<float, 2> w) {
    const nb::gil_scoped_release release;
    return pack_float(size(w, 0), size(w, 1), w.data());
}

PackedWeight pack_bfloat16_array(Input<uint16_t, 2> w, bool round_activations) {
    const nb::gil_scoped_release release;
    return pack_bfloat16(size(w, 0), size(w, 1), w.data(), round_activations);
}

WeightFormat make_format(const std::string& kind, const std::string& scale_kind, int group, int zero, bool has_minima,
                         bool round_activations) {
    return {.kind = parse<WeightKind>(kind, "kind", kKindNames),
            .scale_kind = parse<ScaleKind>(scale_kind, "scale_kind", kScaleNames),
            .group = group,
            .zero = zero,
            .has_minima = has_minima,
            .round_activations = round_activations};
}

// The packed bytes, as to_bytes() gave them, back into a weight.
PackedWeight from_bytes(int64_t n, int64_t k, const WeightFormat& format, Input<uint8_t, 1> data) {
    check_shape(n, k, format);
    PackedWeight weight{n, k, format, nullptr};
    require(data.size() == weight.bytes(), "data has " + std::to_string(data.size()) +
                                               " bytes, this shape and format " + "need " +
                                               std::to_string(weight.bytes()));
    const nb::gil_scoped_release release;
    const std::shared_ptr<std::byte> bytes = allocate_packed(weight.bytes());
    std::memcpy(bytes.get(), data.data(), weight.bytes());
    weight.data = bytes;
    return weight;
}

nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>> to_bytes(const PackedWeight& w) {
    auto* owner = new std::shared_ptr<const std::byte>(w.data);
    const nb::capsule capsule(owner,
                              [](void* p) noexcept { delete static_cast<std::shared_ptr<const std::byte>*>(p); });
    return {reinterpret_cast<const uint8_t*>(w.data.get()), {w.bytes()}, capsule};
}

// ---- products ----

// Quantised rows come and go as bytes.
Outliers make_outliers(const std::vector<int32_t>& columns, int64_t k) {
    require(columns.size() <= Outliers::kMax, "there are more than 8 outliers");
    Outliers outliers{.count = static_cast<int64_t>(columns.size())};
    int32_t least = 0;
    for (size_t i = 0; i < columns.size(); ++i) {
        require(columns[i] >= least && columns[i] < k, "outliers must be ascending columns of x");
        outliers.columns[i] = columns[i];
        least = columns[i] + 1;
    }
    return outliers;
}

void quantize_array(Input<float, 2> x, Output<uint8_t, 2> out, const std::vector<int32_t>& columns) {
    const int64_t rows = size(x, 0), k = size(x, 1);
    require(k % kActivationGroup == 0, "x has " + std::to_string(k) + " columns, expected a multiple of 32");
    const Outliers outliers = make_outliers(columns, k);
    const QuantRows to{reinterpret_cast<std::byte*>(dense_output(out, "out", rows, QuantRows::row_bytes(k))), k,
                       &outliers};
    const nb::gil_scoped_release release;
    for (int64_t row = 0; row < rows; ++row) quantize(x.data() + row * k, 0, k, to, row);
}

struct Columns {
    int64_t begin, end;
};

Columns check_result(const PackedWeight& w, int64_t rows, const Output<float, 2>& y, const Optional<float, 1>& bias,
                     int64_t begin, std::optional<int64_t> end) {
    require_shape(y, "y", rows, w.n);
    const bool dense_rows = y.stride(1) == 1 && (y.stride(0) >= w.n || rows == 1);
    require(dense_rows || rows == 0, "rows of y must be contiguous and not overlap");
    if (bias) require(size(*bias, 0) == w.n, "bias must have n values");
    const Columns columns{begin, end.value_or(w.n)};
    require(0 <= begin && begin <= columns.end && columns.end <= w.n && begin % kStripColumns == 0 &&
                (columns.end % kStripColumns == 0 || columns.end == w.n),
            "columns must lie in [0, n) and be multiples of 16");
    return columns;
}

void gemm_arrays(const PackedWeight& w, Input<uint8_t, 2> x, Output<float, 2> y, Optional<float, 1> bias,
                 int64_t col_begin, std::optional<int64_t> col_end, const std::vector<int32_t>& outlier_columns) {
    require(w.format.quantised(), "gemm is for int4 and int8 weights");
    const int64_t rows = size(x, 0);
    require_shape(x, "x", rows, QuantRows::row_bytes(w.k));
    const Outliers outliers = make_outliers(outlier_columns, w.k);
    const Columns columns = check_result(w, rows, y, bias, col_begin, col_end);
    // The kernels only read what QuantRows points to.
    const QuantRows quantised{reinterpret_cast<std::byte*>(const_cast<uint8_t*>(x.data())), w.k, &outliers};
    const float* const bias_data = bias ? bias->data() : nullptr;
    const nb::gil_scoped_release release;
    gemm(w, quantised, rows, y.data(), y.stride(0), bias_data, columns.begin, columns.end);
}

void gemm_float_arrays(const PackedWeight& w, Input<float, 2> x, Output<float, 2> y, Optional<float, 1> bias,
                       int64_t col_begin, std::optional<int64_t> col_end) {
    require(!w.format.quantised(), "gemm_float is for bfloat16 and float32 weights");
    const int64_t rows = size(x, 0);
    require_shape(x, "x", rows, w.k);
    const Columns columns = check_result(w, rows, y, bias, col_begin, col_end);
    const float* const bias_data = bias ? bias->data() : nullptr;
    const nb::gil_scoped_release release;
    gemm_float(w, x.data(), w.k, rows, y.data(), y.stride(0), bias_data, columns.begin, columns.end);
}

void dequantize_row_array(const PackedWeight& w, int64_t row, Output<float, 1> out) {
    require(0 <= row && row < w.n, "row " + std::to_string(row) + " is not in [0, " + std::to_string(w.n) + ")");
    require(size(out, 0) == w.k && out.stride(0) == 1, "out must be contiguous and have k values");
    dequantize_row(w, row, out.data());
}

void bind_weights(nb::module_& m) {
    nb::class_<WeightFormat>(m, "WeightFormat", "How a packed weight stores its values.")
        .def_static("make", make_format, "kind"_a, "scale_kind"_a = "half", "group"_a = 32, "zero"_a = 0,
                    "has_minima"_a = false, "round_activations"_a = false)
        .def_prop_ro("kind", [](const WeightFormat& f) { return kKindNames[static_cast<int>(f.kind)]; })
        .def_prop_ro("scale_kind", [](const WeightFormat& f) { return kScaleNames[static_cast<int>(f.scale_kind)]; })
        .def_ro("group", &WeightFormat::group)
        .def_ro("zero", &WeightFormat::zero)
        .def_ro("has_minima", &WeightFormat::has_minima)
        .def_ro("round_activations", &WeightFormat::round_activations);
    nb::class_<PackedWeight>(m, "PackedWeight", "A weight [n, k] in the kernels' own layout. Immutable.")
        .def_static("from_bytes", from_bytes, "n"_a, "k"_a, "format"_a, "data"_a)
        .def("to_bytes", to_bytes, "A read-only view of the packed bytes.")
        .def_ro("n", &PackedWeight::n)
        .def_ro("k", &PackedWeight::k)
        .def_ro("format", &PackedWeight::format)
        .def_prop_ro("nbytes", &PackedWeight::bytes);
    m.def("pack_quantised", pack_scaled, "q"_a, "scales"_a, "minima"_a = nb::none(), nb::kw_only(), "bits"_a, "group"_a,
          "zero"_a = 0,
          "w = scale * (q - zero) + minimum, with q uint8 [n, k], scales and minima float32 [n, k / group].\n\n"
          "Scales are stored as fp16 if that loses nothing, else as fp32.");
    m.def("pack_super", pack_super, "q"_a, "sub_scales"_a, "super_scales"_a, "sub_minima"_a = nb::none(),
          "super_minima"_a = nb::none(), nb::kw_only(), "bits"_a, "group"_a, "zero"_a = 0,
          "pack_quantised with scale = sub_scale (int8 [n, k / group]) * super_scale (fp16 in float32 [n, k / 256]).");
    m.def("pack_float", pack_float_array, "w"_a, "A float32 weight [n, k].");
    m.def("pack_bfloat16", pack_bfloat16_array, "w"_a, "round_activations"_a = false,
          "A bfloat16 weight [n, k], given as uint16. Activations stay float32 unless round_activations.");
}

}  // namespace

void bind_gemm(nb::module_& m) {
    m.def(
        "isa", [] { return isa_name(active_isa()); }, "The instruction set in use: PELLUCID_ISA or the best there is.");
    m.def("features", features, "What this CPU offers.");
    bind_weights(m);
    m.def("quantize_rows", quantize_array, "x"_a, "out"_a.noconvert(), "outliers"_a = std::vector<int32_t>(),
          "float32 x [rows, k] into uint8 out [rows, k / 32 * 44 + 32]. A row is, for every 32 columns, int8 q[32],\n"
          "float32 scale, float32 scale * sum of q, int16 sums of q over either half; then float32 outliers[8].");
    m.def("gemm", gemm_arrays, "w"_a, "x"_a, "y"_a.noconvert(), "bias"_a = nb::none(), "col_begin"_a = 0,
          "col_end"_a = nb::none(), "outliers"_a = std::vector<int32_t>(),
          "Columns [col_begin, col_end) of y [rows, n] = x * w^T + bias, for x that quantize_rows made.");
    m.def("gemm_float", gemm_float_arrays, "w"_a, "x"_a, "y"_a.noconvert(), "bias"_a = nb::none(), "col_begin"_a = 0,
          "col_end"_a = nb::none(), "The same for float weights and float32 activations.");
    m.def("dequantize_row", dequantize_row_array, "w"_a, "row"_a, "out"_a.noconvert());
}

}  // namespace pellucid
