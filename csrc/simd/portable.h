// 128-bit vectors in the compiler's own vector extension (GCC and Clang), which it turns into SSE2, NEON or whatever
// the target surely has. The simd headers define the same names.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace pellucid {
namespace {

typedef float Float __attribute__((vector_size(16)));
typedef int32_t Int __attribute__((vector_size(16)));
typedef uint32_t Unsigned __attribute__((vector_size(16)));
typedef int16_t Short __attribute__((vector_size(16)));
constexpr int kLanes = 4;

inline Float load(const float* p) {
    Float v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, Float v) { std::memcpy(p, &v, sizeof v); }
inline Float load_first(const float* p, int count) {
    Float v = {};
    for (int i = 0; i < count; ++i) v[i] = p[i];
    return v;
}
inline void store_first(float* p, Float v, int count) {
    for (int i = 0; i < count; ++i) p[i] = v[i];
}
inline Float spread(float v) { return Float{v, v, v, v}; }
// Two roundings: a fused one costs a library call where the hardware has none. This unit is compiled with
// -ffp-contract=off, so it is two everywhere.
inline Float fma(Float a, Float b, Float c) { return a * b + c; }
inline Float add(Float a, Float b) { return a + b; }
inline Float mul(Float a, Float b) { return a * b; }
inline Float max(Float a, Float b) {
    const Int larger = a > b;
    return reinterpret_cast<Float>((larger & reinterpret_cast<Int>(a)) | (~larger & reinterpret_cast<Int>(b)));
}
inline Float abs(Float v) { return reinterpret_cast<Float>(reinterpret_cast<Int>(v) & 0x7fffffff); }
inline float max_of_lanes(Float v) {
    const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
}
inline Float to_float(Int v) { return __builtin_convertvector(v, Float); }

inline float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t{half & 0x8000u} << 16, magnitude = half & 0x7fffu;
    // Shifted into place the exponent is 112 too small; a multiplication puts that right, for subnormals too.
    const uint32_t bits = magnitude << 13;
    float value;
    std::memcpy(&value, &bits, 4);
    value *= 0x1p112f;
    uint32_t result;
    std::memcpy(&result, &value, 4);
    if (magnitude >= 0x7c00u) result = (magnitude << 13) | 0x7f800000u;  // infinities and NaNs
    result |= sign;
    std::memcpy(&value, &result, 4);
    return value;
}
inline Float load_half(const uint16_t* p) {
    return Float{half_to_float(p[0]), half_to_float(p[1]), half_to_float(p[2]), half_to_float(p[3])};
}
// To nearest, ties to even. |value| is at most 65504, or NaN.
inline uint16_t float_to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    uint32_t half;
    if (magnitude < 0x38800000u) {  // below 2^-14 the last bit is worth 2^-24, as it is of floats from 0.5 to 1
        const float shifted = std::fabs(value) + 0.5f;
        std::memcpy(&half, &shifted, 4);
        half -= 0x3f000000u;
    } else {
        half = ((magnitude + 0xfffu + (magnitude >> 13 & 1)) >> 13) - (112u << 10);
    }
    return static_cast<uint16_t>(sign | half);
}
inline void store_half(uint16_t* p, Float v) {
    for (int i = 0; i < kLanes; ++i) p[i] = float_to_half(v[i]);
}
inline Float load_int8(const int8_t* p) {
    return Float{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
                 static_cast<float>(p[3])};
}

// Of each lane: the first or the second of two fp16, or the i-th of four int8.
inline Float first_half(Int v) {
    for (int i = 0; i < kLanes; ++i) v[i] &= 0xffff;
    Float wide;
    for (int i = 0; i < kLanes; ++i) wide[i] = half_to_float(static_cast<uint16_t>(v[i]));
    return wide;
}
inline Float second_half(Int v) { return first_half(v >> 16); }
template <int i>
inline Float int8_of(Int v) {
    return __builtin_convertvector((v << (24 - 8 * i)) >> 24, Float);
}

