// 256-bit vectors: AVX2, FMA and F16C, with AVX-VNNI's dot product where the compiler is told that it is there.
// See simd/README for the names all three files share.

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
inline Float load_int8(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
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

inline Int round_to_int(Float v) { return _mm256_cvtps_epi32(v); }
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

}  // namespace
}  // namespace pellucid
