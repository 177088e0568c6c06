// 128-bit vectors of AArch64 with Armv8.2's dot product of bytes. The simd headers define the same names.

#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace pellucid {
namespace {

using Float = float32x4_t;
using Int = int32x4_t;
constexpr int kLanes = 4;

inline Float load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, Float v) { vst1q_f32(p, v); }
inline Float load_first(const float* p, int count) {
    float lanes[kLanes] = {};
    for (int i = 0; i < count; ++i) lanes[i] = p[i];
    return load(lanes);
}
inline void store_first(float* p, Float v, int count) {
    float lanes[kLanes];
    store(lanes, v);
    for (int i = 0; i < count; ++i) p[i] = lanes[i];
}
inline Float spread(float v) { return vdupq_n_f32(v); }
inline Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
inline Float add(Float a, Float b) { return vaddq_f32(a, b); }
inline Float mul(Float a, Float b) { return vmulq_f32(a, b); }
// Like x86's, and unlike NEON's, max and min return b where the two cannot be compared.
inline Float max(Float a, Float b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline Float min(Float a, Float b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline Float abs(Float v) { return vabsq_f32(v); }
inline float max_of_lanes(Float v) { return vmaxvq_f32(v); }
inline Float to_float(Int v) { return vcvtq_f32_s32(v); }

inline Float widen_half(uint16x4_t v) { return vcvt_f32_f16(vreinterpret_f16_u16(v)); }
inline Float load_half(const uint16_t* p) { return widen_half(vld1_u16(p)); }
inline void store_half(uint16_t* p, Float v) {  // to nearest, ties to even
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
}

// Of each lane: the first or the second of two fp16, or the i-th of four int8.
inline Float first_half(Int v) { return widen_half(vmovn_u32(vreinterpretq_u32_s32(v))); }
inline Float second_half(Int v) { return widen_half(vshrn_n_u32(vreinterpretq_u32_s32(v), 16)); }
template <int i>
inline Float int8_of(Int v) {
    return to_float(vshrq_n_s32(vshlq_n_s32(v, 24 - 8 * i), 24));
}

// Four bytes, for all lanes: an instruction spreads them itself.
struct FourBytes {
    int8x8_t first;
};
inline FourBytes spread4(const int8_t* p) {
    uint32_t four;
    std::memcpy(&four, p, 4);
    return {vcreate_s8(four)};
}
inline Float load_int8(const int8_t* p) {
    return to_float(vmovl_s16(vget_low_s16(vmovl_s8(spread4(p).first))));
}

inline Int load_bytes(const void* p) { return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p))); }
inline Int spread(int32_t v) { return vdupq_n_s32(v); }
inline Int low_nibbles(Int v) { return vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(v), vdupq_n_u8(15))); }
inline Int high_nibbles(Int v) { return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(v), 4)); }
inline Int shift_right(Int v, int bits) {
    return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(v), vdupq_n_s32(-bits)));
}
template <int kBits>
inline Int low_bits(Int v) {
    return vandq_s32(v, vdupq_n_s32((1 << kBits) - 1));
}

// The instruction takes both factors as signed: fine for 4-bit w, while 8-bit w count as 128 less than they are, which
// gemm_quant.h makes good where a sum begins.
#define PELLUCID_DOT8BIT_OF_SIGNED
inline Int dot4bit(Int sum, Int w, FourBytes x) { return vdotq_lane_s32(sum, vreinterpretq_s8_s32(w), x.first, 0); }
inline Int dot8bit(Int sum, Int w, FourBytes x) {
    return dot4bit(sum, veorq_s32(w, vdupq_n_s32(static_cast<int32_t>(0x80808080))), x);
}

// v in lanes whose bit is set, 0 in the others.
inline Float where(uint32_t bits, Float v) {
    constexpr uint32_t kOwn[kLanes] = {1, 2, 4, 8};
    const uint32x4_t set = vtstq_u32(vdupq_n_u32(bits), vld1q_u32(kOwn));
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), set));
}
inline Int round_to_int(Float v) { return vcvtnq_s32_f32(v); }
inline int32_t sum_of_16(const int8_t* p) { return vaddlvq_s8(vld1q_s8(p)); }
inline void store_int8(int8_t* p, Int v) {
    const int16x4_t words = vqmovn_s32(v);
    const int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
    const int32_t four = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
    std::memcpy(p, &four, 4);
}
inline Int add(Int a, Int b) { return vaddq_s32(a, b); }
inline int32_t sum_of_lanes(Int v) { return vaddvq_s32(v); }

inline Float first_bfloat16(Int v) { return vreinterpretq_f32_s32(vshlq_n_s32(v, 16)); }
inline Float second_bfloat16(Int v) {
    return vreinterpretq_f32_s32(vandq_s32(v, vdupq_n_s32(static_cast<int32_t>(0xffff0000))));
}

// ---- what the ops beside the products need ----

inline Float sub(Float a, Float b) { return vsubq_f32(a, b); }
inline Float div(Float a, Float b) { return vdivq_f32(a, b); }
inline Float square_root(Float v) { return vsqrtq_f32(v); }
inline Float round(Float v) { return vrndnq_f32(v); }
// Each lane gets the one whose number differs from its own in the bit kDistance.
template <int kDistance>
inline Float exchange(Float v) {
    if constexpr (kDistance == 1) return vrev64q_f32(v);
    return vextq_f32(v, v, 2);
}
// |whole| is at most 126.
inline Float times_power_of_2(Float v, Float whole) {
    const Int biased = vaddq_s32(vcvtq_s32_f32(whole), vdupq_n_s32(127));
    return vmulq_f32(v, vreinterpretq_f32_s32(vshlq_n_s32(biased, 23)));
}
inline Float if_less(Float a, Float b, Float then, Float otherwise) {
    return vbslq_f32(vcltq_f32(a, b), then, otherwise);
}
inline Float with_sign_of(Float magnitude, Float sign) {
    return vbslq_f32(vdupq_n_u32(0x80000000), sign, magnitude);
}
// In the order of all other vectors, which is not that of vaddvq_f32.
inline float sum_of_lanes(Float v) { return vaddv_f32(vadd_f32(vget_low_f32(v), vget_high_f32(v))); }
// v in lanes [begin, end), `otherwise` in the others; any begin and end.
inline Float keep_lanes(Float v, int64_t begin, int64_t end, Float otherwise) {
    constexpr int32_t kLane[kLanes] = {0, 1, 2, 3};
    const auto clamped = [](int64_t x) { return vdupq_n_s32(static_cast<int32_t>(x < 0 ? 0 : x > 4 ? 4 : x)); };
    const Int lane = vld1q_s32(kLane);
    return vbslq_f32(vandq_u32(vcgeq_s32(lane, clamped(begin)), vcltq_s32(lane, clamped(end))), v, otherwise);
}
inline Float load_bfloat16(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(p)), 16));
}

}  // namespace
}  // namespace pellucid
