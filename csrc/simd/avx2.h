// 256-bit vectors: AVX2, FMA and F16C, with AVX-VNNI's dot product where the compiler is told that it is there.
// The simd headers define the same names.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace pellucid {
namespace {

using Float = __m256;
using Int = __m256i;
constexpr int kLanes = 8;

inline __m256i lane_mask(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Float load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
inline Float load_first(const float* p, int count) { return _mm256_maskload_ps(p, lane_mask(count)); }
inline void store_first(float* p, Float v, int count) { _mm256_maskstore_ps(p, lane_mask(count), v); }
inline Float spread(float v) { return _mm256_set1_ps(v); }
inline Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
inline Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
inline Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
inline Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
inline Float abs(Float v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
inline float max_of_lanes(Float v) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}
inline Float to_float(Int v) { return _mm256_cvtepi32_ps(v); }

inline Float load_half(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void store_half(uint16_t* p, Float v) {  // to nearest, ties to even
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline Float load_int8(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

// Of each lane: the first or the second of two fp16, or the i-th of four int8.
inline Float second_half(Int v) {
    const __m256i words = _mm256_packus_epi32(_mm256_srli_epi32(v, 16), _mm256_setzero_si256());
    return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(words, 0x08)));
}
inline Float first_half(Int v) { return second_half(_mm256_slli_epi32(v, 16)); }
template <int i>
inline Float int8_of(Int v) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * i), 24));
}

inline Int load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Int spread(int32_t v) { return _mm256_set1_epi32(v); }
inline Int spread4(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}
inline Int low_nibbles(Int v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
inline Int high_nibbles(Int v) { return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15)); }
inline Int shift_right(Int v, int bits) { return _mm256_srl_epi32(v, _mm_cvtsi32_si128(bits)); }
template <int kBits>
inline Int low_bits(Int v) {
    return _mm256_and_si256(v, _mm256_set1_epi32((1 << kBits) - 1));
}

#if defined(__AVXVNNI__)
inline Int dot4bit(Int sum, Int w, Int x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
inline Int dot8bit(Int sum, Int w, Int x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
#else
// maddubs adds two products in 16 bits, saturating: exact for 4-bit w (2 * 15 * 128 fits), not for 8-bit w,
// which therefore goes through it one nibble at a time.
inline Int dot4bit(Int sum, Int w, Int x) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
inline Int dot8bit(Int sum, Int w, Int x) {
    const Int high = _mm256_madd_epi16(_mm256_maddubs_epi16(high_nibbles(w), x), _mm256_set1_epi16(16));
    return _mm256_add_epi32(dot4bit(sum, low_nibbles(w), x), high);
}
#endif

// v in lanes whose bit is set, 0 in the others.
inline Float where(uint32_t bits, Float v) {
    const __m256i own = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), own);
    return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, own)));
}
inline Int round_to_int(Float v) { return _mm256_cvtps_epi32(v); }
inline int32_t sum_of_16(const int8_t* p) {
    // Differences to 0 are added up of unsigned bytes: each counts 128 more than it is.
    const __m128i bytes = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), _mm_set1_epi8(-128));
    const __m128i halves = _mm_sad_epu8(bytes, _mm_setzero_si128());
    return _mm_cvtsi128_si32(halves) + _mm_extract_epi16(halves, 4) - 16 * 128;
}
inline void store_int8(int8_t* p, Int v) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
inline Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
inline int32_t sum_of_lanes(Int v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 1)));
}

inline Float first_bfloat16(Int v) { return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)); }
inline Float second_bfloat16(Int v) {
    return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
}

// ---- what the ops beside the products need ----

inline Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
inline Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
inline Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
inline Float square_root(Float v) { return _mm256_sqrt_ps(v); }
inline Float round(Float v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// |whole| is at most 126.
// Each lane gets the one whose number differs from its own in the bit kDistance.
template <int kDistance>
inline Float exchange(Float v) {
    if constexpr (kDistance == 4) return _mm256_permute2f128_ps(v, v, 0x01);
    return _mm256_permute_ps(v, kDistance == 1 ? 0xb1 : 0x4e);
}
inline Float times_power_of_2(Float v, Float whole) {
    const Int biased = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    return _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)));
}
inline Float if_less(Float a, Float b, Float then, Float otherwise) {
    return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
inline Float with_sign_of(Float magnitude, Float sign) {
    return _mm256_or_ps(abs(magnitude), _mm256_and_ps(sign, _mm256_set1_ps(-0.0f)));
}
inline float sum_of_lanes(Float v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
// v in lanes [begin, end), `otherwise` in the others; any begin and end.
inline Float keep_lanes(Float v, int64_t begin, int64_t end, Float otherwise) {
    const auto clamped = [](int64_t x) { return static_cast<int>(x < 0 ? 0 : x > 8 ? 8 : x); };
    const __m256i kept = _mm256_andnot_si256(lane_mask(clamped(begin)), lane_mask(clamped(end)));
    return _mm256_blendv_ps(otherwise, v, _mm256_castsi256_ps(kept));
}
inline Float load_bfloat16(const uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

}  // namespace
}  // namespace pellucid
