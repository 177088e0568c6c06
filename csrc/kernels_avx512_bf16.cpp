// BFloat16 weights times activations rounded to bf16, with AVX512_BF16's dot product of pairs: twice the arithmetic of
// fp32. One element of y is sum = dot(pair of w, pair of x) + sum over the pairs of k in ascending order.
#include "simd/avx512.h"

namespace pellucid {
namespace {

constexpr int kTileRows = 6, kTileStrips = 4;

}  // namespace
}  // namespace pellucid

#include "ops/store.h"

namespace pellucid {
namespace {

// Rows of x as bf16, rounded to nearest even. k is even.
void round_rows(const FloatGemm& call) {
    for (int64_t row = 0; row < call.rows; ++row) {
        const float* x = call.x + row * call.x_stride;
        uint16_t* out = call.scratch + row * call.k;
        for (int64_t i = 0; i < call.k; i += kLanes) {
            const int64_t left = call.k - i;
            const __mmask16 mask = left < kLanes ? static_cast<__mmask16>((1u << left) - 1) : __mmask16{0xffff};
            const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + i));
            _mm256_mask_storeu_epi16(out + i, mask, reinterpret_cast<__m256i>(rounded));
        }
    }
}

template <int kRows, int kStrips>
void dot_tile(const FloatGemm& call, const std::byte* strips, int64_t row, int64_t strip) {
    Float sum[kRows][kStrips];
    for (int r = 0; r < kRows; ++r)
        for (int s = 0; s < kStrips; ++s) sum[r][s] = spread(0.0f);

    const uint16_t* x = call.scratch + row * call.k;
    for (int64_t line = 0; line < call.k / 2; ++line) {
        __m512bh w[kStrips];
        for (int s = 0; s < kStrips; ++s)
            w[s] = reinterpret_cast<__m512bh>(load_bytes(strips + s * call.layout.bytes + line * kLine));
        for (int r = 0; r < kRows; ++r) {
            const Int pair = spread4(reinterpret_cast<const int8_t*>(x + r * call.k + line * 2));
            for (int s = 0; s < kStrips; ++s)
                sum[r][s] = _mm512_dpbf16_ps(sum[r][s], w[s], reinterpret_cast<__m512bh>(pair));
        }
    }
    store_tile<kRows, kStrips>(sum, call, row, strip);
}

template <int kRows, int kStrips>
void dispatch_dot_tile(int64_t rows, const FloatGemm& call, const std::byte* strips, int64_t row, int64_t strip) {
    if (rows == kRows) {
        dot_tile<kRows, kStrips>(call, strips, row, strip);
    } else if constexpr (kRows > 1) {
        dispatch_dot_tile<kRows - 1, kStrips>(rows, call, strips, row, strip);
    }
}

template <int kStrips>
void dot_strips_times_rows(const FloatGemm& call, int64_t strip) {
    const std::byte* strips = call.strips + strip * call.layout.bytes;
    const RowTiles tiles(call.rows, kTileRows);
    for (int64_t t = 0, row = 0; t < tiles.count; row += tiles.size(t), ++t)
        dispatch_dot_tile<kTileRows, kStrips>(tiles.size(t), call, strips, row, strip);
}

}  // namespace

void gemm_bfloat16_dot_avx512(const FloatGemm& call) {
    round_rows(call);
    int64_t strip = call.strip_begin;
    for (; strip + kTileStrips <= call.strip_end; strip += kTileStrips) dot_strips_times_rows<kTileStrips>(call, strip);
    for (; strip < call.strip_end; ++strip) dot_strips_times_rows<1>(call, strip);
}

}  // namespace pellucid
