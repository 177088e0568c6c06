// What attention over an int8 pool needs for dot products of int8. After simd/avx512.h, whose VNNI it uses.

#pragma once

namespace pellucid {
namespace {

// dot8bit in assembly: in loops with many sums GCC copies them around as if the instruction did not add in place.
inline void add_dot(Int& sum, Int unsigned_bytes, Int bytes) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(bytes));
}

inline Int flip_signs(Int bytes) { return _mm512_xor_si512(bytes, _mm512_set1_epi8(-128)); }

// Whole numbers from 0 to 65535 as 256 * high + low; both are unsigned.
inline void store_unsigned_high_and_low(uint8_t* high, uint8_t* low, Int v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(v));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(_mm512_srli_epi32(v, 8)));
}

// Up to 64 bytes; zeros behind them.
inline Int load_bytes_up_to(const void* p, int64_t count) {
    return count >= 64 ? load_bytes(p) : _mm512_maskz_loadu_epi8((uint64_t{1} << count) - 1, p);
}

// Four rows of 64 bytes become vectors whose lanes hold one byte of each row; 16 bytes of a row are the same four lanes of
// the four vectors.
inline void pair_four(const Int (&rows)[4], Int (&out)[4]) {
    const __m512i low_01 = _mm512_unpacklo_epi8(rows[0], rows[1]), high_01 = _mm512_unpackhi_epi8(rows[0], rows[1]);
    const __m512i low_23 = _mm512_unpacklo_epi8(rows[2], rows[3]), high_23 = _mm512_unpackhi_epi8(rows[2], rows[3]);
    out[0] = _mm512_unpacklo_epi16(low_01, low_23);
    out[1] = _mm512_unpackhi_epi16(low_01, low_23);
    out[2] = _mm512_unpacklo_epi16(high_01, high_23);
    out[3] = _mm512_unpackhi_epi16(high_01, high_23);
}
// Puts sums over what pair_four makes back in order: four vectors of 16 bytes of a row each.
inline void in_order(Float (&v)[4]) {
    const __m512 a = _mm512_shuffle_f32x4(v[0], v[1], 0x44), b = _mm512_shuffle_f32x4(v[2], v[3], 0x44);
    const __m512 c = _mm512_shuffle_f32x4(v[0], v[1], 0xee), d = _mm512_shuffle_f32x4(v[2], v[3], 0xee);
    v[0] = _mm512_shuffle_f32x4(a, b, 0x88);
    v[1] = _mm512_shuffle_f32x4(a, b, 0xdd);
    v[2] = _mm512_shuffle_f32x4(c, d, 0x88);
    v[3] = _mm512_shuffle_f32x4(c, d, 0xdd);
}

}  // namespace
}  // namespace pellucid

#define PELLUCID_INT8_DOTS
