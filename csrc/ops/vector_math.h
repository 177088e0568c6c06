// exp, tanh, erf on vectors, to about 2e-7 relative; erf absolute near +-1. Included after a simd header.
// The polynomials are least-squares fits on Chebyshev nodes, reweighted until the largest relative error levelled out.

#pragma once

#include "../op_table.h"

namespace pellucid {
namespace {

// c[0] + c[1] x + c[2] x^2 ...
template <int kCount>
inline Float polynomial(Float x, const float (&c)[kCount]) {
    Float sum = spread(c[kCount - 1]);
    for (int i = kCount - 2; i >= 0; --i) sum = fma(sum, x, spread(c[i]));
    return sum;
}

// 0 below -87, so that the weight of a masked score (-inf) is exactly 0; at most exp(88). NaN stays NaN, because max
// and min return their second argument where they cannot compare.
inline Float exp(Float x) {
    static constexpr float kPowers[] = {1.0f,          1.0f,           0.499999911f,  0.166664198f,
                                        0.0416682325f, 0.00837489869f, 0.00138367375f};
    const Float lowest = spread(-87.0f);
    const Float within = min(spread(88.0f), max(lowest, x));
    // x = whole * ln 2 + rest, with ln 2 in two parts: whole times the first one is exact.
    const Float whole = min(spread(126.0f), round(mul(within, spread(1.44269504f))));
    const Float rest = fma(whole, spread(2.12194440e-4f), fma(whole, spread(-0.693359375f), within));
    return if_less(x, lowest, spread(0.0f), times_power_of_2(polynomial(rest, kPowers), whole));
}

// The same for x <= 0, in fewer instructions: a softmax takes most of its time here. Its error grows with |x|, by 6e-8
// for each 1; so does that of a score.
inline Float exp_below_zero(Float x) {
    static constexpr float kPowersOf2[] = {1.0f,          0.693147004f,   0.240222424f,
                                           0.0555073358f, 0.00967151299f, 0.00132647261f};
    const Float lowest = spread(-87.0f);
    const Float power = mul(max(lowest, x), spread(1.44269504f)), whole = round(power);
    return if_less(x, lowest, spread(0.0f), times_power_of_2(polynomial(sub(power, whole), kPowersOf2), whole));
}

inline Float tanh(Float x) {
    static constexpr float kPowers[] = {1.0f,           -0.333332837f, 0.133316889f,
                                        -0.0537687019f, 0.0207536258f, -0.0058521647f};
    const Float size = abs(x);
    const Float near_zero = mul(x, polynomial(mul(x, x), kPowers));
    const Float e = exp(mul(min(spread(10.0f), size), spread(-2.0f)));
    const Float far = div(sub(spread(1.0f), e), add(spread(1.0f), e));
    return if_less(size, spread(0.6f), near_zero, with_sign_of(far, x));
}

inline Float erf(Float x) {
    static constexpr float kNearZero[] = {1.12837911f,    -0.37612626f,     0.112835854f,   -0.026853811f,
                                          0.00518832775f, -0.000801019254f, 7.85385782e-05f};
    // erfc(x) * exp(x^2) for 1 <= x <= 4, in powers of 1 / (x + 2)
    static constexpr float kTail[] = {0.00047091709f, 0.550678968f,  1.28733945f, 1.00886106f,
                                      5.85182619f,    -0.848585606f, -4.08428764f};
    const Float size = min(spread(4.0f), abs(x));
    const Float near_zero = mul(x, polynomial(mul(size, size), kNearZero));
    const Float tail = polynomial(div(spread(1.0f), add(size, spread(2.0f))), kTail);
    const Float far = sub(spread(1.0f), mul(tail, exp(mul(size, sub(spread(0.0f), size)))));
    return if_less(size, spread(1.0f), near_zero, with_sign_of(far, x));
}

// Calls f(offset, count) for each whole vector and for what is left.
template <class F>
inline void for_vectors(int64_t n, F f) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) f(i, kLanes);
    if (i < n) f(i, static_cast<int>(n - i));
}

// Loads that end with the row; lanes beyond it are 0.
inline Float load_up_to(const float* p, int count) { return count == kLanes ? load(p) : load_first(p, count); }
inline void store_up_to(float* p, Float v, int count) {
    if (count == kLanes) {
        store(p, v);
    } else {
        store_first(p, v, count);
    }
}

}  // namespace
}  // namespace pellucid