inline Int load_bytes(const void* p) {
    Int v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline Int spread(int32_t v) { return Int{v, v, v, v}; }
inline Int spread4(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return spread(four);
}
inline Int shift_right(Int v, int bits) {
    return reinterpret_cast<Int>(reinterpret_cast<Unsigned>(v) >> static_cast<uint32_t>(bits));
}
template <int kBits>
inline Int low_bits(Int v) {
    return v & ((1 << kBits) - 1);
}
inline Int low_nibbles(Int v) { return v & 0x0f0f0f0f; }
inline Int high_nibbles(Int v) { return shift_right(v, 4) & 0x0f0f0f0f; }

inline Int add_pairs(Int words) { return ((words << 16) >> 16) + (words >> 16); }
inline Int multiply_words(Int a, Int b) {
    return reinterpret_cast<Int>(reinterpret_cast<Short>(a) * reinterpret_cast<Short>(b));
}
// The products of an unsigned and a signed byte fit 16 bits: bytes 0 and 2 of each lane, then bytes 1 and 3.
// Bytes are told apart by value, not by address, so both byte orders are fine as long as w and x agree.
inline Int dot8bit(Int sum, Int w, Int x) {
    const Short even_x = reinterpret_cast<Short>(x << 8) >> 8, odd_x = reinterpret_cast<Short>(x) >> 8;
    const Int even_w = w & 0x00ff00ff, odd_w = shift_right(w, 8) & 0x00ff00ff;
    return sum + add_pairs(multiply_words(even_w, reinterpret_cast<Int>(even_x))) +
           add_pairs(multiply_words(odd_w, reinterpret_cast<Int>(odd_x)));
}
inline Int dot4bit(Int sum, Int w, Int x) { return dot8bit(sum, w, x); }

// v in lanes whose bit is set, 0 in the others.
inline Float where(uint32_t bits, Float v) {
    for (int i = 0; i < kLanes; ++i) v[i] = bits >> i & 1 ? v[i] : 0.0f;
    return v;
}
inline Int round_to_int(Float v) {
    Int r;
    for (int i = 0; i < kLanes; ++i) r[i] = static_cast<int32_t>(std::nearbyint(v[i]));
    return r;
}
inline int32_t sum_of_16(const int8_t* p) {
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += p[i];
    return sum;
}
inline void store_int8(int8_t* p, Int v) {
    for (int i = 0; i < kLanes; ++i) {
        const int32_t x = v[i];
        p[i] = static_cast<int8_t>(x < -128 ? -128 : x > 127 ? 127 : x);
    }
}
inline Int add(Int a, Int b) { return a + b; }
inline int32_t sum_of_lanes(Int v) { return v[0] + v[1] + v[2] + v[3]; }

inline Float first_bfloat16(Int v) { return reinterpret_cast<Float>(v << 16); }
inline Float second_bfloat16(Int v) { return reinterpret_cast<Float>(v & static_cast<int32_t>(0xffff0000)); }

// ---- what the ops beside the products need ----

inline Float sub(Float a, Float b) { return a - b; }
inline Float div(Float a, Float b) { return a / b; }
inline Float if_less(Float a, Float b, Float then, Float otherwise) {
    const Int less = a < b;
    return reinterpret_cast<Float>((less & reinterpret_cast<Int>(then)) | (~less & reinterpret_cast<Int>(otherwise)));
}
inline Float min(Float a, Float b) { return if_less(a, b, a, b); }
inline Float square_root(Float v) {
    for (int i = 0; i < kLanes; ++i) v[i] = __builtin_sqrtf(v[i]);
    return v;
}
// |v| is below 2^22: adding 1.5 * 2^23 leaves no bits for a fraction.
inline Float round(Float v) { return (v + 12582912.0f) - 12582912.0f; }
// |whole| is at most 126.
// Each lane gets the one whose number differs from its own in the bit kDistance.
template <int kDistance>
inline Float exchange(Float v) {
    return kDistance == 1 ? Float{v[1], v[0], v[3], v[2]} : Float{v[2], v[3], v[0], v[1]};
}
inline Float times_power_of_2(Float v, Float whole) {
    const Int biased = __builtin_convertvector(whole, Int) + 127;
    return v * reinterpret_cast<Float>(biased << 23);
}
inline Float with_sign_of(Float magnitude, Float sign) {
    const Int bit = reinterpret_cast<Int>(sign) & static_cast<int32_t>(0x80000000);
    return reinterpret_cast<Float>((reinterpret_cast<Int>(magnitude) & 0x7fffffff) | bit);
}
inline float sum_of_lanes(Float v) { return (v[0] + v[2]) + (v[1] + v[3]); }
// v in lanes [begin, end), `otherwise` in the others; any begin and end.
inline Float keep_lanes(Float v, int64_t begin, int64_t end, Float otherwise) {
    for (int i = 0; i < kLanes; ++i) v[i] = i >= begin && i < end ? v[i] : otherwise[i];
    return v;
}
inline Float load_bfloat16(const uint16_t* p) {
    const Int wide = {p[0], p[1], p[2], p[3]};
    return reinterpret_cast<Float>(wide << 16);
}

}  // namespace
}  // namespace pellucid
