// The functions that exist once per instruction set, and the plain arguments they take.
//
// Each instruction set is one translation unit compiled with its own flags. Such a unit must not instantiate inline
// functions or templates of the standard library, nor any function with external linkage but its table: the linker
// keeps one copy of an inline function, and if it keeps the AVX-512 one, every other CPU dies of it.
// Hence plain structs here and an anonymous namespace around everything in simd/ and ops/.

#pragma once

#include <cstdint>

#include "strip_layout.h"

namespace pellucid {

struct QuantGemm {
    WeightFormat format;
    StripLayout layout;
    const std::byte* strips;  // strip 0 of the weight
    int64_t n, k;
    int64_t strip_begin, strip_end;
    const std::byte* x;  // row 0 of a QuantRows
    int64_t x_stride;    // bytes
    Outliers outliers;
    int64_t rows;
    float* y;  // row 0, column 0
    int64_t y_stride;
    const float* bias;  // [n] or null
    float* scratch;     // see quant_scratch_floats
    Meanwhile* meanwhile;  // or null
};

struct FloatGemm {
    WeightFormat format;
    StripLayout layout;
    const std::byte* strips;
    int64_t n, k;
    int64_t strip_begin, strip_end;
    const float* x;
    int64_t x_stride;
    int64_t rows;
    float* y;
    int64_t y_stride;
    const float* bias;
    uint16_t* scratch;  // [rows, k], for bf16 activations; null where the kernel does not round them
};

// At most this many strips share a tile, on any instruction set.
constexpr int64_t kMaxTileStrips = 4;
// Of each of a tile's strips the scales, widened to fp32, and the columns that outliers are multiplied with.
constexpr int64_t quant_scratch_floats(int64_t k, int64_t group) {
    return kMaxTileStrips * (k / group * 2 + Outliers::kMax) * kStripColumns;
}

// Rows of tile `index` when `rows` are shared out as evenly as possible over tiles of at most `max_rows`.
// A tile's shape never changes a bit of the result.
struct RowTiles {
    int64_t count, base, larger;  // the first `larger` tiles have base + 1 rows, the others base

    constexpr RowTiles(int64_t rows, int64_t max_rows)
        : count((rows + max_rows - 1) / max_rows), base(count ? rows / count : 0), larger(count ? rows % count : 0) {}
    constexpr int64_t size(int64_t index) const { return index < larger ? base + 1 : base; }
};

struct KernelTable {
    // `quantize` of kernels.h; `blocks` and `values` are those of the row.
    void (*quantize_blocks)(const float* x, int64_t begin, int64_t count, const Outliers& outliers, QuantBlock* blocks,
                            float* values);
    void (*gemm_quant)(const QuantGemm&);
    void (*gemm_float)(const FloatGemm&);
};

extern const KernelTable kPortableKernels;
#if defined(__x86_64__)
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx2VnniKernels;
extern const KernelTable kAvx512Kernels;
void gemm_bfloat16_dot_avx512(const FloatGemm&);  // AVX512_BF16; rounds activations to bf16
#elif defined(__aarch64__)
extern const KernelTable kNeonKernels;
#endif

// The table of active_isa().
const KernelTable& kernels();

}  // namespace pellucid
