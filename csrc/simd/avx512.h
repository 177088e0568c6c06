// 512-bit vectors: AVX-512 F, BW, VL, DQ and VNNI. See simd/README for the names all three files share.

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
inline Float load_int8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
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
inline Int dot4bit(Int sum, Int w, Int x) { return _mm512_dpbusd_epi32(sum, w, x); }
inline Int dot8bit(Int sum, Int w, Int x) { return _mm512_dpbusd_epi32(sum, w, x); }

inline Int round_to_int(Float v) { return _mm512_cvtps_epi32(v); }
inline void store_int8(int8_t* p, Int v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(v));
}
inline Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
inline int32_t sum_of_lanes(Int v) { return _mm512_reduce_add_epi32(v); }

// A line of bf16 pairs: the first or the second of each pair, as floats.
inline Float first_bfloat16(Int v) { return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)); }
inline Float second_bfloat16(Int v) {
    return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}

}  // namespace
}  // namespace pellucid
