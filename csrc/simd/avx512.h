// 512-bit vectors: AVX-512 F, BW, VL, DQ and VNNI. The simd headers define the same names.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace pellucid {
namespace {

using Float = __m512;
using Int = __m512i;
constexpr int kLanes = 16;

inline Float load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
inline Float load_first(const float* p, int count) { return _mm512_maskz_loadu_ps((1u << count) - 1, p); }
inline void store_first(float* p, Float v, int count) { _mm512_mask_storeu_ps(p, (1u << count) - 1, v); }
inline Float spread(float v) { return _mm512_set1_ps(v); }
inline Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
inline Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
inline Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
inline Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
inline Float abs(Float v) { return _mm512_abs_ps(v); }
inline float max_of_lanes(Float v) { return _mm512_reduce_max_ps(v); }
inline Float to_float(Int v) { return _mm512_cvtepi32_ps(v); }

inline Float load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store_half(uint16_t* p, Float v) {  // to nearest, ties to even
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, kNearest));
}
inline Float load_int8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

// Of each lane: the first or the second of two fp16, or the i-th of four int8.
inline Float first_half(Int v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)); }
inline Float second_half(Int v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16))); }
template <int i>
inline Float int8_of(Int v) {
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(v, 24 - 8 * i), 24));
}

inline Int load_bytes(const void* p) { return _mm512_loadu_si512(p); }
inline Int spread(int32_t v) { return _mm512_set1_epi32(v); }
inline Int spread4(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}
inline Int low_nibbles(Int v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline Int high_nibbles(Int v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)); }
inline Int shift_right(Int v, int bits) { return _mm512_srl_epi32(v, _mm_cvtsi32_si128(bits)); }
template <int kBits>
inline Int low_bits(Int v) {
    return _mm512_and_si512(v, _mm512_set1_epi32((1 << kBits) - 1));
}
inline Int dot4bit(Int sum, Int w, Int x) { return _mm512_dpbusd_epi32(sum, w, x); }
inline Int dot8bit(Int sum, Int w, Int x) { return _mm512_dpbusd_epi32(sum, w, x); }

// v in lanes whose bit is set, 0 in the others.
inline Float where(uint32_t bits, Float v) { return _mm512_maskz_mov_ps(static_cast<__mmask16>(bits), v); }
inline Int round_to_int(Float v) { return _mm512_cvtps_epi32(v); }
inline int32_t sum_of_16(const int8_t* p) {
    // Differences to 0 are added up of unsigned bytes: each counts 128 more than it is.
    const __m128i bytes = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), _mm_set1_epi8(-128));
    const __m128i halves = _mm_sad_epu8(bytes, _mm_setzero_si128());
    return _mm_cvtsi128_si32(halves) + _mm_extract_epi16(halves, 4) - 16 * 128;
}
inline void store_int8(int8_t* p, Int v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(v)); }
inline Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
inline int32_t sum_of_lanes(Int v) { return _mm512_reduce_add_epi32(v); }

// A line of bf16 pairs: the first or the second of each pair, as floats.
inline Float first_bfloat16(Int v) { return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)); }
inline Float second_bfloat16(Int v) {
    return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}

// ---- what the ops beside the products need ----

inline Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
inline Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
inline Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
inline Float square_root(Float v) { return _mm512_sqrt_ps(v); }
inline Float round(Float v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// Each lane gets the one whose number differs from its own in the bit kDistance.
template <int kDistance>
inline Float exchange(Float v) {
    if constexpr (kDistance == 1) return _mm512_permute_ps(v, 0xb1);
    if constexpr (kDistance == 2) return _mm512_permute_ps(v, 0x4e);
    return _mm512_shuffle_f32x4(v, v, kDistance == 4 ? 0xb1 : 0x4e);
}
inline Float times_power_of_2(Float v, Float whole) { return _mm512_scalef_ps(v, whole); }
inline Float if_less(Float a, Float b, Float then, Float otherwise) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), otherwise, then);
}
inline Float with_sign_of(Float magnitude, Float sign) {
    return _mm512_or_ps(_mm512_abs_ps(magnitude), _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
}
inline float sum_of_lanes(Float v) { return _mm512_reduce_add_ps(v); }
// v in lanes [begin, end), `otherwise` in the others; any begin and end.
inline Float keep_lanes(Float v, int64_t begin, int64_t end, Float otherwise) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const auto clamped = [](int64_t x) { return static_cast<int>(x < 0 ? 0 : x > 16 ? 16 : x); };
    const __mmask16 kept = _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(clamped(begin))) &
                           _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(clamped(end)));
    return _mm512_mask_blend_ps(kept, otherwise, v);
}
inline Float load_bfloat16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

}  // namespace
}  // namespace pellucid
