// BFloat16 weights times activations rounded to bf16, with AVX512_BF16's dot product of pairs: twice the arithmetic of
// fp32. One element of y is sum = dot(pair of w, pair of x) + sum over the pairs of k in ascending order.
#include "simd/avx512.h"

namespace pellucid {
namespace {

constexpr int kFloatTileRows = 12, kFloatTileStrips = 2;

}  // namespace
}  // namespace pellucid

#include "ops/gemm_float.h"

namespace pellucid {
namespace {

struct BFloat16Pairs {
    static constexpr int kDepth = 2, kSteps = 1;
    static __m512bh weights(const std::byte* line, int) { return reinterpret_cast<__m512bh>(load_bytes(line)); }
    static __m512bh activations(const FloatGemm& call, int64_t row, int64_t line, int) {
        return reinterpret_cast<__m512bh>(
            spread4(reinterpret_cast<const int8_t*>(call.scratch + row * call.k + line * 2)));
    }
    static Float multiply_add(__m512bh w, __m512bh x, Float sum) { return _mm512_dpbf16_ps(sum, w, x); }
};

// Rows of x as bf16, rounded to nearest even.
void round_rows(const FloatGemm& call) {
    for (int64_t row = 0; row < call.rows; ++row) {
        const float* x = call.x + row * call.x_stride;
        uint16_t* out = call.scratch + row * call.k;
        for (int64_t i = 0; i < call.k; i += kLanes) {
            const int64_t left = call.k - i;
            const auto mask = static_cast<__mmask16>(left < kLanes ? (1u << left) - 1 : 0xffffu);
            const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + i));
            _mm256_mask_storeu_epi16(out + i, mask, reinterpret_cast<__m256i>(rounded));
        }
    }
}

}  // namespace

void gemm_bfloat16_dot_avx512(const FloatGemm& call) {
    round_rows(call);
    gemm_float_format<BFloat16Pairs>(call);
}

}  // namespace pellucid
