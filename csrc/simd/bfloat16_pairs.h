// Dot products of bf16 pairs, which AVX512_BF16 has: two multiplications where fp32 has one. After simd/avx512.h.

#pragma once

namespace pellucid {
namespace {

// What a lane adds up: the products of its two bf16 in `a` and `b`.
inline Float dot_pairs(Float sum, Int a, Int b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
// Keeps what was loaded in a register; GCC would load it for each use.
inline Int keep(Int v) {
    __asm__("" : "+v"(v));
    return v;
}
inline Int spread_pair(const uint16_t* p) { return spread4(reinterpret_cast<const int8_t*>(p)); }

// To nearest, ties to even. Returns the floats that were stored.
inline Float store_bfloat16(uint16_t* p, Float v) {
    const auto rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16));
}

// 32 bf16, or the first 16 of them and zeros.
inline Int load_bfloat16s(const void* p, bool all) {
    return all ? load_bytes(p) : _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// Pairs of one number each of `a` and `b`, in two vectors; in_order puts sums over such pairs back in order.
inline Int pair_low(Int a, Int b) { return _mm512_unpacklo_epi16(a, b); }
inline Int pair_high(Int a, Int b) { return _mm512_unpackhi_epi16(a, b); }
inline Float in_order_low(Float low, Float high) {
    const __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    return _mm512_permutex2var_ps(low, places, high);
}
inline Float in_order_high(Float low, Float high) {
    const __m512i places = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    return _mm512_permutex2var_ps(low, places, high);
}

}  // namespace
}  // namespace pellucid

#define PELLUCID_BFLOAT16_PAIRS
