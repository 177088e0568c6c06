// What the kernels offer to the rest of the native code. Everything here is single-threaded and safe to
// call from several threads at once: whoever calls decides how columns or rows are shared out.
//
// Names: a linear layer is y[rows, n] = x[rows, k] * w[n, k]^T + bias[n]. "Columns" are columns of y, that is
// rows of w. A "strip" is 16 neighbouring columns: the unit of packing, and the unit in which columns may be split.
//
// Invariance: one element of y is computed by one chain of operations whose order depends on k alone. So a row's
// result has the same bits alone or in a batch, at any position, and with any split of the columns.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace pellucid {

constexpr int64_t kStripColumns = 16;
constexpr int64_t kActivationGroup = 32;  // columns of x that share one scale
constexpr int64_t kSuperGroup = 256;      // columns of w under one super scale (GGUF's K-quants)

// ---- weights ----------------------------------------------------------------------------------------------

enum class WeightKind : uint8_t { Int4, Int8, BFloat16, Float32 };

// How the scales (and minima) of a quantised weight are stored; all three are lossless for what they are used for.
enum class ScaleKind : uint8_t {
    Half,   // fp16, when every value is exactly an fp16
    Float,  // fp32
    Super,  // int8 per group times fp16 per 256: K-quants, whose products do not fit an fp16
};

// w = scale_g * (q - zero) + minimum_g, where q is unsigned. A format has either minima or a zero, not both.
struct WeightFormat {
    WeightKind kind = WeightKind::Float32;
    ScaleKind scale_kind = ScaleKind::Half;
    int32_t group = 32;  // 16 or 32, quantised kinds only
    int32_t zero = 0;
    bool has_minima = false;
    // BFloat16 only: round activations to bf16 too, which allows bf16 dot products (twice the arithmetic speed) on CPUs
    // that have them. Elsewhere, and when false, weights are widened and activations stay fp32.
    bool round_activations = false;

    constexpr bool quantised() const { return kind == WeightKind::Int4 || kind == WeightKind::Int8; }
};

// Packed bytes of one weight matrix. Cheap to copy: copies share the bytes.
struct PackedWeight {
    int64_t n = 0;
    int64_t k = 0;
    WeightFormat format;
    std::shared_ptr<const std::byte> data;  // 64-byte aligned

    size_t bytes() const;  // of the whole matrix, n padded to whole strips
};

// What a quantised weight is packed from: q [n, k] and, per row, k / group scales (and minima).
// Half and Float: `scales` and `minima` are read. Super: the int8 and fp32 arrays; scale_g = sub_scale_g * super_scale.
struct QuantSource {
    const uint8_t* q = nullptr;
    const float* scales = nullptr;
    const float* minima = nullptr;
    const int8_t* sub_scales = nullptr;
    const int8_t* sub_minima = nullptr;
    const float* super_scales = nullptr;  // [n, k / 256], each exactly an fp16
    const float* super_minima = nullptr;
};

// Throws std::invalid_argument if no weight can have this shape and format.
void check_shape(int64_t n, int64_t k, const WeightFormat& format);

// True if all values are exactly representable as fp16, so that ScaleKind::Half loses nothing.
bool fits_half(const float* values, int64_t count);

// All throw std::invalid_argument for a shape or a value that the format cannot hold.
PackedWeight pack_quantised(int64_t n, int64_t k, const WeightFormat& format, const QuantSource& source);
PackedWeight pack_float(int64_t n, int64_t k, const float* w);
PackedWeight pack_bfloat16(int64_t n, int64_t k, const uint16_t* w, bool round_activations);

// ---- activations ------------------------------------------------------------------------------------------

// 32 columns of a row, x ~ scale * q, with all that a product needs of them side by side.
struct QuantBlock {
    int8_t q[kActivationGroup];
    float scale;
    float scaled_sum;  // scale * (sum of q)
    int16_t sum16[2];  // of q over either half
};
static_assert(sizeof(QuantBlock) == 44);

// Columns that stay fp32 beside the blocks and are zero inside of them: the few whose values are so large that their
// neighbours would lose their precision to them (Dettmers et al. 2022, LLM.int8()). The choice is one for all rows.
struct Outliers {
    static constexpr int64_t kMax = 8;
    int64_t count = 0;
    int32_t columns[kMax] = {};  // ascending
};

// Rows of k columns, a multiple of 32. Each is k / 32 blocks, then the values of the outliers.
struct QuantRows {
    std::byte* data = nullptr;
    int64_t k = 0;
    const Outliers* outliers = nullptr;

    static constexpr int64_t row_bytes(int64_t k) {
        return k / kActivationGroup * int64_t{sizeof(QuantBlock)} + Outliers::kMax * int64_t{sizeof(float)};
    }
    QuantRows from(int64_t row) const { return {data + row * row_bytes(k), k, outliers}; }
    QuantBlock* blocks(int64_t row) const { return reinterpret_cast<QuantBlock*>(data + row * row_bytes(k)); }
    float* outlier_values(int64_t row) const { return reinterpret_cast<float*>(blocks(row) + k / kActivationGroup); }
};

// x, which is columns [begin, begin + count) of row `row`: both multiples of 32. scale = absmax / 127; q is x / scale
// rounded to nearest, ties to even.
void quantize(const float* x, int64_t begin, int64_t count, const QuantRows& out, int64_t row);

// ---- products ---------------------------------------------------------------------------------------------

// What a thread brings into its caches beside its work, a little at a time and on from where it was: blocks of two pools.
// Block b of a pool is at pool + b * block_bytes.
struct alignas(64) Meanwhile {
    const std::byte* pools[2] = {};
    int64_t block_bytes = 0;
    const int32_t* blocks = nullptr;
    int64_t num_blocks = 0;
    int64_t block = 0, byte = 0;  // what is next: byte `byte` of blocks[block]
};

// y[i, c] for i in [0, rows) and c in [col_begin, col_end): col_begin is a multiple of 16, col_end too or n.
// Multiples of 32 are a little faster. `y` is row 0, column 0 of the result, strides are in floats, `bias` is [n] or
// null. `meanwhile`, if it is not null, is for products of many rows, which compute for longer than they read.
void gemm(const PackedWeight& w, const QuantRows& x, int64_t rows, float* y, int64_t y_stride, const float* bias,
          int64_t col_begin, int64_t col_end, Meanwhile* meanwhile = nullptr);

// The same for BFloat16 and Float32 weights.
void gemm_float(const PackedWeight& w, const float* x, int64_t x_stride, int64_t rows, float* y, int64_t y_stride,
                const float* bias, int64_t col_begin, int64_t col_end);

// Row `row` of w as [k] floats, for embedding tables (which are the lm_head when embeddings are tied).
void dequantize_row(const PackedWeight& w, int64_t row, float* out);

}  // namespace pellucid
