// What peak.cpp measures on AArch64, apart for its compiler flags: 16 sums hide the latency of four multiply-adds per cycle.

#include <arm_neon.h>

#include "peak.h"

namespace pellucid {
namespace {

// The empty asm makes its operand look used and changed, so that nothing is left out.
#define PELLUCID_KEEP(v) __asm__ volatile("" : "+w"(v))

template <class Vector, class Factors, class Multiply>
inline int64_t multiply(int64_t rounds, Multiply multiply_add) {
    Vector sums[16] = {};
    Factors x = {};
    for (int64_t round = 0; round < rounds; ++round) {
        PELLUCID_KEEP(x);
#pragma GCC unroll 16
        for (Vector& sum : sums) {
            sum = multiply_add(sum, x);
            PELLUCID_KEEP(sum);
        }
    }
    return rounds * 16;
}

}  // namespace

int64_t multiply_int8_neon(int64_t rounds) {
    return 32 * multiply<int32x4_t, int8x16_t>(rounds, [](auto sum, auto x) { return vdotq_s32(sum, x, x); });
}

int64_t multiply_float_neon(int64_t rounds) {
    return 8 * multiply<float32x4_t, float32x4_t>(rounds, [](auto sum, auto x) { return vfmaq_f32(sum, x, x); });
}

}  // namespace pellucid
